"""Learning-rate schedules: warmup-stable-decay, and cosine as the alternative."""

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["wsd", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a step as a share of its peak, from 0 to 1.

    `wsd`: up in `warmup` steps, flat, then straight down over the last `decay_share` of the
    steps. `cosine`: the same warmup, then half a cosine from the peak to zero.
    """

    total: int
    warmup: int
    name: ScheduleName = "wsd"
    decay_share: float = 0.1

    @property
    def decay_start(self) -> int:
        return self.total - max(1, round(self.total * self.decay_share))

    def decaying(self, step: int) -> bool:
        return step >= self.decay_start

    def share(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.name == "cosine":
            progress = (step - self.warmup) / max(1, self.total - self.warmup)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        if not self.decaying(step):
            return 1.0
        return max(0.0, (self.total - step) / (self.total - self.decay_start))


def decay_from(step: int, warmup: int, decay_share: float = 0.1) -> Schedule:
    """The warmup-stable-decay schedule whose decay begins at `step`."""
    total = max(step + 1, round(step / (1.0 - decay_share)))
    return Schedule(total=total, warmup=warmup, decay_share=(total - step) / total)

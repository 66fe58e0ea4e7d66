"""Prompt modules: time to the first token, and memory per token.

    1  time to the first token of a prompt whose modules are there and whose question is new:
       256 / 512 / 900 cached + 32 new tokens of the embedded model, and with --shape 1.1b
       1024 / 3072 / 5120 cached + 64 new ones, against an ordinary prefix hit of that length
       (bar <= 1.15x) and against computing all of it cold
    3  MB per token: what the pool really takes for a token against 2 x L x H_kv x D x bytes, and
       that formula against the models of Prompt Cache's table 2

Four ways of having the modules: `independent`; `link`, its linked beginnings found again (the same
modules in the same order); `link` behind another text, which computes them anew; and an ordinary
prompt whose cached beginning has as many tokens. Sides take turns, every call asks something new, a
figure is the median of the ratios of the rounds. Time runs from the tokens of the parts to the
first token of the answer; what modules cost to tokenise is what a text costs.

Quality: modules_quality.py.

Usage: python bench/modules.py [--shape 1.1b] [--rounds N] [--quick]
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joined import ordinary, prompt, request, run
from report import Report, arguments
from rounds import interleaved

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import checkpoints

from kveik import LLM
from kveik.config import DEFAULT_MODEL_PATH
from kveik.engine.modules.joins import Join

LEAD = 3  # tokens that a template puts before the first content
BAR = 1.15


@dataclass(frozen=True)
class Case:
    """modules x length tokens are cached, fresh ones are new."""

    modules: int
    length: int
    fresh: int

    @property
    def cached(self) -> int:
        return self.modules * self.length


SMALL = (Case(2, 128, 32), Case(4, 128, 32), Case(4, 225, 32))
LARGE = (Case(4, 256, 64), Case(6, 512, 64), Case(8, 640, 64))

# Table 2 of Prompt Cache: layers, width of the keys (every head has its own), MB per token at fp16.
PUBLISHED = {
    "BERT": (12, 768, 0.03),
    "Falcon-1B": (24, 2048, 0.18),
    "Llama-7B": (32, 4096, 0.50),
    "Llama-13B": (40, 5120, 0.78),
    "MPT-30B": (48, 7168, 1.31),
    "Falcon-40B": (60, 8192, 1.87),
    "Llama-70B": (80, 8192, 2.5),
    "Falcon-180B": (80, 14848, 4.53),
}


class Prompts:
    """Modules of random tokens, and a new question for every call."""

    def __init__(self, llm: LLM, case: Case) -> None:
        self._llm, self._case = llm, case
        self._random = random.Random(f"{case}")
        self._new = itertools.count()
        self.lead = self._tokens(LEAD)
        self.modules = [self._tokens(case.length) for _ in range(case.modules)]

    def joined(self, how: Join, *, elsewhere: bool = False) -> None:
        """elsewhere: behind a text that nobody has seen, so that no recipe is there."""
        before = self._tokens(2) if elsewhere else ()
        question = self._tokens(self._case.fresh - len(before))
        layout = prompt(self.lead, self.modules, question, before)
        run(self._llm, request(layout, how, self._llm.engine.info.block_size))

    def plain(self) -> None:
        shared = [token for module in self.modules for token in module]
        run(self._llm, ordinary([*self.lead, *shared, *self._tokens(self._case.fresh)]))

    def cold(self) -> None:
        self._llm.engine.reset_cache()
        self.plain()

    def _tokens(self, count: int) -> list[int]:
        return self._random.choices(range(8, self._llm.engine.info.vocab_size), k=count)


def sides_of(prompts: Prompts) -> dict[str, Callable[[], None]]:
    return {
        "prefix": prompts.plain,
        "independent": lambda: prompts.joined("independent"),
        "link": lambda: prompts.joined("link"),
        "link behind another text": lambda: prompts.joined("link", elsewhere=True),
    }


def measure_case(report: Report, llm: LLM, name: str, case: Case, rounds: int) -> None:
    """Cold first: it empties the cache."""
    prompts = Prompts(llm, case)
    cold = interleaved({"cold": prompts.cold}, max(1, rounds // 3), shortest=0)["cold"]
    found = interleaved(sides_of(prompts), rounds)
    title = f"{name}, {case.cached} cached in {case.modules} modules + {case.fresh} new tokens"
    for way, bar in (("independent", BAR), ("link", BAR), ("link behind another text", None)):
        report.rounds(
            f"{title}: first token, {way} / prefix hit",
            _milliseconds(found[way]),
            _milliseconds(found["prefix"]),
            bar=bar,
            sense="<=",
        )
    report.ratio(
        f"{title}: first token, cold / independent",
        1e3 * statistics.median(cold),
        1e3 * statistics.median(found["independent"]),
        published="8x (GPU), 60x (CPU), about 5,000 tokens",
    )


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1e3 * one for one in seconds]


def measure_memory(report: Report, llm: LLM, name: str, config: dict[str, Any]) -> None:
    """What the engine reserves for a token against the formula. config: the model's."""
    info = llm.engine.info
    layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    size, width = config["head_dim"], {"bfloat16": 2, "float32": 4}[info.kv_dtype]
    formula = 2 * layers * heads * size * width
    taken = info.pool_bytes / info.pool_tokens
    report.ratio(
        f"{name}: bytes per cached token / 2 x {layers} x {heads} x {size} x {width}",
        taken,
        formula,
        bar=1.0,
        sense="<=",
    )


def published_table() -> str:
    lines = [
        "| 16 bit, every head its own keys | layers x width | published, MB | 2 x L x H x D x 2 |",
        "|---|---|---|---|",
    ]
    for name, (layers, width, published) in PUBLISHED.items():
        ours = token_bytes(layers, width)
        lines.append(
            f"| {name} | {layers} x {width} | {published:.2f} | {ours:,} bytes, "
            f"{ours / 2**20:.3f} MiB |"
        )
    return "\n".join(lines)


def token_bytes(layers: int, width: int) -> int:
    """Of a token whose keys and values are `width` wide, at 16 bits."""
    return 2 * layers * width * 2


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=sorted(checkpoints.SHAPES), help="random weights too")
    parser.add_argument("--rounds", type=int, help="default: 21; of a shape 7")
    options = parser.parse_args()
    report = Report("modules")
    with LLM(kv_memory="128MiB") as llm:
        rounds = options.rounds or (3 if options.quick else 21)
        for case in SMALL:
            measure_case(report, llm, "embedded model", case, rounds)
        config = json.loads((DEFAULT_MODEL_PATH / "config.json").read_text())
        measure_memory(report, llm, "embedded model", config)
    if options.shape:
        config = checkpoints.SHAPES[options.shape]
        with tempfile.TemporaryDirectory() as parent:
            folder = checkpoints.write(options.shape, Path(parent) / options.shape)
            with LLM(model=str(folder), kv_memory="1GiB", max_model_len=8192) as llm:
                name = f"{options.shape} shape"
                for case in LARGE:
                    measure_case(report, llm, name, case, options.rounds or 7)
                measure_memory(report, llm, name, config)
    report.text(published_table())
    report.finish()


if __name__ == "__main__":
    main()

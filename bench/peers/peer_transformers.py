"""transformers: `generate` with its own cache of one call, SDPA attention, bf16."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import protocol
from protocol import Answer, Setting

NAME = "transformers"
WIDTHS = ("bf16",)
PACKAGES = (("install", "torch==2.13.0"), ("install", "transformers==5.23.*", "torch==2.13.0"))


def environment(home: Path) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"}


class Transformers:
    reuses = False
    shares = False

    def __init__(self, setting: Setting) -> None:
        import torch
        import transformers

        torch.set_num_threads(setting.threads)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            setting.folder, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        self.model.generation_config.eos_token_id = None
        self.version = f"{transformers.__version__}, torch {torch.__version__}"

    def generate(
        self, prompts: Sequence[list[int]], new_tokens: int, *, logprobs: bool = False
    ) -> list[Answer]:
        torch = self.torch
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        times: list[float] = []

        def watch(sequences: Any, scores: Any, **_: Any) -> Any:
            times.append(time.monotonic())
            return torch.zeros(len(prompts), dtype=torch.bool)

        with torch.inference_mode():
            made = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[watch],
                return_dict_in_generate=True,
                output_logits=logprobs,
            )
        tokens = made.sequences[:, width:].tolist()
        answers = [Answer(one, list(times)) for one in tokens]
        for step in made.logits or () if logprobs else ():
            for answer, place in zip(answers, step.float().log_softmax(-1).max(-1)[0], strict=True):
                answer.logprobs.append(float(place))
        return answers

    def forget(self) -> None:
        pass  # nothing is kept between calls


def load(setting: Setting) -> Transformers:
    return Transformers(setting)


if __name__ == "__main__":
    protocol.main(load)

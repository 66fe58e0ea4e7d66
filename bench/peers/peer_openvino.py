"""OpenVINO GenAI: continuous batching with the prefix cache on, models exported by optimum-intel.

A second environment converts, so that what serves stays as small as a user's.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import protocol
from protocol import Answer, Setting

NAME = "OpenVINO GenAI"
WIDTHS = ("bf16", "int8", "int4")
PACKAGES = (("install", "openvino-genai==2026.4.*"),)
CONVERTER = (
    ("install", "torch==2.13.0"),
    ("install", "optimum-intel[openvino]", "openvino-genai==2026.4.*", "nncf", "torch==2.13.0"),
    ("uninstall", "--yes", "torchvision"),
)
QUANTISED = {
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--group-size", "128", "--ratio", "1.0"),
}


def environment(home: Path) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"}


def convert(source: Path, target: Path, width: str) -> None:
    task = "text-generation-with-past"
    if width == "bf16":
        from optimum.exporters.openvino import main_export
        from optimum.intel.openvino import OVConfig

        # the command has no word for "as it is": it makes int8 of 1B parameters and more
        config = OVConfig(dtype="bf16")
        main_export(str(source), target, task=task, ov_config=config, convert_tokenizer=True)
        return
    call = "from optimum.commands.optimum_cli import main; main()"
    command = [sys.executable, "-c", call, "export", "openvino", "--model", str(source)]
    subprocess.run([*command, "--task", task, *QUANTISED[width], str(target)], check=True)


class OpenVino:
    reuses = True
    shares = True

    def __init__(self, setting: Setting) -> None:
        import openvino
        import openvino_genai

        self.genai = openvino_genai
        self.tensor = openvino.Tensor
        self.setting = setting
        self.version = openvino_genai.__version__
        self.numbers = itertools.count()
        self.forget()

    def forget(self) -> None:
        """There is no call for it: a new pipeline."""
        scheduler = self.genai.SchedulerConfig()
        scheduler.cache_size = max(1, self.setting.kv_bytes >> 30)
        scheduler.max_num_seqs = self.setting.sequences
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": self.setting.threads, "PERFORMANCE_HINT": "LATENCY"}
        self.pipeline = None
        self.pipeline = self.genai.ContinuousBatchingPipeline(
            self.setting.folder, scheduler, "CPU", properties
        )

    def generate(
        self, prompts: Sequence[list[int]], new_tokens: int, *, logprobs: bool = False
    ) -> list[Answer]:
        import numpy

        config = self.genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.min_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.logprobs = 1 if logprobs else 0
        answers, handles = [Answer() for _ in prompts], []
        for ids in prompts:
            tensor = self.tensor(numpy.array([ids], dtype=numpy.int64))
            handles.append(self.pipeline.add_request(next(self.numbers), tensor, config))
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.monotonic()
            for answer, handle in zip(answers, handles, strict=True):
                while handle.can_read():
                    (output,) = handle.read().values()
                    answer.tokens.extend(output.generated_ids)
                    answer.times.extend([now] * len(output.generated_ids))
                    answer.logprobs.extend(output.generated_log_probs if logprobs else ())
        return answers


def load(setting: Setting) -> OpenVino:
    return OpenVino(setting)


if __name__ == "__main__":
    protocol.main(load, convert)

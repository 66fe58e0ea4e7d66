"""llama.cpp through llama-cpp-python, built from source for this CPU.

Its low-level calls are used, as llama-server does: several sequences in one batch, a prefix that
prompts have in common computed once, and what the first sequence holds kept for the next prompt.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import protocol
from protocol import Answer, Setting

NAME = "llama.cpp"
WIDTHS = ("bf16", "int8", "int4")
PACKAGES = (("install", "--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36", "gguf"),)
# Without these flags gcc drops stores to the tile configuration that this release gives to the CPU,
# and quantised weights end in an illegal instruction on a CPU with AMX.
BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'"}
QUANTISED = {"int8": "LLAMA_FTYPE_MOSTLY_Q8_0", "int4": "LLAMA_FTYPE_MOSTLY_Q4_0"}
BATCH = 512  # tokens of one llama_decode
FILE = "model.gguf"


def environment(home: Path) -> dict[str, str]:
    return {}


def convert(source: Path, target: Path, width: str) -> None:
    """GGUF of the folder's bf16 weights; int8 and int4: what llama-quantize makes of it."""
    import llama_cpp

    target.mkdir(parents=True, exist_ok=True)
    if width == "bf16":
        _write_gguf(source, target / FILE)
        return
    plain = target / "plain.gguf"
    _write_gguf(source, plain)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, QUANTISED[width])
    failed = llama_cpp.llama_model_quantize(
        str(plain).encode(), str(target / FILE).encode(), ctypes.byref(params)
    )
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")
    plain.unlink()


def _write_gguf(source: Path, path: Path) -> None:
    import gguf
    import numpy

    config = json.loads((source / "config.json").read_text())
    llama = config["model_type"] == "llama"
    writer = gguf.GGUFWriter(path, "llama" if llama else config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    architecture = gguf.MODEL_ARCH.LLAMA if llama else gguf.MODEL_ARCH.QWEN2
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, bits in _tensors(source / "model.safetensors"):
        if llama and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            pairs = bits.reshape(heads, 2, -1, bits.shape[1])  # halves to pairs: GGUF's rope order
            bits = numpy.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(bits.shape)
        stem, _, kind = name.rpartition(".")
        new = f"{names.get_name(stem)}.{kind}"
        if bits.ndim == 1:
            writer.add_tensor(new, (bits.astype(numpy.uint32) << 16).view(numpy.float32))
        else:
            as_bytes = bits.view(numpy.uint8)
            writer.add_tensor(new, as_bytes, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(path: Path) -> Any:
    """(name, uint16 bits) of each tensor of a bf16 safetensors file."""
    import numpy

    data = numpy.memmap(path, numpy.uint8, "r")
    end = 8 + int.from_bytes(bytes(data[:8]), "little")
    for name, entry in json.loads(bytes(data[8:end])).items():
        if name != "__metadata__":
            begin, stop = entry["data_offsets"]
            yield name, data[end + begin : end + stop].view(numpy.uint16).reshape(entry["shape"])


class LlamaCpp:
    reuses = True
    shares = True

    def __init__(self, setting: Setting) -> None:
        import llama_cpp

        self.api = llama_cpp
        model = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(
            str(Path(setting.folder) / FILE).encode(), model
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(24_576, setting.max_tokens)
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = setting.sequences
        params.n_threads = params.n_threads_batch = setting.threads
        params.kv_unified = True  # as llama-server has it: sequences may share a prefix
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            raise RuntimeError("llama.cpp could not load the model; its log says why")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = setting.vocabulary
        self.kept: list[int] = []  # tokens whose keys and values sequence 0 holds
        self.version = llama_cpp.__version__

    def forget(self) -> None:
        self.api.llama_memory_clear(self.memory, True)
        self.kept = []

    def generate(
        self, prompts: Sequence[list[int]], new_tokens: int, *, logprobs: bool = False
    ) -> list[Answer]:
        answers = [Answer() for _ in prompts]
        common = self._prepare(prompts)
        rows = [
            (token, position, number, position == len(ids) - 1)
            for number, ids in enumerate(prompts)
            for position, token in enumerate(ids)
            if position >= common
        ]
        while True:
            self._compute(rows, answers, logprobs)
            if len(answers[0].tokens) == new_tokens:
                break
            rows = [
                (answer.tokens[-1], len(ids) + len(answer.tokens) - 1, number, True)
                for number, (ids, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
        self.kept = [*prompts[0], *answers[0].tokens[:-1]]
        return answers

    def _prepare(self, prompts: Sequence[list[int]]) -> int:
        """Leaves in every sequence the keys and values of the tokens that all prompts begin with;
        their number, at most one less than the shortest prompt."""
        common = min(map(len, prompts)) - 1
        for ids in prompts[1:]:
            common = min(common, _equal(prompts[0], ids))
        held = min(common, _equal(self.kept, prompts[0]))
        for number in range(1, len(prompts)):
            self.api.llama_memory_seq_rm(self.memory, number, -1, -1)
        self.api.llama_memory_seq_rm(self.memory, 0, held, -1)
        head = prompts[0][held:common]
        self._compute([(token, held + i, 0, False) for i, token in enumerate(head)], [], False)
        for number in range(1, len(prompts)):
            self.api.llama_memory_seq_cp(self.memory, 0, number, 0, common)
        return common

    def _compute(
        self, rows: list[tuple[int, int, int, bool]], answers: list[Answer], logprobs: bool
    ) -> None:
        """rows: token, position, sequence, whether its logits choose the next token."""
        import numpy

        for begin in range(0, len(rows), BATCH):
            part = rows[begin : begin + BATCH]
            self.batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = token, position
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
                self.batch.logits[i] = wanted
            if failed := self.api.llama_decode(self.context, self.batch):
                raise RuntimeError(f"llama_decode returned {failed}")
            for i, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    logits = self.api.llama_get_logits_ith(self.context, i)
                    values = numpy.ctypeslib.as_array(logits, (self.vocabulary,))
                    answer, token = answers[sequence], int(values.argmax())
                    answer.tokens.append(token)
                    answer.times.append(time.monotonic())
                    answer.logprobs.extend([float(values[token])] * logprobs)


def _equal(one: list[int], other: list[int]) -> int:
    """Length of the common prefix."""
    for length, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return length
    return min(len(one), len(other))


def load(setting: Setting) -> LlamaCpp:
    return LlamaCpp(setting)


if __name__ == "__main__":
    protocol.main(load, convert)

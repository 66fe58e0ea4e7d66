"""Strict reading of safetensors: every tensor that the network needs, and none besides.

The header is parsed here rather than by the safetensors package so that each fault is one message
that names file and tensor, and so that declared sizes meet the real file size before anything is
allocated. Nothing in the folder is executed; pickled weights (.bin, .pt) are refused. Format:
8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kveik.errors import ModelLoadError
from kveik.models.fields import read_json

_MAX_HEADER_BYTES = 100_000_000
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth")

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What quantised weights are stored in.
_INTEGERS: Mapping[str, np.dtype[Any]] = {
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
# Sizes of what may stand beside the weights (masks, counters); never read.
_OTHER_SIZES: Mapping[str, int] = {"BOOL": 1, "U8": 1, "I16": 2}

_HASH_EVERYTHING_BYTES = 64 * 1024 * 1024
_SAMPLES, _SAMPLE_BYTES = 256, 16 * 1024


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: `file`, bytes start .. end of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Checkpoint:
    """The tensors of a folder. `check` first, then `take` one by one."""

    def __init__(self, entries: Mapping[str, TensorEntry], files: Sequence[Path]) -> None:
        self._entries = entries
        self._files = files
        self._maps: dict[Path, np.memmap[Any, np.dtype[np.uint8]]] = {}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read every header of the folder; no weights yet. ModelLoadError names file and tensor."""
        files = _weight_files(folder)
        entries: dict[str, TensorEntry] = {}
        for file in files:
            for name, entry in _read_header(file):
                if name in entries:
                    raise ModelLoadError(
                        f"{file}: tensor {name} is also in {entries[name].file.name}; "
                        "each tensor may be in one file only"
                    )
                entries[name] = entry
        if files != (folder / _SINGLE,) and (folder / _INDEX).is_file():
            _check_index(folder / _INDEX, entries)
        return cls(entries, files)

    def without_prefix(self, prefix: str) -> Checkpoint:
        """The same tensors under shorter names: base models are saved with and without it."""
        entries: dict[str, TensorEntry] = {}
        for name, entry in self._entries.items():
            short = name.removeprefix(prefix)
            if short in entries:
                raise ModelLoadError(
                    f"{entry.file}: tensor {short} is present with and without the prefix {prefix}"
                )
            entries[short] = entry
        return Checkpoint(entries, self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._entries[name].file

    def check(
        self,
        expected: Mapping[str, tuple[int, ...]],
        ignored: Sequence[str] = (),
        dtypes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Exactly the `expected` names and shapes; `ignored` are endings of harmless extras.
        dtypes: of tensors that may be of others than the float ones."""
        missing = [name for name in expected if name not in self._entries]
        if missing:
            raise ModelLoadError(
                f"{self._place()}: missing {_some('tensor', missing)}; the checkpoint is "
                "incomplete or config.json belongs to another one; download both again"
            )
        for name, entry in self._entries.items():
            if name in expected:
                _check_tensor(name, entry, expected[name], (dtypes or {}).get(name, tuple(_DTYPES)))
        extra = [name for name in self._entries if name not in expected]
        unexpected = [name for name in extra if not name.endswith(tuple(ignored))]
        if unexpected:
            raise ModelLoadError(
                f"{self._entries[unexpected[0]].file}: unexpected {_some('tensor', unexpected)}; "
                "config.json does not describe these weights (a wrong model_type or flag, an "
                "adapter, quantised without a quantization_config that says so)"
            )

    def take(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A tensor in its stored dtype: a read-only view of the file, a copy only where the file
        has it at an odd address."""
        entry = self._entries[name]
        stored = _DTYPES.get(entry.dtype) or _INTEGERS[entry.dtype]
        count = math.prod(entry.shape)
        data = np.frombuffer(self._map(entry.file), dtype=stored, count=count, offset=entry.start)
        return (data if data.flags.aligned else data.copy()).reshape(entry.shape)

    def digest(self) -> bytes:
        """32 bytes that change with the weights.

        All bytes up to 64 MiB in total. Beyond, reading everything would cost the start seconds:
        per file its size, modification time and header and 256 samples of 16 KiB spread evenly,
        so a file that was edited in place with its time restored may go unnoticed.
        """
        state = blake2b(digest_size=32)
        whole = sum(file.stat().st_size for file in self._files) <= _HASH_EVERYTHING_BYTES
        for file in self._files:
            data, stat = self._map(file), file.stat()
            state.update(os.fsencode(file.name) + f"\0{stat.st_size}\0".encode())
            if whole:
                state.update(data.data)
                continue
            state.update(f"{stat.st_mtime_ns}\0".encode())
            state.update(data[: 8 + int.from_bytes(bytes(data[:8]), "little")].data)
            for index in range(_SAMPLES):
                offset = index * (stat.st_size - _SAMPLE_BYTES) // (_SAMPLES - 1)
                state.update(data[max(offset, 0) : max(offset, 0) + _SAMPLE_BYTES].data)
        return state.digest()

    def _map(self, file: Path) -> np.memmap[Any, np.dtype[np.uint8]]:
        if file not in self._maps:
            self._maps[file] = np.memmap(file, dtype=np.uint8, mode="r")
        return self._maps[file]

    def _place(self) -> str:
        return str(self._files[0] if len(self._files) == 1 else self._files[0].parent)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The single file, else the shards of the index (the order of transformers), else any one."""
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    if (folder / _INDEX).is_file():
        return _shards(folder / _INDEX)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return (files[0],)
    if files:
        raise ModelLoadError(
            f"{folder}: {len(files)} .safetensors files but no {_INDEX} that names them; "
            "download the index too"
        )
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    if pickled:
        raise ModelLoadError(
            f"{folder / pickled[0]}: pickled weights can run code and are never read; convert the "
            "checkpoint to safetensors (save_pretrained of transformers does)"
        )
    raise ModelLoadError(f"{folder}: no {_SINGLE} found; the weights are missing (or only pickled)")


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelLoadError(f"{index}: {name!r} is not the name of a .safetensors file here")
        if not (index.parent / name).is_file():
            raise ModelLoadError(f"{index}: names {name}, which is absent; download it")
    return tuple(index.parent / name for name in names)


def _weight_map(index: Path) -> dict[str, str]:
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ModelLoadError(f"{index}: weight_map is missing or empty; download the index again")
    return {str(name): str(shard) for name, shard in weights.items()}


def _check_index(index: Path, entries: Mapping[str, TensorEntry]) -> None:
    for name, shard in _weight_map(index).items():
        if name not in entries or entries[name].file.name != shard:
            raise ModelLoadError(
                f"{index}: says that {shard} holds tensor {name}, but it does not; "
                "download index and shards again"
            )


def _read_header(file: Path) -> Iterator[tuple[str, TensorEntry]]:
    """The entries of one file, each proved to lie inside it and apart from the others."""
    raw, size = _header_bytes(file)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file}: the header is not valid ({error})") from error
    if not isinstance(header, dict):
        raise ModelLoadError(f"{file}: the header is not a JSON object")
    header.pop("__metadata__", None)
    base = 8 + len(raw)  # where the data begins
    entries = [(name, _entry(file, name, value, base)) for name, value in header.items()]
    _check_extents(file, entries, base, size)
    return iter(entries)


def _header_bytes(file: Path) -> tuple[bytes, int]:
    """(header, size of the file); the length is checked before it is read."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ModelLoadError(
                    f"{file}: a header of {length} bytes exceeds the limit of "
                    f"{_MAX_HEADER_BYTES}; not safetensors, or damaged: download it again"
                )
            if size < 8 or length > size - 8:
                raise ModelLoadError(
                    f"{file}: the header should be {length} bytes long but the file has {size}; "
                    "truncated or not safetensors: download it again"
                )
            return stream.read(length), size
    except OSError as error:
        raise ModelLoadError(f"{file}: cannot be read ({error.strerror or error})") from error


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} appears twice")
    return values


def _entry(file: Path, name: str, value: object, base: int) -> TensorEntry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            if all(type(number) is int and number >= 0 for number in (*shape, start, end)):
                return TensorEntry(file, dtype, tuple(shape), base + start, base + end)
    raise ModelLoadError(
        f"{file}: tensor {name}: expected dtype, shape and data_offsets in the header"
    )


def _check_extents(
    file: Path, entries: Sequence[tuple[str, TensorEntry]], base: int, size: int
) -> None:
    """Tensors follow each other without gap or overlap from `base` to the end of the file."""
    position = base
    for name, entry in sorted(entries, key=lambda item: (item[1].start, item[1].end)):
        itemsize = _itemsize(file, name, entry.dtype)
        if entry.end - entry.start != math.prod(entry.shape) * itemsize:
            raise ModelLoadError(
                f"{file}: tensor {name}: {entry.end - entry.start} bytes do not hold "
                f"{entry.dtype} {list(entry.shape)}"
            )
        if entry.end > size:
            raise ModelLoadError(
                f"{file}: tensor {name} ends at byte {entry.end} but the file has {size}; "
                "truncated: download it again"
            )
        if entry.start != position:
            raise ModelLoadError(
                f"{file}: tensor {name} starts at byte {entry.start}, expected {position} "
                "(gap or overlap); download it again"
            )
        position = entry.end
    if position != size:
        raise ModelLoadError(f"{file}: {size - position} bytes follow the last tensor")


def _itemsize(file: Path, name: str, dtype: str) -> int:
    for known in (_DTYPES, _INTEGERS):
        if dtype in known:
            return known[dtype].itemsize
    if dtype in _OTHER_SIZES:
        return _OTHER_SIZES[dtype]
    raise ModelLoadError(
        f"{file}: tensor {name}: dtype {dtype} is not supported; supported: {', '.join(_DTYPES)}"
    )


def _check_tensor(
    name: str, entry: TensorEntry, shape: tuple[int, ...], dtypes: Sequence[str]
) -> None:
    if entry.shape != shape:
        raise ModelLoadError(
            f"{entry.file}: tensor {name} has shape {list(entry.shape)}, config.json asks for "
            f"{list(shape)}; they do not belong together"
        )
    if entry.dtype not in dtypes:
        raise ModelLoadError(
            f"{entry.file}: tensor {name}: dtype {entry.dtype} is not supported for weights; "
            f"supported: {', '.join(dtypes)}"
        )


def _some(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}{more}"

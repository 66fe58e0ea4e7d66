"""Packed weights on disk, so that only the first start packs (and quantises) them.

One file per checkpoint and way of packing, beside the model or, where that folder cannot be
written, in `~/.cache/kveik`. It is named after a key of the weights' digest, their dtype and the
version of the packing, and holds that key: a file of another model is foreign. Layout,
little-endian:

    magic (8) | key (32) | parts of matrices, each at a multiple of 4096 | footer | trailer
    footer:  JSON {name: {"sizes": [...], "offsets": [...], "sums": [...]}}
    trailer: length of the footer (8) | blake2b of the footer (16) | magic (8)

It is written beside its final name, synced and renamed, so that a reader finds a whole file or
none, and of two writers the last one wins. Matrices are used where they lie: the file is mapped,
so a start takes no memory of its own for them and processes share them. All sums are checked
before any matrix is used; whatever is wrong with a file, it is ignored with one line in the log
and written anew. A disk is never filled: the last GiB of it is left free.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from kveik.kernels.ops import PackedForm, Weight

_log = logging.getLogger(__name__)

MAGIC = b"kveikW1\n"
_ALIGNMENT = 4096
_HUGE = 1 << 21
"""Bytes written at once, and at a multiple of it: the system then keeps them in one huge page, and
decoding reads them some percent faster than from small ones."""
_HEADER = len(MAGIC) + 32
_TRAILER = 8 + 16 + len(MAGIC)
_LONGEST_FOOTER = 1 << 26
_ABANDONED_SECONDS = 3600
SMALLEST = 100_000_000
"""Numbers of a checkpoint; smaller ones are packed at every start, in a fraction of a second."""
LEFT_FREE = 1 << 30
"""Bytes of a disk."""
WRITER = "kveik-weights"
"""The thread that writes a file."""


def user_folder() -> Path:
    """RuntimeError for a user without a home."""
    return Path.home() / ".cache" / "kveik"


@dataclass(frozen=True, slots=True)
class _Matrix:
    """What goes into the file; `parts` are views of the packed weight."""

    name: str
    sizes: Sequence[int]
    parts: Sequence[Any]
    sums: Sequence[int]


class WeightCache:
    """The matrices of one checkpoint, restored or to be kept. `restore` first, then `take` and
    `keep` by name in any order, `finish` or `abandon` last."""

    def __init__(self, folder: Path, digest: bytes, form: PackedForm) -> None:
        self._form = form
        self._key = blake2b(digest + form.version.encode(), digest_size=32).digest()
        self._folders = _folders(folder)
        self._restored: dict[str, Weight] | None = None
        self._kept: list[_Matrix] = []

    @property
    def name(self) -> str:
        return f"kveik-{self._form.version}-{self._key.hex()[:16]}.packed"

    def restore(self, done: Callable[[str], None]) -> bool:
        """Reads the file, if there is one that is whole; done(name): after each matrix. Otherwise
        what is kept from now on is written to a new one."""
        for folder in self._folders:
            path = folder / self.name
            try:
                self._restored = _read(path, self._key, self._form, done)
                return True
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError, RuntimeError) as error:
                _log.warning("%s: ignored and written anew: %s", path, error)
        return False

    def take(self, name: str) -> Weight | None:
        return None if self._restored is None else self._restored.pop(name, None)

    def keep(self, name: str, weight: Weight) -> None:
        """A packed matrix that was not restored."""
        if self._restored is None:
            sizes, parts = self._form.parts(weight)
            sums = [self._form.checksum(part) for part in parts]
            self._kept.append(_Matrix(name, sizes, parts, sums))

    def finish(self) -> None:
        """Begins to write what was kept, on a thread of its own: nobody waits for the disk. Python
        ends after it. Where writing fails: one line in the log and no file."""
        if self._kept:
            threading.Thread(target=self._write, name=WRITER).start()

    def abandon(self) -> None:
        self._kept.clear()

    def _write(self) -> None:
        writer = self._open()
        if writer is None:
            return
        try:
            for matrix in self._kept:
                writer.add(matrix)
            writer.finish()
        except OSError as error:
            writer.abandon()
            reason = error.strerror or error
            _log.warning("%s: packed weights are not kept: %s", writer.path, reason)
        else:
            _log.info("%s: packed weights kept for the next start", writer.path)
            self._remove_outdated(writer.path)
        finally:
            self._kept.clear()

    def _remove_outdated(self, path: Path) -> None:
        """Beside the model, what was made of other contents of it by this number of bits."""
        if path.parent != self._folders[0]:
            return
        bits = self._form.version.partition("-")[0]
        for other in path.parent.glob(f"kveik-{bits}-*.packed"):
            if other != path:
                with contextlib.suppress(OSError):
                    other.unlink()

    def _open(self) -> _Writer | None:
        problems = []
        for folder in self._folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                return _Writer(folder / self.name, self._key)
            except OSError as error:
                problems.append(f"{folder}: {error.strerror or error}")
        _log.warning("packed weights are not kept: %s", "; ".join(problems))
        return None


def _folders(model: Path) -> tuple[Path, ...]:
    try:
        return model, user_folder()
    except RuntimeError:
        return (model,)


# ---- reading -----------------------------------------------------------------------------------


def _read(
    path: Path, key: bytes, form: PackedForm, done: Callable[[str], None]
) -> dict[str, Weight]:
    """ValueError says what is wrong with the file."""
    with path.open("rb") as stream:
        restored = {}
        for name, entry in _entries(stream, key).items():
            match entry:
                case {"sizes": list(sizes), "offsets": list(offsets), "sums": list(sums)}:
                    weight, found = form.read(stream.fileno(), sizes, offsets)
                case _:
                    raise ValueError(f"the entry of {name} is not valid")
            if found != sums:
                raise ValueError(f"damaged: the bytes of {name} are not those that were written")
            restored[name] = weight
            done(name)
        return restored


def _entries(stream: BinaryIO, key: bytes) -> Mapping[str, Any]:
    size = os.fstat(stream.fileno()).st_size
    if size < _HEADER + _TRAILER:
        raise ValueError(f"truncated: {size} bytes")
    header = stream.read(_HEADER)
    if header != MAGIC + key:
        raise ValueError("foreign: it belongs to other weights or another version")
    stream.seek(size - _TRAILER)
    trailer = stream.read(_TRAILER)
    length = int.from_bytes(trailer[:8], "little")
    if trailer[24:] != MAGIC or length > min(_LONGEST_FOOTER, size - _HEADER - _TRAILER):
        raise ValueError("truncated: its end is not that of a whole file")
    stream.seek(size - _TRAILER - length)
    footer = stream.read(length)
    if _digest(footer) != trailer[8:24]:
        raise ValueError("damaged: its table of contents is not the one that was written")
    entries = json.loads(footer)
    if not isinstance(entries, dict):
        raise ValueError("its table of contents is not a JSON object")
    return entries


def _digest(footer: bytes) -> bytes:
    return blake2b(footer, digest_size=16).digest()


# ---- writing -----------------------------------------------------------------------------------


class _Writer:
    """A file that appears under `path` when it is finished. OSError wherever the disk fails."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        _remove_left_over(path)
        self._partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
        self._entries: dict[str, dict[str, Sequence[int]]] = {}
        self._stream = self._partial.open("xb")
        self._position = 0
        self._pending = bytearray()  # less than a huge page, not written yet
        self._write(MAGIC + key)

    def add(self, matrix: _Matrix) -> None:
        offsets = []
        size = sum(memoryview(part).nbytes for part in matrix.parts)
        if shutil.disk_usage(self.path.parent).free < size + LEFT_FREE:
            raise OSError(errno.ENOSPC, "less than a GiB of the disk would be left free")
        for part in matrix.parts:
            self._write(bytes(-self._position % _ALIGNMENT))
            offsets.append(self._position)
            self._write(memoryview(part))
        self._entries[matrix.name] = {
            "sizes": list(matrix.sizes),
            "offsets": offsets,
            "sums": list(matrix.sums),
        }

    def finish(self) -> None:
        footer = json.dumps(self._entries).encode()
        self._write(footer)
        self._write(len(footer).to_bytes(8, "little") + _digest(footer) + MAGIC)
        self._stream.write(self._pending)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._partial.replace(self.path)

    def abandon(self) -> None:
        self._stream.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B")
        self._position += len(left)
        while left:
            if self._pending or len(left) < _HUGE:
                count = _HUGE - len(self._pending)
                self._pending += left[:count]
            else:
                count = len(left) // _HUGE * _HUGE
                self._stream.write(left[:count])
            left = left[count:]
            if len(self._pending) == _HUGE:
                self._stream.write(self._pending)
                self._pending.clear()


def _remove_left_over(path: Path) -> None:
    """Partial files of processes that were killed while they wrote this one."""
    for other in path.parent.glob(f"{path.name}.*.partial"):
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                other.unlink()

"""Packed weights on disk: the second start has the same bytes without packing, and no fault of a
file reaches the weights."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kveik.kernels.extension import native_extension
from kveik.kernels.ops import Ops, PackedForm
from kveik.kernels.reference import reference_ops
from kveik.models import load_model, loader, weight_cache

if native_extension().module is None:
    pytest.skip(native_extension().missing, allow_module_level=True)

from kveik.kernels import _native
from kveik.kernels.native import native_ops


@pytest.fixture
def folder(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkpoint of its own, which counts as large; a home of its own."""
    monkeypatch.setattr(loader, "SMALLEST", 0)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Path(shutil.copytree(tiny_folder(), tmp_path / "model"))


class Counted:
    """Native ops that count what they quantise."""

    def __init__(self, bits: Any = "int8") -> None:
        own = native_ops(None, 2, bits)
        self.packed = 0

        def pack(array: Any, kind: Any, bias: Any) -> Any:
            self.packed += kind in ("linear", "head")
            return own.pack_weight(array, kind, bias)

        self.ops: Ops = replace(own, pack_weight=pack)


def load(folder: Path, bits: Any = "int8") -> tuple[int, list[Any]]:
    """How many matrices were quantised, and the bytes of all."""
    counted = Counted(bits)
    network: Any = load_model(str(folder), counted.ops).model
    settled()
    decoder = network.network
    names = ("query", "key", "value", "output", "gate", "up", "down")
    matrices = [getattr(layer, name) for layer in decoder.layers for name in names]
    parts = [_native.packed_parts(matrix) for matrix in (*matrices, decoder.head)]
    return counted.packed, [(sizes, [bytes(part) for part in buffers]) for sizes, buffers in parts]


def settled() -> None:
    """Whatever is being written has been."""
    for thread in threading.enumerate():
        if thread.name == weight_cache.WRITER:
            thread.join()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("kveik-"))


MATRICES = 2 * 7 + 1


@pytest.mark.parametrize("bits", ["bf16", "int8", "int4"])
def test_the_second_start_reads_what_the_first_made(folder: Path, bits: str) -> None:
    count, first = load(folder, bits)
    assert count == MATRICES
    assert load(folder, bits) == (0, first)
    (file,) = files(folder)
    assert f"-{bits}-" in file.name


class Writes:
    """A file that notes where it is written to."""

    def __init__(self, stream: Any, told: list[tuple[int, int]]) -> None:
        self._stream, self._told = stream, told

    def write(self, data: Any) -> int:
        self._told.append((self._stream.tell(), len(data)))
        return int(self._stream.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@pytest.mark.parametrize("huge", [64, 4096])
def test_files_are_written_by_whole_huge_pages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, huge: int
) -> None:
    writes: list[tuple[int, int]] = []
    begin = weight_cache._Writer.__init__

    def noted(writer: Any, path: Path, key: bytes) -> None:
        begin(writer, path, key)
        writer._stream = Writes(writer._stream, writes)

    monkeypatch.setattr(weight_cache._Writer, "__init__", noted)
    monkeypatch.setattr(weight_cache, "_HUGE", huge)
    count, first = load(folder, "bf16")
    assert count == MATRICES
    assert load(folder, "bf16") == (0, first)
    assert all(at % huge == 0 == size % huge for at, size in writes[:-1])
    assert writes[-1][0] % huge == 0
    assert max(size for _, size in writes) > huge  # what is long goes without a copy


def test_what_is_read_is_named_as_what_was_packed(folder: Path) -> None:
    for packed in (MATRICES, 0):
        counted = Counted("int4")
        loaded = load_model(str(folder), counted.ops)
        settled()
        assert loaded.weights == f"int4, int8 in 1 of {MATRICES} matrices"
        assert counted.packed == packed


def test_small_checkpoints_and_numpy_keep_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(str(folder), reference_ops())
    monkeypatch.setattr(loader, "SMALLEST", 10**9)
    assert load(folder)[0] == MATRICES
    assert files(folder) == []


def test_each_way_of_packing_and_each_checkpoint_has_its_own(folder: Path) -> None:
    load(folder, "int8")
    load(folder, "int4")
    assert len(files(folder)) == 2
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    before = files(folder)
    assert load(folder)[0] == MATRICES
    assert len(files(folder)) == 2  # the outdated file is gone
    assert files(folder) != before


@pytest.mark.parametrize("place", ["header", "first", "middle", "footer", "trailer"])
def test_a_damaged_file_is_written_anew(
    folder: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, fresh = load(folder)
    (file,) = files(folder)
    whole = file.read_bytes()
    footer = len(whole) - 32 - int.from_bytes(whole[-32:-24], "little")
    at = {"header": 9, "first": 4096, "middle": footer // 2, "footer": footer + 5}
    spoiled = bytearray(whole)
    spoiled[at.get(place, len(whole) - 20)] ^= 0x10
    if place == "middle":  # between two parts lie zeros that nobody reads
        spoiled[footer // 2 // 4096 * 4096] ^= 0x10
    file.write_bytes(spoiled)
    with caplog.at_level(logging.WARNING):
        count, again = load(folder)
    assert (count, again) == (MATRICES, fresh)
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(file) in line
    assert "written anew" in line
    assert file.read_bytes() == whole
    assert load(folder) == (0, fresh)


@pytest.mark.parametrize("size", [0, 10, 50, 5000, -33, -1])
def test_a_truncated_file_is_written_anew(folder: Path, size: int) -> None:
    _, fresh = load(folder)
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    assert load(folder) == (MATRICES, fresh)
    assert file.read_bytes() == whole


def test_sums_of_a_foreign_entry_are_not_believed(folder: Path) -> None:
    """A table of contents that is whole but does not fit: sizes beyond the file, wrong kinds."""
    _, fresh = load(folder)
    (file,) = files(folder)
    whole = file.read_bytes()
    length = int.from_bytes(whole[-32:-24], "little")
    text = whole[-32 - length : -32].decode()
    for old, new in (
        ('"sizes": [1, 64, 64,', '"sizes": [1, 64, 99999999,'),
        ('"sizes": [1, 64, 64,', '"sizes": [7, 64, 64,'),
        ('"offsets": [', '"offsets": [-1, '),
        ('"sums"', '"sum"'),
        (text, "[]"),
    ):
        assert old in text
        forged = text.replace(old, new).encode()
        digest = weight_cache._digest(forged)
        trailer = len(forged).to_bytes(8, "little") + digest + weight_cache.MAGIC
        file.write_bytes(whole[: -32 - length] + forged + trailer)
        assert load(folder) == (MATRICES, fresh), new


def refusing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `folder` were read-only; tests may run as root, whom permissions do not stop."""
    plain = Path.open

    def open_(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "xb" and path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_)


def test_a_read_only_folder_leaves_it_to_the_users_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(folder, monkeypatch)
    other = weight_cache.user_folder() / "kveik-int8-of_another_model.packed"
    other.parent.mkdir(parents=True)
    other.touch()
    _, fresh = load(folder)
    assert files(folder) == []
    assert len(files(weight_cache.user_folder())) == 2
    assert other.exists()
    assert load(folder) == (0, fresh)


def test_no_place_at_all_is_one_line_in_the_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(folder, monkeypatch)
    weight_cache.user_folder().parent.mkdir(parents=True)
    weight_cache.user_folder().touch()
    with caplog.at_level(logging.WARNING):
        assert load(folder)[0] == MATRICES
    (line,) = [record.getMessage() for record in caplog.records]
    assert "not kept" in line
    assert str(folder) in line


def test_a_full_disk_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert load(folder)[0] == MATRICES
    assert "No space left" in caplog.text
    assert files(folder) == []


def test_the_last_of_a_disk_is_left_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weight_cache, "LEFT_FREE", 1 << 62)
    with caplog.at_level(logging.WARNING):
        assert load(folder)[0] == MATRICES
    assert "left free" in caplog.text
    assert files(folder) == []


def test_a_start_from_the_file_takes_no_memory_for_matrices(folder: Path) -> None:
    """They lie in the file's pages, and stay there when the file is replaced."""
    _, fresh = load(folder)
    kept = load_model(str(folder), native_ops(None, 2, "int8"))
    (file,) = files(folder)
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(file) in mapped.read_text()
    file.unlink()
    head = kept.model.network.head  # type: ignore[attr-defined]
    sizes, parts = _native.packed_parts(head)
    assert (sizes, [bytes(part) for part in parts]) == fresh[-1]


def test_a_load_that_fails_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()

    def broken(array: Any, kind: Any, bias: Any) -> Any:
        if kind == "vector":
            raise MemoryError
        return counted.ops.pack_weight(array, kind, bias)

    with pytest.raises(MemoryError):
        load_model(str(folder), replace(counted.ops, pack_weight=broken))
    assert files(folder) == []


def test_writers_at_the_same_time_leave_one_whole_file(folder: Path) -> None:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(load(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len({str(parts) for _, parts in results}) == 1
    assert len(files(folder)) == 1
    assert load(folder) == (0, results[0][1])


def test_what_a_killed_process_left_is_removed_in_time(folder: Path) -> None:
    load(folder)
    (file,) = files(folder)
    file.unlink()
    old, young = (file.with_name(f"{file.name}.{age}.partial") for age in ("old", "young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    load(folder)
    assert files(folder) == [file, young]


def test_progress_reaches_the_end_either_way(folder: Path) -> None:
    for _ in range(2):
        seen: list[tuple[str, float]] = []
        settled()
        load_model(str(folder), Counted().ops, progress=lambda *step, to=seen: to.append(step))
        shares = [share for _, share in seen]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


def test_another_version_of_the_packing_starts_anew(folder: Path) -> None:
    load(folder)
    before = files(folder)
    own = native_ops(None, 1, "int8")
    form = own.packed_form
    assert isinstance(form, PackedForm)
    load_model(str(folder), replace(own, packed_form=replace(form, version="int8-99")))
    settled()
    (file,) = files(folder)
    assert file.name.startswith("kveik-int8-99-")
    assert [file] != before


def test_a_user_without_a_home_has_the_models_folder_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(weight_cache, "user_folder", homeless)
    _, fresh = load(folder)
    assert load(folder) == (0, fresh)

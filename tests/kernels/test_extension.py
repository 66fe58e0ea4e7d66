"""The compiled kernels as a part of the package: there when built, never in the way when not."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kveik.kernels import extension
from kveik.kernels.extension import NOT_BUILT, Extension, native_extension

built = pytest.mark.skipif(native_extension().module is None, reason=native_extension().missing)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget the extension before and after, as in a process that has not asked for it yet."""
    native_extension.cache_clear()
    yield
    native_extension.cache_clear()


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@built
def test_built_extension_is_found() -> None:
    module, missing = native_extension()
    assert module is not None
    assert module.__name__ == "kveik.kernels._native"
    assert missing == ""


@built
@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd here")
def test_links_the_c_and_cpp_libraries_alone() -> None:
    module = native_extension().module
    assert module is not None
    listing = subprocess.run(["ldd", str(module.__file__)], capture_output=True, text=True).stdout
    libraries = {Path(line.split()[0]).name.partition(".so")[0] for line in listing.splitlines()}
    loaders = {name for name in libraries if name.startswith("ld-linux")}
    allowed = {"linux-vdso", "libstdc++", "libm", "libgcc_s", "libc", "libpthread"}
    assert libraries - loaders <= allowed


@pytest.mark.parametrize("module", ["kveik", "kveik.cli", "kveik.llm", "kveik.kernels.extension"])
def test_imports_leave_the_extension_alone(module: str) -> None:
    code = f"import sys, {module}; print([name for name in sys.modules if '_native' in name])"
    assert python(code) == "[]"


def test_without_a_build_the_reason_names_the_remedy(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "extension.py"))
    monkeypatch.setattr(importlib, "import_module", absent)
    assert native_extension() == Extension(None, NOT_BUILT)


def test_a_build_for_another_python_is_named(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "_native.cpython-399-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "extension.py"))
    monkeypatch.setattr(importlib, "import_module", absent)
    assert "another Python (_native.cpython-399" in native_extension().missing


def test_a_build_for_another_machine_gives_the_loaders_words(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ImportError("libc.so.6: version `GLIBC_2.99' not found")

    monkeypatch.setattr(importlib, "import_module", broken)
    module, missing = native_extension()
    assert module is None
    assert "GLIBC_2.99" in missing


def absent(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}")

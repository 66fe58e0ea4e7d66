"""The compiled kernels: imported when they are first needed, or the reason why they are not there.

An install without a C++ compiler succeeds without them; nothing else in kveik imports `_native`.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

NOT_BUILT = (
    "not built: the install needs a working C++20 compiler (gcc, clang) and Python's headers; then "
    "run make clean install, or pip install -v, which shows what fails"
)


class Extension(NamedTuple):
    """module: None if it cannot be used, and then `missing` says why and what to do."""

    module: ModuleType | None
    missing: str = ""


@cache
def native_extension() -> Extension:
    """`kveik.kernels._native`, imported once."""
    try:
        return Extension(importlib.import_module("kveik.kernels._native"))
    except ModuleNotFoundError:
        others = sorted(path.name for path in Path(__file__).parent.glob("_native.*.so"))
        if others:
            return Extension(None, f"built for another Python ({others[0]}): install kveik again")
        return Extension(None, NOT_BUILT)
    except ImportError as error:  # a library or symbol that this machine does not have
        return Extension(None, f"cannot be loaded ({error}): install kveik again on this machine")

"""How many cores there are to compute on. Standard library."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those that this process may run on; all of the machine where a system keeps no such mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

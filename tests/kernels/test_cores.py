"""The cores that threads are made for, with and without the affinity mask that Linux keeps."""

from __future__ import annotations

import os

import pytest

from kveik.kernels.cores import usable_cores


def test_the_affinity_mask_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 3


@pytest.mark.parametrize(("machine", "found"), [(6, 6), (None, 1)])
def test_a_system_without_masks_has_all_its_cores(
    monkeypatch: pytest.MonkeyPatch, machine: int | None, found: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    assert usable_cores() == found

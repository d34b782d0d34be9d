"""How many things run at a time: as many as there are cores, and room for."""

from __future__ import annotations

import jobs
import pytest


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("memory", [1e9, 8e9, 9e9, 1e12])
def test_never_more_than_cores_or_memory_allow_and_never_fewer(cores, memory):
    found = jobs.jobs(cores, memory)
    assert 1 <= found <= cores
    assert found == 1 or found * jobs.NEEDS <= memory
    assert found == cores or (found + 1) * jobs.NEEDS > memory

"""Mutated files of every format: read, or refused in one sentence. `tests/fuzz_readers.py` alone tries thousands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import LONG
from fuzz_readers import fuzz

MUTATIONS = 10_000 if LONG else 45  # three of each kind of dataset


@pytest.mark.slow
def test_mutated_datasets_are_read_or_refused(tmp_path: Path) -> None:
    results = list(fuzz(MUTATIONS, seed=1, folder=tmp_path))
    faults = [entry for entry in results if entry[2] not in ("read", "refused", "crash", "hang", "memory")]
    assert not faults
    counts = Counter(outcome for _, _, outcome in results)
    # It does mutate, and not beyond recognition.
    assert counts["read"] > MUTATIONS // 8 and counts["refused"] > MUTATIONS // 3

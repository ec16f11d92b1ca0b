"""The bench of search runs from end to end, and its plain way finds what ours finds. No time is asserted."""

import json
import sys

import numpy as np
import pytest

import bench.search


def test_search_ends_with_its_two_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"IMAGES": 7, "PLAIN": 5, "AT_ONCE": 3, "REGIONS": 5, "CHANNELS": 13, "SIZE": 16, "VOCABULARY": 150}
    for name, size in sizes.items():
        monkeypatch.setattr(bench.search, name, size)
    monkeypatch.setattr(sys, "argv", ["bench", "--json"])
    bench.search.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(record) == {"ratio_search", "ratio_search_alone"}
    assert all(np.isfinite(ratio) and ratio > 0 for ratio in record.values())

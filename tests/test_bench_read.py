"""The bench of reading runs from end to end and prints what it promises. No time is asserted."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import bench.read
from tests.features.filled import filled, noise


@pytest.mark.parametrize("given", [False, True])
def test_read_ends_with_its_ratios(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.read, "IMAGES", 67)
    words = ["--regions", "5", "--channels", "7"]
    if given:
        filled(tmp_path / "features.zarr", noise(9), [f"{number}.jpg" for number in range(9)])
        words = ["--cache", str(tmp_path / "features.zarr")]
    monkeypatch.setattr(sys, "argv", ["bench", "--json", *words])
    bench.read.main()
    said = capsys.readouterr().out.splitlines()
    found = json.loads(said[-1])
    assert {"ratio_oindex", "ratio_memmap", "ratio_memmap_zstd"} <= set(found)
    assert all(np.isfinite(ratio) and ratio > 0 for ratio in found.values())
    assert said[0].startswith("6 x 5 float16" if given else "5 x 7 float16")

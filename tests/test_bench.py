"""The benches of stage one run from end to end and print what they promise. No time is asserted."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

import bench.cache
import bench.encode
from bench.bound import measure_parts, opened
from bench.subject import options, photographs, settings_of
from pipeline.features.store import Layout
from pipeline.vision.images import Preprocessing

TINY = [
    "--backbone",
    "resnet18",
    "--image-size",
    "64",
    "--engine",
    "torch",
    "--precision",
    "float32",
    "--device",
    "cpu",
]


def arguments(*words: str) -> argparse.Namespace:
    return options("a bench", count=3).parse_args([*TINY, *words])


def last_line(
    main: Callable[[], None], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["bench", "--json", *TINY, *words])
    main()
    record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record


def test_encode_ends_with_its_four_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes it starts: teams that spin slow each other down
    words = ["--count", "5", "--plain-count", "3", "--rounds", "1", "--seconds", "0.01"]
    found = last_line(bench.encode.main, words, monkeypatch, capsys)
    assert set(found) == {"ratio_plain", "ratio_bound", "peak_memory_mb", "bytes_ratio"}
    assert all(np.isfinite(figure) and figure > 0 for figure in found.values())
    assert 0.3 < found["bytes_ratio"] < 1


def test_cache_tells_every_dtype_and_codec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = last_line(bench.cache.main, ["--count", "5"], monkeypatch, capsys)
    assert len(found) == 9
    assert {name: cost["kb"] for name, cost in found.items() if name.endswith("none")} == {
        "float16 none": 4.1,  # 2 x 2 regions x 512 channels x 2 bytes, and a checksum
        "float32 none": 8.196,
        "uint8 none": 2.052,
    }
    assert found["uint8 zstd"]["share"] < found["float16 zstd"]["share"] < 1 < found["float32 none"]["share"]
    assert all(np.isfinite(figure) and figure > 0 for cost in found.values() for figure in cost.values())


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_parts_of_the_bound_run_with_each_engine(engine: str, tmp_path: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    settings = settings_of(arguments("--engine", engine))
    parts = measure_parts(settings, photographs(arguments(), tmp_path), least=0.01)
    assert set(parts) == {"engine", "runtime", "decoding", "compression"}
    assert all(np.isfinite(taken) and taken > 0 for taken in parts.values())
    assert opened(settings).engine.name == engine


def test_the_bound_adds_what_shares_the_cores_and_overlaps_what_does_not() -> None:
    parts = {"engine": 5.0, "runtime": 4.0, "decoding": 2.0, "compression": 1.0}
    assert bench.encode.bound_of(parts, on_gpu=False) == 7.0
    assert bench.encode.bound_of(parts, on_gpu=True) == 4.0


def test_the_plain_way_sees_what_torchvision_would_show_it(tmp_path: Path) -> None:
    (path, *_) = photographs(arguments(), tmp_path)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    expected = transforms.Compose(
        [transforms.Resize((33, 33)), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )(Image.open(path))
    found = bench.encode._transform(path, Preprocessing(33, mean, std, "bilinear"))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_drawn_photographs_differ_and_are_saved_as_cameras_do(tmp_path: Path) -> None:
    paths = photographs(arguments(), tmp_path)
    assert len({path.read_bytes() for path in paths}) == 3
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (500, 375))


def test_given_photographs_are_taken_or_resized_first(tmp_path: Path) -> None:
    given, resized = tmp_path / "given", tmp_path / "resized"
    for folder in (given, resized):
        folder.mkdir()
    paths = photographs(arguments("--count", "4"), given)
    (given / "notes.txt").write_text("no image")
    assert photographs(arguments("--images", str(given)), resized) == tuple(sorted(paths)[:3])
    for path in photographs(arguments("--images", str(given), "--resave", "31x17"), resized):
        with Image.open(path) as image:
            assert (path.parent, image.format, image.size) == (resized, "JPEG", (31, 17))


def test_a_row_costs_what_is_written_of_it(tmp_path: Path) -> None:
    regions = np.random.default_rng(0).random((6, 7), np.float32)
    layout = Layout((2, 3), 6, 7, "float16", "none", 2, None)
    found = bench.cache.cost([regions, regions, regions], layout, tmp_path)
    assert found.kb == pytest.approx((6 * 7 * 2 + 4) / 1000)
    assert found.share == pytest.approx((6 * 7 * 2 + 4) / (6 * 7 * 2))

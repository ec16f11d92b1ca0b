"""Regions without a grid, as detectors give them: trained on, scored and shown, with no attention drawn."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.captioners.trained import read_captioner
from pipeline.commands.cache import cache_info, cache_text
from pipeline.errors import CacheError
from pipeline.files import Workspace
from pipeline.hardware import find_device
from stages import report
from tests import tiny


def without_grid(workspace: Workspace) -> Workspace:
    """Take the places from the regions of a cache."""
    path = workspace.features / "zarr.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["attributes"]["grid"] = None
    path.unlink()
    path.write_text(json.dumps(document), encoding="utf-8")
    return workspace


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = without_grid(tiny.encoded(tmp_path_factory.mktemp("boxes")))
    tiny.evaluated(tiny.trained(workspace, train__grid="native", train__epochs=2))
    report.run(workspace, tiny.settings("report"), "unused")
    return workspace


def test_training_on_boxes_needs_the_native_grid(encoded: Workspace) -> None:
    with pytest.raises(CacheError, match=r"train\.grid is 3, but .* Set train\.grid to native"):
        tiny.trained(without_grid(encoded), train__grid=3)


def test_training_on_boxes_says_so(encoded: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.trained(without_grid(encoded), train__grid="native", train__epochs=1)
    assert re.search(r"weights on boxes of 512 channels", capsys.readouterr().out)


def test_the_captioner_has_no_grid(boxes: Workspace) -> None:
    assert read_captioner(boxes.captioner, find_device("cpu", "evaluate.device")).config.grid is None


def test_attention_is_kept_with_a_grid_of_nothing(boxes: Workspace) -> None:
    with np.load(boxes.evaluate_results / "attention.npz", allow_pickle=False) as stored:
        weights, offsets, grid = stored["weights"], stored["offsets"], stored["grid"]
    assert grid.tolist() == [0, 0]
    assert weights.shape == (offsets[-1], 4)
    np.testing.assert_allclose(weights.astype(np.float64).sum(axis=1), 1, atol=2e-3)


def test_the_page_shows_captions_without_attention_and_says_it_once(boxes: Workspace) -> None:
    page = boxes.report.read_text(encoding="utf-8")
    captions = json.loads((boxes.evaluate_results / "captions.json").read_text(encoding="utf-8"))
    assert page.count("its regions are boxes, whose places the features do not tell") == 1
    assert any(entry["caption"] and f'<p class="said">{entry["caption"]}</p>' in page for entry in captions)
    body = page[page.index("<main") : page.index("<script>")]
    for drawn in ("data-grid", "data-weights", "<canvas", 'class="word"', "Point at a word"):
        assert drawn not in body


def test_cache_info_tells_of_boxes(boxes: Workspace) -> None:
    info = cache_info(boxes)
    assert info["complete"]["grid"] is None
    assert "30 images x 4 regions (boxes) x 512 channels, float16" in cache_text(info)


def test_the_cache_of_another_kind_is_refused(boxes: Workspace, tmp_path: Path) -> None:
    import shutil

    other = Workspace(Path(shutil.copytree(boxes.root, tmp_path / "run")))
    path = other.features / "zarr.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["attributes"]["grid"] = [2, 2]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CacheError, match=r"trained on regions of grid none \(boxes\), but these have 2 x 2"):
        tiny.evaluated(other)

import json
from pathlib import Path

import pytest

from pipeline.commands.cache import cache_info, cache_text
from pipeline.errors import CacheError, MissingError
from pipeline.files import Workspace
from pipeline.vision.encoder import Encoder, open_encoder
from tests.encoding.quick import SETTINGS, draw, encode


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return open_encoder(SETTINGS)


@pytest.fixture
def workspace(tmp_path: Path, encoder: Encoder) -> Workspace:
    workspace = Workspace(tmp_path)
    draw(workspace, range(7))
    encode(workspace, encoder)
    return workspace


def test_cache_info_tells_shape_size_fingerprint_and_shards(workspace: Workspace, encoder: Encoder) -> None:
    (workspace.features / "regions/c/1/0/0").unlink()
    info = cache_info(workspace)
    json.dumps(info)
    complete = info["complete"]
    assert complete["shape"] == [7, 4, 512]
    assert (complete["grid"], complete["dtype"], complete["shard_images"]) == ([2, 2], "float16", 3)
    assert complete["fields"] == encoder.fields
    assert complete["shards"] == {"present": 2, "missing": ["regions/c/1/0/0"], "truncated": []}
    assert complete["bytes"] == sum(path.stat().st_size for path in workspace.work("encode").rglob("*.shard"))
    assert complete["ratio"] == round(complete["bytes"] / (7 * 4 * 512 * 2), 4)
    assert info["in_progress"] == [
        {"fingerprint": complete["fingerprint"], "shards": 3, "bytes": complete["bytes"]},
    ]
    text = cache_text(info)
    assert "7 images x 4 regions (2 x 2) x 512 channels, float16" in text
    assert "2 present, 1 missing" in text
    assert "missing: regions/c/1/0/0" in text


def test_cache_info_tells_of_work_in_progress_alone(workspace: Workspace) -> None:
    import shutil

    shutil.rmtree(workspace.features)
    info = cache_info(workspace)
    assert info["complete"] is None
    assert info["in_progress"][0]["shards"] == 3
    assert "There is no finished cache." in cache_text(info)


def test_cache_info_refuses_a_store_without_manifest(workspace: Workspace) -> None:
    (workspace.features / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"has no manifest\.json"):
        cache_info(workspace)


def test_cache_info_without_a_cache_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match='Run "dvc repro encode"'):
        cache_info(Workspace(tmp_path))

import json
import os
import time
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
    (work,) = info["in_progress"]
    assert (work["fingerprint"], work["shards"], work["bytes"]) == (complete["fingerprint"], 3, complete["bytes"])
    text = cache_text(info)
    assert "7 images x 4 regions (2 x 2) x 512 channels, float16" in text
    assert "2 present, 1 missing" in text
    assert "missing: regions/c/1/0/0" in text
    assert text.endswith(" (the cache above, until a later stage starts)")


def test_cache_info_tells_of_work_in_progress_alone(workspace: Workspace) -> None:
    import shutil

    shutil.rmtree(workspace.features)
    info = cache_info(workspace)
    assert info["complete"] is None
    assert info["in_progress"][0]["shards"] == 3
    assert "There is no finished cache." in cache_text(info)


def test_cache_info_tells_when_kept_work_was_worked_at_and_calls_none_of_it_the_present(workspace: Workspace) -> None:
    for number, name in enumerate(("b" * 64, "a" * 64, "c" * 64)):
        folder = workspace.work("encode") / name
        folder.mkdir()
        for key in "xy":
            (folder / f"{key}.shard").write_bytes(b"x" * 50_000)
        os.utime(folder, (0, 10**9 + 7 * number))
    lines = cache_text(cache_info(workspace)).splitlines()[-4:]
    assert lines[0].endswith(" (the cache above, until a later stage starts)")
    last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(10**9 + 14))
    assert lines[1] == (
        f"kept work    {'c' * 12}: 2 shards, 0.1 MB, last worked at {last} (unfinished, or of other settings than the "
        "present ones)"
    )
    assert [line.split()[2] for line in lines[1:]] == [f"{name * 12}:" for name in "cab"]


def test_cache_info_refuses_a_store_without_manifest(workspace: Workspace) -> None:
    (workspace.features / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"has no manifest\.json"):
        cache_info(workspace)


def test_cache_info_without_a_cache_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match='Run "dvc repro encode"'):
        cache_info(Workspace(tmp_path))

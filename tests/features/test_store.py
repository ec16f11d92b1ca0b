import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.errors import CacheError, MissingError, SpaceError
from pipeline.features import integrity
from pipeline.features.integrity import sweep, work_file
from pipeline.features.reader import FeatureReader
from pipeline.features.store import Layout, fingerprint_of, plan
from pipeline.features.writer import assemble, shard_bytes, to_dtype, write_shard
from pipeline.files import Workspace, lock

GRID, CHANNELS, IMAGES = (2, 3), 5, 7
LAYOUT = Layout(GRID, CHANNELS, "float16", shard_images=3)
FIELDS: dict[str, Any] = {"backbone": "resnet18", "image_size": 64}
IDS = [f"image {row} é.jpg" for row in range(IMAGES)]
HASHES = [f"{row:064x}" for row in range(IMAGES)]


@pytest.fixture
def regions() -> np.ndarray:
    values = np.random.default_rng(3).standard_normal((IMAGES, 6, CHANNELS)).astype(np.float16)
    values[4] = 0  # an image of zeros is written like any other
    return values


@pytest.fixture
def workspace(tmp_path: Path, regions: np.ndarray) -> Workspace:
    workspace = Workspace(tmp_path)
    shards = plan(fingerprint_of(FIELDS), HASHES, LAYOUT)
    pairs = [(shard, work_file(workspace, fingerprint_of(FIELDS), shard)) for shard in shards]
    for shard, path in pairs:
        write_shard(path, regions[shard.start : shard.stop], LAYOUT)
    assemble(workspace.features, pairs, LAYOUT, FIELDS, IDS, HASHES)
    return workspace


def test_plain_zarr_python_opens_the_store(workspace: Workspace, regions: np.ndarray) -> None:
    group = zarr.open_group(workspace.features, mode="r")
    array = group["regions"]
    assert isinstance(array, zarr.Array)
    assert np.array_equal(np.asarray(array[:]), regions)
    assert array.chunks == (1, 6, CHANNELS)
    assert array.shards == (3, 6, CHANNELS)
    assert group.attrs["ids"] == IDS
    assert group.attrs["grid"] == [2, 3]
    assert group.attrs["fields"] == FIELDS


def test_shards_equal_those_that_zarr_writes_in_one_array(workspace: Workspace, regions: np.ndarray) -> None:
    from pipeline.features.writer import define

    whole = workspace.root / "whole.zarr"
    define(str(whole), LAYOUT, IMAGES)[:] = regions
    for number in range(3):
        file = f"regions/c/{number}/0/0"
        assert (workspace.features / file).read_bytes() == (whole / file).read_bytes()


def test_reader_gives_rows_in_any_order_and_repeated(workspace: Workspace, regions: np.ndarray) -> None:
    reader = FeatureReader(workspace.features)
    rows = [6, 0, 4, 4, 2]
    ahead = reader.start([1, 5])
    found = reader.read(rows)
    assert found.dtype == np.float16
    assert np.array_equal(found, regions[rows])
    assert np.array_equal(ahead.result(), regions[[1, 5]])
    assert (reader.ids, reader.grid, reader.channels, reader.dtype) == (
        tuple(IDS),
        GRID,
        CHANNELS,
        np.dtype(np.float16),
    )


def test_reading_needs_neither_torch_nor_pillow() -> None:
    import subprocess
    import sys

    code = "import sys, pipeline.features.reader; print({'torch', 'PIL', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def _no_shard(path: Path) -> None:
    (path / "regions/c/1/0/0").unlink()


def _short_shard(path: Path) -> None:
    shard = path / "regions/c/2/0/0"
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-9])


def _other_fields(path: Path) -> None:
    document = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**document, "fingerprint": "0" * 64}))


def _strange_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"shards": 3}')


def _no_attributes(path: Path) -> None:
    document = json.loads((path / "zarr.json").read_text())
    del document["attributes"]["ids"]
    (path / "zarr.json").write_text(json.dumps(document))


def _shorter_manifest(path: Path) -> None:
    document = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**document, "shards": document["shards"][:-1]}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_no_manifest, r'has no manifest\.json.*not complete\. Run "dvc repro encode"'),
        (_no_shard, r"lacks 1 shard \(first: regions/c/1/0/0\) of 3"),
        (
            _short_shard,
            r"1 shard \(first: regions/c/2/0/0\) of another size than written: expected \d+ bytes, found \d+",
        ),
        (_other_fields, "contradict each other"),
        (_strange_manifest, "is not a manifest of this format"),
        (_no_attributes, "lacks the attribute 'ids'"),
        (_shorter_manifest, "holds 7 images, which is 3 shards, but its manifest lists 2"),
    ],
)
def test_reader_refuses_a_store_that_is_not_whole(
    workspace: Workspace, harm: Callable[[Path], None], message: str
) -> None:
    harm(workspace.features)
    with pytest.raises(CacheError, match=message):
        FeatureReader(workspace.features)


def test_reader_refuses_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match='Run "dvc repro encode"'):
        FeatureReader(tmp_path / "features.zarr")


def test_another_fingerprint_names_the_field_that_differs(workspace: Workspace) -> None:
    wanted = {**FIELDS, "image_size": 96}
    with pytest.raises(CacheError, match="image_size: expected 96, found 64"):
        FeatureReader(workspace.features, fingerprint_of(wanted), wanted)
    with pytest.raises(CacheError, match=f"expected {'0' * 12}, found {fingerprint_of(FIELDS)[:12]}"):
        FeatureReader(workspace.features, "0" * 64)
    FeatureReader(workspace.features, fingerprint_of(FIELDS))


def test_a_flipped_byte_is_an_error_for_its_row_only(workspace: Workspace, regions: np.ndarray) -> None:
    shard = workspace.features / "regions/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[20] ^= 4  # in the first chunk of the shard
    shard.unlink()
    shard.write_bytes(bytes(content))
    reader = FeatureReader(workspace.features)
    assert np.array_equal(reader.read([3, 5]), regions[[3, 5]])
    damaged = 0
    for row in range(3):
        try:
            assert np.array_equal(reader.read([row]), regions[[row]])
        except CacheError as error:
            damaged += 1
            assert "features.zarr is damaged: shard regions/c/0/0/0 cannot be read" in str(error)
            assert "checksum" in str(error)
    assert damaged == 1


def test_a_shard_that_vanishes_after_opening_is_an_error_not_zeros(workspace: Workspace) -> None:
    reader = FeatureReader(workspace.features)
    _no_shard(workspace.features)
    with pytest.raises(CacheError, match="is damaged"):
        reader.read([4])


@pytest.mark.parametrize("row", [-1, 7, 100])
def test_a_row_beyond_the_cache_is_refused(workspace: Workspace, row: int) -> None:
    with pytest.raises(CacheError, match=f"holds rows 0 to 6, not {row}"):
        FeatureReader(workspace.features).read([2, row])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([*IDS, "new.jpg"], r"holds 7 images but the data set lists 8; first missing: new\.jpg"),
        (IDS[:-1], "holds 7 images but the data set lists 6; first that the data set does not list: image 6"),
        ([IDS[0], IDS[2], IDS[1], *IDS[3:]], "row 1 is image 1 é.jpg instead of image 2 é.jpg"),
    ],
)
def test_ids_of_another_data_set_are_refused(workspace: Workspace, ids: list[str], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        FeatureReader(workspace.features).require_ids(ids)


@pytest.mark.parametrize(("value", "reason"), [(70000.0, "holds 70000, beyond 65504"), (np.nan, "is no number")])
def test_features_beyond_float16_are_an_error_that_names_the_image(value: float, reason: str) -> None:
    values = np.ones((2, 6, CHANNELS), np.float32)
    values[1, 3, 2] = value
    with pytest.raises(CacheError, match=rf"features of b\.jpg do not fit float16: one {reason}"):
        to_dtype(values, LAYOUT, ["a.jpg", "b.jpg"])


def test_a_key_changes_with_all_that_changes_a_shards_bytes() -> None:
    base = plan("f", HASHES, LAYOUT)
    assert [(shard.start, shard.stop) for shard in base] == [(0, 3), (3, 6), (6, 7)]
    others = [
        plan("g", HASHES, LAYOUT),
        plan("f", HASHES[1:], LAYOUT),
        plan("f", HASHES, Layout(GRID, CHANNELS, "float16", 6)),
        plan("f", HASHES, Layout(GRID, CHANNELS, "float32", 3)),
    ]
    keys = {shard.key for shard in base}
    assert len(keys) == 3
    for other in others:
        assert not keys & {shard.key for shard in other}
    grown = plan("f", [*HASHES, "f" * 64], LAYOUT)
    assert [shard.key for shard in grown[:2]] == [shard.key for shard in base[:2]]


def test_shard_bytes_are_the_same_every_time(regions: np.ndarray) -> None:
    assert shard_bytes(regions[:3], LAYOUT) == shard_bytes(regions[:3].copy(), LAYOUT)


def test_sweep_removes_the_work_and_leaves_the_store(workspace: Workspace, regions: np.ndarray) -> None:
    assert sweep(workspace) == 3
    assert sweep(workspace) == 0
    assert np.array_equal(FeatureReader(workspace.features).read(range(IMAGES)), regions)
    assert not list(workspace.work("encode").rglob("*.shard"))


def test_sweep_keeps_the_work_while_the_store_is_not_whole_or_someone_encodes(workspace: Workspace) -> None:
    with lock(integrity.work_lock(workspace), work="encoding images"):
        assert sweep(workspace) == 0
    _no_manifest(workspace.features)
    with pytest.raises(CacheError):
        sweep(workspace)
    assert len(list(workspace.work("encode").rglob("*.shard"))) == 3


def test_a_full_disk_leaves_no_shard_behind(
    tmp_path: Path, regions: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SpaceError, match="is full"):
        write_shard(tmp_path / "a.shard", regions[:3], LAYOUT)
    assert not list(tmp_path.iterdir())

import copy
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.errors import CacheError, MissingError, SpaceError
from pipeline.features import integrity
from pipeline.features.integrity import sweep
from pipeline.features.reader import FeatureReader
from pipeline.features.rows import encode_row, to_stored
from pipeline.features.store import Codec, Dtype, fingerprint_of, plan
from pipeline.features.writer import define, write_shard
from pipeline.files import Workspace, lock
from tests.features.builders import CHANNELS, FIELDS, GRID, HASHES, IDS, IMAGES, KINDS, build, features, layout_of

LAYOUT = layout_of(features())


@pytest.fixture
def regions() -> np.ndarray:
    return features().astype(np.float16)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build(tmp_path, features(), LAYOUT)


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


@pytest.mark.parametrize(("dtype", "codec"), KINDS)
def test_caches_of_every_dtype_and_codec_are_read(tmp_path: Path, dtype: Dtype, codec: Codec) -> None:
    values = features()
    layout = layout_of(values, dtype, codec)
    workspace = build(tmp_path, values, layout)
    reader = FeatureReader(workspace.features)
    stored = np.stack([to_stored(image, layout, "x") for image in values])
    assert reader.layout == layout
    assert (reader.dtype, reader.quantisation) == (np.dtype(dtype), layout.quantisation)
    found = reader.read([5, 0, 6])
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, stored[[5, 0, 6]])
    restored = reader.restore(found)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, values[[5, 0, 6]], atol={"float16": 2e-3, "float32": 0, "uint8": 0.01}[dtype])
    array = zarr.open_group(workspace.features, mode="r")["regions"]
    assert isinstance(array, zarr.Array)
    assert np.array_equal(np.asarray(array[:]), stored)


def test_bytes_can_be_restored_from_what_the_store_says_alone(tmp_path: Path) -> None:
    values = features()
    group = zarr.open_group(build(tmp_path, values, layout_of(values, "uint8")).features, mode="r")
    said: Any = group.attrs["quantisation"]
    stored: Any = group["regions"]
    plain = (stored[1].astype(np.float32) - np.float32(said["zero"])) * np.float32(said["scale"])
    np.testing.assert_allclose(plain, values[1], atol=max(said["scale"]) / 2 + 1e-6)


def test_boxes_have_no_grid(tmp_path: Path) -> None:
    layout = layout_of(features(), grid=None)
    reader = FeatureReader(build(tmp_path, features(), layout).features)
    assert reader.grid is None
    assert reader.layout == layout


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


def _cut(name: str) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        (path / name).write_bytes((path / name).read_bytes()[:-20])

    return harm


def _no_attributes(path: Path) -> None:
    document = json.loads((path / "zarr.json").read_text())
    del document["attributes"]["ids"]
    (path / "zarr.json").write_text(json.dumps(document))


def _array(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        document = json.loads((path / "regions/zarr.json").read_text())
        change(document)
        (path / "regions/zarr.json").write_text(json.dumps(document))

    return harm


def _codecs(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["codecs"][0]["configuration"]["codecs"]
    return found


def _group(**changes: Any) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"] |= changes
        (path / "zarr.json").write_text(json.dumps(document))

    return harm


def _chunks(shape: list[int]) -> Callable[[dict[str, Any]], object]:
    return lambda found: found["chunk_grid"]["configuration"].update(chunk_shape=shape)


def _record(**changes: Any) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        document = json.loads((path / "manifest.json").read_text())
        document["shards"][1] |= changes
        (path / "manifest.json").write_text(json.dumps(document))

    return harm


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
        (_cut("manifest.json"), r'manifest\.json is cut short or damaged \(.*\)\. Run "dvc repro encode"'),
        (_cut("zarr.json"), r"/zarr\.json is cut short or damaged"),
        (_cut("regions/zarr.json"), r"regions/zarr\.json is cut short or damaged"),
        (_no_attributes, r"lacks an attribute \('ids'\)"),
        (
            _array(lambda found: found.update(data_type="int16")),
            "data type 'int16'; this format knows float16, float32",
        ),
        (_array(lambda found: found.update(codecs=[])), "does not describe shards"),
        (_array(lambda found: _codecs(found)[1].update(name="gzip")), "says codecs bytes, gzip, crc32c .*format knows"),
        (_array(lambda found: _codecs(found).pop()), r"says codecs bytes, zstd \(little"),
        (_array(lambda found: _codecs(found)[0].update(configuration={"endian": "big"})), r"crc32c \(big endian\)"),
        (
            _array(lambda found: found["codecs"][0]["configuration"].update(index_location="start")),
            "with the index at the start",
        ),
        (_group(grid=[2, 2]), r"contradict each other \(grid \[2, 2\] for 6 regions"),
        (_array(lambda found: found.update(data_type="uint8")), "quantisation absent for uint8"),
        (_group(quantisation={"scale": [1] * 5, "zero": [0] * 5}), "quantisation present for float16"),
        (_group(quantisation={"scale": [1] * 4, "zero": [0] * 5}), "4 scales and 5 zeros for 5 channels"),
        (_group(quantisation={"scale": 1}), "has a quantisation that is not of this format"),
        (_shorter_manifest, "holds 7 images, which is 3 shards, but its manifest lists 2"),
        (_array(lambda found: _codecs(found)[0].update(namm=_codecs(found)[0].pop("name"))), r"shards \('name'\)"),
        (_array(lambda found: found["codecs"][0].pop("name")), r"does not describe shards \('name'\)"),
        (_array(_chunks([])), r"does not describe \(image, cell, channel\) \(list index out of range\)"),
        (_array(_chunks([0, 6, 5])), r"expected positive numbers, found \[0, 6, 5\]"),
        (_group(grid=[7]), r"/zarr\.json has an attribute that is not of this format \(not enough values"),
        (_group(grid="x"), r"not of this format \(expected list, found 'x'\)\. Run"),
        (_group(grid=[-2, -3]), r"expected positive numbers, found \[-2, -3\]"),
        (_group(ids=[*IDS[1:], 7]), "an id that is no string"),
        (_record(bytes=None), r"manifest\.json is not a manifest of this format \(expected int, found None\)\. Run"),
        (_record(rows=0), "0 rows from 3 on"),
        (_record(file="../../mine"), r"expected a shard such as regions/c/0/0/0, found '\.\./\.\./mine'"),
        (_record(file="regions/c/../../x/0/0"), "expected a shard such as regions/c/0/0/0"),
    ],
)
def test_reader_refuses_a_store_that_is_not_whole(
    workspace: Workspace, harm: Callable[[Path], None], message: str
) -> None:
    harm(workspace.features)
    with pytest.raises(CacheError, match=message):
        FeatureReader(workspace.features)


Place = tuple[str | int, ...]
OTHERS: tuple[Any, ...] = (None, True, -1, 0, 2.5, float("inf"), "x", [], [7], {"x": 1})


def _places(document: Any) -> Iterator[Place]:
    """Of every value in a JSON document; of a list the first two."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document[:2])
    for key, value in pairs:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in _places(value))


def _with(document: Any, place: Place, value: object) -> Any:
    changed = copy.deepcopy(document)
    inner = functools.reduce(lambda found, key: found[key], place[:-1], changed)
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize("name", ["zarr.json", "manifest.json", "regions/zarr.json"])
def test_metadata_with_a_value_of_another_kind_anywhere_are_read_or_refused(tmp_path: Path, name: str) -> None:
    path = build(tmp_path, features(), layout_of(features(), "uint8")).features
    whole = json.loads((path / name).read_text())
    refused = 0
    for place, other in itertools.product(_places(whole), OTHERS):
        (path / name).write_text(json.dumps(_with(whole, place, other)))
        try:
            reader = FeatureReader(path)
            reader.stored_bytes(range(IMAGES))
            reader.read([6, 0])
        except CacheError as error:
            refused += 1
            assert 'Run "' in str(error), (place, other)
    assert refused > 100


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


def test_a_key_changes_with_all_that_changes_a_shards_bytes() -> None:
    base = plan("f", HASHES, LAYOUT)
    assert [(shard.start, shard.stop) for shard in base] == [(0, 3), (3, 6), (6, 7)]
    others = [
        plan("g", HASHES, LAYOUT),
        plan("f", HASHES[1:], LAYOUT),
        plan("f", HASHES, layout_of(features(), shard_images=6)),
        plan("f", HASHES, layout_of(features(), "float32")),
        plan("f", HASHES, layout_of(features(), codec="blosc")),
        plan("f", HASHES, layout_of(features(), codec="none")),
        plan("f", HASHES, layout_of(features(), "uint8")),
        plan("f", HASHES, layout_of(2 * features(), "uint8")),
    ]
    keys = {shard.key for shard in base}
    assert len(keys) == 3
    for other in others:
        found = {shard.key for shard in other}
        assert not keys & found
        keys |= found
    grown = plan("f", [*HASHES, "f" * 64], LAYOUT)
    assert [shard.key for shard in grown[:2]] == [shard.key for shard in base[:2]]


def test_a_key_is_what_the_documentation_says() -> None:
    layout = layout_of(features(), "uint8", "blosc")
    meaning = {"scale": [*layout.quantisation.scale], "zero": [*layout.quantisation.zero]} if layout.quantisation else 0
    hashed = hashlib.sha256(json.dumps(meaning, separators=(",", ":")).encode()).hexdigest()
    content = json.dumps(["f", 3, "uint8", "blosc", hashed, HASHES[6:]], separators=(",", ":"))
    assert plan("f", HASHES, layout)[2].key == hashlib.sha256(content.encode()).hexdigest()
    plain = json.dumps(["f", 3, "float16", "zstd", None, HASHES[6:]], separators=(",", ":"))
    assert plan("f", HASHES, LAYOUT)[2].key == hashlib.sha256(plain.encode()).hexdigest()


def take_over(workspace: Workspace) -> list[Path]:
    """Put the store's shards where DVC's own cache has files; returns these."""
    copies = []
    for file in sorted((workspace.features / "regions" / "c").rglob("0")):
        if file.is_file():
            name = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
            copies.append(workspace.root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:])
            copies[-1].parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copies[-1])
    return copies


def test_sweep_removes_the_work_and_leaves_the_store(workspace: Workspace, regions: np.ndarray) -> None:
    take_over(workspace)
    assert sweep(workspace) == 3
    assert sweep(workspace) == 0
    assert np.array_equal(FeatureReader(workspace.features).read(range(IMAGES)), regions)
    assert not list(workspace.work("encode").rglob("*.shard"))


def test_sweep_keeps_the_work_that_dvcs_cache_does_not_have(workspace: Workspace) -> None:
    assert sweep(workspace) == 0
    _, lost, _ = take_over(workspace)
    lost.unlink()
    assert sweep(workspace) == 2
    (kept,) = workspace.work("encode").rglob("*.shard")
    assert kept.read_bytes() == (workspace.features / "regions/c/1/0/0").read_bytes()


def test_sweep_minds_no_shards_of_one_key(workspace: Workspace) -> None:
    take_over(workspace)
    path = workspace.features / "manifest.json"
    document = json.loads(path.read_text())
    document["shards"][1]["key"] = document["shards"][0]["key"]
    path.write_text(json.dumps(document))
    assert sweep(workspace) == 2


def test_sweep_keeps_the_work_while_the_store_is_not_whole_or_someone_encodes(workspace: Workspace) -> None:
    take_over(workspace)
    with lock(integrity.work_lock(workspace), work="encoding images"):
        assert sweep(workspace) == 0
    _no_manifest(workspace.features)
    with pytest.raises(CacheError):
        sweep(workspace)
    assert len(list(workspace.work("encode").rglob("*.shard"))) == 3


def test_a_full_disk_leaves_no_shard_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SpaceError, match="is full"):
        write_shard(tmp_path / "a.shard", [encode_row(features()[0], LAYOUT, "x")], LAYOUT)
    assert not list(tmp_path.iterdir())

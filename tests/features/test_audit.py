"""Every kind of damage is found, named by its file and rows, and nothing else is."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.datasets.dataset import ImageFile, read_images
from pipeline.errors import CacheError, MissingError
from pipeline.features import audit
from pipeline.features.audit import Fault, audit_metadata, audit_plan, audit_shards, audit_sources, open_store
from pipeline.files import Workspace
from tests.encoding.quick import draw, encode, quick_encoder

SHARDS = [f"regions/c/{number}/0/0" for number in range(4)]  # of 3, 3, 3 and 2 images


@pytest.fixture
def workspace(quick_once: Workspace, tmp_path: Path) -> Workspace:
    """A copy: no file of it is linked to another."""
    return Workspace(Path(shutil.copytree(quick_once.root, tmp_path / "own")))


@pytest.fixture
def images(workspace: Workspace) -> tuple[ImageFile, ...]:
    return read_images(workspace.dataset)


def faults_of(workspace: Workspace) -> list[Fault]:
    images = read_images(workspace.dataset)
    store = open_store(workspace.features, images)
    shards = audit_shards(store, store.manifest.shards, lambda _: None)
    return [*shards, *audit_metadata(store, images), *audit_plan(store, images, {})]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def test_a_whole_store_has_no_fault(workspace: Workspace) -> None:
    assert faults_of(workspace) == []


def test_progress_is_told_in_bytes(workspace: Workspace, images: tuple[ImageFile, ...]) -> None:
    store = open_store(workspace.features, images)
    told: list[int] = []
    audit_shards(store, store.manifest.shards, told.append)
    assert told == [(workspace.features / file).stat().st_size for file in SHARDS]


def test_a_flipped_byte_anywhere_breaks_its_shard_and_names_its_row(workspace: Workspace) -> None:
    path = workspace.features / SHARDS[1]
    whole = path.read_bytes()
    index = len(whole) - 3 * 16 - 4
    told = set()
    for place in {*range(0, len(whole), 7), index - 1, index, len(whole) - 4, len(whole) - 1}:
        path.write_bytes(whole)
        flip(path, place)
        (fault,) = faults_of(workspace)
        assert (fault.kind, fault.file, fault.start, fault.stop) == ("broken", SHARDS[1], 3, 6)
        assert (place >= index) == (fault.reason == "its index is damaged")
        told.add(fault.reason)
    rows = {f"1 of its 3 rows is damaged: {row} (id {row})" for row in (3, 4, 5)}
    assert told == {*rows, "its index is damaged"}


def test_several_damaged_rows_are_counted(workspace: Workspace) -> None:
    path = workspace.features / SHARDS[0]
    size = len(path.read_bytes()) - 3 * 16 - 4
    for place in (2, size // 2, size - 2):
        flip(path, place)
    (fault,) = faults_of(workspace)
    assert fault.reason == "3 of its 3 rows are damaged: 0 (id 0), 1 (id 1), 2 (id 2)"


def test_damage_that_the_manifest_vouches_for_is_found(workspace: Workspace) -> None:
    flip(workspace.features / SHARDS[1], 3)
    content = (workspace.features / SHARDS[1]).read_bytes()
    edit(workspace.features / MANIFEST, lambda d: d["shards"][1].update(sha256=hashlib.sha256(content).hexdigest()))
    (fault,) = faults_of(workspace)
    reason = "1 of its 3 rows is damaged: 3 (id 3); so it was when the store was put together"
    assert fault == Fault("refused", SHARDS[1], 3, 6, reason)


@pytest.mark.parametrize("cut", [1, 40, 60, -1], ids=["a_byte", "in_the_index", "in_a_row", "all"])
def test_a_cut_shard_is_broken(workspace: Workspace, cut: int) -> None:
    path = workspace.features / SHARDS[3]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut] if cut > 0 else b"")
    (fault,) = faults_of(workspace)
    expected = f"expected {len(whole):,} bytes, found {path.stat().st_size:,}"
    assert fault == Fault("broken", SHARDS[3], 9, 11, expected)


def test_a_longer_shard_is_broken(workspace: Workspace) -> None:
    path = workspace.features / SHARDS[3]
    path.write_bytes(path.read_bytes() + b"x")
    (fault,) = faults_of(workspace)
    assert (fault.kind, fault.reason[:8]) == ("broken", "expected")


def test_a_deleted_shard_is_missing(workspace: Workspace) -> None:
    (workspace.features / SHARDS[2]).unlink()
    assert faults_of(workspace) == [Fault("missing", SHARDS[2], 6, 9, "it is not there")]


def test_swapped_shards_are_broken_and_said_to_be_each_other(workspace: Workspace) -> None:
    first, second = (workspace.features / SHARDS[number] for number in (0, 2))
    first.rename(workspace.root / "aside")
    second.rename(first)
    (workspace.root / "aside").rename(second)
    assert [(fault.file, fault.reason) for fault in faults_of(workspace)] == [
        (SHARDS[0], f"it holds what belongs in {SHARDS[2]}"),
        (SHARDS[2], f"it holds what belongs in {SHARDS[0]}"),
    ]


def test_whole_rows_that_were_not_written_are_broken(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other")
    draw(other, range(20, 31))
    encode(other, quick_encoder())
    shutil.copyfile(other.features / SHARDS[0], workspace.features / SHARDS[0])
    (fault,) = faults_of(workspace)
    size = (other.features / SHARDS[0]).stat().st_size
    same_size = size == json.loads((workspace.features / "manifest.json").read_text())["shards"][0]["bytes"]
    assert "though the checksum of every row fits" in fault.reason if same_size else f"found {size:,}" in fault.reason


def test_a_shard_that_cannot_be_read_is_broken_and_the_others_are_read(workspace: Workspace) -> None:
    path = workspace.features / SHARDS[1]
    path.unlink()
    path.mkdir()
    (fault,) = faults_of(workspace)
    assert fault == Fault("broken", SHARDS[1], 3, 6, "it cannot be read: Is a directory")


def test_more_files_than_wait_at_once_are_all_read_in_order(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PART", 2)
    assert faults_of(workspace) == []
    flip(workspace.features / SHARDS[3], 5)
    assert [fault.file for fault in faults_of(workspace)] == [SHARDS[3]]


MANIFEST, GROUP, ARRAY = "manifest.json", "zarr.json", "regions/zarr.json"


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (GROUP, lambda d: d["attributes"]["fields"].update(backbone="other"), [("broken", GROUP, "of its fields")]),
        (MANIFEST, lambda d: d.update(fingerprint="0" * 64), [("broken", MANIFEST, "its fingerprint is 000000000000")]),
        (MANIFEST, lambda d: d.update(images_sha256="0" * 64), [("broken", MANIFEST, "images_sha256 is not that")]),
        (MANIFEST, lambda d: d["shards"].pop(1), [
            ("broken", MANIFEST, "its 3 shards are not those of 11 images in shards of 3"),
            ("stray", SHARDS[1], "no file of the store"),
        ]),
        (MANIFEST, lambda d: d["shards"][2].update(rows=2), [("broken", MANIFEST, "its 4 shards are not those")]),
        (MANIFEST, lambda d: d["shards"][2].update(sha256="0" * 64), [("broken", SHARDS[2], "expected SHA-256 0000")]),
        (ARRAY, lambda d: d.update(shape=[12, 6, 5]), [("broken", ARRAY, "12 images, but zarr.json lists 11")]),
        (GROUP, lambda d: d["attributes"]["ids"].reverse(), [("stale", GROUP, "row 0 is id 10 instead of id 0")]),
    ],
    ids=["fields", "fingerprint", "images", "fewer_shards", "rows", "hash", "shape", "ids"],
)  # fmt: skip
def test_metadata_that_contradict_each_other_are_named(
    workspace: Workspace, file: str, change: Callable[[dict], object], told: list[tuple[str, str, str]]  # type: ignore[type-arg]
) -> None:  # fmt: skip
    edit(workspace.features / file, change)
    found = {(fault.kind, fault.file): fault.reason for fault in faults_of(workspace)}
    for kind, name, reason in told:
        assert reason in found[kind, name]  # type: ignore[index]


@pytest.mark.parametrize("file", [MANIFEST, GROUP, ARRAY])
def test_metadata_that_cannot_be_read_are_an_error(workspace: Workspace, file: str) -> None:
    edit(workspace.features / file, lambda document: document.clear())
    with pytest.raises(CacheError, match=file.replace(".", r"\.")):
        faults_of(workspace)


def test_a_store_that_is_not_there_is_an_error(workspace: Workspace) -> None:
    shutil.rmtree(workspace.features)
    with pytest.raises(MissingError, match=r"manifest\.json does not exist"):
        faults_of(workspace)


def test_stray_files_are_named(workspace: Workspace) -> None:
    (workspace.features / "regions/c/9").mkdir()
    (workspace.features / "regions/c/9/.0.partial").write_bytes(b"")
    (workspace.features / "note").symlink_to("nowhere")
    assert [(fault.kind, fault.file) for fault in faults_of(workspace)] == [
        ("stray", "note"),
        ("stray", "regions/c/9/.0.partial"),
    ]


def test_an_image_that_ingest_took_in_anew_makes_its_shard_stale(
    workspace: Workspace, images: tuple[ImageFile, ...]
) -> None:
    changed = [replace(image, sha256="f" * 64) if image.id == "id 4" else image for image in images]
    store = open_store(workspace.features, changed)
    assert audit_metadata(store, changed) == []
    (fault,) = audit_plan(store, changed, {})
    assert fault == Fault("stale", SHARDS[1], 3, 6, "encoded before an image of it was changed")
    known = {store.manifest.shards[1].key: [image.sha256 for image in images[3:6]]}
    (fault,) = audit_plan(store, changed, known)
    assert fault.reason == "encoded before id 4 was changed"


def test_a_grown_data_set_makes_the_last_shard_stale_and_lists_what_is_not_encoded(
    workspace: Workspace, images: tuple[ImageFile, ...]
) -> None:
    grown = [*images, *(ImageFile(f"new {number}", f"{number}", f"{number:064x}") for number in range(3))]
    store = open_store(workspace.features, grown)
    last, beyond = audit_plan(store, grown, {})
    assert (last.kind, last.file, last.reason) == ("stale", SHARDS[3], "the data set lists other images in these rows")
    assert beyond == Fault(
        "stale", "regions/c/4/0/0", 12, 14, "not encoded yet: the data set lists more images, from new 1 on"
    )
    (fault,) = audit_metadata(store, grown)
    assert fault.kind == "stale"
    assert fault.reason.endswith("holds 11 images but the data set lists 14; first missing: new 0.")


def test_a_smaller_data_set_makes_what_is_left_over_stale(workspace: Workspace, images: tuple[ImageFile, ...]) -> None:
    fewer = images[:6]
    store = open_store(workspace.features, fewer)
    assert [(fault.kind, fault.file, fault.reason) for fault in audit_plan(store, fewer, {})] == [
        ("stale", file, "the data set lists 6 images only") for file in SHARDS[2:]
    ]


def test_an_image_changed_since_ingest_is_named_though_its_size_is_the_same(
    workspace: Workspace, images: tuple[ImageFile, ...]
) -> None:
    folder = workspace.dataset / "images"
    told: list[int] = []
    assert audit_sources(folder, images, told.append) == []
    assert told == [1] * 11
    flip(folder / "7.png", 60)
    (folder / "2.png").unlink()
    assert audit_sources(folder, images, told.append) == [
        Fault("changed", str(folder / "2.png"), 2, 3, "it is gone since ingest saw it"),
        Fault("changed", str(folder / "7.png"), 7, 8, "it has changed since ingest saw it"),
    ]

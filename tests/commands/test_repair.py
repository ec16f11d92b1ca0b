"""A damaged cache is mended to the same bytes, in every place that holds them, or not at all."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import repair
from pipeline.commands.verify import report_text
from pipeline.datasets.dataset import read_images
from pipeline.encoding.imported import import_features
from pipeline.errors import BusyError, DataError, SpaceError, WeightsError
from pipeline.features.integrity import work_lock
from pipeline.files import Workspace, lock, sha256
from pipeline.vision.encoder import IMPORTED
from tests.commands.damage import SHARDS, flip, look
from tests.encoding.quick import SETTINGS, QuickEngine, content, draw, encode, quick_encoder, shards
from tests.features.filled import noise
from tests.features.foreign_files import folder


def test_a_stale_shard_names_the_image_that_has_changed_and_is_not_repaired(
    workspace: Workspace, engine: QuickEngine
) -> None:
    draw(workspace, [0, 1, 2, 3, 40, *range(5, 11)])
    flip(workspace.features / SHARDS[1])
    report = look(workspace, repair=True)
    kinds = [(fault.kind, fault.file) for fault in report.faults]
    assert kinds == [("broken", SHARDS[1]), ("stale", "zarr.json"), ("stale", SHARDS[1])]
    assert not engine.batches
    assert report_text(report).endswith('The data set has changed since: run "dvc repro".')


def test_repair_encodes_just_the_broken_and_missing_shards_to_the_same_bytes(
    workspace: Workspace, engine: QuickEngine
) -> None:
    whole = content(workspace.features)
    untouched = {file: (workspace.features / file).stat() for file in (SHARDS[0], SHARDS[2])}
    flip(workspace.features / SHARDS[1])
    (workspace.features / SHARDS[3]).unlink()
    report = look(workspace, repair=True)
    assert [(one.file, one.how) for one in report.mended] == [
        (SHARDS[1], "encoded again"),
        (SHARDS[3], "encoded again"),
    ]
    assert report.faults == ()
    assert sum(engine.batches) == 5
    assert content(workspace.features) == whole
    for file, before in untouched.items():
        after = (workspace.features / file).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not workspace.work("repair").exists()
    assert look(workspace).faults == ()


@pytest.mark.parametrize("change", [{"dtype": "uint8"}, {"codec": "blosc", "dtype": "float32"}], ids=["uint8", "blosc"])
def test_repair_keeps_the_stores_own_layout_whatever_the_settings_say_now(
    tmp_path: Path, engine: QuickEngine, change: dict[str, Any]
) -> None:
    workspace = Workspace(tmp_path)
    draw(workspace)
    encode(workspace, quick_encoder(), replace(SETTINGS, **change, shard_images=4))
    whole = content(workspace.features)
    for path in [workspace.features / SHARDS[1], *shards(workspace)]:
        path.unlink()
    assert [one.file for one in look(workspace, repair=True).mended] == [SHARDS[1]]
    assert sum(engine.batches) == 4
    assert content(workspace.features) == whole


def test_what_is_encoded_to_other_bytes_is_refused_with_the_difference(
    workspace: Workspace, engine: QuickEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = quick_encoder(backbone="slow")
    monkeypatch.setattr(repair, "encoder_like", lambda *_: (other, []))
    assert isinstance(other.engine, QuickEngine)
    other.engine.mixing *= 2
    for file in (SHARDS[1], SHARDS[2]):
        flip(workspace.features / file)
    before = content(workspace.features)
    report = look(workspace, repair=True)
    assert content(workspace.features) == before
    assert [(fault.kind, fault.file, fault.start) for fault in report.faults] == [
        ("refused", SHARDS[1], 3),
        ("refused", SHARDS[2], 6),
    ]
    assert "(backbone: expected 'quick', found 'slow'), so it was not put in" in report.faults[0].reason
    assert sum(other.engine.batches) == 3  # once one has come out otherwise, so would the next
    assert "if another machine made the cache, run the repair there" in report_text(report)
    monkeypatch.setattr(repair, "encoder_like", lambda *_: (quick_encoder(), []))
    assert look(workspace, repair=True).faults == ()
    assert not engine.batches


def test_other_bytes_of_the_same_settings_are_refused_one_by_one(workspace: Workspace, engine: QuickEngine) -> None:
    engine.mixing[0] *= 1.01
    for file in (SHARDS[1], SHARDS[2]):
        (workspace.features / file).unlink()
    report = look(workspace, repair=True)
    assert [fault.kind for fault in report.faults] == ["refused", "refused"]
    assert "the processor's instructions or a library's build differ" in report.faults[0].reason
    assert sum(engine.batches) == 6


def test_damage_that_the_manifest_vouches_for_is_left_and_encoded_anew_by_the_stage(
    workspace: Workspace, engine: QuickEngine
) -> None:
    whole, manifest = content(workspace.features), workspace.features / "manifest.json"
    before = sha256(workspace.features / SHARDS[1])
    flip(workspace.features / SHARDS[1], 3)
    manifest.write_text(manifest.read_text().replace(before, sha256(workspace.features / SHARDS[1])))
    report = look(workspace, repair=True)
    assert [(fault.kind, fault.file) for fault in report.faults] == [("refused", SHARDS[1])]
    assert 'encoded anew by "dvc repro --force encode"' in report_text(report)
    assert (report.mended, engine.batches) == ((), [])
    encode(workspace, quick_encoder())
    assert content(workspace.features) == whole


def test_a_whole_copy_of_the_work_folder_is_taken_rather_than_encoded(
    quick_once: Workspace, tmp_path: Path, engine: QuickEngine
) -> None:
    workspace = Workspace(Path(shutil.copytree(quick_once.root, tmp_path / "own")))
    whole = content(workspace.features)
    (workspace.features / SHARDS[1]).write_bytes(b"")
    (mended,) = look(workspace, repair=True).mended
    assert mended.file == SHARDS[1]
    assert mended.how.startswith(f"taken from {workspace.work('encode')}")
    assert not engine.batches
    assert content(workspace.features) == whole


def test_a_damaged_file_that_the_work_folder_shares_is_mended_in_both_places(
    tmp_path: Path, engine: QuickEngine
) -> None:
    workspace = Workspace(tmp_path)
    draw(workspace)
    encode(workspace, quick_encoder())  # links the store to the work folder
    whole, work = content(workspace.features), {path: path.read_bytes() for path in shards(workspace)}
    flip(workspace.features / SHARDS[1])
    assert {path: path.read_bytes() for path in shards(workspace)} != work
    report = look(workspace, repair=True)
    assert [one.how for one in report.mended] == ["encoded again", "the work folder's copy, replaced by the store's"]
    assert sum(engine.batches) == 3
    assert content(workspace.features) == whole
    assert {path: path.read_bytes() for path in shards(workspace)} == work


@pytest.mark.usefixtures("engine")
def test_an_image_changed_since_ingest_stops_the_repair_and_is_named(workspace: Workspace) -> None:
    (workspace.features / SHARDS[0]).unlink()
    (workspace.features / SHARDS[1]).unlink()
    flip(workspace.dataset / "images" / "4.png", 60)
    with pytest.raises(DataError, match=r"4\.png has changed since ingest saw it"):
        look(workspace, repair=True)
    assert (workspace.features / SHARDS[0]).exists()  # what came before is kept


def test_a_full_disk_during_a_repair_is_told_and_the_next_one_goes_on(
    workspace: Workspace, engine: QuickEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(workspace.features)
    for file in SHARDS:
        (workspace.features / file).unlink()
    write, written = Path.write_bytes, list[Path]()

    def filling(path: Path, data: bytes) -> int:
        if len(written) == 2:
            write(path, data[:40])
            raise OSError(28, "No space left on device")
        written.append(path)
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", filling)
        with pytest.raises(SpaceError, match="is full"):
            look(workspace, repair=True)
    assert content(workspace.features).items() <= whole.items()
    assert not list(workspace.root.rglob("*.partial"))
    engine.batches.clear()
    assert look(workspace, repair=True).faults == ()
    assert sum(engine.batches) == 5  # the shards of 3 and 2 images that were not there yet
    assert content(workspace.features) == whole


def test_a_repair_is_refused_while_another_process_encodes_and_says_who(
    workspace: Workspace, engine: QuickEngine
) -> None:
    told = f"Another process is encoding images here: process {os.getpid()} on .* since "
    with lock(work_lock(workspace), work="encoding images"):
        with pytest.raises(BusyError, match=told):
            look(workspace, repair=True)
        assert look(workspace).faults == ()  # to look at a whole cache nothing is locked
    assert not engine.batches


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"backbone": "resnet18", "weights": "random"}, '"resnet18" and "random"'),
        ({"weights": "moved"}, '"imported" and'),
    ],
    ids=["another backbone", "another path"],
)
def test_an_imported_cache_names_the_settings_that_its_repair_needs(
    workspace: Workspace, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    images = read_images(workspace.dataset)
    source = folder(tmp_path / "kept.features", list(noise(len(images))), [image.id for image in images])
    settings = replace(SETTINGS, backbone=IMPORTED, weights=str(source))
    import_features(workspace, images, settings, lambda _: None)
    whole = content(workspace.features)
    for path in [workspace.features / SHARDS[1], *shards(workspace)]:
        path.unlink()
    told = rf"imported from kept\.features \(SHA-256 [0-9a-f]{{64}}\).*encode\.backbone to imported.*found {found}"
    with pytest.raises(WeightsError, match=told):
        look(workspace, repair=True, settings=replace(settings, **changes))
    assert look(workspace, repair=True, settings=settings).faults == ()
    assert content(workspace.features) == whole


def test_broken_metadata_are_told_before_a_repair_that_would_need_them(workspace: Workspace) -> None:
    path = workspace.features / "zarr.json"
    path.write_text(path.read_text().replace('"backbone"', '"backbnoe"'))
    (workspace.features / SHARDS[1]).unlink()
    report = look(workspace, repair=True)
    assert {(fault.kind, fault.file) for fault in report.faults} == {("broken", "zarr.json"), ("missing", SHARDS[1])}
    assert 'Broken metadata: run "freezeframe encode"' in report_text(report)


class Dvc:
    """The workspace under real DVC, which has taken its store over; every call takes a second, so there are few."""

    def __init__(self, workspace: Workspace, link: str) -> None:
        self.root = workspace.root
        (self.root / "dvc.yaml").write_text(
            "stages:\n  encode:\n    cmd: 'false'\n    deps: [data/dataset/images.jsonl]\n"
            "    outs: [data/features.zarr]\n"
        )
        (self.root / ".dvc").mkdir()
        (self.root / ".dvc" / "config").write_text(f"[core]\n    no_scm = true\n[cache]\n    type = {link}\n")
        self("commit", "--force", "--quiet", "encode")

    def __call__(self, *arguments: str) -> str:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DVC_")},
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "site"),
        }
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.root, env=environment, text=True, capture_output=True, check=True,
        ).stdout  # fmt: skip

    def check_out(self, workspace: Workspace) -> None:
        shutil.rmtree(workspace.features)
        self("checkout", "--quiet")

    def clean(self) -> bool:
        return "up to date" in self("status")

    def objects(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (self.root / ".dvc/cache/files").rglob("*") if path.is_file()}


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_damage_through_a_link_is_mended_in_the_store_and_in_dvcs_cache(
    workspace: Workspace, engine: QuickEngine, link: str
) -> None:
    dvc = Dvc(workspace, link)
    dvc.check_out(workspace)
    whole, objects = content(workspace.features), dvc.objects()
    for file in (SHARDS[1], SHARDS[3]):
        flip(workspace.features / file)
    assert dvc.objects() != objects
    report = look(workspace, repair=True)
    assert [one.file for one in report.mended][:2] == [SHARDS[1], SHARDS[3]]
    assert report.faults == ()
    assert sum(engine.batches) == 5
    assert content(workspace.features) == whole
    assert dvc.objects() == objects
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in objects)
    assert (workspace.features / SHARDS[1]).is_symlink() == (link == "symlink")
    assert (workspace.features / SHARDS[1]).samefile(repair.dvc_objects(workspace)[SHARDS[1]])
    assert dvc.clean()


def test_where_dvc_copies_either_side_is_mended_from_the_other(workspace: Workspace, engine: QuickEngine) -> None:
    dvc = Dvc(workspace, "copy")
    whole, objects = content(workspace.features), dvc.objects()
    damaged, lost = (repair.dvc_objects(workspace)[file] for file in (SHARDS[0], SHARDS[2]))
    flip(damaged)
    lost.unlink()
    flip(workspace.features / SHARDS[1])
    report = look(workspace, repair=True)
    assert {one.file for one in report.mended} == {SHARDS[1], str(damaged), str(lost)}
    assert report.mended[0].how.startswith("taken from ")
    assert not engine.batches
    assert content(workspace.features) == whole
    assert dvc.objects() == objects
    assert dvc.clean()
    dvc.check_out(workspace)
    assert look(workspace).faults == ()


def test_dvcs_record_of_another_store_is_left_alone(workspace: Workspace, engine: QuickEngine) -> None:
    dvc = Dvc(workspace, "copy")
    draw(workspace, range(20, 31))
    encode(workspace, quick_encoder())
    objects = dvc.objects()
    (workspace.features / SHARDS[1]).unlink()
    assert look(workspace, repair=True).faults == ()
    assert dvc.objects() == objects
    assert not engine.batches  # the work folder still has it

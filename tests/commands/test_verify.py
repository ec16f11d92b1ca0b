"""A damaged cache is told with its remedy; one that is being replaced is not called damaged."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

import cli
from pipeline.commands import verify
from pipeline.commands.verify import report_text
from pipeline.errors import BusyError, CacheError, MissingError
from pipeline.features.audit import Fault, audit_shards
from pipeline.features.integrity import work_lock
from pipeline.files import Workspace, lock
from tests import tiny
from tests.commands.damage import SHARDS, flip, look
from tests.encoding.quick import SETTINGS, draw, encode, quick_encoder, shards


def test_a_whole_cache_is_told_in_one_line(workspace: Workspace) -> None:
    report = look(workspace)
    assert (report.shards, report.images, report.sources, report.faults) == (4, 11, 11, ())
    assert report.bytes == sum((workspace.features / file).stat().st_size for file in SHARDS)
    (line,) = report_text(report).splitlines()
    assert "features.zarr is whole: 4 shards, 11 images, 0.0 MB read in 0.0 s (" in line
    assert line.endswith(" GB/s); 11 source images are unchanged.")
    assert "source images" not in report_text(look(workspace, fast=True))


def test_what_is_wrong_is_told_with_its_remedy(workspace: Workspace) -> None:
    flip(workspace.features / SHARDS[1])
    (workspace.features / SHARDS[2]).unlink()
    (workspace.features / "note").touch()
    flip(workspace.dataset / "images" / "7.png", 60)
    lines = report_text(look(workspace)).splitlines()
    assert lines[1:5] == [
        "broken   regions/c/1/0/0, rows 3-5: 1 of its 3 rows is damaged: 3 (id 3)",
        "missing  regions/c/2/0/0, rows 6-8: it is not there",
        "stray    note: it is no file of the store",
        f"changed  {workspace.dataset / 'images' / '7.png'}, row 7: it has changed since ingest saw it",
    ]
    assert lines[5] == 'Broken and missing shards: run "freezeframe cache verify --repair".'
    assert lines[6].startswith("What does not belong to the store: delete it")
    assert lines[7].startswith("Changed source images: ")
    assert len(lines) == 8
    assert not any(fault.kind == "changed" for fault in look(workspace, fast=True).faults)


def test_the_catalogue_tells_which_image_of_a_stale_shard_has_changed(workspace: Workspace) -> None:
    lines = (workspace.dataset / "images.jsonl").read_text(encoding="utf-8").splitlines()
    changed = json.loads(lines[4])
    lines[4] = json.dumps({**changed, "sha256": "f" * 64})
    (workspace.dataset / "images.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (fault,) = look(workspace, fast=True).faults
    assert fault == Fault("stale", SHARDS[1], 3, 6, "encoded before id 4 was changed")


@pytest.mark.parametrize("harm", [SHARDS[1], "manifest.json", ""], ids=["shard", "manifest", "all"])
def test_a_cache_that_is_being_written_is_never_called_broken(workspace: Workspace, harm: str) -> None:
    path = workspace.features / harm
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with lock(work_lock(workspace), work="encoding images"), pytest.raises(BusyError, match="encoding images here"):
        look(workspace)


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_who_may_not_write_is_told_what_is_wrong_all_the_same(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refused(path: Path, work: str) -> NoReturn:  # noqa: ARG001
        raise OSError(reason, os.strerror(reason), str(path))

    monkeypatch.setattr(verify, "lock", refused)
    flip(workspace.features / SHARDS[1])
    assert [fault.file for fault in look(workspace, fast=True).faults] == [SHARDS[1]]
    with pytest.raises(OSError, match=os.strerror(reason)):
        look(workspace, repair=True)
    (workspace.features / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"has no manifest\.json"):
        look(workspace)


def test_a_lock_that_fails_otherwise_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, work: str) -> NoReturn:  # noqa: ARG001
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(verify, "lock", broken)
    flip(workspace.features / SHARDS[1])
    with pytest.raises(OSError, match="Input/output error"):
        look(workspace)


def test_a_store_replaced_in_the_middle_of_the_look_is_looked_at_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = audit_shards, list[Any]()

    def replaced(*arguments: Any) -> list[Fault]:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            return real(*arguments)
        # What was opened is gone; another store of the same images has its place, and of that one file was read.
        encode(workspace, quick_encoder(), replace(SETTINGS, codec="none"))
        return [fault for fault in real(*arguments) if fault.file == SHARDS[2]]

    monkeypatch.setattr(verify, "audit_shards", replaced)
    report = look(workspace)
    assert (report.faults, report.shards) == ((), 4)
    assert calls == [4, 4]


def test_only_what_seemed_wrong_is_looked_at_twice(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = audit_shards, list[Any]()

    def counting(*arguments: Any) -> list[Fault]:
        calls.append([record.file for record in arguments[1]])
        return real(*arguments)

    monkeypatch.setattr(verify, "audit_shards", counting)
    flip(workspace.features / SHARDS[2])
    assert [fault.file for fault in look(workspace).faults] == [SHARDS[2]]
    assert calls == [SHARDS, [SHARDS[2]]]


@pytest.mark.parametrize("file", ["zarr.json", "manifest.json"])
@pytest.mark.parametrize("content", ["{}", '{"fingerprint": "12', ""], ids=["other", "cut", "empty"])
def test_metadata_that_cannot_be_read_say_what_puts_them_right(workspace: Workspace, file: str, content: str) -> None:
    (workspace.features / file).write_text(content, encoding="utf-8")
    with pytest.raises(CacheError, match='Broken metadata: run "freezeframe encode"'):
        look(workspace)
    encode(workspace, quick_encoder())
    assert look(workspace).faults == ()


def test_without_a_cache_or_a_data_set_it_says_what_to_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(MissingError, match='Run "dvc repro ingest"'):
        look(workspace)
    draw(workspace)
    with pytest.raises(MissingError, match='Run "dvc repro encode"'):
        look(workspace)
    assert not workspace.work("encode").exists()  # looking leaves nothing behind


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def test_the_command_exits_with_1_if_anything_is_wrong_and_repairs_with_the_real_encoder(encoded: Workspace) -> None:
    run = CliRunner()
    arguments = ["cache", "verify", "--fast"]
    with inside(encoded.root):
        whole = tiny.content(encoded.features)
        assert run.invoke(cli.main, arguments).exit_code == 0
        for path in [encoded.features / SHARDS[2], *shards(encoded)]:
            path.unlink()
        told = run.invoke(cli.main, [*arguments, "--json"])
        assert told.exit_code == 1
        assert json.loads(told.stdout)["faults"] == [asdict(Fault("missing", SHARDS[2], 14, 21, "it is not there"))]
        mended = run.invoke(cli.main, [*arguments, "--repair"])
        assert (mended.exit_code, mended.stdout.splitlines()[0]) == (0, f"mended   {SHARDS[2]}: encoded again")
        assert tiny.content(encoded.features) == whole

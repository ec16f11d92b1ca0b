"""Files are whole or absent; locks say who holds them."""

import contextlib
import errno
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from pipeline.errors import BusyError, DataError, MissingError, SpaceError
from pipeline.files import (
    Workspace,
    lock,
    read_json,
    read_text,
    replacing,
    replacing_folder,
    sha256,
    sha256_of_json,
    write_json,
)
from tests.import_graph import ROOT


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with replacing(target) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(KeyError), replacing(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyError
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "old").mkdir(parents=True)
    with replacing_folder(target) as temporary:
        (temporary / "new").write_text("x", encoding="utf-8")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(KeyError), replacing_folder(target) as temporary:
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


FILLING = """
import sys
from pathlib import Path
from pipeline.files import replacing_folder
with replacing_folder(Path(sys.argv[1])) as folder:
    (folder / "first").touch()
    print("half", flush=True)
    sys.stdin.read()
    (folder / "second").touch()
"""


@contextlib.contextmanager
def filling(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written half of a folder, and the rest when its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", FILLING, str(target)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "half\n"
        yield other


def test_a_second_writer_of_a_folder_is_refused_and_the_first_writes_it_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with filling(target) as other:
        told = rf"Another process is writing folder here: process {other.pid} on .* since"
        with pytest.raises(BusyError, match=told), replacing_folder(target):
            raise AssertionError("two writers")
        with replacing_folder(tmp_path / "new" / "beside"):
            pass  # another folder of the same place is nobody's business
    assert other.returncode == 0
    assert sorted(path.name for path in target.iterdir()) == ["first", "second"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["beside", "folder"]


def test_what_a_killed_writer_of_a_folder_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with filling(target) as other:
        other.kill()
    assert list(tmp_path.iterdir()) != [target]
    with replacing_folder(target) as temporary:
        (temporary / "new").touch()
    assert list(tmp_path.rglob("*")) == [target, target / "new"]


@pytest.mark.parametrize("kind", ["link", "broken link", "file"])
def test_what_is_no_folder_makes_way_for_one_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    if kind == "file":
        target.touch()
    else:
        target.symlink_to(elsewhere if kind == "link" else tmp_path / "nowhere")
    for name in ("first", "second"):
        with replacing_folder(target) as temporary:
            (temporary / name).touch()
        assert [path.name for path in target.iterdir()] == [name]
    assert sorted(tmp_path.iterdir()) == [elsewhere, target]
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    told = r"disk that holds .* is full: file\.bin .*make room"
    with pytest.raises(SpaceError, match=told), replacing(tmp_path / "file.bin") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(number, "no room")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SpaceError), replacing_folder(tmp_path / "folder"):
        raise OSError(number, "no room")
    assert list(tmp_path.iterdir()) == []


def test_json_keeps_text_and_refuses_what_is_no_number(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, 2.5]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "é": [\n    1,\n    2.5\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_malformed_json_is_told_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n "b" 2}', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json is not valid JSON: .* at line 2, column 6"):
        read_json(path)


def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert read_text(path) == "café"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"is not UTF-8 text: byte 3 is 0xe9"):
        read_text(path)
    with pytest.raises(DataError, match="is a folder where a file was expected"):
        read_text(tmp_path)
    with pytest.raises(MissingError, match='Run "dvc repro ingest"'):
        read_text(tmp_path / "none", made_by="ingest")


def test_a_held_lock_is_refused_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lock"
    script = (
        "import sys; from pathlib import Path; from pipeline.files import lock\n"
        f"with lock(Path({str(path)!r}), 'encoding'):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        told = rf"Another process is encoding here: process {other.pid} on .* since"
        with pytest.raises(BusyError, match=told), lock(path, "encoding"):
            raise AssertionError("two holders")
        other.kill()
        other.wait()
        with lock(path, "encoding"):
            pass  # the kernel let go of it


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_its_holder_removed_while_it_was_opened_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    path, flock = tmp_path / "lock", fcntl.flock

    def removed(file: TextIO, how: int) -> None:
        path.unlink()
        if again:
            path.touch()  # a third process has made another of that name
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    with pytest.raises(BusyError, match="Another process is writing here"), lock(path, "writing"):
        raise AssertionError("what is held has no name")


def test_hashes_are_those_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json({"a": 2, "b": 1})


def test_the_log_is_kept_beside_the_outputs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.log("train", {"seconds": 3})
    workspace.log("train", {"seconds": 4})
    lines = (tmp_path / ".freezeframe" / "logs" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["seconds"] for line in lines] == [3, 4]

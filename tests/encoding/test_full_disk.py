"""A disk that fills in the middle of a run: said clearly, nothing lost, and after making room the run goes on."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SpaceError
from pipeline.files import Workspace
from tests.encoding.quick import content, draw, encode, quick_encoder, shards

ROOM = 2  # shards that fit


def no_room(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def while_writing(patch: pytest.MonkeyPatch, code: int) -> None:
    """The third shard is written to its half."""
    write, places = Path.write_bytes, itertools.count(1)

    def filling(path: Path, data: bytes) -> int:
        if ".shard." not in path.name or next(places) <= ROOM:
            return write(path, data)
        write(path, data[: len(data) // 2])
        raise no_room(code)

    patch.setattr(Path, "write_bytes", filling)


def while_syncing(patch: pytest.MonkeyPatch, code: int) -> None:
    """All bytes were taken, but the file system finds no place for them; so it is with delayed allocation and NFS."""
    sync, places = os.fsync, itertools.count(1)

    def filling(descriptor: int) -> None:
        is_shard = ".shard." in Path(f"/proc/self/fd/{descriptor}").readlink().name
        if is_shard and next(places) > ROOM:
            raise no_room(code)
        sync(descriptor)

    patch.setattr(os, "fsync", filling)


def while_linking(patch: pytest.MonkeyPatch, code: int) -> None:
    """The shards are all there, but not the store: even a link takes a block of its folder."""

    def filling(*_: Any) -> None:
        raise no_room(code)

    patch.setattr(os, "link", filling)
    patch.setattr("shutil.copyfile", filling)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
@pytest.mark.parametrize("fill", [while_writing, while_syncing, while_linking])
def test_a_full_disk_is_told_and_after_making_room_the_run_goes_on_to_the_same_bytes(
    fill: Callable[[pytest.MonkeyPatch, int], None], code: int, tmp_path: Path
) -> None:
    whole, workspace = Workspace(tmp_path / "whole"), Workspace(tmp_path / "full")
    for one in (whole, workspace):
        draw(one)
    encode(whole, quick_encoder())
    with pytest.MonkeyPatch.context() as patch:
        fill(patch, code)
        with pytest.raises(SpaceError, match=r"The disk that holds .* is full: .* make room and run the same command"):
            encode(workspace, quick_encoder())
    assert not workspace.features.exists()
    assert not list(workspace.root.rglob("*.partial"))
    finished = shards(workspace)
    assert len(finished) == (4 if fill is while_linking else ROOM)
    for path in finished:
        assert path.read_bytes() == next(whole.work("encode").rglob(path.name)).read_bytes()
    told: list[str] = []
    receipt = encode(workspace, quick_encoder(), tell=told.append)
    assert receipt.found >= 3 * len(finished) - 1
    assert any("are already encoded" in sentence for sentence in told)
    assert shards(workspace).items() >= finished.items()
    assert content(workspace.features) == content(whole.features)

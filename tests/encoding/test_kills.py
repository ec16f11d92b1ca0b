"""Encode is killed again and again: no wrong row, no lost shard, little done twice."""

import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401 (rounding to float16 loads it, which all these processes should find done)
from numpy.typing import NDArray

from pipeline.encoding.growth import CATALOGUE
from pipeline.encoding.job import SHARDS_IN_WORK
from pipeline.files import Workspace
from pipeline.vision.encoder import Encoder, EncodeSettings
from tests.encoding.quick import SETTINGS, content, draw, encode, quick_encoder, shards

IMAGES, KILLS = 101, 6  # the last shard lacks one row
EVENTS = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # as Python's audit names them
# Processes are forked from one that has imported all this and done nothing, so that all of them take seconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def encode_slowly(workspace: Workspace, notes: Path) -> None:
    """Encode; each image takes a while and is noted, in one write that is whole or absent."""
    load, noted = Encoder.load, os.open(notes, os.O_WRONLY | os.O_APPEND)

    def slow(self: Encoder, image: bytes) -> NDArray[np.uint8]:
        time.sleep(0.01)
        loaded = load(self, image)
        os.write(noted, b"x")
        return loaded

    Encoder.load = slow  # type: ignore[method-assign, assignment]
    encode(workspace, quick_encoder())


def kill_after(workspace: Workspace, notes: Path, images: int, seconds: float) -> int | None:
    """Encode in another process and kill it that long after it has loaded so many images; its exit status."""
    before = notes.stat().st_size
    child = processes.Process(target=encode_slowly, args=(workspace, notes))
    child.start()
    try:
        while notes.stat().st_size < before + images and child.is_alive():
            time.sleep(0.0005)
        time.sleep(seconds)
    finally:
        child.kill()
        child.join()
    return child.exitcode


@pytest.mark.timeout(300)
def test_killed_at_random_instants_it_ends_with_the_bytes_of_a_run_never_killed(tmp_path: Path) -> None:
    whole, workspace, notes = Workspace(tmp_path / "whole"), Workspace(tmp_path / "killed"), tmp_path / "notes"
    for one in (whole, workspace):
        draw(one, range(IMAGES))
    encode(whole, quick_encoder())
    notes.touch()
    chance = random.Random(6)
    for _ in range(KILLS):
        finished = shards(workspace)
        assert kill_after(workspace, notes, chance.randrange(12), chance.uniform(0, 0.02)) == -signal.SIGKILL
        assert finished.items() <= shards(workspace).items()
    assert shards(workspace)
    encoded = notes.stat().st_size
    finished = shards(workspace)
    receipt = encode(workspace, quick_encoder())
    assert finished.items() <= shards(workspace).items()
    assert receipt.found in {SETTINGS.shard_images * len(finished), SETTINGS.shard_images * len(finished) - 1}
    assert encoded + receipt.images - receipt.found <= IMAGES + KILLS * SHARDS_IN_WORK * SETTINGS.shard_images
    assert content(workspace.features) == content(whole.features)
    assert not list(workspace.root.rglob("*.partial"))


def encode_until(workspace: Workspace, settings: EncodeSettings, last: int, notes: Path) -> None:
    """Encode, note each image, and die before that many files have been opened, linked, renamed or deleted."""
    load, noted, events = Encoder.load, os.open(notes, os.O_WRONLY | os.O_APPEND), itertools.count(1)

    def noting(self: Encoder, image: bytes) -> NDArray[np.uint8]:
        os.write(noted, b"x")
        return load(self, image)

    def dying(name: str, arguments: tuple[object, ...]) -> None:
        if name in EVENTS and str(arguments[0]).startswith(str(workspace.root)) and next(events) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Encoder.load = noting  # type: ignore[method-assign, assignment]
    sys.addaudithook(dying)
    encode(workspace, quick_encoder(dtype=settings.dtype), settings)


def events_of_the_end(workspace: Workspace, settings: EncodeSettings) -> int:
    """How much happens on the disk in a run that finds every shard and has only the store to put together."""
    shutil.rmtree(workspace.features)
    (catalogue,) = workspace.work("encode").rglob(CATALOGUE)
    catalogue.write_text(re.sub(r'"md5": "\w+"', '"md5": null', catalogue.read_text()))
    counted = list[str]()
    running = True

    def counting(name: str, arguments: tuple[object, ...]) -> None:
        if running and name in EVENTS and str(arguments[0]).startswith(str(workspace.root)):
            counted.append(name)

    sys.addaudithook(counting)
    encode(workspace, quick_encoder(dtype=settings.dtype), settings)
    running = False  # a hook stays as long as its process
    return len(counted)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("settings", "before"),
    [(SETTINGS, []), (replace(SETTINGS, dtype="uint8"), []), (SETTINGS, range(20, 40))],
    ids=["float16", "uint8", "grown"],
)
def test_killed_before_anything_that_it_does_on_the_disk_it_ends_with_the_same_bytes(
    tmp_path: Path, settings: EncodeSettings, before: list[int]
) -> None:
    whole, workspace, notes = Workspace(tmp_path / "whole"), Workspace(tmp_path / "killed"), tmp_path / "notes"
    if before:
        draw(workspace, before)
        encode(workspace, quick_encoder(), settings)
    for one in (whole, workspace):
        draw(one, range(31))
    encode(whole, quick_encoder(dtype=settings.dtype), settings)
    most = events_of_the_end(whole, settings)
    notes.touch()
    chance = random.Random(11)
    # Early at first, so that shards are made bit by bit; then in every part of what a run does to the very end.
    parts = [(0, most // 3)] * KILLS + [(most * part // KILLS, most * (part + 1) // KILLS) for part in range(KILLS)]
    for part in parts:
        finished, last = shards(workspace), 1 + chance.randrange(*part)
        child = processes.Process(target=encode_until, args=(workspace, settings, last, notes))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert finished.items() <= shards(workspace).items() or before
    encode(workspace, quick_encoder(dtype=settings.dtype), settings)
    assert content(workspace.features) == content(whole.features)
    assert not list(workspace.root.rglob("*.partial"))
    if settings.dtype != "uint8":  # finding its scales takes another look at the images
        new = set(range(31)) - set(before)
        assert notes.stat().st_size <= len(new) + len(parts) * SHARDS_IN_WORK * SETTINGS.shard_images

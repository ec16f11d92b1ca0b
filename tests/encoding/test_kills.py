"""Encode is killed again and again: no wrong row, no lost shard, little done twice."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401 (rounding to float16 loads it, which twenty processes should find done)
from numpy.typing import NDArray

from pipeline.encoding.job import SHARDS_IN_WORK
from pipeline.files import Workspace
from pipeline.vision.encoder import Encoder
from tests.encoding.quick import SETTINGS, content, draw, encode, quick_encoder, shards

IMAGES, KILLS = 401, 20  # the last shard lacks one row
# Processes are forked from one that has imported all this and done nothing, so that twenty of them take seconds.
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
def test_killed_at_twenty_random_instants_it_ends_with_the_bytes_of_a_run_never_killed(tmp_path: Path) -> None:
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

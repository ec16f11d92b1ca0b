"""Encoding a data set: what is whole afterwards, what is refused, how an unfinished run goes on."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.delayed import delayed
from numpy.typing import NDArray

from pipeline.encoding.job import DECODING, SHARDS_IN_WORK, Job, Workshop
from pipeline.encoding.maker import LocalMaker
from pipeline.errors import BusyError, DataError, ImageError, SpaceError
from pipeline.features.integrity import work_lock
from pipeline.features.quantise import calibrate, quantise
from pipeline.features.reader import FeatureReader
from pipeline.features.store import Shard
from pipeline.files import Workspace, lock
from pipeline.vision.encoder import Encoder, open_encoder
from tests.encoding.quick import IMAGES, SETTINGS, content, draw, encode, fail_at, quick_encoder, shards
from tests.features.builders import features, layout_of


@pytest.fixture
def encoder() -> Encoder:
    return quick_encoder()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    draw(workspace)
    return workspace


def test_the_cache_holds_each_image_as_it_is_encoded_alone(workspace: Workspace) -> None:
    encoder = open_encoder(SETTINGS)
    encode(workspace, encoder)
    reader = FeatureReader(workspace.features)
    assert reader.ids == tuple(f"id {number}" for number in range(IMAGES))
    for row in range(IMAGES):
        alone = encoder.encode_images([workspace.dataset / "images" / f"{row}.png"])
        assert alone.astype(np.float16).tobytes() == reader.read([row]).tobytes()


def test_a_uint8_cache_holds_what_its_scales_make_of_each_image(workspace: Workspace) -> None:
    encoder = quick_encoder(dtype="uint8")
    encode(workspace, encoder, replace(SETTINGS, dtype="uint8"))
    reader = FeatureReader(workspace.features)
    plain = np.stack([encoder.encode_images([workspace.dataset / "images" / f"{row}.png"])[0] for row in range(IMAGES)])
    assert reader.quantisation == calibrate(iter(plain))
    assert np.array_equal(reader.read(range(IMAGES)), [quantise(row, reader.quantisation) for row in plain])
    steps = np.array(reader.quantisation.scale, np.float32)
    assert (np.abs(reader.restore(reader.read(range(IMAGES))) - plain) <= 0.5001 * steps).all()


def test_an_error_in_the_middle_keeps_what_was_finished_and_the_next_run_goes_on(
    workspace: Workspace, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Workspace(tmp_path_factory.mktemp("whole"))
    draw(whole)
    encode(whole, encoder)
    with monkeypatch.context() as patch:
        fail_at(workspace.dataset / "images" / "10.png", workspace, patch)
        with pytest.raises(ImageError, match=r"10\.png cannot be decoded: it is cut short\. Mend it or leave it out"):
            encode(workspace, encoder)
    assert not workspace.features.exists()
    before = shards(workspace)
    told: list[str] = []
    encode(workspace, encoder, tell=told.append)
    assert before
    assert f"{3 * len(before)} of 11 images are already encoded." in told
    assert before.items() <= shards(workspace).items()
    assert content(workspace.features) == content(whole.features)


def test_an_image_changed_since_ingest_is_refused(workspace: Workspace, encoder: Encoder) -> None:
    path = workspace.dataset / "images" / "10.png"
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # of the same size, and seemingly of the same age
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"10\.png has changed since ingest saw it"):
        encode(workspace, encoder)
    assert not workspace.features.exists()


def test_a_missing_image_is_named(workspace: Workspace, encoder: Encoder) -> None:
    (workspace.dataset / "images" / "4.png").unlink()
    with pytest.raises(ImageError, match=r"4\.png cannot be read: No such file"):
        encode(workspace, encoder)


def test_leftovers_of_a_killed_writer_are_swept(workspace: Workspace, encoder: Encoder) -> None:
    encode(workspace, encoder)
    folder = next(path for path in workspace.work("encode").iterdir() if path.is_dir())
    (folder / ".abc.shard.99.partial").write_bytes(b"half")
    encode(workspace, encoder)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("place", [3, -1], ids=["a_row", "the_index"])
def test_a_finished_shard_that_is_damaged_is_encoded_again(workspace: Workspace, encoder: Encoder, place: int) -> None:
    encode(workspace, encoder)
    whole = content(workspace.features)
    held = workspace.features / "regions" / "c" / "1" / "0" / "0"  # the same file as the work folder's
    harmed = bytearray(held.read_bytes())
    harmed[place] ^= 1
    held.write_bytes(harmed)
    told: list[str] = []
    again = quick_encoder()
    receipt = encode(workspace, again, tell=told.append)
    assert told[0] == "1 of 4 finished shards are damaged and are made again."
    assert receipt.found == IMAGES - 3
    assert sum(again.engine.batches) == 3  # type: ignore[attr-defined]
    assert content(workspace.features) == whole


def test_a_store_that_dvc_has_cleared_comes_back_without_encoding(workspace: Workspace, encoder: Encoder) -> None:
    encode(workspace, encoder)
    first = content(workspace.features)
    shutil.rmtree(workspace.features)
    again = quick_encoder()
    receipt = encode(workspace, again)
    assert receipt.found == IMAGES
    assert not again.engine.batches  # type: ignore[attr-defined]
    assert content(workspace.features) == first


def test_a_second_writer_is_refused(workspace: Workspace, encoder: Encoder) -> None:
    told = f"Another process is encoding images here: process {os.getpid()}"
    with lock(work_lock(workspace), work="encoding images"), pytest.raises(BusyError, match=told):
        encode(workspace, encoder)


def test_workers_and_batches_change_no_byte(
    workspace: Workspace, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    encode(workspace, encoder)
    for change in ({"workers": 7}, {"batch_size": 5}):
        other = Workspace(tmp_path_factory.mktemp("other"))
        draw(other)
        encode(other, encoder, replace(SETTINGS, **change))  # type: ignore[arg-type]
        assert content(workspace.features) == content(other.features)


def test_what_cannot_fit_is_refused_before_it_starts(
    workspace: Workspace, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 500})
    monkeypatch.setattr("shutil.disk_usage", lambda *_: usage)
    with pytest.raises(
        SpaceError, match=r"cannot fit: .* are still to be written and DVC keeps a copy.*500 bytes free"
    ):
        encode(workspace, encoder)
    assert not shards(workspace)


def test_a_finished_encode_that_fits_compressed_is_not_refused(
    workspace: Workspace, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.engine.mixing[:] = 0  # type: ignore[attr-defined]
    raw = encode(workspace, encoder).raw_bytes
    monkeypatch.setattr("shutil.disk_usage", lambda *_: type("Usage", (), {"free": raw - 1}))
    told: list[str] = []
    assert encode(workspace, encoder, tell=told.append).found == IMAGES
    assert any(sentence.startswith("Compressed, about ") for sentence in told)


def test_interrupted_it_stops_and_leaves_whole_shards_only(
    workspace: Workspace, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = encoder.engine.start, []

    def interrupting(images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(images)

    monkeypatch.setattr(encoder.engine, "start", interrupting)
    with pytest.raises(KeyboardInterrupt):
        encode(workspace, encoder)
    assert len(calls) < 7  # of the 7 batches
    assert not workspace.features.exists()
    assert not list(workspace.root.rglob("*.partial"))


def test_never_more_than_a_few_batches_are_in_memory(
    workspace: Workspace, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(workspace, range(60))
    held, most = [0], [0]
    load, start = Encoder.load, encoder.engine.start

    def counting(self: Encoder, image: bytes) -> NDArray[np.uint8]:
        held[0] += 1
        most[0] = max(most[0], held[0])
        return load(self, image)

    def releasing(images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        time.sleep(0.002)  # an engine slower than decoding
        held[0] -= len(images)
        return start(images)

    monkeypatch.setattr(Encoder, "load", counting)
    monkeypatch.setattr(encoder.engine, "start", releasing)
    encode(workspace, encoder, replace(SETTINGS, shard_images=30))
    assert most[0] <= SHARDS_IN_WORK * (DECODING + 1) * SETTINGS.batch_size


def test_a_core_that_this_process_may_not_use_gets_no_thread(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 4, 5})
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with Workshop(encoder, replace(SETTINGS, workers=0)) as workshop:
        assert workshop._hands._max_workers == 3


def test_dask_searches_no_job_for_tasks(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    made, task = list[Any](), delayed("to be found, were the job searched")
    job = Job(Shard(0, 0, 0, "key"), (), (), Path(), Path(), layout_of(features()), task)
    monkeypatch.setattr(Workshop, "make", lambda *given: made.append(given[1]))
    LocalMaker(encoder, SETTINGS).make([job], lambda _: None)
    assert made[0].fingerprint is task


def test_nothing_heavy_is_loaded_before_an_encoder_is_opened() -> None:
    code = "import sys, pipeline.encoding.run; print({'torch', 'torchvision', 'openvino', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

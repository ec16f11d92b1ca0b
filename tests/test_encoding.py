import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.dataset import Dataset, Example, read_dataset, read_images, write_dataset
from pipeline.encoding import Encoder, EncodeSettings, encode_dataset, encoder_like, open_encoder
from pipeline.errors import BusyError, DataError, ImageError, SpaceError, WeightsError
from pipeline.features.integrity import work_lock
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace, lock, sha256

SETTINGS = EncodeSettings(
    backbone="resnet18",
    weights="random",
    image_size=64,
    dtype="float16",
    engine="torch",
    precision="float32",
    batch_size=2,
    shard_images=3,
    seed=5,
    device="cpu",
    workers=2,
)
IMAGES = 11


def draw(workspace: Workspace, count: int = IMAGES) -> Dataset:
    """Images of noise, each of another shape, and their list."""
    generator = np.random.default_rng(1)
    folder = workspace.dataset / "images"
    folder.mkdir(parents=True)
    examples = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (40 + number, 50, 3), dtype=np.uint8)).save(path)
        examples.append(Example(f"id {number}", path.name, "train", ("a word",), sha256(path)))
    write_dataset(workspace.dataset, examples, {"format": "shapes", "drawn": True, "skipped": []})
    return read_dataset(workspace.dataset)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def encode(workspace: Workspace, encoder: Encoder, settings: EncodeSettings = SETTINGS) -> list[str]:
    told: list[str] = []
    images = read_images(workspace.dataset)
    encode_dataset(workspace, images, workspace.dataset / "images", encoder, settings, told.append)
    return told


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return open_encoder(SETTINGS)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    draw(workspace)
    return workspace


def test_the_cache_holds_each_image_as_it_is_encoded_alone(workspace: Workspace, encoder: Encoder) -> None:
    encode(workspace, encoder)
    reader = FeatureReader(workspace.features)
    assert reader.ids == tuple(f"id {number}" for number in range(IMAGES))
    for row in range(IMAGES):
        alone = encoder.encode_images([workspace.dataset / "images" / f"{row}.png"])
        assert alone.tobytes() == reader.read([row]).tobytes()


def test_an_error_in_the_middle_keeps_what_was_finished_and_the_next_run_goes_on(
    workspace: Workspace, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Workspace(tmp_path_factory.mktemp("whole"))
    draw(whole)
    encode(whole, encoder)
    load = Encoder.load

    def failing(self: Encoder, path: Path) -> np.ndarray:
        while path.name == "10.png":  # fails as soon as another shard is finished
            if list(workspace.work("encode").rglob("*.shard")):
                raise ImageError(f"{path} cannot be decoded.")
            time.sleep(0.01)
        return load(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "load", failing)
        with pytest.raises(ImageError, match=r"10\.png cannot be decoded"):
            encode(workspace, encoder)
    assert not workspace.features.exists()
    before = {path: path.stat().st_mtime_ns for path in workspace.work("encode").rglob("*.shard")}
    told = encode(workspace, encoder)
    assert before
    assert f"{3 * len(before)} of 11 images are already encoded." in told
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert content(workspace.features) == content(whole.features)


def test_an_image_changed_since_ingest_is_refused(workspace: Workspace, encoder: Encoder) -> None:
    (workspace.dataset / "images" / "10.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"10\.png has changed since ingest saw it"):
        encode(workspace, encoder)
    assert not workspace.features.exists()


def test_a_missing_image_is_named(workspace: Workspace, encoder: Encoder) -> None:
    (workspace.dataset / "images" / "4.png").unlink()
    with pytest.raises(ImageError, match=r"4\.png"):
        encode(workspace, encoder)


CHILD = """
import sys, time
from pathlib import Path
from tests.test_encoding import SETTINGS, encode
from pipeline.encoding import Encoder, open_encoder
from pipeline.files import Workspace
load = Encoder.load
Encoder.load = lambda self, path: (time.sleep(0.05), load(self, path))[1]  # time enough to be killed in the middle
encode(Workspace(Path(sys.argv[1])), open_encoder(SETTINGS))
"""


def finished_shards(workspace: Workspace) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in workspace.work("encode").rglob("*.shard")}


def kill_after_a_shard(workspace: Workspace, jitter: float) -> None:
    """Encode in another process and kill it that long after it has finished one more shard."""
    before = len(finished_shards(workspace))
    command = [sys.executable, "-c", CHILD, str(workspace.root)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1]) as child:
        while len(finished_shards(workspace)) == before and child.poll() is None:
            time.sleep(0.001)
        time.sleep(jitter)
        child.kill()
    assert child.returncode in (-signal.SIGKILL, 0)


def test_killed_at_random_instants_it_ends_with_the_bytes_of_a_run_never_killed(
    workspace: Workspace, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = Workspace(tmp_path_factory.mktemp("whole"))
    draw(whole)
    encode(whole, encoder)
    chance = random.Random(6)
    for _ in range(2):
        finished = finished_shards(workspace)
        kill_after_a_shard(workspace, chance.uniform(0, 0.1))
        after = finished_shards(workspace)
        assert len(after) > len(finished)
        assert {path: after[path] for path in finished} == finished
    told = encode(workspace, encoder)
    assert any("are already encoded" in sentence for sentence in told)
    assert finished_shards(workspace).items() >= after.items()
    assert content(workspace.features) == content(whole.features)
    assert not list(workspace.root.rglob("*.partial"))


def test_leftovers_of_a_killed_writer_are_swept(workspace: Workspace, encoder: Encoder) -> None:
    encode(workspace, encoder)
    folder = next(path for path in workspace.work("encode").iterdir() if path.is_dir())
    (folder / ".abc.shard.99.partial").write_bytes(b"half")
    encode(workspace, encoder)
    assert not list(folder.glob(".*"))


def test_a_store_that_dvc_has_cleared_comes_back_without_encoding(
    workspace: Workspace, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    encode(workspace, encoder)
    first = content(workspace.features)
    shutil.rmtree(workspace.features)
    monkeypatch.setattr(encoder.engine, "encode", None)
    encode(workspace, encoder)
    assert content(workspace.features) == first


def test_a_second_writer_is_refused(workspace: Workspace, encoder: Encoder) -> None:
    told = f"Another process is encoding images here: process {os.getpid()}"
    with lock(work_lock(workspace), work="encoding images"), pytest.raises(BusyError, match=told):
        encode(workspace, encoder)


def test_workers_and_batches_of_the_last_shard_change_no_byte(
    workspace: Workspace, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Workspace(tmp_path_factory.mktemp("other"))
    draw(other)
    encode(workspace, encoder)
    encode(other, encoder, replace(SETTINGS, workers=7))
    assert content(workspace.features) == content(other.features)


def test_what_cannot_fit_is_refused_before_it_starts(
    workspace: Workspace, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 20_000})
    monkeypatch.setattr("shutil.disk_usage", lambda *_: usage)
    with pytest.raises(
        SpaceError, match=r"cannot fit: .* kB are still to be written and DVC keeps a copy.*20\.0 kB free"
    ):
        encode(workspace, encoder)
    assert not list(workspace.work("encode").rglob("*.shard"))


def test_interrupted_it_stops_and_leaves_whole_shards_only(
    workspace: Workspace, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = encoder.engine.encode, []

    def interrupting(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(batch)

    monkeypatch.setattr(encoder.engine, "encode", interrupting)
    with pytest.raises(KeyboardInterrupt):
        encode(workspace, encoder)
    assert len(calls) < 7  # of the 7 batches
    assert not workspace.features.exists()
    assert not list(workspace.root.rglob("*.partial"))


def test_encoder_like_rebuilds_the_encoder_of_the_cache(workspace: Workspace, encoder: Encoder) -> None:
    here = replace(
        SETTINGS, backbone="resnet34", image_size=96, seed=0, precision="auto", batch_size=9, dtype="float32"
    )
    again, warnings = encoder_like(encoder.fields, here)
    path = workspace.dataset / "images" / "3.png"
    assert warnings == []
    assert again.fields == encoder.fields
    assert again.encode_images([path]).tobytes() == encoder.encode_images([path]).tobytes()


def test_encoder_like_warns_of_each_difference(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.hardware.cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    made = {**encoder.fields, "engine": "openvino", "precision": "bfloat16", "batch_size": 2}
    again, warnings = encoder_like(made, SETTINGS)
    assert again.engine.name == "torch"
    assert len(warnings) == 2
    assert "engine 'openvino'; new images are encoded with 'torch'" in warnings[0]
    assert "precision 'bfloat16'; new images are encoded with 'float32'" in warnings[1]


def test_encoder_like_refuses_other_weights(encoder: Encoder, tmp_path: Path) -> None:
    import torch
    from torchvision import models

    path = tmp_path / "mine.pth"
    torch.save(models.resnet18(weights=None).state_dict(), path)
    fields = {**encoder.fields, "weights": "mine.pth", "weights_sha256": "0" * 64, "seed": None}
    with pytest.raises(WeightsError, match=r"expected SHA-256 0000.*found"):
        encoder_like(fields, replace(SETTINGS, weights=str(path)))
    with pytest.raises(WeightsError, match=r"state dict mine\.pth .*but encode\.weights is default"):
        encoder_like(fields, replace(SETTINGS, weights="default"))


def test_a_state_dicts_folder_does_not_enter_the_fields(tmp_path: Path) -> None:
    import torch
    from torchvision import models

    folder = tmp_path / "somewhere"
    folder.mkdir()
    torch.save(models.resnet18(weights=None).state_dict(), folder / "mine.pth")
    fields = open_encoder(replace(SETTINGS, weights=str(folder / "mine.pth"))).fields
    assert fields["weights"] == "mine.pth"
    assert fields["weights_sha256"] == sha256(folder / "mine.pth")
    assert "somewhere" not in str(fields)


def test_settings_are_checked_without_torch() -> None:
    code = "import sys, pipeline.encoding; print({'torch', 'torchvision', 'openvino', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""Every preset of a system or decoder trains from a cache of its own backbone's shape, is resumed, and is searched."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.captioners.build import DECODERS
from pipeline.captioners.search import find_captions
from pipeline.captioners.trained import read_captioner
from pipeline.commands.settings import check_settings
from pipeline.datasets.dataset import read_dataset
from pipeline.files import Workspace
from pipeline.settings import read_params
from pipeline.training import checkpoint
from pipeline.training.inputs import Inputs
from pipeline.training.loop import Training
from pipeline.training.settings import TrainSettings
from pipeline.training.together import train_alone
from stages import ingest, tokenize
from tests import tiny
from tests.features.filled import filled
from tests.import_graph import ROOT

# What the encoder of a preset makes of an image: rows, columns, channels.
SHAPES = {
    "demo": (7, 7, 512),
    "efficientnet-b4": (12, 12, 1792),
    "efficientnet-lite2": (14, 14, 1280),
    "inception-gru": (8, 8, 1536),
    "resnet101": (14, 14, 2048),
    "resnet50": (14, 14, 2048),
    "resnet50-tanh": (7, 7, 2048),
    "sat-hard": (14, 14, 512),
    "sat-soft": (8, 8, 2048),
}
OF_DATA = {"coco", "flickr30k", "flickr8k", "own", "shapes"}
PRESETS = sorted({path.stem for path in (ROOT / "params").glob("*.yaml")} - OF_DATA)
OF_ANY = (3, 5, 48)  # of a decoder's preset, which goes with every system


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Training images with a caption each, and their tokens."""
    workspace = Workspace(tmp_path_factory.mktemp("drawn"))
    ingest.run(workspace, tiny.settings("data"))
    tokenize.run(workspace, tiny.settings("tokenize", tokenize__captions_per_image=1))
    return workspace


def settings(preset: str, **changes: Any) -> TrainSettings:
    """The preset's section `train` over that of params.yaml, for two epochs of a step."""
    document = copy.deepcopy(read_params(ROOT / "params.yaml"))
    given = read_params(ROOT / "params" / f"{preset}.yaml")
    if preset in SHAPES:
        document |= given
    else:
        document["train"] |= given["train"]
    short = {"epochs": 2, "batch_images": tiny.IMAGES, "device": "cpu", "precision": "float32", "dropout": 0.2}
    document["train"] |= {**short, **changes}
    found: TrainSettings = check_settings(document, preset)["train"]
    return found


def inputs(drawn: Workspace, place: Path, preset: str, chosen: TrainSettings) -> Inputs:
    """A workspace with random features, most of them zero, as after a ReLU."""
    workspace = Workspace(place)
    workspace.dataset.parent.mkdir(parents=True)
    workspace.dataset.symlink_to(drawn.dataset)
    workspace.tokens.symlink_to(drawn.tokens)
    (rows, columns, channels), ids = SHAPES.get(preset, OF_ANY), read_dataset(drawn.dataset).ids
    features = np.random.default_rng(1).standard_normal((len(ids), rows * columns, channels), np.float32) - 1
    filled(workspace.features, np.maximum(features, 0), ids, grid=(rows, columns))
    return Inputs(workspace, chosen)


def weights(captioner: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in captioner.state_dict().values())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_is_resumed_and_searched(
    drawn: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    chosen = settings(preset)
    own = inputs(drawn, tmp_path / "data", preset, chosen)
    whole = own.prepare(chosen)
    before = weights(whole.phases[0].captioner)
    history = train_alone(*whole.phases)
    assert len(history) == 2
    assert weights(whole.phases[0].captioner) != before
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)
    own.workspace = Workspace(tmp_path / "killed")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "data").symlink_to(tmp_path / "data" / "data")
    _killed_after_an_epoch(own.prepare(chosen).phases[0], monkeypatch)
    resumed = own.prepare(chosen)
    assert train_alone(*resumed.phases) == history
    assert weights(resumed.phases[0].captioner) == weights(whole.phases[0].captioner)
    resumed.write(tmp_path / "captioner")
    trained = read_captioner(tmp_path / "captioner", torch.device("cpu"))
    rows, columns = trained.config.grid or (0, 0)
    trained.captioner.look_through(whole.phases[0].captioner.pooling)
    search = dataclasses.replace(tiny.settings("evaluate"), beam=3)
    seen = own.regions.ready(own.regions.start([0, 4]))
    for found in find_captions(trained.captioner, seen, search, ["a" * 64, "b" * 64]):
        assert found.attention.shape == (len(found.words), rows * columns)
        looked = found.attention.sum(1)
        if trained.config.decoder == "adaptive":  # the rest is the sentinel's
            assert ((looked > 0) & (looked < 1)).all()
        else:
            np.testing.assert_allclose(looked, 1, atol=1e-5)


def _killed_after_an_epoch(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    take = training.take

    def killed(batch: Any) -> None:
        if training.progress.epoch == 1:
            raise Killed
        take(batch)

    monkeypatch.setattr(training, "take", killed)
    with pytest.raises(Killed):
        train_alone(training)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns_from_rewards(drawn: Workspace, tmp_path: Path, decoder: str) -> None:
    preset = next(name for name in PRESETS if settings(name).decoder == decoder)
    critical = {"epochs": 1, "samples": 2, "temperature": 0.7, "dropout": True, "learning_rate": 1e-3}
    small = {"hidden_size": 24, "attention_size": 7, "embedding_size": 11}
    chosen = settings(preset, epochs=1, self_critical=critical, average=0.9, grid="native", **small)
    own = inputs(drawn, tmp_path / "data", "any", chosen)
    history = train_alone(*own.prepare(chosen).phases)
    assert [sorted(record) for record in history][1] != sorted(history[0])
    assert history[1]["train/reward"] >= 0


def test_every_preset_has_its_shape_and_every_decoder_a_preset() -> None:
    assert {name for name in PRESETS if "encode" in read_params(ROOT / "params" / f"{name}.yaml")} == set(SHAPES)
    assert {settings(name).decoder for name in PRESETS} == set(DECODERS)

"""A tail from cache to caption: untouched it changes nothing, trained it is stored, read and run like the decoder."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.captioners.trained import TailConfig, TrainedCaptioner, read_captioner, write_captioner
from pipeline.commands.caption import caption_images
from pipeline.errors import CacheError, CheckpointError, SettingsError, WeightsError
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from pipeline.training.inputs import Inputs
from pipeline.training.tails import attach_trained
from pipeline.vision.backbones import build_backbone
from pipeline.vision.tail import Tailed, build_tail
from stages import train
from tests import tiny
from tests.import_graph import ROOT

CPU = torch.device("cpu")
FLOATS = {"encode__dtype": "float32", "train__epochs": 4, "train__grid": 3}  # the tail's grid is 2 x 2
TAIL = {
    **FLOATS,
    "encode__layer": "layer3",
    "train__tail": "layer4",
    "train__tail_learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A decoder trained on the last map, evaluated."""
    return tiny.evaluated(tiny.trained(tiny.encoded(tmp_path_factory.mktemp("full"), **FLOATS), **FLOATS), **FLOATS)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The cache of layer3 of the same images; nothing is trained. Read it; to change it copy it."""
    return tiny.encoded(tmp_path_factory.mktemp("cut"), **TAIL)


@pytest.fixture(scope="module")
def tailed(cut: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Tail and decoder trained together, evaluated."""
    workspace = copied(cut, tmp_path_factory.mktemp("tailed"))
    return tiny.evaluated(tiny.trained(workspace, **TAIL), **TAIL)


def copied(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root, dirs_exist_ok=True)
    return Workspace(root)


def captions(workspace: Workspace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((workspace.evaluate_results / "captions.json").read_text())
    return found


def alone(workspace: Workspace) -> list[tuple[str, float]]:
    """Caption and log-probability of each image of the test split, captioned as a new one."""
    paths = [workspace.dataset / "images" / entry["image"] for entry in captions(workspace)]
    found, warnings = caption_images(workspace, paths, None)
    assert warnings == []
    return [(entry["caption"], entry["log_probability"]) for entry in found]


def test_with_an_untouched_tail_the_captions_are_those_of_a_full_cache(
    full: Workspace, cut: Workspace, tmp_path: Path
) -> None:
    workspace, decoder = copied(cut, tmp_path / "run"), read_captioner(full.captioner, CPU)
    reader = FeatureReader(workspace.features)
    assert (reader.grid, reader.channels, reader.fields["layer"]) == ((4, 4), 256, "layer3")
    tail = build_tail(reader.fields, "layer4", "random")
    config = replace(
        decoder.config, features=reader.fingerprint, encoding=reader.fields, tail=TailConfig("layer4", (2, 2))
    )
    workspace.captioner.mkdir(parents=True)
    write_captioner(workspace.captioner, TrainedCaptioner(Tailed(tail, decoder.captioner), config, decoder.vocabulary))
    tiny.evaluated(workspace, **TAIL)
    expected = captions(full)
    assert [entry["caption"] for entry in captions(workspace)] == [entry["caption"] for entry in expected]
    assert any(entry["caption"] for entry in expected)
    for found, (caption, log_probability), entry in zip(captions(workspace), alone(workspace), expected, strict=True):
        assert caption == entry["caption"]
        assert found["log_probability"] == pytest.approx(entry["log_probability"], abs=1e-4)
        assert log_probability == pytest.approx(entry["log_probability"], abs=1e-4)


def test_tail_and_decoder_are_stored_in_one_file_and_say_which_tail(tailed: Workspace) -> None:
    assert {path.name for path in tailed.captioner.iterdir()} == {
        "model.safetensors", "config.json", "vocabulary.json",
    }  # fmt: skip
    config = json.loads((tailed.captioner / "config.json").read_text())
    assert config["tail"] == {"first": "layer4", "grid": [2, 2]}
    assert (config["shape"]["channels"], config["grid"], config["encoding"]["layer"]) == (512, [3, 3], "layer3")
    weights = load_file(tailed.captioner / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"decoder", "tail"}
    assert not any("layer3" in name for name in weights)


def test_training_moves_the_tails_weights_and_none_of_its_statistics(tailed: Workspace) -> None:
    learnt = load_file(tailed.captioner / "model.safetensors")
    first = build_backbone("resnet18", "random", 64, seed=0).module.state_dict()
    tail = {name.removeprefix("tail.network."): value for name, value in learnt.items() if name.startswith("tail.")}
    assert tail.keys() == {name for name in first if name.startswith("layer4")}
    statistics = [name for name in tail if "running" in name or "tracked" in name]
    assert len(statistics) == 15
    for name, value in tail.items():
        assert np.array_equal(value, first[name].numpy()) == (name in statistics), name


def test_an_image_captioned_alone_runs_trunk_tail_and_decoder(tailed: Workspace) -> None:
    for (caption, log_probability), entry in zip(alone(tailed), captions(tailed), strict=True):
        assert caption == entry["caption"]
        assert log_probability == pytest.approx(entry["log_probability"], abs=1e-4)


def test_a_training_with_a_tail_goes_on_from_where_it_stopped(
    cut: Workspace, tailed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = copied(cut, tmp_path / "run")
    settings, asked = tiny.settings("train", **TAIL), list[int]()
    take = torch.optim.AdamW.step

    def stopped(*given: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) == 7:  # in the second epoch
            raise KeyboardInterrupt
        return take(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr("torch.optim.AdamW.step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train.run(workspace, settings)
    train.run(workspace, settings)
    weights = [load_file(one.captioner / "model.safetensors") for one in (workspace, tailed)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_tail_learns_at_a_rate_of_its_own(cut: Workspace) -> None:
    prepared = Inputs(cut, tiny.settings("train", **TAIL)).prepare(tiny.settings("train", **TAIL))
    captioner = prepared.phases[0].captioner
    assert isinstance(captioner, Tailed)
    assert {id(one) for one in captioner.slow_parameters()} == {id(one) for one in captioner.tail.parameters()}


def test_trainings_of_one_cache_share_no_tail(cut: Workspace) -> None:
    inputs, settings = Inputs(cut, tiny.settings("train", **TAIL)), tiny.settings("train", **TAIL)
    first, second = (inputs.prepare(replace(settings, seed=seed)).phases[0].captioner for seed in (1, 2))
    for one, other in zip(first.slow_parameters(), second.slow_parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_a_tail_makes_another_training_of_it_and_leaves_the_decoders_first_weights(cut: Workspace) -> None:
    inputs, settings = Inputs(cut, tiny.settings("train", **TAIL)), tiny.settings("train", **TAIL)
    assert inputs.works(settings) != inputs.works(replace(settings, tail=None))
    assert inputs.works(settings) == Inputs(cut, settings).works(settings)
    plain = inputs.prepare(replace(settings, tail=None))
    assert (plain.config.shape.channels, plain.config.tail) == (256, None)
    assert plain.phases[0].captioner.pooling is not None
    behind = inputs.prepare(settings).phases[0].captioner
    assert isinstance(behind, Tailed) and behind.decoder.pooling is not None
    assert behind.decoder.pooling.shape == (9, 4)  # from the tail's grid
    assert plain.phases[0].captioner.pooling.shape == (9, 16)


def test_rounded_features_serve_a_tail_as_well(tmp_path: Path) -> None:
    # bfloat16 where the hardware has it: there the tail is given what has been rounded twice
    changes = {**TAIL, "encode__dtype": "uint8", "train__epochs": 1, "train__precision": "auto"}
    workspace = tiny.evaluated(tiny.trained(tiny.encoded(tmp_path, **changes), **changes), **changes)
    for (caption, log_probability), entry in zip(alone(workspace), captions(workspace), strict=True):
        assert caption == entry["caption"]
        assert log_probability == pytest.approx(entry["log_probability"], abs=1e-4)


def test_a_tail_that_does_not_fit_the_cache_is_refused_before_anything_is_trained(
    cut: Workspace, encoded_once: Workspace
) -> None:
    with pytest.raises(
        SettingsError, match=r"train\.tail is layer3, but the cache holds layer3.*Set train\.tail to lay"
    ):
        train.run(cut, tiny.settings("train", **{**TAIL, "train__tail": "layer3"}))
    with pytest.raises(CacheError, match=r"the cache holds the last map of resnet18: nothing that learns"):
        train.run(encoded_once, tiny.settings("train", train__tail="layer4"))


def test_the_state_dict_is_sought_where_the_settings_say(cut: Workspace, tmp_path: Path) -> None:
    workspace = copied(cut, tmp_path / "run")
    tiny.write_params(workspace, **{**TAIL, "encode__weights": "other.pth"})
    inputs, settings = Inputs(workspace, tiny.settings("train", **TAIL)), tiny.settings("train", **TAIL)
    assert inputs.prepare(settings).config.tail == TailConfig("layer4", (2, 2))  # random ones need no file
    inputs.tails._fields = {**inputs.reader.fields, "weights": "mine.pth", "weights_sha256": "0" * 64}
    inputs.tails._built.clear()
    with pytest.raises(WeightsError, match=rf"state dict mine\.pth .*encode\.weights is {workspace.root}/other\.pth"):
        inputs.prepare(settings)


def test_a_captioner_with_a_tail_is_not_read_without_it(tailed: Workspace) -> None:
    with pytest.raises(CheckpointError, match=r"captioner was trained with a tail \(layer4\)"):
        read_captioner(tailed.captioner, CPU)
    assert isinstance(read_captioner(tailed.captioner, CPU, attach_trained).captioner, Tailed)


def test_a_training_without_a_tail_loads_no_network(encoded_once: Workspace, tmp_path: Path) -> None:
    workspace = copied(encoded_once, tmp_path / "run")
    script = (
        "import sys; from pathlib import Path; from pipeline.files import Workspace; from stages import train\n"
        "from pipeline.settings import load_section; from pipeline.training.settings import TrainSettings\n"
        f"workspace = Workspace(Path({str(workspace.root)!r}))\n"
        "train.run(workspace, load_section(workspace.params, 'train', TrainSettings))\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'torchvision', 'timm', 'PIL'}\n"
        "assert not loaded and not any(name.startswith('pipeline.vision') for name in sys.modules), loaded\n"
    )
    tiny.write_params(workspace, train__epochs=1)
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert workspace.captioner.exists()

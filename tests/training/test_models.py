"""Models by name: read, refused, and made to see one cache."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.ensemble import Ensemble
from pipeline.captioners.trained import CaptionerConfig, TrainedCaptioner, write_captioner
from pipeline.errors import CacheError, CheckpointError, MissingError, SettingsError
from pipeline.files import Workspace
from pipeline.language.vocabulary import MARKS, Vocabulary
from pipeline.training.models import read_models
from tests import tiny

CPU = torch.device("cpu")
WORDS = Vocabulary((*MARKS, "a", "red", "dot"))
OPTIONS = {"activation": "tanh", "gate": False, "normalise": True, "tie": False}


def write(workspace: Workspace, name: str, seed: int = 0, vocabulary: Vocabulary = WORDS, **changes: Any) -> None:
    torch.manual_seed(seed)
    shape = DecoderShape(len(vocabulary), channels=5, embedding_size=6, attention_size=3, hidden_size=7, dropout=0.1)
    fields: dict[str, Any] = {
        "grid": (4, 4), "features": "f" * 64, "encoding": {"backbone": "resnet18", "dtype": "float16"},
    }  # fmt: skip
    config = CaptionerConfig(
        decoder="soft",
        options=OPTIONS,
        shape=shape,
        vocabulary=vocabulary.fingerprint,
        versions={},
        quantisation=None,
        **{**fields, **changes},
    )
    folder = workspace.models / name
    folder.mkdir(parents=True)
    write_captioner(folder, TrainedCaptioner(build_captioner("soft", shape, OPTIONS), config, vocabulary))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three models of one cache: `captioner`, `b` and, of a coarser grid, `c`."""
    found = Workspace(tmp_path)
    write(found, "captioner")
    write(found, "b", seed=1)
    write(found, "c", seed=2, grid=(2, 2))
    return found


def test_one_model_is_itself(workspace: Workspace) -> None:
    models = read_models(workspace, ["b"], CPU)
    captioner = models.captioner((2, 3))
    assert captioner is models.members[0].captioner
    assert captioner.pooling is not None
    assert captioner.pooling.shape == (16, 6)
    assert not captioner.training
    assert models.grid == models.config.grid == (4, 4)


def test_several_models_see_one_cache_each_through_its_own_pooling(workspace: Workspace) -> None:
    models = read_models(workspace, ["c", "captioner", "b"], CPU)
    ensemble = models.captioner((4, 4))
    assert isinstance(ensemble, Ensemble)
    assert not ensemble.training
    assert models.grid == (4, 4)
    poolings = [member.captioner.pooling for member in models.members]
    assert [None if one is None else one.shape for one in poolings] == [(4, 16), None, None]
    coarse, same, also = ensemble.onto
    assert same is also is None
    assert coarse is not None
    assert coarse[1].reshape(4, 4).tolist() == [[0, 0, 0.25, 0.25], [0, 0, 0.25, 0.25], [0] * 4, [0] * 4]
    regions = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(0))
    _, attention, _ = ensemble.step(torch.tensor([1, 1, 1]), ensemble.start(regions))
    torch.testing.assert_close(attention.sum(-1), torch.ones(3))


def test_a_name_that_is_no_captioner_is_refused_with_those_that_are(workspace: Workspace) -> None:
    (workspace.models / "empty").mkdir()
    (workspace.models / ".b.partial").mkdir()
    (workspace.models / ".b.partial" / "config.json").write_text("{}")
    for name in ("sweep-seed-9", "empty"):
        told = rf"evaluate\.models names {name}, but .*{name} holds no captioner\. Captioners of .*: b, c, captioner\. "
        with pytest.raises(MissingError, match=told + r'.*"dvc checkout".*"git add models"'):
            read_models(workspace, ["captioner", name], CPU)


def test_that_of_the_stage_train_names_the_stage(workspace: Workspace) -> None:
    (workspace.captioner / "config.json").unlink()
    with pytest.raises(MissingError, match='Run "dvc repro train"'):
        read_models(workspace, ["b", "captioner"], CPU)


def test_models_of_other_tokens_are_refused_by_name_with_what_differs(workspace: Workspace) -> None:
    write(workspace, "more", vocabulary=Vocabulary((*WORDS.words, "blue")))
    told = r"models/more cannot be averaged with .*models/b: it speaks 8 words \(vocabulary \w{12}\), the other 7 \("
    with pytest.raises(CheckpointError, match=told):
        read_models(workspace, ["b", "captioner", "more"], CPU)


def test_models_of_another_cache_are_refused_by_name_with_what_differs(workspace: Workspace) -> None:
    write(workspace, "other", features="e" * 64, encoding={"backbone": "resnet50", "dtype": "float16"})
    told = (
        r"models/other cannot be averaged with .*models/captioner: its features are of another cache \(backbone: "
        r"expected 'resnet18', found 'resnet50'\)\. Models of one ensemble share tokens and cache"
    )
    with pytest.raises(CheckpointError, match=told):
        read_models(workspace, ["captioner", "other"], CPU)


def test_regions_without_a_place_serve_no_model_of_a_grid(workspace: Workspace) -> None:
    with pytest.raises(CacheError, match="these have none"):
        read_models(workspace, ["captioner", "b"], CPU).captioner(None)


def test_models_of_boxes_have_no_grid(workspace: Workspace) -> None:
    for name in ("boxes", "crates"):
        write(workspace, name, grid=None)
    models = read_models(workspace, ["boxes", "crates"], CPU)
    assert models.grid is None
    ensemble = models.captioner(None)
    assert isinstance(ensemble, Ensemble)
    assert ensemble.onto == (None, None)


def test_weights_are_not_shared_by_models_of_one_shape(workspace: Workspace) -> None:
    first, second = read_models(workspace, ["captioner", "b"], CPU).members
    one, other = (member.captioner.state_dict() for member in (first, second))
    assert not torch.equal(one["output.weight"], other["output.weight"])
    assert dataclasses.replace(first.config) == second.config


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "evaluate.models: the list is empty; name at least one folder of models/, such as [captioner]"),
        (["a", "b", "a"], "evaluate.models: a is named 2 times; each model is named once"),
        (["../x"], "evaluate.models: expected the name of a folder of models/ and no path, found '../x'"),
        (["/etc"], "no path, found '/etc'"),
        (["a/b"], "no path, found 'a/b'"),
        (["a\\b"], "no path, found 'a\\\\b'"),
        (["C:x"], "no path, found 'C:x'"),
        (["a/"], "no path, found 'a/'"),
        ([".."], "no path, found '..'"),
        (["."], "no path, found '.'"),
        ([""], "no path, found ''"),
        ([".captioner.partial"], "no path, found '.captioner.partial'"),
        (["a\0"], "no path, found 'a\\x00'"),
        ("captioner", "evaluate.models: expected a list, each text, found 'captioner'"),
        ([1], "evaluate.models: expected a list, each text, found [1]"),
        (None, "evaluate.models: expected a list, each text, found None"),
    ],
    ids=str,
)
def test_names_that_cannot_be_are_told(names: Any, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        tiny.settings("evaluate", evaluate__models=names)
    assert told in str(caught.value)


def test_names_as_a_sweep_gives_them_are_taken() -> None:
    names = ["sweep-seed-1", "sweep-learning_rate-0.01", "_x"]
    assert tiny.settings("evaluate", evaluate__models=names).models == names

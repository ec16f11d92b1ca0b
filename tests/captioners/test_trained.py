"""A captioner on disk: it says the same after a round trip, and what is damaged is refused with the remedy."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, DecoderShape, Output, State
from pipeline.captioners.search import beam_search
from pipeline.captioners.trained import CaptionerConfig, TailConfig, TrainedCaptioner, read_captioner, write_captioner
from pipeline.errors import CheckpointError, DataError, MissingError
from pipeline.language.vocabulary import MARKS, Vocabulary

CPU = torch.device("cpu")
VOCABULARY = Vocabulary((*MARKS, "a", "red", "dot", "left"))


def captioner(tie: bool = False) -> TrainedCaptioner:
    options = {"activation": "tanh", "gate": True, "normalise": True, "tie": tie}
    shape = DecoderShape(len(VOCABULARY), channels=5, embedding_size=6, attention_size=3, hidden_size=7, dropout=0.1)
    torch.manual_seed(2)
    config = CaptionerConfig(
        decoder="soft",
        options=options,
        shape=shape,
        grid=(2, 3),
        vocabulary=VOCABULARY.fingerprint,
        features="f" * 64,
        encoding={"backbone": "resnet18"},
        versions={"torch": "x"},
        quantisation={"scale": [0.1 + 0.2, 1e-30], "zero": [0, 7]},
    )
    return TrainedCaptioner(build_captioner("soft", shape, options).eval(), config, VOCABULARY)


def said(trained: TrainedCaptioner) -> list[tuple[tuple[int, ...], float]]:
    regions = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1))
    found = beam_search(trained.captioner, regions, beam=3, length_penalty=0.7, max_length=6)
    return [(hypothesis.words, hypothesis.log_probability) for hypothesis in found]


@pytest.mark.parametrize("tie", [False, True])
def test_a_captioner_read_back_says_the_same(tmp_path: Path, tie: bool) -> None:
    written = captioner(tie)
    write_captioner(tmp_path, written)
    found = read_captioner(tmp_path, CPU)
    assert said(found) == said(written)
    assert (found.config, found.vocabulary) == (written.config, written.vocabulary)
    assert not found.captioner.training


def test_a_captioner_of_boxes_has_no_grid(tmp_path: Path) -> None:
    boxes = captioner()
    boxes = dataclasses.replace(boxes, config=dataclasses.replace(boxes.config, grid=None, quantisation=None))
    write_captioner(tmp_path, boxes)
    assert read_captioner(tmp_path, CPU).config == boxes.config


class Doubled(Captioner):
    """What a tail does, as small as can be: cells times a weight, then a decoder."""

    def __init__(self, decoder: Captioner) -> None:
        super().__init__()
        self.decoder, self.factor = decoder, torch.nn.Parameter(torch.ones(()))

    def start(self, regions: torch.Tensor) -> State:
        return self.decoder.start(regions * self.factor)

    def step(self, words: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
        return self.decoder.step(words, state)

    def forward(self, *_: object) -> Output:
        raise AssertionError("search does not train")


def with_tail() -> TrainedCaptioner:
    plain = captioner()
    doubled = Doubled(plain.captioner)
    torch.nn.init.constant_(doubled.factor, 1.7)
    config = dataclasses.replace(plain.config, tail=TailConfig("layer4", (3, 2)))
    return TrainedCaptioner(doubled.eval(), config, VOCABULARY)


def test_a_captioner_with_a_tail_is_read_back_by_who_can_build_one(tmp_path: Path) -> None:
    written = with_tail()
    write_captioner(tmp_path, written)
    asked: list[CaptionerConfig] = []

    def attach(decoder: Captioner, config: CaptionerConfig) -> Captioner:
        asked.append(config)
        return Doubled(decoder)

    found = read_captioner(tmp_path, CPU, attach)
    assert said(found) == said(written) != said(captioner())
    assert asked == [written.config] == [found.config]
    assert (found.config.native((9, 8)), captioner().config.native((9, 8))) == ((3, 2), (9, 8))
    with pytest.raises(CheckpointError, match=r"trained with a tail \(layer4\), which is not read here"):
        read_captioner(tmp_path, CPU)


def test_captioners_from_before_there_were_tails_have_none(tmp_path: Path) -> None:
    write_captioner(tmp_path, captioner())
    assert json.loads((tmp_path / "config.json").read_text())["tail"] is None
    without("tail")(tmp_path)

    def attach(decoder: Captioner, config: CaptionerConfig) -> Captioner:
        raise AssertionError(f"{decoder} of {config} has no tail")

    assert read_captioner(tmp_path, CPU, attach).config == captioner().config


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    write_captioner(tmp_path, captioner(tie=True))
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert len({value.data_ptr() for value in read_captioner(tmp_path, CPU).captioner.state_dict().values()}) == len(
        stored
    )


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def replaced(name: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return damage


def configured(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        document = json.loads(path.read_text())
        document["shape"] |= changes.pop("shape", {})
        path.write_text(json.dumps({**document, **changes}))

    return damage


def without(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        document = json.loads(path.read_text())
        del document[key]
        path.write_text(json.dumps(document))

    return damage


def other_weights(folder: Path) -> None:
    safetensors.torch.save_file({"word.weight": torch.zeros(3)}, folder / "model.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "weights cut": (cut, CheckpointError, r"model\.safetensors is damaged: .*Run \"dvc repro train\""),
    "weights are text": (replaced("model.safetensors", "hello"), CheckpointError, r"model\.safetensors is damaged"),
    "weights of another": (other_weights, CheckpointError, r"does not fit its config\.json: .* on one side only"),
    "sizes of another": (
        configured(shape={"hidden_size": 8}), CheckpointError, r"model\.safetensors is damaged: .*dvc repro train",
    ),
    "config is cut": (replaced("config.json", '{"decoder": "so'), DataError, r"not valid JSON: .* line 1, column 13"),
    "config is a list": (replaced("config.json", "[]"), CheckpointError, r"config\.json is not what train writes"),
    "config lacks a key": (without("grid"), CheckpointError, r"config\.json is not what train writes \('grid'\)"),
    "config of an older version": (without("quantisation"), CheckpointError, r"not what train writes .*'quantisation'"),
    "config lacks the vocabulary": (without("vocabulary"), CheckpointError, r"not what train writes .*'vocabulary'"),
    "config of a newer version": (configured(colour=1), CheckpointError, r"not what train writes .*'colour'"),
    "config of half a tail": (configured(tail={"first": "layer4"}), CheckpointError, r"not what train .*'grid'"),
    "config of more than a tail": (
        configured(tail={"first": "layer4", "grid": [1, 2], "last": 3}), CheckpointError, r"not what train .*'last'",
    ),
    "config of no tail's fields": (configured(tail={}), CheckpointError, r"not what train writes .*'grid'"),
    "a vocabulary that is no text": (
        configured(vocabulary=None), CheckpointError, r"not what train writes \(vocabulary: expected text\)",
    ),
    "a size that is no number": (
        configured(shape={"hidden_size": "7"}), CheckpointError,
        r"config\.json is not what train writes \(shape\.hidden_size: expected a whole number .*'7'.*dvc checkout",
    ),
    "a size below one": (configured(shape={"channels": -5}), CheckpointError, r"shape\.channels: -5 is out of range"),
    "half a grid": (configured(grid=[3]), CheckpointError, r"config\.json is not what train writes"),
    "a decoder that there is not": (
        configured(decoder="sotf"), CheckpointError, r"not what train writes \(train\.decoder: .*'sotf'\)",
    ),
    "an option that there is not": (
        configured(options={"gaet": True}), CheckpointError, r"not what train .*decoder_options\.gaet: unknown",
    ),
    "another vocabulary": (
        replaced("vocabulary.json", json.dumps({"words": [*MARKS, "a"]})), CheckpointError, r"another vocabulary",
    ),
    "no vocabulary": (lambda folder: (folder / "vocabulary.json").unlink(), MissingError, r"vocabulary\.json does not"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(), MissingError, r"does not exist\. Run \"dvc repro trai",
    ),
    "nothing": (lambda folder: (folder / "config.json").unlink(), MissingError, r"Run \"dvc repro train\""),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    write_captioner(tmp_path, captioner())
    damage(tmp_path)
    with pytest.raises(kind, match=message):
        read_captioner(tmp_path, CPU)


def test_the_vocabulary_of_the_tokens_must_be_its_own(tmp_path: Path) -> None:
    trained = captioner()
    trained.require_vocabulary(VOCABULARY, tmp_path)
    told = f"{re.escape(str(tmp_path))} was trained with another vocabulary: it speaks 8 words"
    with pytest.raises(CheckpointError, match=told):
        trained.require_vocabulary(Vocabulary((*MARKS, "a")), tmp_path)


def test_the_files_hold_no_pickle(tmp_path: Path) -> None:
    trained = captioner()
    write_captioner(tmp_path, trained)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["shape"] == dataclasses.asdict(trained.config.shape)

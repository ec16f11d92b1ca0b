"""The stage evaluate: scores recomputed from what it wrote, and everything it refuses."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.captioners.captioner import Captioner
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.trained import read_captioner
from pipeline.captioners.words import NEVER_SAID
from pipeline.datasets.dataset import Example, read_dataset, write_dataset
from pipeline.errors import (
    BusyError,
    CacheError,
    CheckpointError,
    DataError,
    DeviceError,
    MissingError,
    SettingsError,
    SpaceError,
)
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace, lock
from pipeline.language.vocabulary import END, START, Vocabulary
from pipeline.language.words import tokenize
from pipeline.scoring.fragments import fragments
from pipeline.scoring.scores import score_captions
from pipeline.training import batches
from pipeline.training.batches import Regions
from stages import encode, evaluate
from stages import tokenize as tokenize_stage
from tests import tiny
from tests.encoding.quick import content


def metrics(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.evaluate_results / "metrics.json").read_text(encoding="utf-8"))
    return found


def entries(workspace: Workspace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((workspace.evaluate_results / "captions.json").read_text(encoding="utf-8"))
    return found


def test_the_outs_are_those_of_the_pipeline(evaluated_once: Workspace) -> None:
    names = {path.name for path in evaluated_once.evaluate_results.iterdir()}
    assert names == {"metrics.json", "captions.json", "attention.npz", "skipped.json"}
    assert json.loads((evaluated_once.evaluate_results / "skipped.json").read_text()) == []


def test_metrics_have_the_agreed_names(evaluated_once: Workspace) -> None:
    assert set(metrics(evaluated_once)) == {
        "bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l", "bleu4_blind", "caption_blind", "images",
        "mean_length", "distinct", "fragments", "vocabulary_used", "signature",
    }  # fmt: skip


def test_captions_are_those_of_the_test_images_with_all_their_references(evaluated_once: Workspace) -> None:
    dataset = read_dataset(evaluated_once.dataset)
    rows, found = dataset.rows("test"), entries(evaluated_once)
    assert [entry["image"] for entry in found] == [dataset.ids[row] for row in rows]
    for entry, row in zip(found, rows, strict=True):
        assert list(entry) == ["image", "caption", "references", "log_probability"]
        assert entry["references"] == [" ".join(tokenize(text)) for text in dataset.examples[row].captions]
        assert entry["log_probability"] < 0


def test_metrics_are_those_of_the_captions_as_written(evaluated_once: Workspace) -> None:
    found, told = entries(evaluated_once), metrics(evaluated_once)
    said = [entry["caption"].split() for entry in found]
    assert all(" ".join(tokenize(entry["caption"])) == entry["caption"] for entry in found)
    known = [[text.split() for text in entry["references"]] for entry in found]
    for name, value in score_captions(said, known).items():
        assert told[name] == pytest.approx(value, rel=1e-12), name
    assert told["images"] == len(found) == 3
    assert told["fragments"] == fragments(said)
    assert told["mean_length"] == sum(map(len, said)) / 3 > 0
    words = json.loads((evaluated_once.tokens / "vocabulary.json").read_text())["words"][4:]
    assert told["vocabulary_used"] == len({word for caption in said for word in caption}) / len(words)
    assert told["signature"].count("split test; 3 images (ids ") == 1
    assert "beam 3, length penalty 1, at most 15 words" in told["signature"]


def test_captions_are_split_again_before_they_are_scored(evaluated: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vocabulary, "decode", lambda *_: ["a", "large", "red", "square", "it", "is."])
    evaluate.run(evaluated, tiny.settings("evaluate"))
    said = [tokenize(entry["caption"]) for entry in entries(evaluated)]
    assert said == [["a", "large", "red", "square", "it", "is"]] * 3
    known = [[text.split() for text in entry["references"]] for entry in entries(evaluated)]
    assert metrics(evaluated)["bleu1"] == pytest.approx(score_captions(said, known)["bleu1"], rel=1e-12)


def test_the_blind_caption_is_the_best_of_all_training_captions_on_validation(evaluated_once: Workspace) -> None:
    dataset = read_dataset(evaluated_once.dataset)

    def spoken(split: Any) -> list[list[list[str]]]:
        return [[tokenize(text) for text in dataset.examples[row].captions] for row in dataset.rows(split)]

    judges, judged = spoken("validation"), spoken("test")
    candidates = sorted({tuple(words) for captions in spoken("train") for words in captions})

    def bleu4(caption: tuple[str, ...], references: list[list[list[str]]]) -> float:
        return score_captions([caption] * len(references), references)["bleu4"] or 0.0

    best = max(candidates, key=lambda caption: bleu4(caption, judges))
    told = metrics(evaluated_once)
    assert told["caption_blind"] == " ".join(best)
    assert told["bleu4_blind"] == pytest.approx(bleu4(best, judged), rel=1e-12)


def test_attention_has_a_row_a_word_and_sums_to_one(evaluated_once: Workspace) -> None:
    with np.load(evaluated_once.evaluate_results / "attention.npz", allow_pickle=False) as stored:
        weights, offsets, grid = stored["weights"], stored["offsets"], stored["grid"]
    lengths = [len(entry["caption"].split()) for entry in entries(evaluated_once)]
    assert grid.tolist() == [2, 2]
    assert offsets.tolist() == [0, *np.cumsum(lengths)]
    assert weights.shape == (sum(lengths), 4)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.astype(np.float64).sum(axis=1), 1, atol=2e-3)  # stored in float16


def test_another_run_in_another_place_has_the_same_bytes(evaluated: Workspace, evaluated_once: Workspace) -> None:
    (evaluated.evaluate_results / "metrics.json").unlink()
    tiny.evaluated(evaluated)
    assert content(evaluated.evaluate_results) == content(evaluated_once.evaluate_results)


def test_the_validation_split_can_be_scored_and_beam_one_is_greedy(evaluated: Workspace) -> None:
    tiny.evaluated(evaluated, evaluate__split="validation", evaluate__beam=1)
    assert "split validation; 3 images" in metrics(evaluated)["signature"]
    dataset = read_dataset(evaluated.dataset)
    assert [entry["image"] for entry in entries(evaluated)] == [dataset.ids[row] for row in dataset.rows("validation")]


def test_empty_captions_are_told(
    evaluated: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: Captioner, regions: torch.Tensor, *_others: Any) -> list[Hypothesis]:
        return [Hypothesis((), -0.5, np.zeros((0, 4), np.float32), True) for _ in regions]

    monkeypatch.setattr(evaluate, "find_captions", silent)
    tiny.evaluated(evaluated)
    images = len(entries(evaluated))
    assert f"{images} captions are empty: the decoder ended at once." in capsys.readouterr().out


def test_a_caption_that_is_cut_is_told(evaluated: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.evaluated(evaluated, evaluate__max_length=1, evaluate__beam=1)
    assert metrics(evaluated)["mean_length"] <= 1
    assert "did not end within evaluate.max_length words" in capsys.readouterr().out


def test_a_cache_of_another_fingerprint_is_refused_with_the_field(evaluated: Workspace) -> None:
    encode.run(evaluated, tiny.settings("encode", encode__seed=3, encode__dtype="float32"), "")
    told = (
        r"features\.zarr was encoded otherwise: .*seed: expected 0, found 3; "
        r"dtype: expected 'float16', found 'float32'\. Run \"dvc repro\""
    )
    with pytest.raises(CacheError, match=told):
        tiny.evaluated(evaluated)


def test_a_cache_of_another_data_set_is_refused(evaluated: Workspace) -> None:
    dataset = read_dataset(evaluated.dataset)
    more = Example("new", "new.png", "test", ("a new image",), "0" * 64)
    write_dataset(evaluated.dataset, [*dataset.examples, more], dataset.summary)
    with pytest.raises(CacheError, match=r"holds 30 images but the data set lists 31; first missing: new\. Run"):
        tiny.evaluated(evaluated)


def test_tokens_of_another_vocabulary_are_refused(evaluated: Workspace) -> None:
    before = len(Vocabulary.read(evaluated.tokens / "vocabulary.json"))
    tokenize_stage.run(evaluated, tiny.settings("tokenize", tokenize__max_words=9))
    told = rf"was trained with another vocabulary: it speaks {before} words .*the tokens have 13 .*dvc repro train"
    with pytest.raises(CheckpointError, match=told):
        tiny.evaluated(evaluated)


def test_a_split_without_images_is_told(evaluated: Workspace) -> None:
    dataset = read_dataset(evaluated.dataset)
    moved = [
        Example(one.id, one.file, "train" if one.split == "test" else one.split, one.captions, one.sha256)
        for one in dataset.examples
    ]
    write_dataset(evaluated.dataset, moved, dataset.summary)
    with pytest.raises(DataError, match=r"The data set has no test images\. Set evaluate\.split"):
        tiny.evaluated(evaluated)


def test_evaluate_before_train_names_the_stage(evaluated: Workspace) -> None:
    evaluated.captioner.rename(evaluated.root / "away")
    with pytest.raises(MissingError, match='Run "dvc repro train"'):
        tiny.evaluated(evaluated)


def test_an_unknown_device_is_told(evaluated: Workspace) -> None:
    with pytest.raises(DeviceError, match=r"evaluate\.device cuda:99 is not on this machine, which has cpu"):
        tiny.evaluated(evaluated, evaluate__device="cuda:99")


def test_a_second_evaluation_is_refused(evaluated: Workspace) -> None:
    with (
        lock(evaluated.work("evaluate") / "lock", "evaluating"),
        pytest.raises(BusyError, match=f"Another process is evaluating here: process {os.getpid()}"),
    ):
        tiny.evaluated(evaluated)


def test_a_full_disk_leaves_the_older_results(evaluated: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(evaluated.evaluate_results)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(SpaceError, match="is full: evaluate could not be written"):
        tiny.evaluated(evaluated, evaluate__beam=1)
    assert content(evaluated.evaluate_results) == before
    assert not list(evaluated.root.rglob("*.partial"))


def test_no_out_holds_a_time_or_a_path(evaluated_once: Workspace) -> None:
    for path in (*evaluated_once.evaluate_results.iterdir(), *evaluated_once.captioner.iterdir()):
        found = path.read_bytes()
        assert str(evaluated_once.root).encode() not in found
        assert not re.search(rb"20\d\d-\d\d-\d\d", found) or path.suffix == ".safetensors", path


def test_no_leftover_is_beside_the_results(evaluated_once: Workspace) -> None:
    assert {path.name for path in (evaluated_once.root / "results").iterdir()} == {"train", "evaluate"}
    assert [path.name for path in (evaluated_once.root / "models").iterdir()] == ["captioner"]
    assert not list(Path(evaluated_once.root).rglob("*.partial"))


def test_options_of_a_search_are_named_in_the_signature_where_they_are_on(evaluated: Workspace) -> None:
    tiny.evaluated(evaluated, evaluate__beam=4, evaluate__beam_groups=2, evaluate__block_ngrams=1)
    told = metrics(evaluated)["signature"]
    assert "; beam 4 in 2 groups of diversity 0.5, length penalty 1, no 1-gram twice, at most 15 words; " in told
    for entry in entries(evaluated):
        words = entry["caption"].split()
        assert len(set(words)) == len(words) > 0


def test_sampled_captions_are_the_same_from_the_same_seed_however_many_are_drawn_at_a_time(
    evaluated: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {"evaluate__method": "sample", "evaluate__temperature": 1.5, "evaluate__top_k": 9, "evaluate__top_p": 0.95}
    tiny.evaluated(evaluated, **drawn)
    first = [entry["caption"] for entry in entries(evaluated)]
    how = "; sampled at temperature 1.5, of the 9 likeliest words, of the nucleus 0.95, seed 0, at most 15 words; "
    assert how in metrics(evaluated)["signature"]
    monkeypatch.setattr(batches, "_SEARCHED", 1)
    tiny.evaluated(evaluated, **drawn)
    assert [entry["caption"] for entry in entries(evaluated)] == first
    tiny.evaluated(evaluated, **drawn, evaluate__seed=1)
    assert [entry["caption"] for entry in entries(evaluated)] != first


@pytest.fixture(scope="module")
def several_once(evaluated_once: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with three models: that of the stage, another seed, and another seed that sees a grid of its own."""
    root = Path(shutil.copytree(evaluated_once.root, tmp_path_factory.mktemp("several") / "run"))
    kept = root / "captioner"
    shutil.copytree(root / "models" / "captioner", kept)
    for name, changes in (("other", {"train__seed": 1}), ("coarse", {"train__seed": 2, "train__grid": 1})):
        tiny.trained(Workspace(root), **changes)
        (root / "models" / "captioner").rename(root / "models" / name)
    kept.rename(root / "models" / "captioner")
    return Workspace(root)


@pytest.fixture
def several(several_once: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(several_once.root, tmp_path / "several")))


def test_several_models_search_together_and_the_signature_says_so(several: Workspace) -> None:
    before, single = metrics(several)["signature"], entries(several)
    tiny.evaluated(several, evaluate__models=["captioner", "other", "coarse"])
    told = metrics(several)["signature"]
    assert told == before.replace("; beam 3", "; 3 models averaged; beam 3")
    assert [entry["log_probability"] for entry in entries(several)] != [one["log_probability"] for one in single]
    with np.load(several.evaluate_results / "attention.npz", allow_pickle=False) as stored:
        assert stored["grid"].tolist() == [2, 2]
        np.testing.assert_allclose(stored["weights"].astype(np.float64).sum(axis=1), 1, atol=2e-3)
    found = content(several.evaluate_results / "captions.json")
    tiny.evaluated(several, evaluate__models=["coarse", "captioner", "other"])
    assert content(several.evaluate_results / "captions.json") == found


def test_a_caption_of_several_models_is_their_mean_probability_word_by_word(several: Workspace) -> None:
    names = ["other", "captioner"]
    tiny.evaluated(several, evaluate__models=names, evaluate__beam=1)
    reader = FeatureReader(several.features)
    rows = [reader.ids.index(entry["image"]) for entry in entries(several)]
    read = [read_captioner(several.models / name, torch.device("cpu")) for name in names]
    regions = Regions(reader, reader.grid, torch.device("cpu"), torch.float32)
    for entry, own in zip(entries(several), regions.ready(regions.start(rows)), strict=True):
        words = [read[0].vocabulary.ids[word] for word in entry["caption"].split()]
        states, log, word = [one.captioner.start(own[None]) for one in read], 0.0, START
        for following in [*words, END][:15]:  # what may be said at most, then without END
            steps = [one.captioner.step(torch.tensor([word]), state) for one, state in zip(read, states, strict=True)]
            mean = torch.stack([logits[0].double().softmax(-1) for logits, _, _ in steps]).mean(0)
            mean[list(NEVER_SAID)] = 0
            assert int(mean.argmax()) == following  # beam 1 is greedy
            log += float((mean[following] / mean.sum()).log())
            states, word = [state for _, _, state in steps], following
        assert entry["log_probability"] == pytest.approx(log, abs=1e-5)


def test_another_model_alone_is_named_like_the_stages_own(several: Workspace) -> None:
    before = metrics(several)["signature"]
    tiny.evaluated(several, evaluate__models=["coarse"])
    assert metrics(several)["signature"] == before
    with np.load(several.evaluate_results / "attention.npz", allow_pickle=False) as stored:
        assert stored["grid"].tolist() == [1, 1]


def test_a_model_of_another_cache_is_refused_by_name(several: Workspace) -> None:
    path = several.models / "other" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "features": "0" * 64, "encoding": {**config["encoding"], "seed": 7}}))
    with pytest.raises(CheckpointError, match=r"models/other cannot be averaged .*another cache \(seed: expected 0, f"):
        tiny.evaluated(several, evaluate__models=["captioner", "other"])


def test_a_model_that_is_not_there_is_told_with_those_that_are(several: Workspace) -> None:
    with pytest.raises(MissingError, match=r"names else, but .* Captioners of .*: captioner, coarse, other\. "):
        tiny.evaluated(several, evaluate__models=["captioner", "else"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"evaluate__beam": 5, "evaluate__beam_groups": 2},
            r"evaluate\.beam_groups: 2 groups cannot share evaluate\.beam 5 evenly; expected a divisor of it",
        ),
        (
            {"evaluate__beam": 4, "evaluate__beam_groups": 2, "evaluate__method": "sample"},
            r"evaluate\.beam_groups: 2 has no effect where evaluate\.method is sample; set it to 1, or the method",
        ),
        (
            {
                "evaluate__method": "sample",
                "evaluate__consensus": {"neighbours": 4, "samples": 3, "temperature": 0.5, "likelihood": 0.3},
            },
            r"evaluate\.consensus\.neighbours: 4 does not go with evaluate\.method sample, .*; set it to 0",
        ),
        ({"evaluate__temperature": 0.7}, r"evaluate\.temperature: 0\.7 has no effect where evaluate\.method is beam"),
        ({"evaluate__top_k": 40}, r"evaluate\.top_k: 40 has no effect .*; set it to 0, or the method to sample"),
        ({"evaluate__top_p": 0.9}, r"evaluate\.top_p: 0\.9 has no effect .*; set it to 1, or the method to sample"),
        ({"evaluate__top_p": 0.0}, r"evaluate\.top_p: 0\.0 is out of range"),
        ({"evaluate__method": "greedy"}, r"evaluate\.method: expected beam or sample, found 'greedy'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_options_that_cannot_be_together_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        tiny.settings("evaluate", **changes)

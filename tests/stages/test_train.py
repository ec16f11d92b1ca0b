"""The stage train: its outs, going on after a kill, and everything it refuses."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.captioners.trained import read_captioner
from pipeline.datasets.dataset import Example, read_dataset, write_dataset
from pipeline.errors import BusyError, CacheError, DataError, DeviceError, DivergedError, MissingError, SpaceError
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace, lock, sha256, sha256_of_json
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import Vocabulary
from pipeline.training.batches import Batch, Regions
from pipeline.training.checkpoint import sweep_trainings, train_lock
from pipeline.training.loop import Training
from pipeline.training.validation import Validation
from tests import tiny
from tests.commands.test_repair import Dvc
from tests.import_graph import ROOT
from tests.training.test_ranks import errors, torchrun

EPOCHS = tiny.CHANGES["train.epochs"]
CURVES = {
    *(f"train/{name}" for name in ("loss", "penalty", "top5_accuracy", "learning_rate")),
    *(f"validation/{name}" for name in ("loss", "bleu4", "cider")),
}


def outs(workspace: Workspace) -> dict[str, str]:
    return tiny.content(workspace.captioner, workspace.train_results)


def test_the_captioner_is_weights_config_and_vocabulary(evaluated_once: Workspace) -> None:
    workspace = evaluated_once
    assert {path.name for path in workspace.captioner.iterdir()} == {
        "model.safetensors", "config.json", "vocabulary.json",
    }  # fmt: skip
    config = json.loads((workspace.captioner / "config.json").read_text())
    reader = FeatureReader(workspace.features)
    words = json.loads((workspace.tokens / "vocabulary.json").read_text())["words"]
    assert (config["decoder"], config["options"]) == ("soft", tiny.params()["train"]["decoder_options"])
    assert (config["features"], config["encoding"]) == (reader.fingerprint, reader.fields)
    assert config["vocabulary"] == sha256_of_json(words)
    assert config["grid"] == [2, 2]
    assert config["shape"]["hidden_size"] == 24
    assert set(config["versions"]) == {"freezeframe", "torch"}
    weights = load_file(workspace.captioner / "model.safetensors")
    shapes = {value.shape for value in weights.values()}
    assert (len(words), 11) in shapes  # the embedding
    assert all(str(value.dtype) == "float32" for value in weights.values())
    trained = read_captioner(workspace.captioner, torch.device("cpu"))
    assert not trained.captioner.training
    assert trained.vocabulary == Vocabulary.read(workspace.tokens / "vocabulary.json")


def test_the_records_have_dvclives_layout_and_nothing_of_time(evaluated_once: Workspace) -> None:
    folder = evaluated_once.train_results
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"metrics.json", *(f"plots/metrics/{name}.tsv" for name in CURVES)}
    summary = json.loads((folder / "metrics.json").read_text())
    assert summary.pop("step") == EPOCHS - 1
    kept = summary.pop("kept_epoch") - 1
    assert {f"{group}/{name}" for group, values in summary.items() for name in values} == CURVES
    for name in CURVES:
        header, *lines = (folder / f"plots/metrics/{name}.tsv").read_text().splitlines()
        assert header.split("\t") == ["step", name.rpartition("/")[2]]
        assert [line.split("\t")[0] for line in lines] == [str(epoch) for epoch in range(EPOCHS)]
        group, _, key = name.partition("/")
        assert float(lines[kept].split("\t")[1]) == summary[group][key]
    log = (evaluated_once.work("logs") / "train.jsonl").read_text().splitlines()
    assert len(log) == EPOCHS
    assert {"captions_per_second", "waiting", "seconds"} < json.loads(log[0]).keys()


def test_the_summary_is_that_of_the_kept_epoch(encoded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([3.0, 9.0, 5.0])
    monkeypatch.setattr(Validation, "__call__", lambda *_: {"loss": 1.0, "bleu4": next(scores), "cider": 0.0})
    tiny.trained(encoded, train__epochs=3)
    summary = json.loads((encoded.train_results / "metrics.json").read_text())
    lines = (encoded.train_results / "plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
    assert (summary["kept_epoch"], summary["validation"]["bleu4"], summary["step"]) == (2, 9.0, 2)
    assert summary["train"]["loss"] == float(lines[1].split("\t")[1])


def test_the_decoder_has_learnt(evaluated_once: Workspace) -> None:
    lines = (evaluated_once.train_results / "plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
    assert float(lines[-1].split("\t")[1]) < 0.9 * float(lines[0].split("\t")[1])


def test_another_run_in_another_place_has_the_same_bytes(encoded: Workspace, evaluated_once: Workspace) -> None:
    tiny.trained(encoded)
    assert outs(encoded) == outs(evaluated_once)
    found = b"".join(path.read_bytes() for path in encoded.captioner.iterdir())
    assert str(encoded.root).encode() not in found


def test_a_setting_changes_the_bytes(encoded: Workspace, evaluated_once: Workspace) -> None:
    tiny.trained(encoded, train__seed=1)
    assert outs(encoded)["captioner/model.safetensors"] != outs(evaluated_once)["captioner/model.safetensors"]


CHILD = """
import sys
from pathlib import Path
from pipeline.files import Workspace
from pipeline.training import checkpoint
from tests import tiny
checkpoint.SECONDS_BETWEEN = -1.0  # after every step, so that it may be killed in the middle of an epoch
tiny.trained(Workspace(Path(sys.argv[1])))
"""


# Kills itself as soon as the third of the five batches of the third epoch is saved.
KILLED = """
import os, signal
from pipeline.training.checkpoint import Checkpoint
save = Checkpoint.save
def killed(self, name, state):
    save(self, name, state)
    if name == "state" and (state["progress"]["epoch"], state["progress"]["batches"]) == (2, 3):
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.save = killed
"""


def in_another_process(workspace: Workspace, script: str = CHILD) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", script, str(workspace.root)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def saved(workspace: Workspace) -> tuple[int, ...]:
    return tuple(path.stat().st_mtime_ns for path in workspace.work("train").glob("*/state.pt"))


def wait_for_saves(workspace: Workspace, child: subprocess.Popen[str], count: int) -> None:
    for _ in range(count):
        before = saved(workspace)
        while saved(workspace) == before and child.poll() is None:
            time.sleep(0.0005)


def test_killed_at_random_instants_it_ends_with_the_bytes_of_a_run_never_killed(
    encoded: Workspace, evaluated_once: Workspace
) -> None:
    chance = random.Random(4)
    for turn in range(2):
        with in_another_process(encoded) as child:
            wait_for_saves(encoded, child, chance.randint(2, 7))
            time.sleep(chance.uniform(0, 0.02))
            child.kill()
            told = child.communicate()[0]
        assert child.returncode == -signal.SIGKILL
        assert ("Going on from where an earlier run" in told) == (turn > 0)
        assert not encoded.captioner.exists()
    with in_another_process(encoded) as child:
        told = child.communicate(timeout=120)[0]
    assert child.returncode == 0
    assert "Going on from where an earlier run" in told
    assert outs(encoded) == outs(evaluated_once)
    assert not list(encoded.root.rglob("*.partial"))


def test_killed_in_the_middle_of_an_epoch_it_goes_on_there_and_ends_with_the_same_bytes(
    encoded: Workspace, evaluated_once: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_another_process(encoded, KILLED + CHILD) as child:
        child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert not encoded.captioner.exists()
    taken, take = [0], Training.take

    def counted(self: Training, batch: Batch) -> None:
        taken[0] += 1
        take(self, batch)

    monkeypatch.setattr(Training, "take", counted)
    tiny.trained(encoded)
    assert taken[0] == 5 * EPOCHS - 13
    assert outs(encoded) == outs(evaluated_once)


def test_two_processes_write_what_one_writes_up_to_rounding(encoded: Workspace, tmp_path: Path) -> None:
    single = Workspace(Path(shutil.copytree(encoded.root, tmp_path / "single")))
    changes = {"train__dropout": 0.0, "train__epochs": 2}
    tiny.trained(single, **changes)
    tiny.write_params(encoded, **changes)
    (encoded.tokens / "vocabulary.json").rename(tmp_path / "away")
    done = torchrun(str(ROOT / "cli.py"), "train", folder=encoded.root)
    assert done.returncode == 1
    assert errors(done) == [
        f'Error: {tmp_path / "run/data/tokens/vocabulary.json"} does not exist. Run "dvc repro tokenize".'
    ]
    (tmp_path / "away").rename(encoded.tokens / "vocabulary.json")
    done = torchrun(str(ROOT / "cli.py"), "train", folder=encoded.root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in 2 processes") == done.stdout.count("Kept epoch") == 1
    ours, theirs = (load_file(one.captioner / "model.safetensors") for one in (encoded, single))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-4, err_msg=name)
    assert outs(encoded).keys() == outs(single).keys()


def test_killed_after_the_last_epoch_nothing_is_trained_again(
    encoded: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.trained(encoded)
    first = outs(encoded)
    (encoded.captioner / "model.safetensors").unlink()  # as DVC clears outs before it runs a stage again
    monkeypatch.setattr("pipeline.training.loop.Training._step", None)
    tiny.trained(encoded)
    assert outs(encoded) == first
    assert "Going on from where an earlier run" in capsys.readouterr().out


def test_another_setting_never_goes_on_from_this_ones_state(
    encoded: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.trained(encoded)
    tiny.trained(encoded, train__learning_rate=0.01)
    assert "Going on" not in capsys.readouterr().out
    assert len(list(encoded.work("train").glob("*/state.pt"))) == 2


def test_work_that_a_later_stage_is_run_by_hand_after_is_kept(encoded: Workspace) -> None:
    tiny.trained(encoded)
    tiny.evaluated(encoded)
    assert list(encoded.work("encode").rglob("*.shard"))  # the next `dvc repro` clears the store and goes on from these
    assert list(encoded.work("train").glob("*/state.pt"))


def test_the_encoders_working_copies_are_swept_by_train_and_finished_trainings_by_evaluate(
    encoded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dvc(encoded, "copy")
    monkeypatch.setenv("DVC_ROOT", str(encoded.root))  # as DVC runs a stage
    assert list(encoded.work("encode").rglob("*.shard"))
    tiny.trained(encoded)
    assert not list(encoded.work("encode").rglob("*.shard"))
    unfinished = encoded.work("train") / "0123456789abcdef"
    unfinished.mkdir()
    (unfinished / "state.pt").write_bytes(b"another night's work")
    with lock(train_lock(encoded), "training"):  # someone trains: theirs to keep
        tiny.evaluated(encoded)
    assert len(list(encoded.work("train").glob("*/state.pt"))) == 2
    tiny.evaluated(encoded)
    (kept,) = encoded.work("train").glob("*/best.pt")  # for a second phase to begin with
    assert set(encoded.work("train").glob("*/*.pt")) == {unfinished / "state.pt", kept}


def test_the_encoders_working_copies_are_kept_until_dvcs_cache_has_them(
    encoded: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dvc = Dvc(encoded, "copy")  # it has a store, but of another seed
    tiny.encoded(encoded.root, encode__seed=9)
    monkeypatch.setenv("DVC_ROOT", str(encoded.root))
    tiny.trained(encoded, train__epochs=1)  # as "dvc repro -s train" or "dvc repro --no-commit" does
    shutil.rmtree(encoded.features)  # as DVC does before it runs encode
    capsys.readouterr()
    tiny.encoded(encoded.root, encode__seed=9)
    assert f"{tiny.IMAGES} of {tiny.IMAGES} images are already encoded" in capsys.readouterr().out
    dvc("commit", "--force", "--quiet", "encode")
    tiny.trained(encoded, train__epochs=1)
    assert not list((encoded.work("encode") / FeatureReader(encoded.features).fingerprint).glob("*.shard"))


CRITICAL = {
    "train__self_critical": {"epochs": 3, "samples": 2, "temperature": 1.0, "dropout": False, "learning_rate": 0.001}
}


def changed(**changes: Any) -> dict[str, Any]:
    return {"train__self_critical": {**CRITICAL["train__self_critical"], **changes}}


def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The phase of every batch that is taken from now on."""
    found, take = list[str](), Training.take

    def noted(self: Training, batch: Batch) -> None:
        found.append(type(self.phase).__name__)
        take(self, batch)

    monkeypatch.setattr(Training, "take", noted)
    return found


def test_a_second_phase_goes_on_from_cross_entropy_and_is_recorded_beside_it(
    encoded: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = taken(monkeypatch)
    tiny.trained(encoded, **CRITICAL, train__average=0.9)
    said = capsys.readouterr().out
    assert "3 epochs of self-critical training: 2 captions an image are drawn" in said
    assert said.count(f"epoch {EPOCHS}: loss") == said.count(f"epoch {EPOCHS + 1}: reward ") == 1
    assert f" of {EPOCHS + 3}: greedy validation captions" in said
    assert phases == ["CrossEntropy"] * 5 * EPOCHS + ["SelfCritical"] * 5 * 3
    table = (encoded.train_results / "plots/metrics/train/reward.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in table] == ["step", *map(str, range(EPOCHS, EPOCHS + 3))]
    cider = (encoded.train_results / "plots/metrics/validation/cider.tsv").read_text().splitlines()
    assert len(cider) == 1 + EPOCHS + 3
    assert len((encoded.train_results / "plots/metrics/train/loss.tsv").read_text().splitlines()) == 1 + EPOCHS


def test_other_second_phases_begin_from_the_first_that_was_kept(
    encoded: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Workspace(Path(shutil.copytree(encoded.root, tmp_path / "alone")))
    tiny.trained(alone, **changed(samples=3))
    monkeypatch.setenv("DVC_ROOT", str(encoded.root))
    tiny.evaluated(tiny.trained(encoded))  # cross-entropy alone, and DVC has taken it over
    kept = [path.relative_to(encoded.work("train")).name for path in encoded.work("train").rglob("*.pt")]
    assert kept == ["best.pt"]
    capsys.readouterr()
    phases = taken(monkeypatch)
    tiny.evaluated(tiny.trained(encoded, **CRITICAL))
    tiny.trained(encoded, **changed(samples=3))
    assert set(phases) == {"SelfCritical"}
    assert len(phases) == 2 * 5 * 3
    assert capsys.readouterr().out.count("Cross-entropy is not trained again") == 2
    assert outs(encoded) == outs(alone)


def test_a_second_phase_that_was_killed_goes_on_with_the_same_bytes(
    encoded: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Workspace(Path(shutil.copytree(encoded.root, tmp_path / "whole")))
    tiny.trained(whole, **CRITICAL)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.checkpoint.SECONDS_BETWEEN", -1.0)
        phases, step = taken(patch), Training._step

        def killed(self: Training, group: Any) -> None:
            if len(phases) == 5 * EPOCHS + 8:
                raise KeyboardInterrupt
            step(self, group)

        patch.setattr(Training, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny.trained(encoded, **CRITICAL)
    capsys.readouterr()
    phases = taken(monkeypatch)
    tiny.trained(encoded, **CRITICAL)
    assert phases == ["SelfCritical"] * 8
    assert "Going on from where an earlier run" in capsys.readouterr().out
    assert outs(encoded) == outs(whole)


def test_the_ends_of_the_latest_first_phases_only_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.checkpoint.KEPT", 2)
    workspace = Workspace(tmp_path)
    works = [workspace.work("train") / f"{number}" for number in range(4)]
    for number, work in enumerate(works):
        for folder in (work, work / "second"):
            folder.mkdir(parents=True)
            for name in ("state.pt", "best.pt", "finished"):
                (folder / name).touch()
        os.utime(work / "finished", (number, number))
    (works[0] / "second" / "finished").unlink()  # a second phase that was stopped
    sweep_trainings(workspace)
    found = {path.relative_to(workspace.work("train")).as_posix() for path in workspace.work("train").rglob("*.pt")}
    assert found == {"0/best.pt", "0/second/state.pt", "0/second/best.pt", "2/best.pt", "3/best.pt"}


def dealt_anew(workspace: Workspace, examples: list[Example]) -> None:
    """The same images in other splits, and the tokens as if they were made from them."""
    write_dataset(workspace.dataset, examples, read_dataset(workspace.dataset).summary)
    tokens = workspace.tokens / "captions.npz"
    replace(EncodedCaptions.read(tokens), dataset=sha256(workspace.dataset / "dataset.jsonl")).write(tokens)


def test_a_single_training_image_has_no_reward(encoded: Workspace) -> None:
    dataset = read_dataset(encoded.dataset)
    first = dataset.rows("train")[0]
    moved = [
        Example(one.id, one.file, "test" if one.split == "train" and row != first else one.split,
                one.captions, one.sha256)
        for row, one in enumerate(dataset.examples)
    ]  # fmt: skip
    dealt_anew(encoded, moved)
    with pytest.raises(DataError, match=r"train\.self_critical rewards captions .* undefined for one training image"):
        tiny.trained(encoded, **CRITICAL)


def test_a_second_trainer_is_refused_and_told_of_the_first(encoded: Workspace) -> None:
    told = f"Another process is training here: process {os.getpid()} on .* since"
    with lock(train_lock(encoded), "training"), pytest.raises(BusyError, match=told):
        tiny.trained(encoded)
    assert not encoded.captioner.exists()


def without_the_last_image(workspace: Workspace) -> None:
    dataset = read_dataset(workspace.dataset)
    write_dataset(workspace.dataset, dataset.examples[:-1], dataset.summary)


def test_a_cache_of_another_data_set_is_refused(encoded: Workspace) -> None:
    without_the_last_image(encoded)
    told = r"holds 30 images but the data set lists 29; first that the data set does not list: shapes-00029\.png"
    with pytest.raises(CacheError, match=told):
        tiny.trained(encoded)


def test_a_missing_and_a_truncated_shard_are_refused(encoded: Workspace) -> None:
    shard = encoded.features / "regions/c/2/0/0"
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-1])
    with pytest.raises(CacheError, match=r"1 shard \(first: regions/c/2/0/0\) of another size than written"):
        tiny.trained(encoded)
    shard.unlink()
    with pytest.raises(CacheError, match=r"lacks 1 shard \(first: regions/c/2/0/0\) of 5\. Run \"dvc repro encode\""):
        tiny.trained(encoded)


def test_a_damaged_row_is_told_in_the_middle_of_training(encoded: Workspace) -> None:
    shard = encoded.features / "regions/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[200] ^= 255
    shard.unlink()  # it is a link to the encoder's working copy
    shard.write_bytes(content)
    with pytest.raises(CacheError, match=r"is damaged: .* cannot be read"):
        tiny.trained(encoded)
    assert not encoded.captioner.exists()


@pytest.mark.parametrize("split", ["validation", "train"])
def test_a_split_without_images_is_told(encoded: Workspace, split: str) -> None:
    dataset = read_dataset(encoded.dataset)
    moved = [
        Example(one.id, one.file, "test" if one.split == split else one.split, one.captions, one.sha256)
        for one in dataset.examples
    ]
    dealt_anew(encoded, moved)
    with pytest.raises(DataError, match=f"has no {split} images with captions; training needs both"):
        tiny.trained(encoded)


def test_an_unknown_device_is_told_with_those_that_are_there(encoded: Workspace) -> None:
    with pytest.raises(DeviceError, match=r"train\.device cuda:77 is not on this machine, which has cpu"):
        tiny.trained(encoded, train__device="cuda:77")


@pytest.mark.parametrize(
    ("lost", "stage"),
    [("tokens", "tokenize"), ("dataset", "ingest"), ("features", "encode")],
)
def test_what_an_earlier_stage_has_not_made_names_the_stage(encoded: Workspace, lost: str, stage: str) -> None:
    getattr(encoded, lost).rename(encoded.root / "away")
    with pytest.raises(MissingError, match=f'Run "dvc repro {stage}"'):
        tiny.trained(encoded)


def test_a_loss_that_is_no_number_leaves_the_older_captioner(
    evaluated: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.content(evaluated.captioner)
    ready, calls = Regions.ready, [0]

    def poisoned(self: Regions, reading: Any) -> torch.Tensor:
        calls[0] += 1
        regions = ready(self, reading)
        return regions * float("nan") if calls[0] == 9 else regions

    monkeypatch.setattr(Regions, "ready", poisoned)
    with pytest.raises(DivergedError, match=r"stopped at epoch 2, step \d of 5: the loss is nan"):
        tiny.trained(evaluated, train__seed=8)
    assert tiny.content(evaluated.captioner) == before
    monkeypatch.undo()
    tiny.trained(evaluated, train__seed=8)  # it goes on from the last good state
    assert tiny.content(evaluated.captioner) != before


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("writer", ["torch.save", "safetensors.torch.save", "pipeline.captioners.trained.write_json"])
def test_a_full_disk_leaves_nothing_half_written(
    encoded: Workspace, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, full)
        with pytest.raises(SpaceError, match=r"The disk that holds .* is full: .* could not be written"):
            tiny.trained(encoded)
    assert not encoded.captioner.exists()
    assert not list(encoded.root.rglob("*.partial"))
    tiny.trained(encoded)
    assert encoded.captioner.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_checkpoint_on_a_full_disk_is_told_as_such(encoded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def on_a_full_disk(self: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
        return real(Path("/dev/full") if self.name.startswith(".best.pt") else self, mode, *others, **named)

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    with pytest.raises(SpaceError, match=r"is full: best\.pt could not be written"):
        tiny.trained(encoded)

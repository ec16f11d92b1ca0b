"""Captioners kept side by side: what DVC makes of the folder `models` as a dep, with an out of a stage inside it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import kept
from pipeline.commands.kept import keep, sweep_and_keep
from pipeline.errors import DivergedError, ExperimentError
from pipeline.files import Workspace
from tests.import_graph import ROOT

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
STAGES = """
stages:
  train:
    cmd:
    - mkdir -p models/captioner .freezeframe
    - cp params.yaml models/captioner/config.json
    - echo train >> .freezeframe/ran
    params: [train]
    outs: [models/captioner]
  evaluate:
    cmd:
    - cat models/*/config.json > scores.txt
    - mkdir -p .freezeframe
    - echo evaluate >> .freezeframe/ran
    deps: [models]
    params: [evaluate]
    outs: [scores.txt]
"""


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository that nobody's own settings reach."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "GIT_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }.items():
        monkeypatch.setenv(name, value)
    made = tmp_path / "project"
    made.mkdir()
    run(made, "git", "init", "--quiet")
    run(made, "git", "config", "user.name", "A Tester")
    run(made, "git", "config", "user.email", "tester@example.org")
    return made


@pytest.fixture
def root(empty: Path) -> Path:
    return project(empty)


def project(root: Path, *options: str) -> Path:
    """A committed DVC project of two stages, with what the project itself tells git and DVC to ignore."""
    (root / "dvc.yaml").write_text(STAGES, encoding="utf-8")
    write_params(root, 0, ["captioner"])
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    dvc(root, "init", "--quiet", *options)
    dvc(root, "repro", "--quiet")
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "a state")
    return root


def write_params(root: Path, seed: int, models: list[str]) -> None:
    document = {"train": {"seed": seed}, "evaluate": {"models": models}}
    (root / "params.yaml").write_text(json.dumps(document) + "\n", encoding="utf-8")


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def dvc(root: Path, *arguments: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *arguments)


def ran(root: Path) -> list[str]:
    """The stages that have run here since the last look."""
    path = root / ".freezeframe" / "ran"
    told = path.read_text(encoding="utf-8").split() if path.exists() else []
    path.unlink(missing_ok=True)
    return told


def seeds(file: Path) -> list[int]:
    return [int(seed) for seed in re.findall(r'seed"?: (\d)', file.read_text(encoding="utf-8"))]


def test_a_kept_captioner_is_a_dep_of_evaluate_beside_that_of_train(root: Path) -> None:
    assert ran(root) == ["train", "evaluate"]
    dvc(root, "exp", "run", "--temp", "--quiet", "--name", "mine-seed-4", "--set-param", "train.seed=4")
    told: list[str] = []
    keep(Workspace(root), ["mine-seed-4"], told.append)
    assert seeds(root / "models" / "mine-seed-4" / "config.json") == [4]
    assert seeds(root / "models" / "captioner" / "config.json") == [0]
    assert "set evaluate.models to [mine-seed-4] and run" in told[0]
    status = run(root, "git", "status", "--porcelain", "--untracked-files=all")
    assert status.split() == ["??", "models/mine-seed-4.dvc"]

    write_params(root, 0, ["captioner", "mine-seed-4"])
    assert "'models/mine-seed-4.dvc' didn't change" in dvc(root, "repro")
    assert ran(root) == ["evaluate"]
    (root / "models" / ".captioner.partial").mkdir()  # what a kill leaves counts as no change
    (root / "models" / ".captioner.partial" / "x").write_text("x", encoding="utf-8")
    assert "up to date" in dvc(root, "repro")
    assert ran(root) == []

    run(root, "git", "add", "models")  # so much, and an experiment in a folder of its own has the captioner
    dvc(root, "exp", "run", "--temp", "--quiet", "--name", "both", "--set-param", "train.seed=7")
    scores = root.parent / "scores.txt"
    dvc(root, "get", ".", "scores.txt", "--rev", "both", "--out", str(scores))
    assert seeds(scores) == [7, 4]  # train came first, and evaluate after it


def test_captioners_are_kept_where_the_project_is_a_folder_of_a_repository(empty: Path) -> None:
    (empty / "research" / "captions").mkdir(parents=True)
    root = project(empty / "research" / "captions", "--subdir")
    dvc(root, "exp", "run", "--temp", "--quiet", "--name", "mine-seed-4", "--set-param", "train.seed=4")
    keep(Workspace(root), ["mine-seed-4"], print)
    assert seeds(root / "models" / "mine-seed-4" / "config.json") == [4]
    status = run(root, "git", "status", "--porcelain", "--untracked-files=all")
    assert status.split() == ["??", "research/captions/models/mine-seed-4.dvc"]


def test_an_experiment_that_is_not_there_is_told_and_leaves_nothing(root: Path) -> None:
    with pytest.raises(ExperimentError, match=r'"dvc get \. models/captioner --rev none'):
        keep(Workspace(root), ["none"], print)
    assert sorted(path.name for path in (root / "models").iterdir()) == ["captioner"]


def test_members_are_kept_once_all_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    workspace = Workspace(ROOT)
    file = tmp_path / "mine.yaml"
    file.write_text("grid: {train.seed: [5, 6]}", encoding="utf-8")
    monkeypatch.setattr(kept, "sweep", lambda *arguments: done.append(arguments))
    monkeypatch.setattr(kept, "keep", lambda _, names, tell: done.append((names, tell)))
    sweep_and_keep(workspace, file, print)
    assert done == [(workspace, file, print, None), (["mine-seed-5", "mine-seed-6"], print)]

    def diverged(*_: object) -> None:
        raise DivergedError("mine-seed-5: the loss is no number")

    monkeypatch.setattr(kept, "sweep", diverged)
    with pytest.raises(DivergedError):
        sweep_and_keep(workspace, file, print)
    assert len(done) == 2

"""The whole pipeline under real DVC and git, as a user runs it: what runs, what does not, kills, experiments.

Every test works in a clone of its own below the temporary folder; the settings are tiny, so that most of the time goes
into starting processes.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.settings import read_params
from tests import tiny
from tests.import_graph import ROOT, STAGES

pytestmark = [
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
    pytest.mark.skipif(os.name != "posix", reason="kills process groups"),
]
PARTS = ("cli.py", "dvc.yaml", "params.yaml", "params", "pipeline", "stages", ".dvcignore", ".gitignore")
OUTS = ("data/dataset", "data/tokens", "data/features.zarr", "models/captioner", "results/train", "results/evaluate")
LATER = ["train", "evaluate", "report"]
CHANGES = {**tiny.CHANGES, "encode.shard_images": 3, "train.epochs": 5}


@dataclass(frozen=True)
class Clone:
    """A copy of the project under git, with its own DVC."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTHON"))},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def run(self, *command: str, status: int = 0) -> str:
        """What a command says, in both streams; its exit status must be as expected."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def dvc(self, *arguments: str, status: int = 0) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, status=status)

    def repro(self) -> list[str]:
        """The stages that run, rather than being skipped or taken from DVC's cache."""
        return ran(self.dvc("repro"))

    def start(self) -> subprocess.Popen[bytes]:
        """`dvc repro` as the leader of its own process group; it tells into `told`."""
        with (self.root.parent / "told").open("wb") as told:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro"],
                cwd=self.root, env=self.environment, stdout=told, stderr=told, start_new_session=True,
            )  # fmt: skip

    def told(self) -> str:
        return (self.root.parent / "told").read_text(encoding="utf-8", errors="replace")

    def set(self, **changes: Any) -> None:
        """Edit `params.yaml`; keys as `train__epochs`."""
        yaml = YAML()
        path = self.root / "params.yaml"
        document = yaml.load(path)
        for name, value in changes.items():
            section, _, key = name.partition("__")
            document[section][key] = value
        yaml.dump(document, path)

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "a state")

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text(encoding="utf-8")

    def outs(self) -> dict[str, str]:
        return tiny.content(*(self.root / out for out in (*OUTS, "results/report.html")))


def ran(told: str) -> list[str]:
    return re.findall(r"^Running stage '(\w+)'", told, re.MULTILINE)


def clone(folder: Path) -> Clone:
    """The project as it is, with tiny settings, in a repository that has no commit yet."""
    made = Clone(folder / "clone")
    for part in PARTS:
        source, target = ROOT / part, made.root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (made.root / ".dvc").mkdir()
    for name in (".gitignore", "config"):
        shutil.copy(ROOT / ".dvc" / name, made.root / ".dvc" / name)
    made.run("git", "init", "--quiet")
    made.run("git", "config", "user.name", "A Tester")
    made.run("git", "config", "user.email", "tester@example.org")
    settings = [f"--set={name}={value}" for name, value in CHANGES.items()]
    made.run(sys.executable, "cli.py", "use", "shapes", *settings)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A finished run, committed. Read it; to change it take `copy`."""
    made = clone(tmp_path_factory.mktemp("whole"))
    assert made.repro() == list(STAGES)  # without any commit yet
    made.commit()
    return made


@pytest.fixture(scope="module")
def changed(whole: Clone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, list[str]]:
    """The same after another learning rate, not committed; and what ran."""
    made = copied(whole, tmp_path_factory.mktemp("changed"))
    made.set(train__learning_rate=0.01)
    return made, made.repro()


def copied(whole: Clone, folder: Path) -> Clone:
    shutil.copytree(whole.root, folder / "clone", symlinks=True)
    return Clone(folder / "clone")


def test_every_out_is_there_and_git_sees_none_of_them(whole: Clone) -> None:
    for out in OUTS:
        assert (whole.root / out).exists(), out
    page = (whole.root / "results/report.html").read_text(encoding="utf-8")
    metrics = json.loads((whole.root / "results/evaluate/metrics.json").read_text())
    assert f"{metrics['bleu1']:.1f}" in page
    assert whole.run("git", "status", "--short") == ""
    tracked = whole.run("git", "ls-files").splitlines()
    assert not [path for path in tracked if path.startswith(("data/", "models/", "results/", ".freezeframe/"))]
    assert str(whole.root) not in whole.lock()


def test_settings_that_change_no_byte_run_nothing(whole: Clone, tmp_path: Path) -> None:
    here = copied(whole, tmp_path)
    here.set(data__workers=1, encode__workers=1)
    assert here.repro() == []


def test_another_learning_rate_runs_train_and_what_follows_and_going_back_runs_nothing(
    whole: Clone, changed: tuple[Clone, list[str]], tmp_path: Path
) -> None:
    assert changed[1] == LATER
    here = copied(changed[0], tmp_path)
    assert here.lock() != whole.lock()
    here.set(train__learning_rate=CHANGES["train.learning_rate"])
    assert here.repro() == []
    assert here.lock() == whole.lock()
    assert here.outs() == whole.outs()


def test_an_edit_of_a_decoder_runs_train_and_what_follows(whole: Clone, tmp_path: Path) -> None:
    here = copied(whole, tmp_path)
    with (here.root / "pipeline/captioners/soft.py").open("a", encoding="utf-8") as file:
        file.write("# A remark.\n")
    assert here.repro()[0] == "train"
    assert here.outs() == whole.outs()  # a remark changes nothing that is made


def test_words_and_captions_never_encode_and_going_back_runs_nothing(whole: Clone, tmp_path: Path) -> None:
    here = copied(whole, tmp_path)
    drawing = here.root / "pipeline/datasets/shapes.py"
    before = drawing.read_text(encoding="utf-8")
    drawing.write_text(before.replace('f"there is a {ahead}"', 'f"here is a {ahead}"'), encoding="utf-8")
    here.set(tokenize__min_count=3)
    assert here.repro() == ["ingest", "tokenize", *LATER]
    assert "here is a" in (here.root / "data/dataset/dataset.jsonl").read_text(encoding="utf-8")
    drawing.write_text(before, encoding="utf-8")
    here.set(tokenize__min_count=CHANGES["tokenize.min_count"])
    assert here.repro() == []
    assert here.outs() == whole.outs()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)


def files(here: Clone, pattern: str) -> dict[str, int]:
    found = {}
    for path in (here.root / ".freezeframe").glob(pattern):
        try:
            found[str(path)] = path.stat().st_mtime_ns
        except FileNotFoundError:  # a later stage sweeps
            continue
    return found


def kill_in_the_middle(here: Clone, pattern: str, jitter: float) -> str:
    """Start `dvc repro`, kill its whole group that long after one more piece of work is saved."""
    before = files(here, pattern)
    process = here.start()
    wait_until(lambda: bool(files(here, pattern).items() - before.items()), process)
    time.sleep(jitter)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, here.told()
    return here.told()


def test_killed_at_random_instants_another_clone_ends_with_the_same_lock_and_the_same_bytes(
    whole: Clone, tmp_path: Path
) -> None:
    here, chance = clone(tmp_path), random.Random(11)
    for turn in range(2):
        told = kill_in_the_middle(here, "encode/*/*.shard", chance.uniform(0, 0.05))
        assert ("images are already encoded" in told) == (turn > 0)
        assert not (here.root / "data/features.zarr").exists()
    encoded = files(here, "encode/*/*.shard")
    for turn in range(2):
        told = kill_in_the_middle(here, "train/*/state.pt", chance.uniform(0, 0.1))
        assert ("Going on from where an earlier run" in told) == (turn > 0)
        assert ran(told) == (["train"] if turn else ["encode", "train"])
        assert not (here.root / "models/captioner").exists()
        if turn == 0:
            assert f"{3 * len(encoded)} of 30 images are already encoded" in told
    told = here.dvc("repro")
    assert "Going on from where an earlier run" in told
    assert ran(told) == LATER
    assert here.lock() == whole.lock()
    assert here.outs() == whole.outs()
    assert not list(here.root.rglob("*.partial"))


def test_killing_dvc_alone_never_has_two_writers(whole: Clone, tmp_path: Path) -> None:
    here = copied(whole, tmp_path)
    here.set(train__epochs=2000, train__patience=2000)
    process = here.start()
    holder = here.root / ".freezeframe/train/lock"
    wait_until(lambda: bool(files(here, "train/*/state.pt")), process)
    process.kill()
    process.wait()
    said = holder.read_text(encoding="utf-8")
    orphan = int(said.split()[1])
    try:
        assert f"Another process is training here: {said}" in " ".join(here.dvc("repro", status=255).split("\n"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert orphan != process.pid
    assert not (here.root / "models/captioner").exists()


@pytest.fixture
def queueing(whole: Clone, tmp_path: Path) -> Iterator[Clone]:
    """A clone whose queue's workers are gone when the test is over."""
    here = copied(whole, tmp_path)
    yield here
    here.dvc("queue", "stop", "--kill")
    end = time.monotonic() + 30
    while workers(here) and time.monotonic() < end:
        time.sleep(0.2)
    for process in workers(here):
        os.kill(process, signal.SIGKILL)


def workers(here: Clone) -> list[int]:
    """Processes that work in the clone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve().is_relative_to(here.root):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_queued_experiments_never_encode(queueing: Clone) -> None:
    here = queueing
    here.dvc("exp", "run", "--queue", "-S", "train.learning_rate=2e-4,4e-4")
    here.dvc("queue", "start", "-j", "1")
    end = time.monotonic() + 300
    while len(names := experiments(here)) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    assert len(names) == 2, here.dvc("queue", "status")
    for name in names:
        assert ran(here.dvc("queue", "logs", name)) == LATER
    shown = json.loads(here.dvc("exp", "show", "--json"))[1]["experiments"]
    rates = {
        entry["revs"][0]["name"]: entry["revs"][0]["data"]["params"]["params.yaml"]["data"]["train"]["learning_rate"]
        for entry in shown
    }
    assert set(rates) == set(names)
    assert set(rates.values()) == {2e-4, 4e-4}


def experiments(here: Clone) -> list[str]:
    """Names of finished experiments, which DVC keeps as git references."""
    references = here.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    named = [reference for reference in references if not reference.startswith(("refs/exps/exec", "refs/exps/celery"))]
    return [reference.rpartition("/")[2] for reference in named]


def test_dvc_shows_metrics_params_plots_and_experiments(changed: tuple[Clone, list[str]]) -> None:
    here = changed[0]
    metrics = json.loads(here.dvc("metrics", "diff", "--json"))
    assert set(metrics) == {"results/evaluate/metrics.json", "results/train/metrics.json"}
    table = here.dvc("metrics", "diff", "--md")
    assert re.search(r"\| results/evaluate/metrics\.json +\| bleu1 ", table)
    params = here.dvc("params", "diff")
    assert re.search(r"params\.yaml +train\.learning_rate +0\.03 +0\.01", params)
    here.dvc("plots", "show")
    page = (here.root / "dvc_plots/index.html").read_text(encoding="utf-8")
    for name, plot in (item for entry in read_params(ROOT / "dvc.yaml")["plots"] for item in entry.items()):
        assert f"vegaEmbed('#{name.replace(' ', '_')}'" in page
        assert plot.get("title", name) in page
    shown = here.dvc("exp", "show", "--md", "--only-changed")
    assert "train.learning_rate" in shown
    assert here.run("git", "status", "--short").split() == ["M", "dvc.lock", "M", "params.yaml"]

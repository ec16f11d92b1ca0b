"""A sweep: what its file may say, members that end as they would alone, and experiments that DVC knows."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.commands import members
from pipeline.commands import sweep as command
from pipeline.commands.experiments import Experiments, written
from pipeline.commands.members import read_members
from pipeline.commands.settings import check_settings
from pipeline.errors import CacheError, DivergedError, ExperimentError, SettingsError
from pipeline.files import Workspace
from pipeline.settings import read_params
from pipeline.training.batches import Batch
from pipeline.training.inputs import SHARED
from pipeline.training.loop import Training
from pipeline.training.settings import TrainSettings
from stages import train
from tests import tiny
from tests.import_graph import ROOT
from tests.test_end_to_end import PARTS

MEMBERS: list[dict[str, Any]] = [
    {"train.seed": 1},
    {"train.learning_rate": 1e-2, "train.epochs": 2},
    {"train.accumulate": 2, "train.dropout": 0.0, "train.decoder_options.activation": "tanh"},
    {"train.hidden_size": 10, "train.patience": 1},
    {"train.seed": 1, "train.self_critical.epochs": 2, "train.self_critical.learning_rate": 1e-3, "train.average": 0.9},
]
NAMES = [
    "mine-seed-1",
    "mine-learning_rate-0.01-epochs-2",
    "mine-accumulate-2-dropout-0.0-decoder_options.activation-tanh",
    "mine-hidden_size-10-patience-1",
    "mine-seed-1-self_critical.epochs-2-self_critical.learning_rate-0.001-average-0.9",
]


def write(workspace: Workspace, **document: Any) -> Path:
    path = workspace.root / "mine.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    return path


def member_settings(changes: dict[str, Any]) -> TrainSettings:
    """The settings of a run of its own with these changes in params.yaml."""
    document = tiny.params()
    for name, value in changes.items():
        *outer, last = name.split(".")
        section: Any = document
        for key in outer:
            section = section[key]
        section[last] = value
    settings: TrainSettings = check_settings(document, "tiny")["train"]
    return settings


class Noted:
    """Stands for DVC: keeps what was recorded, and the weights and records of its training."""

    def __init__(self, root: Path) -> None:
        self.root, self.commit, self.recorded, self.states = root, "c0ffee", dict[str, Any](), dict[str, Any]()
        self.order: list[str] = []

    def __call__(self, _: Path) -> "Noted":
        return self

    def refresh(self, *stages: str) -> None:
        assert stages == ("tokenize", "encode")

    @property
    def names(self) -> set[str]:
        return set(self.recorded)

    def metrics(self, *files: Path) -> dict[str, dict[str, Any]]:
        assert files == tuple(self.root / f"results/{stage}/metrics.json" for stage in ("train", "evaluate"))
        scores = {name: {"bleu4": float(place), "cider": 7.0} for place, name in enumerate(self.recorded)}
        return {name: {**own, "validation": own} for name, own in scores.items()}

    def record(self, name: str, changes: dict[str, Any], replaced: Sequence[str], work: Path | None) -> None:
        self.order.append(f"recorded {name}")
        assert changes["evaluate.models"] == ["captioner"]  # whatever ensemble the workspace scores
        self.recorded[name] = {key: value for key, value in changes.items() if key != "evaluate.models"}
        if work is not None and (work / "state.pt").exists():  # else only the end of a first phase is kept
            self.states[name] = work_of(work)


def work_of(folder: Path) -> tuple[bytes, list[dict[str, float]]]:
    """The best weights and the records of a finished training."""
    best, state = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("best", "state"))
    weights = b"".join(value.numpy().tobytes() for value in best["captioner"].values())
    return weights, state["progress"]["history"]


@pytest.fixture
def noted(encoded: Workspace, monkeypatch: pytest.MonkeyPatch) -> Noted:
    stand_in = Noted(encoded.root)
    monkeypatch.setattr(command, "Experiments", stand_in)
    return stand_in


@pytest.fixture(scope="module")
def alone(encoded_once: Workspace, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What a run of its own makes of each member."""
    found = []
    for number, changes in enumerate(MEMBERS):
        root = shutil.copytree(encoded_once.root, tmp_path_factory.mktemp("alone") / str(number))
        workspace = Workspace(Path(root))
        train.run(workspace, member_settings(changes))
        *_, last = sorted(path.parent for path in workspace.work("train").rglob("state.pt"))  # of the last phase
        found.append(("-".join(last.relative_to(workspace.work("train")).parts), *work_of(last)))
    return found


def test_every_member_is_to_the_last_byte_what_a_run_of_its_own_makes(
    encoded: Workspace, noted: Noted, alone: list[Any]
) -> None:
    told: list[str] = []
    command.sweep(encoded, write(encoded, members=MEMBERS), told.append)
    assert list(noted.recorded) == NAMES
    assert list(noted.recorded.values()) == MEMBERS
    for name, (key, weights, history) in zip(NAMES, alone, strict=True):
        assert noted.states[name] == (weights, history), name
        assert (encoded.work("sweep") / key).exists()  # the key under which the stage looks for the work
    assert not list(encoded.work("train").rglob("state.pt"))
    assert told[0] == "5 members, 0 of them recorded before."
    assert told[-2] == f"{NAMES[-1]} is recorded."
    assert told[-1].startswith("| change | seeds | greedy validation BLEU-4 |")
    assert sum(line.startswith(f"{NAMES[1]}, epoch ") for line in told) == 2


@pytest.mark.parametrize("stem", [".hidden", "-mine", "mine.", "mine.lock", "a..b~^:?*[", "x" * 300])
@pytest.mark.parametrize("changes", [{}, {"train.seed": 1}, {"train.decoder": "a.lock"}], ids=str)
def test_names_are_refs_that_git_takes(stem: str, changes: dict[str, Any]) -> None:
    name = members._name(Path(f"{stem}.yaml"), changes)
    assert subprocess.run(["git", "check-ref-format", f"refs/exps/ab/{name}"]).returncode == 0
    assert not name.startswith("-")
    assert len(name) < 140


def test_long_names_stay_apart() -> None:
    names = {members._name(Path(f"{'x' * 200}.yaml"), {"train.seed": seed}) for seed in range(3)}
    assert len(names) == 3


def untold(_: str) -> None:
    pass


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize("instant", [7, 30])
def test_a_sweep_that_was_killed_goes_on_with_every_member_where_it_stands(
    encoded: Workspace, noted: Noted, alone: list[Any], monkeypatch: pytest.MonkeyPatch, instant: int
) -> None:
    taken, take = [0], Training.take
    path = write(encoded, members=MEMBERS)

    def counted(self: Training, batch: Batch) -> None:
        taken[0] += 1
        if taken[0] == instant:
            raise Killed
        take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.checkpoint.SECONDS_BETWEEN", -1.0)
        patch.setattr(Training, "take", counted)
        with pytest.raises(Killed):
            command.sweep(encoded, path, untold)
    command.sweep(encoded, path, untold)
    for name, (_, weights, history) in zip(NAMES, alone, strict=True):
        assert noted.states[name] == (weights, history), name


def test_members_share_a_first_phase_and_a_member_is_not_what_it_does_not_read(
    encoded: Workspace, noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases, take = list[str](), Training.take

    def counted(self: Training, batch: Batch) -> None:
        phases.append(type(self.phase).__name__)
        take(self, batch)

    monkeypatch.setattr(Training, "take", counted)
    members: list[dict[str, Any]] = [
        {"train.epochs": 2},
        {"train.epochs": 2, "train.self_critical.epochs": 1},
        {"train.epochs": 2, "train.self_critical.epochs": 1, "train.self_critical.samples": 2},
    ]
    command.sweep(encoded, write(encoded, members=members), untold)
    assert len(noted.recorded) == 3
    assert (phases.count("CrossEntropy"), phases.count("SelfCritical")) == (5 * 2, 5 * 2)
    members.append({"train.epochs": 2, "train.self_critical.epochs": 2})
    command.sweep(encoded, write(encoded, members=members), untold)  # from the first phase that was kept
    assert (phases.count("CrossEntropy"), phases.count("SelfCritical")) == (5 * 2, 5 * 4)
    members = [{"train.self_critical.samples": 2}, {"train.self_critical.samples": 3}]
    assert "member 2: the same settings as mine-self_critical.samples-2" in problems(encoded, members=members)


@pytest.mark.usefixtures("noted")
def test_every_batch_is_read_once_for_all(encoded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[Training, list[int]] = {}
    take = Training.take

    def counted(self: Training, batch: Batch) -> None:
        seen.setdefault(self, []).append(batch.regions.data_ptr())
        take(self, batch)

    monkeypatch.setattr(Training, "take", counted)
    command.sweep(encoded, write(encoded, grid={"train.seed": [1, 2, 3], "train.epochs": [1]}), untold)
    first, *others = seen.values()
    assert len(others) == 2
    assert len(first) == 5
    assert all(other == first for other in others)


def test_what_is_recorded_is_not_done_again_and_a_new_member_is(
    encoded: Workspace, noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    grid: dict[str, Any] = {"train.epochs": [1], "train.seed": [1]}
    command.sweep(encoded, write(encoded, grid=grid), told.append)
    command.sweep(encoded, write(encoded, grid={**grid, "train.seed": [1, 2]}), told.append)
    assert "2 members, 1 of them recorded before." in told
    assert told.count("mine-epochs-1-seed-1 is recorded.") == told.count("mine-epochs-1-seed-2 is recorded.") == 1
    noted.commit = "decaf"  # another commit has no experiments yet: they are recorded again, from DVC's cache
    monkeypatch.setattr(Training, "take", None)
    noted.states.clear()
    command.sweep(encoded, write(encoded, grid=grid), told.append)
    assert told.count("mine-epochs-1-seed-1 is recorded.") == 2
    assert not noted.states


def test_a_member_that_diverges_is_left_out_and_told(
    encoded: Workspace, noted: Noted, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training._step

    def poisoned(self: Training, group: Any) -> None:
        if self.settings.dropout == 0.0 and self.progress.epoch == 1:
            self.captioner.get_parameter("output.bias").register_hook(lambda gradient: gradient * float("nan"))
        step(self, group)

    monkeypatch.setattr(Training, "_step", poisoned)
    told: list[str] = []
    with pytest.raises(DivergedError, match=rf"^{re.escape(NAMES[2])}: Training stopped at epoch 2, step 1 of 3"):
        command.sweep(encoded, write(encoded, members=MEMBERS), told.append)
    assert list(noted.recorded) == [NAMES[0], NAMES[1], *NAMES[3:]]
    assert any(line.startswith(f"{NAMES[2]} is left out: Training stopped") for line in told)
    for name, (_, weights, history) in zip(NAMES, alone, strict=True):
        assert name == NAMES[2] or noted.states[name] == (weights, history)


def problems(workspace: Workspace, **document: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        read_members(write(workspace, **document), workspace.params)
    return str(caught.value)


TIED = {"activation": "relu", "gate": True, "normalise": True, "tie": True}


def test_everything_that_does_not_fit_is_told_at_once(encoded: Workspace) -> None:
    said = problems(
        encoded,
        mebers=[],
        members=[
            {"train.seed": -1, "train.lerning_rate": 1},
            {"evaluate.beam": 2},
            {"train.decoder_options": {"gate": False}},
            {"train.decoder_options.activation": "gelu"},
            {"train.seed.deeper": 1},
            {"train.decoder_options.tie": True, "train.decoder_options": TIED},
            {"train.seed": 4},
            {"train.seed": 4, "train.dropout": 0.1},
            7,
        ],
        grid={"train.seed": 3},
    )
    assert said.startswith("13 settings do not fit in ")
    for told in (
        "mebers: unknown; known: grid, members",
        "member 1: train.seed: -1 is out of range",
        "member 1: train.lerning_rate: unknown key; did you mean learning_rate?",
        "member 2: evaluate.beam: members may differ in settings of train only",
        "member 3: train.decoder_options.activation: missing",
        "member 4: train.decoder_options.activation: expected relu or tanh, found 'gelu'",
        "member 5: train.seed.deeper: there is no train.seed with keys of its own",
        "member 6: train.decoder_options.tie: train.decoder_options is changed as well; put all into one",
        "member 8: the same settings as mine-seed-4",
        "members: expected settings such as {train.seed: 1}, found 7 (9)",
        "grid: expected lists of values",
    ):
        assert told in said


@pytest.mark.parametrize("key", SHARED)
def test_what_the_batches_depend_on_is_refused(encoded: Workspace, key: str) -> None:
    value = tiny.params()["train"][key]
    assert f"member 1: train.{key}: members share their batches" in problems(encoded, members=[{f"train.{key}": value}])


def test_members_may_be_trained_and_recorded_some_at_a_time(encoded: Workspace, noted: Noted) -> None:
    grid = {"train.epochs": [1], "train.seed": [1, 2, 3]}
    command.sweep(encoded, write(encoded, grid=grid), noted.order.append, together=2)
    names = [f"mine-epochs-1-seed-{seed}" for seed in (1, 2, 3)]
    order = [re.sub(r", epoch 1: .*", " trained", line) for line in noted.order]
    assert [line for line in order if re.search(" trained|^recorded", line)] == [
        *(f"{name} trained" for name in names[:2]),
        *(f"recorded {name}" for name in names[:2]),
        f"{names[2]} trained",
        f"recorded {names[2]}",
    ]


def test_a_section_is_replaced_as_a_whole_by_a_mapping(encoded: Workspace) -> None:
    options = {"activation": "tanh", "normalise": False}
    member = {"train.decoder": "att2in2", "train.decoder_options": options}
    (found,) = read_members(write(encoded, members=[member]), encoded.params)
    assert found.settings.decoder_options == options
    assert found.name == "mine-decoder-att2in2-activation-tanh-normalise-False"
    assert found.replaced == ("train.decoder_options",)
    assert found.changes == {
        "train.decoder": "att2in2",
        "train.decoder_options.activation": "tanh",
        "train.decoder_options.normalise": False,
    }


def test_seeds_make_every_member_once_a_seed(encoded: Workspace) -> None:
    document = {"members": [{}, {"train.dropout": 0.5}], "grid": {"train.epochs": [3]}, "seeds": [4, 9]}
    found = read_members(write(encoded, **document), encoded.params)
    assert [member.name for member in found] == [
        f"mine-{change}seed-{seed}" for change in ("", "dropout-0.5-", "epochs-3-") for seed in (4, 9)
    ]
    assert [member.settings.seed for member in found] == [4, 9] * 3


def test_seeds_alone_are_members(encoded: Workspace) -> None:
    found = read_members(write(encoded, seeds=[4, 9]), encoded.params)
    assert [(member.name, member.settings.seed) for member in found] == [("mine-seed-4", 4), ("mine-seed-9", 9)]


def test_a_member_that_does_not_fit_the_cache_is_named(encoded: Workspace, noted: Noted) -> None:
    with pytest.raises(CacheError, match=r"^mine-tail-layer4: train\.tail is layer4, but the cache holds the last map"):
        command.sweep(encoded, write(encoded, members=[{}, {"train.tail": "layer4"}]), print)
    assert not noted.recorded


@pytest.mark.parametrize("seeds", [[], 3, {"a": 1}])
def test_seeds_are_a_list(encoded: Workspace, seeds: Any) -> None:
    assert "seeds: expected a list such as [1, 2]" in problems(encoded, members=[{}], seeds=seeds)


def test_seeds_are_named_in_one_place(encoded: Workspace) -> None:
    assert "name seeds in one place" in problems(encoded, members=[{"train.seed": 1}], seeds=[1, 2])


@pytest.mark.parametrize("file", sorted((ROOT / "params" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_projects_own_sweeps_fit_the_preset_they_are_made_for(file: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_bytes((ROOT / "params" / "efficientnet-lite2.yaml").read_bytes())
    found = read_members(file, params)
    assert len({member.name for member in found}) == len(found) >= 5


@pytest.mark.parametrize("decoder", ["soft-gru", "adaptive", "att2in2", "topdown", "hard"])
def test_the_sweep_of_decoders_has_each_with_its_presets_options(decoder: str) -> None:
    preset = read_params(ROOT / f"params/{decoder}.yaml")["train"]
    found = read_members(ROOT / "params/sweeps/decoders.yaml", ROOT / "params/efficientnet-lite2.yaml")
    (own,) = (member.settings for member in found if member.settings.decoder == preset["decoder"])
    assert own.decoder_options == preset["decoder_options"]


def test_a_sweep_without_members_is_refused(encoded: Workspace) -> None:
    assert "has no members; expected a list under members" in problems(encoded, members=[])


@pytest.mark.parametrize("text", ["", "- {train.seed: 1}\n"])
def test_a_file_that_is_no_sweep_is_told_what_a_sweep_holds(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"mine\.yaml holds no sections; expected grid, members or seeds\.$"):
        read_members(tmp_path / "mine.yaml", ROOT / "params.yaml")


def test_a_grid_is_every_combination_after_the_members(encoded: Workspace) -> None:
    grid = {"train.seed": [1, 2], "train.dropout": [0.0, 0.5]}
    members = read_members(write(encoded, members=[{}], grid=grid), encoded.params)
    assert [member.name for member in members] == [
        "mine-unchanged",
        *(f"mine-seed-{seed}-dropout-{dropout}" for seed in (1, 2) for dropout in (0.0, 0.5)),
    ]
    assert [(member.settings.seed, member.settings.dropout) for member in members[1:]] == [
        (1, 0.0), (1, 0.5), (2, 0.0), (2, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (True, "true"), (None, "null"), (1e-5, "1e-05"), (0.0, "0.0"), ("tanh", "tanh")]
)
def test_values_are_written_for_dvc(value: Any, text: str) -> None:
    assert written(value) == text


git_only = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTHON"))}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def run(root: Path, *command: str, status: int = 0) -> str:
    done = subprocess.run(
        command, cwd=root, env=environment(root), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@git_only
def test_where_nothing_can_be_recorded_it_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMAIL", "")
    with pytest.raises(ExperimentError, match=r'is no git repository, .* Run "git init"'):
        Experiments(tmp_path)
    run(tmp_path, "git", "init", "--quiet")
    with pytest.raises(ExperimentError, match=r'is no DVC project\. Run "dvc init"'):
        Experiments(tmp_path)
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(ExperimentError, match=r'without a commit, .* Run "git add --all" and "git commit"'):
        Experiments(tmp_path)
    commit = ("commit", "--quiet", "--allow-empty", "--message=first")
    run(tmp_path, "git", "-c", "user.name=A", "-c", "user.email=a@example.org", *commit)
    run(tmp_path, "git", "config", "user.useConfigOnly", "true")
    with pytest.raises(ExperimentError, match=r"whose author is unknown, .*git config user.name NAME"):
        Experiments(tmp_path)
    run(tmp_path, "git", "config", "user.name", "A")
    run(tmp_path, "git", "config", "user.email", "a@example.org")
    assert len(Experiments(tmp_path).commit) == 40


@git_only
def test_members_are_experiments_that_dvc_shows_and_the_workspace_stays_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    workspace = Workspace(root)
    tiny.write_params(workspace, train__epochs=2)
    stages = (root / "dvc.yaml").read_text(encoding="utf-8")
    stages = re.sub(r"^  report:.*?^$", "", stages, flags=re.MULTILINE | re.DOTALL)  # to save time
    heard = stages.replace("cmd: python cli.py train\n", f"cmd: python cli.py train >> {tmp_path / 'heard'}\n")
    (root / "dvc.yaml").write_text(heard, encoding="utf-8")
    run(root, "git", "init", "--quiet")
    run(root, sys.executable, "-m", "dvc", "init", "--quiet")
    run(root, "git", "config", "user.name", "A Tester")
    run(root, "git", "config", "user.email", "tester@example.org")
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "a state")
    params = workspace.params.read_bytes()
    options = {"activation": "tanh", "normalise": True}  # params.yaml names others as well, which must go
    other = {"train.decoder": "adaptive", "train.decoder_options": options}
    write(workspace, members=[other], grid={"train.seed": [1, 2], "train.learning_rate": [0.02]})
    told = run(root, sys.executable, "cli.py", "sweep", "mine.yaml")
    adaptive = "mine-decoder-adaptive-activation-tanh-normalise-True"
    names = [f"mine-seed-{seed}-learning_rate-0.02" for seed in (1, 2)]
    assert f"{adaptive} is recorded." in told
    assert all(f"{name} is recorded." in told for name in names)
    assert re.search(r"^\| `learning_rate: 0\.02` \| 2 \| \d+\.\d\d ± \d+\.\d\d \|", told, re.MULTILINE)
    assert workspace.params.read_bytes() == params
    assert not workspace.captioner.exists()
    heard = (tmp_path / "heard").read_text(encoding="utf-8")
    assert heard.count("Going on from where an earlier run") == heard.count("Kept epoch") == 3  # nothing is redone
    shown = json.loads(run(root, sys.executable, "-m", "dvc", "exp", "show", "--json"))[1]["experiments"]
    found = {entry["revs"][0]["name"]: entry["revs"][0]["data"] for entry in shown}
    assert set(found) == {adaptive, *names}
    assert found[adaptive]["params"]["params.yaml"]["data"]["train"]["decoder_options"] == options
    for name, seed in zip(names, (1, 2), strict=True):
        assert found[name]["params"]["params.yaml"]["data"]["train"]["seed"] == seed
        assert "bleu4" in found[name]["metrics"]["results/evaluate/metrics.json"]["data"]
    assert len({str(found[name]["metrics"]["results/train/metrics.json"]) for name in names}) == 2

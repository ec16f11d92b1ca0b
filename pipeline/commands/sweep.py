"""`freezeframe sweep`: several settings of `train`, learnt in one pass over the cache, each a DVC experiment.

Owns the order of it: check, train together, record. Does not know how a step is made nor what DVC does.

A member is trained under the key that the stage train gives its settings, so its bytes are those of a run of its own,
and the stage that records it finds the work done.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.commands.experiments import Experiments
from pipeline.commands.members import Member, read_members
from pipeline.commands.settings import read_settings
from pipeline.commands.table import table
from pipeline.errors import DivergedError, FreezeframeError
from pipeline.files import Workspace, lock, read_text, sha256_of_json, write_text
from pipeline.settings import read_params
from pipeline.training.checkpoint import forget, train_lock
from pipeline.training.inputs import Inputs
from pipeline.training.loop import Teller
from pipeline.training.progress import Record, told
from pipeline.training.together import Phases, train_phases

Tell = Callable[[str], None]


def sweep(workspace: Workspace, path: Path, tell: Tell, together: int | None = None) -> None:
    """Train the members of a sweep together and record each; what an earlier call has done is not done again.

    Args:
        workspace: with its `params.yaml`; its outs stay as they are.
        path: the sweep's file.
        tell: told of every epoch and every experiment, in a line, and at the end of all scores.
        together: members trained at a time, and recorded before the next ones; None is all.

    Raises:
        SettingsError: a member does not fit.
        ExperimentError: git or DVC cannot record experiments here.
        DivergedError: the loss of some members is no longer a number; the others are recorded.
    """
    params = read_settings(workspace.params)
    settings = params["train"]
    members = read_members(path, workspace.params)
    experiments = Experiments(workspace.root)
    experiments.refresh("tokenize", "encode")
    with lock(train_lock(workspace), "training"):
        inputs = Inputs(workspace, settings)
        recorded = _Recorded(workspace, experiments, inputs)
        for member in members:
            with _named(member):
                inputs.works(member.settings)  # does it fit the cache?
        waiting = [member for member in members if not recorded.holds(member)]
        tell(f"{len(members)} members, {len(members) - len(waiting)} of them recorded before.")
        failed: dict[str, DivergedError] = {}
        for group in _groups(waiting, together):
            failed |= _train(workspace, inputs, [one for one in group if not recorded.trained(one)], tell)
            for member in group:
                if member.name not in failed:
                    recorded.add(member)
                    tell(f"{member.name} is recorded.")
    tell(
        table(
            [one for one in members if one.name not in failed],
            experiments.metrics(
                *(place / "metrics.json" for place in (workspace.train_results, workspace.evaluate_results))
            ),
            params["evaluate"].split,
            settings.monitor,
        )
    )
    if failed:
        raise DivergedError("\n".join(f"{name}: {error}" for name, error in failed.items()))


def _groups(members: Sequence[Member], size: int | None) -> Iterator[Sequence[Member]]:
    size = size or max(1, len(members))
    return (members[start : start + size] for start in range(0, len(members), size))


def _train(workspace: Workspace, inputs: Inputs, members: Sequence[Member], tell: Tell) -> dict[str, DivergedError]:
    runs: dict[str, Phases] = {}
    for member in members:
        with _named(member):
            prepared = inputs.prepare(member.settings)
        prepared.tell(_teller(workspace, member.name, tell))
        runs[member.name] = prepared.phases
    failed = train_phases(runs)
    for name, error in failed.items():
        tell(f"{name} is left out: {error}")
    return failed


@contextlib.contextmanager
def _named(member: Member) -> Iterator[None]:
    """Say whose fault it is."""
    try:
        yield
    except FreezeframeError as error:
        raise type(error)(f"{member.name}: {error}") from error


def _teller(workspace: Workspace, name: str, tell: Tell) -> Teller:
    def of_an_epoch(history: list[Record], measured: Record) -> None:
        tell(f"{name}, {told(history)}")
        workspace.log("sweep", {"member": name, "epoch": len(history), **measured})

    return of_an_epoch


class _Recorded:
    """Which members are recorded: a note for each of what its experiment was made from, under its training's key."""

    def __init__(self, workspace: Workspace, experiments: Experiments, inputs: Inputs) -> None:
        self._workspace, self._experiments, self._inputs = workspace, experiments, inputs
        self._params = read_params(workspace.params)

    def trained(self, member: Member) -> bool:
        """Whether it was recorded once: DVC's cache then holds what its training made."""
        return self._note(member).exists()

    def holds(self, member: Member) -> bool:
        """Whether it is recorded as it would be now."""
        note = self._note(member)
        return member.name in self._experiments.names and note.exists() and read_text(note) == self._made_from(member)

    def add(self, member: Member) -> None:
        """Record it, and forget its work in progress but for what other second phases may begin with."""
        works = [work for work in reversed(self._inputs.works(member.settings)) if work.exists()]
        # Whatever ensemble the workspace scores, an experiment is scored by what it trained.
        changes = {**member.changes, "evaluate.models": [self._workspace.captioner.name]}
        self._experiments.record(member.name, changes, member.replaced, works[0] if works else None)
        write_text(self._note(member), self._made_from(member))
        for work in works:
            forget(self._workspace.work("train"), work)

    def _note(self, member: Member) -> Path:
        work = self._inputs.works(member.settings)[-1].relative_to(self._workspace.work("train"))
        return self._workspace.work("sweep") / "-".join(work.parts)

    def _made_from(self, member: Member) -> str:
        return sha256_of_json([self._experiments.commit, member.name, self._params])

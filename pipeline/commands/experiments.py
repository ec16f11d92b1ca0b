"""Recording work that is finished as DVC experiments.

Owns the calls of git and DVC. Does not know what is recorded.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import ExperimentError

_LINES = 15  # of what a failed command said


class Experiments:
    """The experiments of the commit that is checked out.

    Args:
        root: the project's folder.

    Raises:
        ExperimentError: git or DVC would refuse to record one; told before any work is done.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._git("no git repository, which experiments are kept in", 'Run "git init"', "rev-parse", "--git-dir")
        if not (root / ".dvc").is_dir():
            raise ExperimentError(f'{root.resolve()} is no DVC project. Run "dvc init"; then run this again.')
        self.commit = self._git(
            "a repository without a commit, which experiments start from",
            'Run "git add --all" and "git commit"',
            *("rev-parse", "--verify", "--quiet", "HEAD"),
        )
        self._git(
            "a repository whose author is unknown, whom experiments are recorded by",
            'Run "git config user.name NAME" and "git config user.email ADDRESS"',
            *("var", "GIT_COMMITTER_IDENT"),
        )

    def refresh(self, *stages: str) -> None:
        """Bring stages up to date, as `dvc repro` does."""
        self._dvc("repro", *stages, told=True)

    @cached_property
    def names(self) -> frozenset[str]:
        """Of the experiments there were at the first look."""
        return frozenset(self._dvc("exp", "list", "--name-only").split())

    def metrics(self, *files: Path) -> dict[str, dict[str, Any]]:
        """What metrics files hold in each experiment that has them all, by its name.

        Args:
            files: of the workspace, no two with a key in common.
        """
        wanted = [file.relative_to(self.root).as_posix() for file in files]
        found: dict[str, dict[str, Any]] = {}
        for commit in _json(self._dvc("exp", "show", "--json")):
            for experiment in commit.get("experiments") or []:
                for revision in experiment["revs"]:
                    held = (revision.get("data") or {}).get("metrics") or {}
                    data = [held.get(name, {}).get("data") for name in wanted]
                    if experiment["name"] and all(data):
                        found.setdefault(experiment["name"], {key: own[key] for own in data for key in own})
        return found

    def record(self, name: str, changes: dict[str, Any], replaced: Sequence[str], work: Path | None) -> None:
        """Run the stages with changed settings in a folder of DVC's own, and keep their outs as an experiment.

        Args:
            name: of the experiment; an older one of that name makes way when this one is there.
            changes: `section.key` to single value.
            replaced: sections that are emptied first.
            work: work in progress to take along, so that it is not done again.
        """
        new = f"{name}-again" if name in self.names else name
        if new != name and new in self.names:  # of a call that was stopped
            self._dvc("exp", "remove", new)
        emptied = [f"~{section}" for section in replaced]
        changed = [f"++{key}={written(value)}" for key, value in changes.items()]
        settings = [part for setting in (*emptied, *changed) for part in ("--set-param", setting)]
        copied = [] if work is None else ["--copy-paths", str(work.relative_to(self.root))]
        self._dvc("exp", "run", "--temp", "--name", new, *settings, *copied)
        if new != name:
            self._dvc("exp", "remove", name)
            self._dvc("exp", "rename", new, name)

    def copy(self, name: str, out: Path, target: Path) -> None:
        """Copy an out as an experiment made it; no file is at `target` yet."""
        source, place = (path.relative_to(self.root).as_posix() for path in (out, target))
        # DVC takes a path within the repository, of which the project may be a folder.
        up, prefix, *_ = self._run(["git", "rev-parse", "--show-cdup", "--show-prefix"]).stdout.split("\n")
        self._dvc("get", up or ".", f"{prefix}{source}", "--rev", name, "--out", place)

    def track(self, paths: Sequence[Path]) -> None:
        """Let DVC keep folders that no stage writes, each with a .dvc file beside it."""
        self._dvc("add", *(str(path.relative_to(self.root)) for path in paths))

    def _git(self, trouble: str, remedy: str, *arguments: str) -> str:
        done = self._run(["git", *arguments])
        if done.returncode:
            raise ExperimentError(f"{self.root.resolve()} is {trouble}. {remedy}; then run this again.")
        return done.stdout.strip()

    def _dvc(self, *arguments: str, told: bool = False) -> str:
        done = self._run([sys.executable, "-m", "dvc", *arguments], told)
        if done.returncode:
            said = "\n".join((done.stdout or "").splitlines()[-_LINES:])
            raise ExperimentError(
                f'"dvc {" ".join(arguments)}" has failed (status {done.returncode}).'
                + (f" It said at last:\n{said}" if said else " It said why above.")
            )
        return done.stdout or ""

    def _run(self, command: Sequence[str], told: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a program in the project's folder, with this Python first on the path, as stages are called by name."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        kept, joined = (None, None) if told else (subprocess.PIPE, subprocess.STDOUT)
        try:
            return subprocess.run(
                command, cwd=self.root, env={**os.environ, "PATH": path}, text=True, stdout=kept, stderr=joined
            )
        except FileNotFoundError as error:
            raise ExperimentError(f"{command[0]} is not installed; experiments need it.") from error


def _json(said: str) -> Any:
    """The JSON among what DVC said: one line, with warnings around it at most."""
    return json.loads(next((line for line in said.splitlines() if line.startswith("[")), "[]"))


def written(value: Any) -> str:
    """A single value as `dvc exp run --set-param` reads it."""
    return value if isinstance(value, str) else json.dumps(value)

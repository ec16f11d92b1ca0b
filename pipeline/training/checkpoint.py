"""Work in progress of a training: its whole state, whole or absent.

Owns the files, their atomic replacement and their removal. Does not know what is in the state.

A phase lies in the folder of the phase that it goes on from: `train/KEY` and `train/KEY/KEY`.
"""

import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import BusyError, CheckpointError
from pipeline.files import Workspace, lock, replacing

SECONDS_BETWEEN = 60.0
KEPT = 16  # first phases whose end is kept, for other second phases to begin with
_FINISHED = "finished"


class Checkpoint:
    """A folder with the last state and the best weights so far; pickle is never loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):
            partial.unlink(missing_ok=True)
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether so long has passed since the last save that a kill would hurt."""
        return time.monotonic() - self._saved > SECONDS_BETWEEN

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Replace `NAME.pt`.

        Raises:
            SpaceError: the disk is full; the older state is kept.
        """
        # Through a file of ours: given a path, torch tells of a full disk as an internal error.
        with replacing(self.folder / f"{name}.pt") as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        self._saved = time.monotonic()

    def has(self, name: str) -> bool:
        """Whether there is a `NAME.pt`."""
        return (self.folder / f"{name}.pt").exists()

    def load(self, name: str, device: torch.device) -> dict[str, Any] | None:
        """`NAME.pt`, or None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        if not self.has(name):
            return None
        path = self.folder / f"{name}.pt"
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged: it is no state that training saved. Delete {self.folder} to train from the start."
            ) from error
        return state

    def finish(self) -> None:
        """Say that the training is over and what it made is written: a later stage may forget the work."""
        (self.folder / _FINISHED).touch()


def train_lock(workspace: Workspace) -> Path:
    """What the one trainer holds."""
    return workspace.work("train") / "lock"


def sweep_trainings(workspace: Workspace) -> None:
    """Forget the work of finished trainings.

    Call it when DVC has taken over what they made, that is in a later stage: until then it is what a killed run goes
    on from. Unfinished trainings stay, and all of them while one is running.
    """
    works = workspace.work("train")
    try:
        with lock(train_lock(workspace), "training"):
            for mark in [*works.glob(f"*/*/{_FINISHED}"), *works.glob(f"*/{_FINISHED}")]:
                if mark.exists():  # not too many, or within one that was
                    forget(works, mark.parent)
    except BusyError:
        return


def forget(works: Path, folder: Path) -> None:
    """Delete a finished training's work but for what a later phase may begin with: a first phase's best weights.

    Of those the `KEPT` latest stay, and any whose second phase is not finished.

    Args:
        works: where all trainings lie.
        folder: of the training.
    """
    if folder.parent != works:
        shutil.rmtree(folder, ignore_errors=True)
        return
    (folder / "state.pt").unlink(missing_ok=True)
    if not (folder / _FINISHED).exists():
        (folder / _FINISHED).touch()
    ends = [mark.parent for mark in works.glob(f"*/{_FINISHED}") if not list(mark.parent.rglob("state.pt"))]
    for older in sorted(ends, key=lambda end: (end / _FINISHED).stat().st_mtime_ns)[:-KEPT]:
        shutil.rmtree(older)

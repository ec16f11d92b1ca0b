"""Work in progress of a training: its whole state, whole or absent.

Owns the files and their atomic replacement. Does not know what is in the state.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CheckpointError
from pipeline.files import replacing


class Checkpoint:
    """A folder with the last state and the best weights so far; pickle is never loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):
            partial.unlink()

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Replace `NAME.pt`."""
        with replacing(self.folder / f"{name}.pt") as temporary:
            torch.save(state, temporary)

    def load(self, name: str, device: torch.device) -> dict[str, Any] | None:
        """`NAME.pt`, or None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged: it is no state that training saved. Delete {self.folder} to train from the start."
            ) from error
        return state

    def remove(self) -> None:
        """Forget this training."""
        shutil.rmtree(self.folder, ignore_errors=True)

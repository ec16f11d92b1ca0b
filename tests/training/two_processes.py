"""What each of the processes that `torchrun` starts does in `test_ranks.py`."""

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import FreezeframeError
from pipeline.training.loop import Training
from pipeline.training.ranks import Ranks, joined
from pipeline.training.together import train_alone
from tests.training.conftest import SETTINGS
from tests.training.test_loop import training
from tests.training.test_self_critical import phases

CHANGES: dict[str, Any] = {"dropout": 0.0, "images": 7, "accumulate": 2, "batch_images": 2}

HARD: dict[str, Any] = {**SETTINGS.decoder_options, "reward_weight": 0.5, "entropy_weight": 0.1}


def watched(*phases: Training) -> list[dict[str, Tensor]]:
    """What this process itself comes to in every epoch; in the end all load the best that the first has saved."""
    held: list[dict[str, Tensor]] = []
    for run in phases:
        run.tell = lambda *_, own=run: held.append(copy.deepcopy(own.captioner.state_dict()))
    return held


def train(folder: Path, ranks: Ranks) -> None:
    """A training in each precision, what each process had of it after every epoch, and where it ended."""
    for dtype in (torch.float32, torch.float64):
        run = training(folder / str(dtype), dtype=dtype, ranks=ranks, **CHANGES)
        held, history = watched(run), train_alone(run)
        train_alone(training(folder / f"one epoch of {dtype}", dtype=dtype, ranks=ranks, epochs=1, **CHANGES))
        torch.save([history, held, run.captioner.state_dict()], folder / f"{dtype}-{ranks.rank}.pt")
    drawing = training(folder / "hard", ranks=ranks, decoder="hard", decoder_options=HARD, **CHANGES)
    held, history = watched(drawing), train_alone(drawing)
    torch.save([history, held], folder / f"hard-{ranks.rank}.pt")
    both = phases(folder / "both", ranks=ranks, monitor="cider", average=0.5, patience=9, **CHANGES)
    held, history = watched(*both), train_alone(*both)
    torch.save([history, held], folder / f"both-{ranks.rank}.pt")


def fail(rank: str) -> None:
    """One of them fails; told as the command line tells."""
    try:
        with joined() as ranks:
            if rank == str(ranks.rank):
                raise FreezeframeError("nothing fits")
            ranks.meet()
    except FreezeframeError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    if sys.argv[1] == "fail":
        fail(sys.argv[2])
    else:
        with joined() as joint:
            train(Path(sys.argv[2]), joint)

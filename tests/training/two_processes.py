"""What each of the processes that `torchrun` starts does in `test_ranks.py`."""

import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import FreezeframeError
from pipeline.training.ranks import Ranks, joined
from pipeline.training.together import train_alone
from tests.training.conftest import SETTINGS
from tests.training.test_loop import training
from tests.training.test_self_critical import phases

CHANGES: dict[str, Any] = {"dropout": 0.0, "images": 7, "accumulate": 2, "batch_images": 2}

HARD: dict[str, Any] = {**SETTINGS.decoder_options, "reward_weight": 0.5, "entropy_weight": 0.1}


def train(folder: Path, ranks: Ranks) -> None:
    """A training in each precision, and where it ended."""
    for dtype in (torch.float32, torch.float64):
        run = training(folder / str(dtype), dtype=dtype, ranks=ranks, **CHANGES)
        history = train_alone(run)
        train_alone(training(folder / f"one epoch of {dtype}", dtype=dtype, ranks=ranks, epochs=1, **CHANGES))
        torch.save([history, run.captioner.state_dict()], folder / f"{dtype}-{ranks.rank}.pt")
    drawing = training(folder / "hard", ranks=ranks, decoder="hard", decoder_options=HARD, **CHANGES)
    train_alone(drawing)
    torch.save(drawing.captioner.state_dict(), folder / f"hard-{ranks.rank}.pt")
    both = phases(folder / "both", ranks=ranks, monitor="cider", average=0.5, patience=9, **CHANGES)
    torch.save([train_alone(*both), both[1].captioner.state_dict()], folder / f"both-{ranks.rank}.pt")


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

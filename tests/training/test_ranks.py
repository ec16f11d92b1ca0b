"""Two processes train as one does, and tell an error once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import DeviceError
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.together import train_alone
from tests.import_graph import ROOT
from tests.training.test_loop import training
from tests.training.two_processes import CHANGES


def torchrun(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2` of this Python, whatever is on the path."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, text=True, capture_output=True, timeout=120
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the project tells, beside what torchrun does."""
    return [line for line in done.stderr.splitlines() if line.startswith("Error: ")]


def ends(folder: Path, name: str) -> list[Any]:
    """Where the first has ended; up to there both have had the same weights, buffers and records, to the bit."""
    (history, held, *ours), (others, theirs, *_) = (
        torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert history == others
    assert len(held) == len(theirs) >= len(history) > 0
    for epoch, (own, other) in enumerate(zip(held, theirs, strict=True)):
        for key in own:
            assert torch.equal(own[key], other[key]), (epoch, key)
    return [history, held, *ours]


def test_two_processes_end_with_the_weights_and_records_of_one(tmp_path: Path) -> None:
    done = torchrun("-m", "tests.training.two_processes", "train", str(tmp_path))
    assert done.returncode == 0, done.stderr
    # AdamW divides a gradient by its size, so rounding shows where gradients are small: the bounds are the weights',
    # whose largest is near 1, after 8 steps at a rate of 0.02.
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        alone = training(tmp_path / f"alone-{dtype}", dtype=dtype, **CHANGES)
        records = train_alone(alone)
        history, _, ours = ends(tmp_path, str(dtype))
        for name, value in alone.captioner.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=bound, msg=name)
        for one, other in zip(records, history, strict=True):
            assert other == pytest.approx(one, rel=bound, abs=1e-12)
    # Each draws captions of its own in the second phase, so no single process ends there.
    history, _ = ends(tmp_path, "both")
    assert [("train/reward" in record) for record in history] == [False] * 4 + [True] * 3
    # And regions in the first, whose moving baseline they share: only one of them is saved, and both go on from it.
    _, held = ends(tmp_path, "hard")
    baselines = {float(one["baseline"]) for one in held}
    assert len(baselines) == len(held)


def test_an_error_of_one_ends_all_processes_and_is_told_once() -> None:
    done = torchrun("-m", "tests.training.two_processes", "fail", "1")
    assert done.returncode == 1
    assert errors(done) == ["Error: nothing fits"]


def test_every_process_draws_masks_of_its_own(tmp_path: Path) -> None:
    drawn = {
        tuple(torch.rand(4, generator=training(tmp_path, ranks=Ranks(rank, 3))._generator(number)).tolist())
        for rank in range(3)
        for number in range(3)
    }
    assert len(drawn) == 9


def test_processes_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    auto = torch.device("cuda")
    assert [Ranks(rank, 2, rank).device(auto).index for rank in range(2)] == [0, 1]
    assert ALONE.device(auto) == auto
    assert Ranks(1, 2, 1).device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"3 processes need a GPU each, but train\.device is cuda and this machine"):
        Ranks(2, 3, 2).device(auto)
    with pytest.raises(DeviceError, match=r"train\.device is cuda:1 "):
        Ranks(0, 2, 0).device(torch.device("cuda:1"))

"""The average of the weights is what its formula says, and what is judged and kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.captioners.captioner import Captioner
from pipeline.training.average import Average
from pipeline.training.together import train_alone
from tests.training.test_loop import training, weights


def moved(captioner: Captioner, seed: int) -> list[torch.Tensor]:
    """Move the weights as a step would; returns them as they are now, in float64."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in captioner.parameters():
            one.add_(torch.randn(one.shape, generator=chance))
    return [one.detach().double().clone() for one in captioner.parameters()]


@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_it_is_the_moving_average_with_a_decay_that_warms_up(tmp_path: Path, decay: float) -> None:
    captioner = training(tmp_path).captioner
    captioner.register_buffer("seen", torch.tensor(0))
    captioner.register_buffer("baseline", torch.tensor(0.5))
    average = Average(captioner, decay)
    plain = [one.detach().double().clone() for one in captioner.parameters()]
    for step in range(1, 120):
        now = moved(captioner, step)
        captioner.get_buffer("seen").add_(1)
        captioner.get_buffer("baseline").mul_(0.9)
        average.update()
        kept = min(decay, (1 + step) / (10 + step))
        plain = [kept * old + (1 - kept) * new for old, new in zip(plain, now, strict=True)]
    for one, other in zip(average.captioner.parameters(), plain, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    assert average.captioner.get_buffer("seen") == 119
    assert average.captioner.get_buffer("baseline") == captioner.get_buffer("baseline")
    assert average.captioner.get_buffer("seen") is not captioner.get_buffer("seen")


def test_without_a_decay_it_is_the_weights_themselves(tmp_path: Path) -> None:
    captioner = training(tmp_path).captioner
    average = Average(captioner, 0.0)
    average.update()
    average.start()
    assert average.captioner is captioner
    assert average.state() is None


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    options = {"activation": "relu", "gate": True, "normalise": False, "tie": True}
    captioner = training(tmp_path, decoder_options=options).captioner
    average = Average(captioner, 0.5)
    moved(captioner, 1)
    average.update()
    own = average.captioner
    assert own.get_parameter("output.weight") is own.get_parameter("embedding.weight")


def test_the_average_is_what_is_judged_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(tmp_path, average=0.5, patience=9)
    scores, judged, last = iter([1.0, 3.0, 2.0, 2.5]), list[bytes](), list[bytes]()

    def judge(captioner: Captioner, _: Any) -> dict[str, float]:
        judged.append(weights(captioner))
        last.append(weights(run.captioner))
        return {"loss": 1.0, "bleu4": next(scores), "cider": 0.0}

    monkeypatch.setattr(run, "validation", judge)
    train_alone(run)
    assert weights(run.captioner) == judged[1] != last[1]


def test_it_changes_nothing_of_what_is_learnt(tmp_path: Path) -> None:
    averaged, plain = training(tmp_path / "averaged", average=0.9), training(tmp_path / "plain")
    for mine, others in zip(train_alone(averaged), train_alone(plain), strict=True):
        assert mine["train/loss"] == others["train/loss"]
        assert mine["validation/loss"] != others["validation/loss"]

"""One step of the optimiser, which nobody waits for.

Owns AdamW and its groups, clipping, the average of the weights, and that a step which is no number changes nothing.
Does not know what the loss is, nor the learning rate's course.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner
from pipeline.training.average import Average
from pipeline.training.ranks import Ranks
from pipeline.training.settings import TrainSettings


@dataclass(frozen=True)
class Trouble:
    """The first step that was no number.

    Attributes:
        step: its number.
        loss: of it.
        norm: of its gradient.
    """

    step: int
    loss: float
    norm: float


class Optimiser:
    """AdamW over the weights that learn; `slow_parameters` at a rate of their own.

    Args:
        captioner: whose gradients are taken.
        settings: the section `train`.
        ranks: the processes whose gradients are summed.
        device: of the captioner.
    """

    def __init__(self, captioner: Captioner, settings: TrainSettings, ranks: Ranks, device: torch.device) -> None:
        self._ranks, self._clip_norm = ranks, settings.clip_norm
        self._weights = [weights for weights in captioner.parameters() if weights.requires_grad]
        pace = settings.tail_learning_rate / settings.learning_rate
        groups = _groups(self._weights, captioner.slow_parameters(), pace)
        self.adam = torch.optim.AdamW(groups, lr=0.0, weight_decay=settings.weight_decay, fused=True)
        self.average = Average(captioner, settings.average)
        self._latest = torch.zeros(4, dtype=torch.float64, device=device)

    def step(self, number: int, rate: float, loss: Tensor) -> None:
        """Let the weights move, unless this or an earlier step is no number; nobody waits to know which.

        The fused optimiser looks at `found_inf` on the device, as `torch.amp.GradScaler` has it do.

        Args:
            number: of the step.
            rate: the learning rate.
            loss: of all processes.
        """
        for group in self.adam.param_groups:
            group["lr"] = rate * group["pace"]
        self._ranks.add([_gradient(weights) for weights in self._weights])
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self._clip_norm)
        bad = ~(loss.isfinite() & norm.isfinite())
        numbers = (bad.double(), torch.full_like(loss, number), loss, norm.double())
        self._latest = torch.where(self._latest[0] > 0, self._latest, torch.stack(numbers))
        self.adam.found_inf = self._latest[0].float()  # type: ignore[attr-defined]
        self.adam.step()
        self.adam.zero_grad()
        self.average.update()

    def look(self, sums: Tensor) -> tuple[Trouble | None, list[float]]:
        """Wait for all steps so far: the first that was no number, since when no weight has moved, and `sums`."""
        bad, step, loss, norm, *numbers = torch.cat((self._latest, sums)).tolist()
        return Trouble(int(step), loss, norm) if bad else None, numbers

    def state(self) -> dict[str, Any]:
        """What a restart needs beside the weights."""
        return {"adam": self.adam.state_dict(), "average": self.average.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.adam.load_state_dict(state["adam"])
        self.average.restore(state["average"])


def _groups(weights: Sequence[Tensor], slow: Sequence[Tensor], pace: float) -> list[dict[str, Any]]:
    """AdamW's groups: weights, and the share of the rate that they learn at."""
    known = {id(one) for one in slow}
    usual = {"params": [one for one in weights if id(one) not in known], "pace": 1.0}
    slower = {"params": [one for one in weights if id(one) in known], "pace": pace}
    return [group for group in (usual, slower) if group["params"]]


def _gradient(weights: Tensor) -> Tensor:
    """The gradient; zeros where no batch of this process had a use for the weights."""
    if weights.grad is None:
        weights.grad = torch.zeros_like(weights)
    return weights.grad

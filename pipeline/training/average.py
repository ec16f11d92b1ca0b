"""A moving average of the weights, which is smoother than the last ones and usually says better captions.

Owns the average. Does not know how the weights move, nor who judges them.
"""

import copy
from typing import Any

import torch

from pipeline.captioners.captioner import Captioner


class Average:
    """An exponential moving average over optimiser steps (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    After step t the average moves by 1 - d towards the weights, with d = min(decay, (1 + t) / (10 + t)): about the
    last ninth of all steps counts until the decay is reached, so that early epochs are not judged by what the weights
    were before they had learnt anything. Buffers are copied as they are.

    Args:
        captioner: whose weights are averaged, on its device.
        decay: below 1; 0 is no average, and `captioner` the weights themselves.

    Attributes:
        captioner: one with the averaged weights.
        steps: t so far.
    """

    def __init__(self, captioner: Captioner, decay: float) -> None:
        self._decay, self._source = decay, captioner
        self.captioner = copy.deepcopy(captioner).requires_grad_(False) if decay else captioner
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take note of a step."""
        if not self._decay:
            return
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.captioner.parameters()), list(self._source.parameters()), 1 - decay)
        for own, given in zip(self.captioner.buffers(), self._source.buffers(), strict=True):
            own.copy_(given)

    def start(self) -> None:
        """Begin again from the weights as they are."""
        self.steps = 0
        if self._decay:
            self.captioner.load_state_dict(self._source.state_dict())

    def state(self) -> dict[str, Any] | None:
        """What a restart needs; None without an average."""
        return {"steps": self.steps, "captioner": self.captioner.state_dict()} if self._decay else None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`."""
        if state is not None:
            self.steps = state["steps"]
            self.captioner.load_state_dict(state["captioner"])

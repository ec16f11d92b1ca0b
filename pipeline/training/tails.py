"""Tails of trainings: the one door from stage two to the networks of stage one, shut unless a tail is asked for.

Owns when `pipeline.vision` is loaded here, and where the weights of the backbone lie. Does not know what a tail is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.captioners.captioner import Captioner
from pipeline.captioners.trained import CaptionerConfig
from pipeline.files import Workspace, sha256
from pipeline.settings import read_params

if TYPE_CHECKING:
    from pipeline.vision.tail import Tail


class Tails:
    """The tails that trainings from one cache may have, each built once.

    Args:
        workspace: whose `params.yaml` says where the backbone's state dict is (`encode.weights`); which it must be is
            in the cache's fingerprint.
        fields: of that fingerprint.
    """

    def __init__(self, workspace: Workspace, fields: Mapping[str, Any]) -> None:
        self._workspace, self._fields = workspace, fields
        self._built: dict[str, Tail] = {}

    def of(self, first: str | None) -> Tail | None:
        """The tail of that name as the cache's encoder has it; None is none. Not to be trained: see `attach`.

        Raises:
            FreezeframeError: as `build_tail`.
        """
        if first is None:
            return None
        if first not in self._built:
            from pipeline.vision.tail import build_tail

            weights = self._workspace.root / str(read_params(self._workspace.params)["encode"]["weights"])
            self._built[first] = build_tail(self._fields, first, str(weights))
        return self._built[first]

    def attach(self, decoder: Captioner, first: str | None) -> Captioner:
        """The decoder behind a tail of its own, if there is to be one."""
        tail = self.of(first)
        if tail is None:
            return decoder
        from pipeline.vision.tail import Tailed

        return Tailed(copy.deepcopy(tail), decoder)

    def identity(self, first: str | None) -> dict[str, str]:
        """What determines a tail, beside the settings: the SHA-256 of its weights, and of the code that makes it."""
        tail = self.of(first)
        if tail is None:
            return {}
        from pipeline.vision.weights import sha256_of_state

        code = sorted((Path(__file__).parent.parent / "vision").glob("*.py"))
        return {"weights": sha256_of_state(tail), **{path.name: sha256(path) for path in code}}


def attach_trained(decoder: Captioner, config: CaptionerConfig) -> Captioner:
    """For `read_captioner`: the decoder behind the tail that its config names, whose weights are yet to be loaded."""
    from pipeline.vision.tail import with_tail

    return with_tail(decoder, config)

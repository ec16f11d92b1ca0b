"""Trained models by name, one or several, as the one captioner that a search asks.

Owns which folders of `models/` are models, whether they belong together, and how they see one cache. Does not know
how they are searched, nor how the mean of what they say is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner
from pipeline.captioners.ensemble import Ensemble
from pipeline.captioners.trained import CaptionerConfig, TrainedCaptioner, read_captioner
from pipeline.errors import CheckpointError, MissingError
from pipeline.features.grid import Grid, pooling
from pipeline.features.integrity import differences
from pipeline.files import Workspace
from pipeline.language.vocabulary import Vocabulary
from pipeline.training.tails import attach_trained

_KEPT = (
    'Captioners that "freezeframe sweep --keep" has kept come back with "dvc checkout", and reach an experiment once '
    'git knows of them ("git add models").'
)


@dataclass(frozen=True)
class Models:
    """Models of one vocabulary and one cache.

    Attributes:
        members: as read, in the order they are named.
        device: where they are.
    """

    members: tuple[TrainedCaptioner, ...]
    device: torch.device

    @property
    def config(self) -> CaptionerConfig:
        """Of the first; its vocabulary, features, encoding and quantisation are those of all."""
        return self.members[0].config

    @property
    def vocabulary(self) -> Vocabulary:
        return self.members[0].vocabulary

    @property
    def grid(self) -> Grid:
        """Rows and columns of the attention they give: of their grids the one of most regions."""
        grids = [member.config.grid for member in self.members]
        return max(grids, key=lambda grid: (0,) if grid is None else (grid[0] * grid[1], *grid))

    def captioner(self, native: Grid) -> Captioner:
        """All of them as one captioner, in eval mode, to be given cells of the grid `native`.

        Raises:
            CacheError: they see a grid, and the cells have none.
        """
        ready = [_ready(member, native, self.device) for member in self.members]
        if len(ready) == 1:
            return ready[0]
        onto = [_matrix(self.grid, member.config.grid, self.device) for member in self.members]
        return Ensemble(ready, onto).eval()


def read_models(workspace: Workspace, names: Sequence[str], device: torch.device) -> Models:
    """Read the models of these names from `models/`.

    Args:
        workspace: where they lie.
        names: checked by `check_models`.
        device: where they are to be.

    Raises:
        MissingError: one is not there; the message has those that are.
        CheckpointError: one is damaged, or they do not belong together; the message has the model and what differs.
    """
    for name in names:
        _require(workspace, name)
    first, *others = read = [read_captioner(workspace.models / name, device, attach_trained) for name in names]
    for name, other in zip(names[1:], others, strict=True):
        differing = _differing(first.config, other.config)
        if differing:
            raise CheckpointError(
                f"{workspace.models / name} cannot be averaged with {workspace.models / names[0]}: {differing}. Models "
                "of one ensemble share tokens and cache: name others in evaluate.models, or train it on the same."
            )
    return Models(tuple(read), device)


def _ready(trained: TrainedCaptioner, native: Grid, device: torch.device) -> Captioner:
    """What was read, as it is to be asked: the one place where that is decided, for every model and every command."""
    config = trained.config
    return trained.captioner.look_through(_matrix(config.native(native), config.grid, device))


def _matrix(native: Grid, wanted: Grid, device: torch.device) -> Tensor | None:
    matrix = pooling(native, wanted)
    return None if matrix is None else torch.from_numpy(matrix).to(device)


def _require(workspace: Workspace, name: str) -> None:
    """Refuse a folder without a captioner; that of the stage train tells of itself when it is read."""
    folder = workspace.models / name
    if folder == workspace.captioner or (folder / "config.json").is_file():
        return
    held = sorted(path.parent.name for path in workspace.models.glob("[!.]*/config.json"))
    raise MissingError(
        f"evaluate.models names {name}, but {folder} holds no captioner. "
        f"Captioners of {workspace.models}: {', '.join(held) or 'none'}. {_KEPT}"
    )


def _differing(first: CaptionerConfig, other: CaptionerConfig) -> str:
    """What keeps two models from one ensemble, in words; empty: nothing."""
    parts = []
    if other.vocabulary != first.vocabulary:
        parts.append(
            f"it speaks {other.shape.vocabulary_size:,} words (vocabulary {other.vocabulary[:12]}), the other "
            f"{first.shape.vocabulary_size:,} ({first.vocabulary[:12]})"
        )
    if other.features != first.features:
        told = "; ".join(differences(first.encoding, other.encoding))
        parts.append(f"its features are of another cache ({told or other.features[:12]})")
    elif other.quantisation != first.quantisation:
        parts.append("its cache was quantised with other scales")
    return ", and ".join(parts)

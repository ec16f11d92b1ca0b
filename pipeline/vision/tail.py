"""A trainable tail: what of a backbone lies behind the cached layer, learning together with a decoder.

Owns which tail fits a cache, building it with the weights the cache was made with, and the captioner that it and a
decoder are. Loads torchvision and timm only when a tail is built. Does not know how a captioner is trained or stored.

Shapes: B images, N cells of the cached layer's grid, C channels; N' and C' those of the backbone's last map.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from pipeline.captioners.captioner import Captioner, Output, State
from pipeline.captioners.trained import CaptionerConfig
from pipeline.errors import CacheError, SettingsError, WeightsError

if TYPE_CHECKING:
    from pipeline.vision.layers import Layers, Map


class Tail(nn.Module):
    """Cells of the cached layer (B, N, C) to cells of the last map (B, N', C').

    The weights learn, those of its batch norms too; their statistics never move, and nothing is dropped, for the
    network is in eval mode whatever is asked for.

    Args:
        network: the layer's map, in its own order, to the last map (B, C', rows, columns).
        entrance: what the layer's map is like.

    Attributes:
        grid: rows and columns of the last map.
        channels: C'.
    """

    def __init__(self, network: nn.Module, entrance: "Map") -> None:
        super().__init__()
        self.network, self._entrance = network.eval().requires_grad_(True), entrance
        cells = torch.zeros(1, entrance.grid[0] * entrance.grid[1], entrance.channels)
        with torch.no_grad():
            _, self.channels, rows, columns = self._map(cells).shape
        self.grid = (rows, columns)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, cells: Tensor) -> Tensor:
        """(B, N, C) to (B, N', C'), in the dtype of the cells; autocast chooses that of the arithmetic."""
        return self._map(cells).flatten(2).transpose(1, 2).to(cells.dtype).contiguous()

    def _map(self, cells: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(cells.device.type):
            cells = cells.to(next(self.parameters()).dtype)
        maps = cells.unflatten(1, self._entrance.grid)
        if not self._entrance.channels_last:
            maps = maps.permute(0, 3, 1, 2)
        return self.network(maps.clone())  # type: ignore[no-any-return]  # whose first operation may be in place


class Tailed(Captioner):
    """A tail and a decoder as one captioner, which is given the cache's cells; the decoder pools the tail's."""

    def __init__(self, tail: Tail, decoder: Captioner) -> None:
        super().__init__()
        self.tail, self.decoder = tail, decoder

    def look_through(self, pooling: Tensor | None) -> Self:
        """See the tail's cells as regions."""
        self.decoder.look_through(pooling)
        return self

    @torch.no_grad()
    def start(self, regions: Tensor) -> State:
        return self.decoder.start(self.tail(regions))

    def step(self, words: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return self.decoder.step(words, state)

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        output: Output = self.decoder(self.tail(regions), captions, lengths, generator)
        return output

    def own_loss(self, output: Output, losses: Tensor, lengths: Tensor) -> Tensor | None:
        return self.decoder.own_loss(output, losses, lengths)

    def moving(self) -> list[Tensor]:
        return self.decoder.moving()

    def slow_parameters(self) -> list[nn.Parameter]:
        return list(self.tail.parameters())


def build_tail(fields: Mapping[str, Any], first: str, weights: str) -> Tail:
    """The tail of the backbone that a cache was made with, with the weights it was made with.

    Args:
        fields: of the cache's fingerprint.
        first: `train.tail`, the first of the blocks behind the cached layer; the others belong to the tail too.
        weights: `encode.weights`: where this machine has the state dict, if they came from one.

    Raises:
        CacheError: the cache holds nothing that a tail could lie behind.
        SettingsError: behind the cached layer lies another block.
        WeightsError: the weights are not those the cache was made with, or cannot be had here.
        MissingError, DependencyError: the state dict, or timm, is not there.
    """
    from pipeline.vision.backbones import build_backbone
    from pipeline.vision.weights import require_weights, weights_like

    layer = _cached_layer(fields, first)
    loaded = weights_like(fields, weights)
    backbone = build_backbone(fields["backbone"], loaded, fields["image_size"], fields["seed"] or 0)
    if loaded == "random" and backbone.weights_sha256 != fields["weights_sha256"]:
        raise WeightsError(
            f"The random weights of {fields['backbone']} come out otherwise here than where the cache was made "
            f"(SHA-256 {backbone.weights_sha256} instead of {fields['weights_sha256']}), so that train.tail {first} "
            'would not fit it. Run "dvc repro encode" on this machine, or set train.tail to null.'
        )
    require_weights(fields, loaded, backbone.weights_sha256)
    return _cut(backbone.maps.layers(), layer, first, fields["backbone"])


def with_tail(decoder: Captioner, config: CaptionerConfig) -> Captioner:
    """Put a decoder behind the tail that its config names; the tail's weights are yet to be loaded.

    Raises:
        WeightsError, DependencyError: the backbone cannot be built here.
    """
    from pipeline.vision.backbones import untrained_maps

    assert config.tail is not None
    fields, first = config.encoding, config.tail.first
    layers = untrained_maps(fields["backbone"], fields["image_size"]).layers()
    return Tailed(_cut(layers, _cached_layer(fields, first), first, fields["backbone"]), decoder)


def _cached_layer(fields: Mapping[str, Any], first: str) -> str:
    """The layer whose map a cache holds, by name."""
    if "image_size" not in fields:
        raise CacheError(
            f"train.tail is {first}, but the features of this cache were imported from {fields['weights']}: the "
            "network that made them is not known here. Set train.tail to null, or encode with a backbone "
            "(encode.backbone, encode.layer)."
        )
    layer: str | None = fields.get("layer")
    if layer is None:
        raise _nothing_behind(f"the last map of {fields['backbone']}", first, None)
    return layer


def _cut(layers: "Layers", layer: str, first: str, backbone: str) -> Tail:
    cached = f"{layer} of {backbone}"
    if layers.is_last(layer):
        raise _nothing_behind(cached, first, layers.before(first))
    network, entrance = layers.behind(layer)
    fits = layers.first_behind(layer)
    if not any(True for _ in network.parameters()):
        raise _nothing_behind(cached, first, layers.before(first))
    if first != fits:
        before = layers.before(first)
        other = f', or encode.layer to {before} and run "dvc repro encode"' if before else ""
        raise SettingsError(
            f"train.tail is {first}, but the cache holds {cached}, and what reads that is "
            f"{fits or 'no block of a name'}: a tail is all that lies behind the cached layer, named by its first "
            f"block. Set train.tail to {fits or 'null'}{other}."
        )
    return Tail(network, entrance)


def _nothing_behind(cached: str, first: str, before: str | None) -> CacheError:
    layer = f"{before}, which {first} reads" if before else "what that block reads (layer3 for a ResNet's layer4)"
    return CacheError(
        f"train.tail is {first}, but the cache holds {cached}: nothing that learns lies behind it. Set encode.layer to "
        f'{layer}, and run "dvc repro encode"; or set train.tail to null.'
    )

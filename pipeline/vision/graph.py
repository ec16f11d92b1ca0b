"""The graph that every engine runs: bytes of pixels in, regions out.

Owns the normalisation, the order of regions, tracing, and folding batch norms into convolutions. Does not know how a
graph is run.

Shapes: B images, S pixels a side, R regions (rows x columns, row-major), C channels.
"""

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.vision.images import Preprocessing
from pipeline.vision.layers import UNTRACEABLE, trace

# By name, for timm need not be installed. Kin that change their weights on the way (StdConv2d) are not among them.
CONVOLUTIONS = ("Conv2d", "Conv2dSame")
NORMS = ("BatchNorm2d", "BatchNormAct2d")


class Graph(nn.Module):
    """(B, S, S, 3) uint8 to (B, R, C) in the network's dtype: normalisation, the network, regions in rows.

    Attributes:
        scale: (3, 1, 1) float32, by which bytes are multiplied.
        shift: (3, 1, 1) float32, added after that; together they are (x / 255 - mean) / std.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self.network, self._dtype = network.to(dtype), dtype
        self.register_buffer("scale", (1 / (255 * std)).float().reshape(3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().reshape(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        # (B, C, rows, columns) -> (B, R, C)
        return self.network(pixels.to(self._dtype)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def measure(network: nn.Module, image_size: int) -> tuple[tuple[int, int], int]:
    """Grid (rows, columns) and channels of the network's feature map."""
    with torch.no_grad():
        _, channels, rows, columns = network(torch.zeros(1, 3, image_size, image_size)).shape
    return (rows, columns), channels


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy with each batch norm folded into the convolution before it, as far as its graph can be traced."""
    copied = traced_copy(network)
    return copy.deepcopy(network) if copied is None else fold(copied)


def traced_copy(network: nn.Module) -> fx.GraphModule | None:
    """A copy as a graph; None if it cannot be traced, and has to run as it is."""
    copied = copy.deepcopy(network)
    if isinstance(copied, fx.GraphModule):
        return copied
    try:
        return fx.GraphModule(copied, trace(copied))
    except UNTRACEABLE:
        return None


def fold(traced: fx.GraphModule) -> fx.GraphModule:
    """Fold batch norms in a graph itself, whose nodes stay as they are.

    The convolution becomes the two of them; of timm's norms, which end in an activation, that remains. Eval mode only:
    a norm whose statistics move cannot be folded.
    """
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in traced.graph.nodes:
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or len(before.users) != 1:
            continue
        norm, convolution = modules[node.target], modules.get(str(before.target), traced)
        alone = calls[node.target] == calls[before.target] == 1
        if alone and type(norm).__name__ in NORMS and type(convolution).__name__ in CONVOLUTIONS:
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            traced.set_submodule(node.target, getattr(norm, "act", nn.Identity()))
    return traced

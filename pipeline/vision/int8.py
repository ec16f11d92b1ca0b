"""Networks in int8: what their convolutions read, and their weights, rounded to 8 bits.

Owns the ranges and the scales. Both come from the network alone, so that no photographs have to be seen first. What a
convolution reads lies where the batch norms before it put it: a norm's output has mean beta and deviation |gamma| in
each channel (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", 4.2.1).
Does not know who runs the network: rounding is simulated in floats, and an engine that finds it multiplies integers.

Shapes: C channels, O output channels, I input channels (of one group, where there are several).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from pipeline.errors import DeviceError
from pipeline.vision.graph import CONVOLUTIONS, NORMS, fold, traced_copy
from pipeline.vision.images import Preprocessing

SIGMAS = 6  # deviations from a channel's mean that its range holds
POINTS = 301  # at which an activation is looked at
SMALLEST = 1e-12  # of scales: a channel of zeros needs none
# What a node does, by its name in lower case without underscores, be it a module, a function or a method.
ADDITIONS = ("add", "iadd")
POOLING = ("maxpool2d",)  # keeps a channel within its range, and picks among its values
UNCHANGED = ("identity", "dropout", "dropout2d", "stochasticdepth", "droppath", "contiguous", "avgpool2d", *POOLING)
ACTIVATIONS = (
    *("relu", "relu6", "leakyrelu", "elu", "selu", "celu", "gelu", "gelutanh", "silu", "swish", "mish", "softplus"),
    *("sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardmish", "clamp", "softsign"),
)


@dataclass(frozen=True)
class Spread:
    """What a tensor's values are like, channel by channel; float64, so that sums in another order round alike.

    Attributes:
        mean: (C,)
        variance: (C,)
        low: (C,) the least value that is told apart from lesser ones.
        high: (C,) the greatest, likewise.
    """

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, variance: Tensor) -> "Spread":
        """Of a normal distribution."""
        mean, width = mean.double(), SIGMAS * variance.double().sqrt()
        return cls(mean, variance.double(), mean - width, mean + width)

    @classmethod
    def joined(cls, parts: "Sequence[Spread]") -> "Spread":
        """Of tensors that stand behind each other, channel after channel."""
        columns = zip(*((part.mean, part.variance, part.low, part.high) for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def __add__(self, other: "Spread") -> "Spread":
        """Of the sum of two tensors that do not depend on each other."""
        return self.normal(self.mean + other.mean, self.variance + other.variance)

    def through(self, activation: Callable[[Tensor], Tensor]) -> "Spread":
        """Behind an elementwise function, with the moments of a normal distribution behind it."""
        places = torch.linspace(-SIGMAS, SIGMAS, POINTS, dtype=torch.float64)[:, None]
        density = torch.exp(-places.square() / 2)
        values = activation(self.mean + places * self.variance.sqrt())  # (points, C)
        mean = (values * density / density.sum()).sum(0)
        variance = ((values - mean).square() * density / density.sum()).sum(0)
        reached = activation(torch.lerp(self.low, self.high, (places + SIGMAS) / (2 * SIGMAS)))
        return Spread(mean, variance, reached.amin(0), reached.amax(0))


def quantise(network: nn.Module, preprocessing: Preprocessing) -> fx.GraphModule:
    """A copy whose batch norms are folded and whose convolutions multiply 8 bits, where their inputs' range is known.

    Args:
        network: (B, 3, S, S) normalised float32 to (B, C, rows, columns), in eval mode.
        preprocessing: has the normalisation.

    Raises:
        DeviceError: its graph cannot be traced, or no convolution reads what batch norms have put in its place.
    """
    traced = traced_copy(network)
    if traced is None:
        raise _refused("a network whose graph can be traced, and this one's cannot")
    spreads = spreads_of(traced, preprocessing)
    folded = fold(traced)
    modules = dict(folded.named_modules())
    known = [node for node in folded.graph.nodes if _inputs(node, spreads)]
    convolutions = [node for node in known if type(modules.get(str(node.target))).__name__ in CONVOLUTIONS]
    if all(node.all_input_nodes[0].op == "placeholder" for node in convolutions):
        raise _refused("convolutions behind batch norms, whose statistics give the ranges; this network has none")
    # An addition of two tensors of integers can run within the convolution before it.
    additions = [node for node in known if _kind(_operation(node, modules)) in ADDITIONS and node in spreads]
    read = [node for each in (*convolutions, *additions) for node in each.all_input_nodes]
    for node in dict.fromkeys(_before_pooling(node, modules) for node in read):
        _round_behind(folded, node, spreads[node])
    for module in {modules[str(node.target)] for node in convolutions}:
        scales = weight_scales(module.weight)
        parametrize.register_parametrization(module, "weight", _RoundedWeight(scales))
    folded.recompile()
    return folded


def spreads_of(traced: fx.GraphModule, preprocessing: Preprocessing) -> dict[fx.Node, Spread]:
    """What the values of each node are like; a node of which that is not known is not among them.

    Args:
        traced: with its batch norms, not folded.
        preprocessing: has the normalisation.
    """
    modules, spreads = dict(traced.named_modules()), dict[fx.Node, Spread]()
    for node in traced.graph.nodes:
        spread = _pixels(preprocessing) if node.op == "placeholder" else _behind(node, modules, spreads)
        if spread is not None:
            spreads[node] = spread
    return spreads


def weight_scales(weight: Tensor) -> Tensor:
    """The finest steps at which weights are in -127..127 and no pair of products overflows 16 bits.

    Without VNNI a processor multiplies unsigned by signed bytes and adds neighbours, input channels 2i and 2i + 1, in
    16 bits that saturate (vpmaddubsw). Here a pair's weights of one sign add up to 127.5 steps at most, rounded to 128,
    and 255 x 128 < 2^15. A channel alone in its group, as in depthwise convolutions, has no neighbour.

    Args:
        weight: (O, I, rows, columns) float32.

    Returns:
        (O,) float32.
    """
    even = nn.functional.pad(weight.detach(), (0, 0, 0, 0, 0, weight.shape[1] % 2))
    sums = [signed.clamp(min=0).unflatten(1, (-1, 2)).sum(2).amax((1, 2, 3)) for signed in (even, -even)]
    return torch.maximum(even.abs().amax((1, 2, 3)) / 127, torch.maximum(*sums) / 127.5).clamp(min=SMALLEST)


class _Rounded(nn.Module):
    """Activations in 256 steps; zero, with which convolutions pad, is one of them."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        self.scale = max((high - low) / 255, SMALLEST)
        self.zero = round(-low / self.scale)

    def forward(self, values: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero, 0, 255)


class _RoundedWeight(nn.Module):
    """Weights in whole steps of their output channel."""

    scales: Tensor
    zeros: Tensor

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros_like(scales, dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(weight, self.scales, self.zeros, 0, -127, 127)


def _refused(needed: str) -> DeviceError:
    return DeviceError(f"encode.precision int8 needs {needed}. Set encode.precision: auto.")


def _before_pooling(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """Rounded before a max pooling, a tensor is pooled in 8 bits, with the same result."""
    while _kind(_operation(node, modules)) in POOLING:
        node = node.all_input_nodes[0]
    return node


def _round_behind(folded: fx.GraphModule, node: fx.Node, spread: Spread) -> None:
    name = f"{node.name}_rounded"
    folded.add_submodule(name, _Rounded(float(spread.low.min()), float(spread.high.max())))
    with folded.graph.inserting_after(node):
        rounded = folded.graph.call_module(name, (node,))
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


def _pixels(preprocessing: Preprocessing) -> Spread:
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocessing.mean, preprocessing.std))
    return Spread(torch.zeros_like(mean), torch.ones_like(std), -mean / std, (1 - mean) / std)


def _behind(node: fx.Node, modules: dict[str, nn.Module], spreads: dict[fx.Node, Spread]) -> Spread | None:
    operation, inputs = _operation(node, modules), _inputs(node, spreads)
    kind = _kind(operation)
    if type(operation).__name__ in NORMS:
        return _norm(operation)
    if kind in ADDITIONS and len(inputs) == 2 and not node.kwargs:  # which could scale one of them
        return inputs[0] + inputs[1]
    if kind == "cat" and inputs and node.args and 1 in (*node.args[1:], *node.kwargs.values()):
        parts: Any = node.args[0]
        return Spread.joined([spreads[part] for part in parts])
    return _elementwise(kind, partial(_called, node, operation), inputs[0]) if len(inputs) == 1 else None


def _inputs(node: fx.Node, spreads: dict[fx.Node, Spread]) -> list[Spread]:
    """Of all tensors that a node reads; none if one of them is unknown."""
    found = [spreads[read] for read in node.all_input_nodes if read in spreads]
    return found if len(found) == len(node.all_input_nodes) else []


def _norm(norm: Any) -> Spread | None:
    if norm.running_mean is None:  # it measures each batch anew
        return None
    plain = torch.ones_like(norm.running_mean)
    beta, gamma = (0 * plain, plain) if norm.weight is None else (norm.bias.detach(), norm.weight.detach())
    spread, activation = Spread.normal(beta, gamma.square()), getattr(norm, "act", None)
    return spread if activation is None else _elementwise(_kind(activation), activation, spread)


def _elementwise(kind: str, function: Callable[[Tensor], Tensor], spread: Spread) -> Spread | None:
    if kind in UNCHANGED:
        return spread
    return spread.through(function) if kind in ACTIVATIONS else None


def _called(node: fx.Node, operation: Any, values: Tensor) -> Any:
    function = getattr(values, operation) if isinstance(operation, str) else partial(operation, values)
    return function(*node.args[1:], **node.kwargs)


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return modules[str(node.target)] if node.op == "call_module" else node.target


def _kind(operation: Any) -> str:
    name = type(operation).__name__ if isinstance(operation, nn.Module) else getattr(operation, "__name__", operation)
    return str(name).lower().replace("_", "")

"""Where a library's model has maps: its last one before the pooling, and those of its layers.

Owns how the last map of torchvision's and of timm's models is found. Does not know weights.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from pipeline.errors import WeightsError
from pipeline.vision.layers import UNTRACEABLE, Layers, trace

_TIMM_PREFIX = "model."  # of the paths in `_TimmMap`


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode and no gradients: running statistics never move again."""
    return module.eval().requires_grad_(False)


class Maps(ABC):
    """The spatial maps of a model, which share its weights.

    Args:
        model: with its weights.
        name: for messages.
        image_size: S, pixels.
    """

    def __init__(self, model: nn.Module, name: str, image_size: int) -> None:
        self._model, self._name, self._size = model, name, image_size

    @abstractmethod
    def last(self) -> nn.Module:
        """(B, 3, S, S) to the last map, (B, C, rows, columns).

        Raises:
            WeightsError: there is no such map, or none at this size of images.
        """

    @abstractmethod
    def layers(self) -> Layers:
        """The layers up to the last map and behind it.

        Raises:
            WeightsError: the model's graph cannot be traced.
        """

    def _checked(self, module: nn.Module) -> nn.Module:
        features = self._example(module)
        if features.dim() != 4:
            raise self._no_map(f"its features have the shape {tuple(features.shape)}, tokens without a grid")
        return module

    def _example(self, module: nn.Module) -> Tensor:
        freeze(module)
        try:
            with torch.no_grad():
                features: Tensor = module(torch.zeros(1, 3, self._size, self._size))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise WeightsError(
                f"{self._name} does not take images of {self._size} px ({reason}). Set encode.image_size."
            ) from error
        return features

    def _no_map(self, reason: str) -> WeightsError:
        return WeightsError(
            f"encode.backbone {self._name} has no spatial feature map: {reason}. Attention needs regions; take a "
            "convolutional network or a Swin, such as resnet50, convnext_tiny or swin_t."
        )


class TorchvisionMaps(Maps):
    """The last map is what the last pooling reads; a max pooling before it goes too (VGG's fifth, as in SAT)."""

    def last(self) -> nn.Module:
        return self._checked(self.layers().until_last())

    def layers(self) -> Layers:
        try:
            graph = trace(self._model, (math, torchvision.ops))
        except fx.proxy.TraceError as error:
            raise self._no_map(f"its graph cannot be traced ({error})") from error
        modules = dict(self._model.named_modules())
        pools = [node for node in graph.nodes if _is_pooling(node, modules)]
        if not pools:
            raise self._no_map("it never pools over places")
        last = pools[-1].args[0]
        while isinstance(modules.get(str(last.target)), nn.MaxPool2d) or str(last.target).startswith("classifier"):
            last = last.args[0]
        return Layers(self._model, graph, last, self._name, self._size)


def _is_pooling(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.AdaptiveAvgPool2d)
    if node.op == "call_function":
        return node.target is nn.functional.adaptive_avg_pool2d
    return node.op == "call_method" and node.target == "mean" and [2, 3] in [list(a) for a in _lists(node)]


def _lists(node: fx.Node) -> list[Any]:
    return [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, list | tuple)]


class TimmMaps(Maps):
    """The last map is what `forward_features` gives."""

    def last(self) -> nn.Module:
        cut = _TimmMap(self._model)
        features: Any = self._example(cut)
        if not isinstance(features, Tensor):
            raise self._no_map("it gives several tensors, not one map")
        shape = features.shape
        # Swin and its kin: (B, rows, columns, C). Known once, so that the forward pass has no branch and can be traced.
        cut.channels_last = len(shape) == 4 and shape[1] != self._model.num_features
        return self._checked(cut)

    def layers(self) -> Layers:
        whole = self.last()
        try:
            graph = trace(whole)
        except UNTRACEABLE as error:
            reason = str(error).strip().partition("\n")[0]
            raise WeightsError(
                f"encode.layer cannot name a layer of {self._name}, whose graph cannot be traced ({reason}). Leave it "
                "empty: its last map can be cached."
            ) from error
        (last,) = (node.args[0] for node in graph.nodes if node.op == "output")
        return Layers(whole, graph, last, self._name, self._size, _TIMM_PREFIX)


class _TimmMap(nn.Module):
    """timm's last feature map, channels first whatever the model's own order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.channels_last = model, False

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features.permute(0, 3, 1, 2) if self.channels_last else features


MAPS: dict[str, type[Maps]] = {"torchvision": TorchvisionMaps, "timm": TimmMaps}

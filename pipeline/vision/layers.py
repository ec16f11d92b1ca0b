"""Layers of a backbone: its graph, traced once and cut where a module's output is.

Owns which node a layer's name means, the part of a graph up to it and the part behind it. Does not know where weights
come from, nor how a part is run.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.errors import WeightsError

UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, AssertionError)  # control flow that looks at values


class LayerTracer(fx.Tracer):
    """Traces down to convolutions and norms, timm's included.

    Each node's meta says of which modules it is the output (`layers`, the innermost first) and which modules read it
    (`readers`, the outermost first).
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        for value in args:
            if isinstance(value, fx.Proxy):
                value.node.meta.setdefault("readers", []).append(path)
        found = super().call_module(m, forward, args, kwargs)
        if isinstance(found, fx.Proxy):
            found.node.meta.setdefault("layers", []).append(path)
        return found


def trace(root: nn.Module, functions_of: Sequence[ModuleType] = (math,)) -> fx.Graph:
    """The graph of a module in eval mode.

    Args:
        root: the module.
        functions_of: modules of Python whose functions are nodes, and not traced into.

    Raises:
        one of `UNTRACEABLE`.
    """
    return LayerTracer(autowrap_modules=tuple(functions_of)).trace(root.eval())


@dataclass(frozen=True)
class Map:
    """What a map is like.

    Attributes:
        grid: rows and columns.
        channels: C.
        channels_last: whether it is (B, rows, columns, C), as in a Swin, and not (B, C, rows, columns).
    """

    grid: tuple[int, int]
    channels: int
    channels_last: bool

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "Map":
        """Images are square, and so are maps: of (B, a, b, c), the equal two are rows and columns."""
        _, first, second, third = shape
        if first == second != third:
            return cls((first, second), third, True)
        return cls((second, third), first, False)

    def __str__(self) -> str:
        return f"{self.grid[0]} x {self.grid[1]} x {self.channels}"


class Layers:
    """A traced backbone, cut by the names of its modules; the parts share its weights.

    Args:
        root: what was traced.
        graph: of it.
        last: the node of the last map.
        backbone: its name, for messages.
        image_size: S, pixels.
        prefix: of the modules' paths in `root`, which is no part of their names.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, last: fx.Node, backbone: str, image_size: int, prefix: str = ""
    ) -> None:
        self._root, self._last, self._backbone, self._size, self._prefix = root, last, backbone, image_size, prefix
        self._nodes: list[fx.Node] = list(graph.nodes)
        self._places = {node: place for place, node in enumerate(self._nodes)}
        # Of a module that is called more than once, the last call.
        self._ends = {name: node for node in self._nodes for name in self._named(node, "layers")}

    def until_last(self) -> fx.GraphModule:
        """(B, 3, S, S) to the last map, as the graph has it."""
        return self._until(self._last, permuted=False)

    def until(self, layer: str) -> fx.GraphModule:
        """(B, 3, S, S) to the layer's map, (B, C, rows, columns) whatever its own order; nothing behind it is there.

        Raises:
            WeightsError: no layer has that name, or what it gives is no map.
        """
        node = self._node(layer)
        return self._until(node, permuted=self._map(layer, node).channels_last)

    def behind(self, layer: str) -> tuple[fx.GraphModule, Map]:
        """From the layer's map, in its own order, to the last map, (B, C, rows, columns); and what the former is like.

        Args:
            layer: one that is not the last.

        Raises:
            WeightsError: no layer has that name, or its map is not all that the part behind it reads.
        """
        start, graph = self._node(layer), fx.Graph()
        needed = self._needed(self._last, start)
        if needed[0].op == "placeholder":
            raise WeightsError(
                f"encode.layer {layer} is not all that the layers behind it read in {self._backbone}: a shortcut leads "
                f"around it, so that no tail can be trained from it alone. Take a whole block; {self._choices()}."
            )
        part = self._copied(needed, graph, {start: graph.placeholder("cells")}, permuted=False)
        return part, self._map(layer, start)

    def is_last(self, layer: str) -> bool:
        """Whether nothing lies between a layer and the last map."""
        return self._places[self._node(layer)] >= self._places[self._last]

    def first_behind(self, layer: str) -> str | None:
        """The outermost module that reads a layer's output; None if only functions do."""
        readers = self._named(self._node(layer), "readers")
        return readers[0] if readers else None

    def before(self, module: str) -> str | None:
        """The outermost layer whose output a module reads, or None."""
        for node in self._nodes:
            if module in self._named(node, "readers") and (layers := self._named(node, "layers")):
                return layers[-1]
        return None

    def _named(self, node: fx.Node, kind: str) -> list[str]:
        return [path.removeprefix(self._prefix) for path in node.meta.get(kind, ())]

    def _node(self, layer: str) -> fx.Node:
        if layer not in self._ends:
            near = difflib.get_close_matches(layer, self._ends, n=3)
            told = f"nearest: {', '.join(near)}; " if near else ""
            raise WeightsError(f"encode.layer {layer} is no layer of {self._backbone}; {told}{self._choices()}.")
        return self._ends[layer]

    def _choices(self) -> str:
        """The whole blocks, the last of each shape, in a clause."""
        shapes = _Shapes(self.until_last()).of(torch.zeros(1, 3, self._size, self._size))
        last_of = {
            shape: layer for layer, shape in zip(self._blocks(), shapes, strict=True) if layer and len(shape) == 4
        }
        told = ", ".join(f"{layer} {Map.of(shape)}" for shape, layer in last_of.items())
        return f"its blocks are, with rows x columns x channels at {self._size} px, {told}"

    def _blocks(self) -> list[str | None]:
        """For each node of the last map: the outermost layer that ends there, if no shortcut leads around it."""
        needed = self._needed(self._last)
        place = {node: number for number, node in enumerate(needed)}
        used, found = 0, list[str | None]()
        for number, node in enumerate(needed):
            names = self._named(node, "layers")
            found.append(names[-1] if names and used <= number and self._ends[names[-1]] is node else None)
            used = max(used, *(place.get(user, 0) for user in node.users), 0)
        return found

    def _map(self, layer: str, node: fx.Node) -> Map:
        with torch.no_grad():
            found = self._until(node, permuted=False)(torch.zeros(1, 3, self._size, self._size))
        shape = tuple(found.shape) if isinstance(found, Tensor) else ()
        if len(shape) != 4:
            raise WeightsError(
                f"encode.layer {layer} of {self._backbone} gives no map: its shape is {shape}; {self._choices()}."
            )
        if len(set(shape[1:])) == 1 and any(isinstance(module, nn.LayerNorm) for module in self._root.modules()):
            raise WeightsError(
                f"encode.layer {layer} of {self._backbone} has the shape {shape} at {self._size} px, so that channels "
                "cannot be told from rows and columns. Set another encode.image_size."
            )
        return Map.of(shape)

    def _until(self, end: fx.Node, permuted: bool) -> fx.GraphModule:
        return self._copied(self._needed(end), fx.Graph(), {}, permuted)

    def _needed(self, end: fx.Node, start: fx.Node | None = None) -> list[fx.Node]:
        """The nodes that a node is computed from, itself included, in order; `start` is given."""
        needed, waiting = set[fx.Node](), [end]
        while waiting:
            node = waiting.pop()
            if node is not start and node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        return sorted(needed, key=self._places.__getitem__)

    def _copied(
        self, needed: Sequence[fx.Node], graph: fx.Graph, nodes: dict[fx.Node, fx.Node], permuted: bool
    ) -> fx.GraphModule:
        """A module of these nodes, the last of which it gives; `nodes` are in its graph already."""
        for node in needed:
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
        end = nodes[needed[-1]]
        graph.output(graph.call_method("permute", (end, 0, 3, 1, 2)) if permuted else end)
        return fx.GraphModule(self._root, graph)


class _Shapes(fx.Interpreter):
    """The shape of every node's value; () for what is no tensor."""

    def of(self, images: Tensor) -> list[tuple[int, ...]]:
        self._found: list[tuple[int, ...]] = []
        with torch.no_grad():
            self.run(images)
        return self._found[:-1]  # the last node is the output

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._found.append(tuple(value.shape) if isinstance(value, Tensor) else ())
        return value

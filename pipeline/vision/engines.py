"""Engines: the same frozen backbone, run as fast as the hardware allows.

Owns batching and how each engine runs a backbone. Every engine gives an image the same bytes whatever batch it comes
in. Does not know where images come from or where regions go.

Shapes: B images, S pixels a side, R regions (rows x columns, row-major), C channels.
"""

import copy
import importlib.util
import warnings
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.errors import DependencyError, DeviceError
from pipeline.hardware import Precision, choose_precision, find_device

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Engine(Protocol):
    """What encodes batches.

    Attributes:
        name: `torch` or `openvino`.
        precision: of the arithmetic.
        device: `cpu` or `cuda`, the kind.
        grid: rows and columns of the feature map.
        channels: C.
        batch_size: images in one forward pass, part of what determines the bytes.
    """

    name: str
    precision: Precision
    device: str
    grid: tuple[int, int]
    channels: int
    batch_size: int

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """Encode preprocessed images.

        Args:
            batch: (B, 3, S, S) float32, any B.

        Returns:
            (B, R, C) float32.
        """
        ...


def choose_engine(
    module: nn.Module, image_size: int, engine: str, precision: str, device: str, batch_size: int
) -> Engine:
    """The engine that the settings ask for; `auto` is the fastest that is installed.

    Raises:
        DeviceError: the device is unknown or absent, or has no arithmetic of that precision.
        DependencyError: OpenVINO is asked for and not installed.
    """
    target = find_device(device, "encode.device")
    if engine == "auto":
        engine = "openvino" if target.type == "cpu" and importlib.util.find_spec("openvino") else "torch"
    chosen = choose_precision(precision, target, "encode.precision")
    if engine == "torch":
        return TorchEngine(module, image_size, chosen, target, batch_size)
    if importlib.util.find_spec("openvino") is None:
        raise DependencyError(
            'encode.engine openvino is not installed: pip install "freezeframe[openvino]", or set encode.engine: torch.'
        )
    if target.type != "cpu":
        raise DeviceError(f"encode.engine openvino runs on the CPU, not on {device}. Set encode.engine: torch.")
    return OpenVinoEngine(module, image_size, chosen)


class _Regions(nn.Module):
    """A feature map as rows of regions."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]  # (B, C, h, w) -> (B, R, C)


def measure(module: nn.Module, image_size: int) -> tuple[tuple[int, int], int]:
    """Grid (rows, columns) and channels of the module's feature map."""
    with torch.no_grad():
        _, channels, rows, columns = module(torch.zeros(1, 3, image_size, image_size)).shape
    return (rows, columns), channels


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy with each batch norm folded into the convolution before it, where the graph is known (torchvision)."""
    folded = copy.deepcopy(module)
    if not isinstance(folded, fx.GraphModule):
        return folded
    modules = dict(folded.named_modules())
    for node in list(folded.graph.nodes):
        before = node.args[0] if node.args else None
        if (
            node.op == "call_module"
            and isinstance(modules[node.target], nn.BatchNorm2d)
            and isinstance(before, fx.Node)
            and type(modules.get(str(before.target))) is nn.Conv2d
            and len(before.users) == 1
        ):
            folded.set_submodule(
                str(before.target), fuse_conv_bn_eval(modules[str(before.target)], modules[node.target])
            )
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
    folded.recompile()
    return folded


class TorchEngine:
    """PyTorch: batch norms folded, channels last, batches of one fixed size (the last is padded)."""

    name = "torch"

    def __init__(
        self, module: nn.Module, image_size: int, precision: Precision, device: torch.device, batch_size: int
    ) -> None:
        self.grid, self.channels = measure(module, image_size)
        self.precision, self.device, self.batch_size = precision, device.type, batch_size
        self._target, self._dtype = device, DTYPES[precision]
        ready = _Regions(fold_batch_norm(module)).eval().requires_grad_(False)
        self._module = ready.to(device, self._dtype).to(memory_format=torch.channels_last)

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """See `Engine.encode`."""
        pieces = [
            self._forward(batch[start : start + self.batch_size]) for start in range(0, len(batch), self.batch_size)
        ]
        return np.concatenate(pieces)

    def _forward(self, images: np.ndarray) -> np.ndarray:
        # A kernel may be chosen by the batch's size, and another kernel rounds otherwise: always the same size.
        padded = np.zeros((self.batch_size, *images.shape[1:]), np.float32)
        padded[: len(images)] = images
        tensor = torch.from_numpy(padded).to(self._target, self._dtype, memory_format=torch.channels_last)
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            regions: np.ndarray = self._module(tensor)[: len(images)].float().cpu().numpy()
        return regions


class OpenVinoEngine:
    """OpenVINO on the CPU in throughput mode: every image is a request of its own, several run at once."""

    name = "openvino"
    device = "cpu"
    batch_size = 1

    def __init__(self, module: nn.Module, image_size: int, precision: Precision) -> None:
        import openvino

        self.grid, self.channels = measure(module, image_size)
        self.precision = precision
        hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[precision]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every shape it fixes, and the size is fixed here
            example = torch.zeros(1, 3, image_size, image_size)
            model = openvino.convert_model(_Regions(module).eval(), example_input=example, input=[tuple(example.shape)])
        options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
        compiled = openvino.Core().compile_model(model, "CPU", options)
        self._queue = openvino.AsyncInferQueue(compiled)
        self._queue.set_callback(self._receive)

    @staticmethod
    def _receive(request: Any, place: np.ndarray) -> None:
        place[:] = request.get_output_tensor(0).data[0]

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """See `Engine.encode`; one caller at a time."""
        regions = np.empty((len(batch), self.grid[0] * self.grid[1], self.channels), np.float32)
        for image, place in zip(batch, regions, strict=True):
            self._queue.start_async([image[None]], place)
        self._queue.wait_all()
        return regions

"""Engines: the same frozen backbone, run as fast as the hardware allows.

Owns the interface and the choice among engines. Every engine gives an image the same bytes whatever batch it comes in,
and takes batches from any thread. Does not know where images come from or where regions go.

Shapes: B images, S pixels a side, R regions (rows x columns, row-major), C channels.
"""

import importlib.util
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import DependencyError, DeviceError, installing
from pipeline.hardware import Precision, choose_precision, find_device
from pipeline.vision.images import Preprocessing


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

    def start(self, images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        """Begin a batch and return; waits only while as many others are under way as the engine holds.

        Args:
            images: B arrays (S, S, 3) uint8, any B; they must not change until the result is there.

        Returns:
            To be (B, R, C) float32, or the error of the inference.
        """
        ...


def choose_engine(
    module: nn.Module, preprocessing: Preprocessing, engine: str, precision: str, device: str, batch_size: int
) -> Engine:
    """The engine that the settings ask for; `auto` is the fastest that is installed.

    Args:
        module: (B, 3, S, S) normalised float32 to (B, C, rows, columns).
        preprocessing: has S and the normalisation, which the engine takes over.
        engine: auto, torch or openvino.
        precision: auto or its name.
        device: as `find_device` takes it.
        batch_size: images a forward pass, where the engine does not choose it.

    Raises:
        DeviceError: the device is unknown or absent, or has no arithmetic of that precision, or int8 is not for this
            network.
        DependencyError: OpenVINO is asked for and not installed.
    """
    target = find_device(device, "encode.device")
    if engine == "auto":
        wanted = precision == "int8" or importlib.util.find_spec("openvino")
        engine = "openvino" if target.type == "cpu" and wanted else "torch"
    chosen = _precision(precision, engine, target)
    if engine == "torch":
        from pipeline.vision.torch_engine import TorchEngine

        return TorchEngine(module, preprocessing, chosen, target, batch_size)
    if importlib.util.find_spec("openvino") is None:
        asked, instead = (
            ("engine openvino", "engine: torch") if chosen != "int8" else ("precision int8", "precision: auto")
        )
        raise DependencyError(
            f"encode.{asked} needs OpenVINO, which is not installed. Set encode.{instead}, or install it: "
            f"{installing('openvino')}"
        )
    if target.type != "cpu":
        raise DeviceError(f"encode.engine openvino runs on the CPU, not on {device}. Set encode.engine: torch.")
    from pipeline.vision.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(module, preprocessing, chosen)


def _precision(precision: str, engine: str, target: torch.device) -> Precision:
    if precision != "int8":
        return choose_precision(precision, target, "encode.precision")
    if engine == "openvino" and target.type == "cpu":
        return "int8"
    raise DeviceError(
        f"encode.precision int8 is OpenVINO's, on a CPU; here {engine} would run on {target.type}. Set encode.engine: "
        "openvino and encode.device: cpu, or encode.precision: auto."
    )

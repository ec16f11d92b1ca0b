"""What this machine computes with: devices, and the precisions it is fast at.

Owns the choice behind `device: auto` and `precision: auto`. Does not know what is computed.
"""

import functools
from typing import TYPE_CHECKING, Literal

from pipeline.errors import DeviceError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16", "float16"]


def resolve_device(name: str) -> "torch.device":
    """The device of a setting: auto (a GPU if there is one), cpu, cuda, cuda:1, ...

    Raises:
        DeviceError: it is unknown, or this machine has none such.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f'Unknown device "{name}"; expected auto, cpu, cuda or cuda:N.') from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f'Device "{name}" is not supported; expected auto, cpu, cuda or cuda:N.')
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
        raise DeviceError(f'Device "{name}" was asked for, but torch finds {found} here. Set it to auto or cpu.')
    return device


def fast_precision(device: "torch.device") -> Precision:
    """The narrowest precision that the hardware multiplies faster than float32.

    bfloat16 without hardware for it is emulated and hundreds of times slower, so the processor is asked.
    """
    import torch

    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bfloat16" if major >= 8 else "float16" if major == 7 else "float32"
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & processor_flags() else "float32"


@functools.cache
def processor_flags() -> frozenset[str]:
    """The instruction sets the processor names (Linux; empty elsewhere)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(flags.partition(":")[2].split())

"""What this machine computes with: devices, and the precisions it is fast at.

Owns the choice behind `device: auto` and `precision: auto`. Does not know what is computed.
"""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import DeviceError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16", "float16", "int8"]
# What `auto` chooses among; int8, whose features are coarser than any of these, is used where it is named.
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
# The flags of /proc/cpuinfo that mean arithmetic in that precision rather than emulation.
CPU_FLAGS: dict[Precision, set[str]] = {
    "bfloat16": {"amx_bf16", "avx512_bf16"},
    "float16": {"amx_fp16", "avx512_fp16"},
}


def use_large_pages() -> None:
    """Let torch ask for pages of 2 MB where it allocates much; to be called before it first does.

    Tens of megabytes are read and written at every word of a training: with pages of 4 kB a tenth of the time goes into
    finding them.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def find_device(name: str, setting: str) -> "torch.device":
    """The device of that name; `auto` is the first GPU, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:1, ...
        setting: where the name was given, for the message.

    Raises:
        DeviceError: there is no such device.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if name not in known:
        raise DeviceError(f"{setting} {name} is not on this machine, which has {', '.join(known)}. Name one, or auto.")
    return torch.device(name)


def choose_precision(
    precision: str, device: "torch.device", setting: str, among: tuple[Precision, ...] = PRECISIONS
) -> Precision:
    """The precision asked for, or for `auto` the narrowest that the hardware multiplies faster than float32.

    Args:
        precision: a name, or auto.
        device: where it is computed.
        setting: where the precision was given, for the message.
        among: those that the computation can use (training has no scaling of float16's small gradients).

    Raises:
        DeviceError: the hardware would emulate it, hundreds of times slower.
    """
    has = [known for known in among if _has(known, device)]
    if precision == "auto":
        if "bfloat16" in has:
            return "bfloat16"
        return "float16" if device.type == "cuda" and "float16" in has else "float32"
    for known in has:
        if precision == known:
            return known
    raise DeviceError(
        f"{setting} {precision}: this {device.type} has no such arithmetic and would emulate it, hundreds of times "
        f"slower. Set {setting} to auto or to what it has: {', '.join(has)}."
    )


def _has(precision: Precision, device: "torch.device") -> bool:
    if precision == "float32":
        return True
    if device.type == "cuda":
        import torch

        return bool(torch.cuda.get_device_capability(device)[0] >= (8 if precision == "bfloat16" else 7))
    return bool(CPU_FLAGS[precision] & cpu_flags())


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets that /proc/cpuinfo lists; none where there is no such file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return frozenset(word for line in lines if line.startswith(("flags", "Features")) for word in line.split())

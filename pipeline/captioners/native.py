"""The loops of `kernels.cpp`, compiled where they run.

Owns the compiling (once a machine and source, kept in the user's cache folder), the loading and the calling. Does not
know what the functions compute; where no compiler works there are none, and callers use plain torch.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.files import replacing, sha256_of_json
from pipeline.hardware import cpu_flags

SOURCE = Path(__file__).with_name("kernels.cpp")
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Without -ffast-math: sums keep their order and NaN stays NaN.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
# Torch has loaded its OpenMP library already, and the kernels use that one and its threads.
_THREADS = ("-fopenmp",)


class Record(ctypes.Structure):
    """A struct of `kernels.cpp`, filled by name: tensors by their address, None as null.

    Tensors are contiguous, but for those named in `columns`: columns of a wider tensor, whose stride is told.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.kept = values  # what is pointed at has to outlive the call
        for name, value in values.items():
            setattr(self, name, self._address(name, value) if isinstance(value, Tensor) else value)

    def _address(self, name: str, tensor: Tensor) -> int:
        whole = tensor.stride(-1) == 1 if name in self.columns else tensor.is_contiguous()
        assert whole, f"{type(self).__name__}.{name}: strides {tensor.stride()}"
        return tensor.data_ptr()


def _fields(integers: str, pointers: str) -> list[tuple[str, Any]]:
    return [(name, c_int64) for name in integers.split()] + [(name, c_void_p) for name in pointers.split()]


class AttentionRecord(Record):
    """`struct Attention`."""

    _fields_: ClassVar = _fields("images regions cells size channels tanh", "keys features pooling scale shift score")


class WordsRecord(Record):
    """`struct Words`."""

    columns = ("parts",)
    _fields_: ClassVar = _fields("rows parts_stride", "starts members parts query_bias gate_bias weights context")


class AboveRecord(Record):
    """`struct Above`."""

    columns = ("parts",)
    _fields_: ClassVar = _fields("parts_stride", "context through weights parts keys score")


class CellsRecord(Record):
    """`struct Cells`."""

    _fields_: ClassVar = _fields("rows size", "before gates cell hidden")


class SumRecord(Record):
    """`struct Sum`."""

    columns = ("hidden",)
    _fields_: ClassVar = _fields("hidden_stride", "word hidden context")


class CellsAboveRecord(Record):
    """`struct CellsAbove`."""

    columns = ("gates",)
    _fields_: ClassVar = _fields("gates_stride", "hidden carried carried_cell gates")


class MomentsRecord(Record):
    """`struct Moments`."""

    _fields_: ClassVar = _fields("images regions cells channels", "features pooling mean variance")


class KeysRecord(Record):
    """`struct Keys`."""

    _fields_: ClassVar = _fields("images regions size", "products scale shift sums bias keys")


class KeysAboveRecord(Record):
    """`struct KeysAbove`."""

    _fields_: ClassVar = _fields("", "keys products sums bias")


class ScoresRecord(Record):
    """`struct Scores`."""

    _fields_: ClassVar = [
        *_fields("rows words", ""),
        ("smoothing", c_float),
        *_fields("", "logits targets logs losses likelier"),
    ]


class ScoresAboveRecord(Record):
    """`struct ScoresAbove`."""

    _fields_: ClassVar = _fields("", "losses logits")


def usable(tensor: Tensor) -> bool:
    """Whether there are kernels for a tensor's device and dtype."""
    return tensor.device.type == "cpu" and tensor.dtype in _DTYPES and library() is not None


def call(name: str, dtype: torch.dtype, *records: Record) -> None:
    """Run a kernel."""
    loaded = library()
    assert loaded is not None, "ask `usable` first"
    getattr(loaded, f"{name}_{_DTYPES[dtype]}")(*map(ctypes.byref, records))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where no compiler works."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    for flags in ((*_FLAGS, *_THREADS), _FLAGS):  # a compiler without OpenMP serves one core
        path = _folder() / f"kernels-{_key(compiler, flags)}.so"
        if path.exists() or _compiled(compiler, flags, path):
            return ctypes.CDLL(str(path))
    return None


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """What determines the compiled bytes; the folder may be shared by machines of other instruction sets."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    source = SOURCE.read_text(encoding="utf-8")
    return sha256_of_json([source, version, list(flags), sorted(cpu_flags())])[:16]


def _compiled(compiler: str, flags: tuple[str, ...], path: Path) -> bool:
    try:
        with replacing(path) as temporary:
            command = [compiler, *flags, str(SOURCE), "-o", str(temporary)]
            subprocess.run(command, capture_output=True, check=True)
    except (subprocess.CalledProcessError, OSError):  # no compiler, or no room to keep what it makes
        return False
    return True


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "freezeframe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to write to
        folder = Path(tempfile.gettempdir()) / f"freezeframe-{os.getuid()}"
        folder.mkdir(exist_ok=True)
    return folder

"""The loops of `kernels.cpp`, compiled where they run.

Owns the compiling (once a machine and source, kept in the user's cache folder), the loading and the calling. Does not
know what the functions compute; where no compiler works there are none, and callers use plain torch.
"""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.files import replacing, sha256_of_json
from pipeline.hardware import cpu_flags

SOURCE = Path(__file__).with_name("kernels.cpp")  # includes the *.hpp beside it
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Without -ffast-math: sums keep their order and NaN stays NaN.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
# Torch has loaded its OpenMP library already, and the kernels use that one and its threads.
_THREADS = ("-fopenmp",)
_COMPILERS = ("c++", "g++", "clang++")

complaints: list[str] = []  # why what was tried did not work, for those who tell


class Record(ctypes.Structure):
    """A struct of `kernels.cpp`, filled by name: tensors by their address, None as null.

    Tensors are contiguous, but for those named in `columns`: columns of a wider tensor, whose stride is told.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.kept = values  # what is pointed at has to outlive the call
        for name, value in values.items():
            setattr(self, name, self._address(name, value) if isinstance(value, Tensor | Record) else value)

    def _address(self, name: str, tensor: "Tensor | Record") -> int:
        if isinstance(tensor, Record):
            return ctypes.addressof(tensor)
        whole = tensor.stride(-1) == 1 if name in self.columns else tensor.is_contiguous()
        assert whole, f"{type(self).__name__}.{name}: strides {tensor.stride()}"
        return tensor.data_ptr()


def _fields(integers: str, pointers: str) -> list[tuple[str, Any]]:
    return [(name, c_int64) for name in integers.split()] + [(name, c_void_p) for name in pointers.split()]


class AttentionRecord(Record):
    """`struct Attention`."""

    _fields_: ClassVar = _fields(
        "images regions cells size channels tanh", "keys features pooling scale shift score nonzero"
    )


class NonzeroRecord(Record):
    """`struct Nonzero`."""

    _fields_: ClassVar = _fields("images cells channels room", "features starts places values")


class ProductsRecord(Record):
    """`struct Products`."""

    _fields_: ClassVar = _fields("size", "weights products")


class WordsRecord(Record):
    """`struct Words`."""

    columns = ("parts",)
    _fields_: ClassVar = _fields("rows parts_stride", "starts members parts query_bias gate_bias weights context total")


class AboveRecord(Record):
    """`struct Above`."""

    columns = ("parts",)
    _fields_: ClassVar = _fields("parts_stride", "context through weights parts keys score total")


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


def usable(tensor: Tensor, *wide: Tensor) -> bool:
    """Whether there are kernels for a tensor's device and dtype, and what goes with it is float32."""
    fits = tensor.device.type == "cpu" and tensor.dtype in _DTYPES
    return fits and all(other.dtype == torch.float32 for other in wide) and library() is not None


def call(name: str, dtype: torch.dtype, *records: Record) -> None:
    """Run a kernel."""
    loaded = library()
    assert loaded is not None, "ask `usable` first"
    getattr(loaded, f"{name}_{_DTYPES[dtype]}")(*map(ctypes.byref, records))


def identity() -> str:
    """What the loops run as: the compiled file, whose name holds what determines its bytes, or plain torch."""
    loaded = library()
    return "plain torch" if loaded is None else Path(loaded._name).stem


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where no compiler works."""
    found = _compiler()
    if not found:
        return None
    for flags in ((*_FLAGS, *_THREADS), _FLAGS):  # a compiler without OpenMP serves one core
        try:
            path = _folder() / f"kernels-{_key(found, flags)}.so"
            if not path.exists():
                _compile([*found, *flags], path)
            return ctypes.CDLL(str(path))
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            complaints.append(said.strip().splitlines()[-1] if said.strip() else str(error))
    return None


def _compiler() -> list[str]:
    """The compiler and its first arguments; nothing where there is none."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        complaints.append(f"CXX: {error}")
        return []
    found = named or list(filter(None, map(shutil.which, _COMPILERS)))[:1]
    if not found:
        complaints.append(f"none of {', '.join(_COMPILERS)} was found")
    return found


def _key(compiler: Sequence[str], flags: Sequence[str]) -> str:
    """What determines the compiled bytes; the folder may be shared by machines of other instruction sets."""
    asked = [*compiler, "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, errors="replace", check=True).stdout
    sources = [path.read_text(encoding="utf-8") for path in (SOURCE, *sorted(SOURCE.parent.glob("*.hpp")))]
    return sha256_of_json([sources, version, list(flags), sorted(cpu_flags())])[:16]


def _compile(command: Sequence[str], path: Path) -> None:
    with replacing(path) as temporary:
        arguments = [*command, str(SOURCE), "-o", str(temporary)]
        subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=True)


def _folder() -> Path:
    """Where compiled kernels are kept: the user's own, for what lies there is run."""
    wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freezeframe"
    for folder in (wanted, Path(tempfile.gettempdir()) / f"freezeframe-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:  # no home to write to
            continue
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    raise PermissionError(f"{wanted} cannot be written to")

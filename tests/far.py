"""A device that is not the CPU, for machines that have no other: what a GPU would refuse or wait for, without a GPU.

Its tensors say that they are elsewhere (on `FAR`), and compute on the CPU. As on a GPU, an operation on tensors of both
places is an error, unless torch has it bring numbers over; and whatever the CPU has to know of them is noted, for there
it would wait until all work given to the device is done.
"""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")  # the one other device that every build of torch knows
waits: list[str] = []
"""Which functions of the pipeline have waited since the list was last cleared."""

_ATEN = torch.ops.aten
_BRINGS = {_ATEN._to_copy.default, _ATEN.copy_.default}
_ASKS = {  # the size of the result, or a Python number, depends on what is in a tensor
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.unique_consecutive.default,
    _ATEN._unique2.default,
}


class _Far(torch.Tensor):
    """A tensor on `FAR`; `near` has the numbers."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "_Far":
        far: _Far = torch.Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets the operation
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(operation, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = self.detach().clone()
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    def tolist(self) -> Any:
        return back(self).tolist()


def back(tensor: torch.Tensor) -> torch.Tensor:
    """What a far tensor holds."""
    if not isinstance(tensor, _Far):
        return tensor
    _note()
    held: torch.Tensor = _held(tensor.detach())
    return held


class _Everywhere(TorchDispatchMode):
    """So that tensors made on `FAR`, or sent there, are far ones."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})


@contextlib.contextmanager
def far_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, `FAR` is a device like another; what torch has for named kinds alone stands as the CPU's."""
    kinds = torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    with monkeypatch.context() as patch, _Everywhere():  # type: ignore[no-untyped-call]
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch, "autocast", _Autocast)
        for module in (sys.modules["torch.optim.adam"], sys.modules["torch.optim.optimizer"]):
            patch.setattr(module, "_get_fused_kernels_supported_devices", lambda: [*kinds, FAR.type], raising=False)
        patch.setattr(torch.nn.Module, "_apply", _applied)
        yield


def _applied(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """`Module._apply`, which for kinds of tensors that are not torch's own unties weights that are one."""
    changed: dict[int, torch.nn.Parameter] = {}
    for own in module.modules():
        for name, weights in own._parameters.items():
            if weights is not None and id(weights) not in changed:
                changed[id(weights)] = torch.nn.Parameter(change(weights.detach()), weights.requires_grad)
            own._parameters[name] = None if weights is None else changed[id(weights)]
        own._buffers.update({name: change(kept) for name, kept in own._buffers.items() if kept is not None})
    return module


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls, _near(device))  # type: ignore[call-arg]


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(_near(device_type).type, *args, **kwargs)


def _near(device: Any) -> torch.device:
    asked = torch.device(device)
    return torch.device("cpu") if asked == FAR else asked


def _computed(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in given if isinstance(tensor, _Far)]
    near = [tensor for tensor in given if not isinstance(tensor, _Far) and tensor.dim() > 0]
    wanted = kwargs.get("device")
    if far and near and operation not in _BRINGS:
        raise RuntimeError(f"{operation}: expected all tensors on one device, found {FAR} and cpu. {_place()}")
    if far and (operation in _ASKS or _by_mask(operation, args) or _by_counts(operation, kwargs)):
        _note()
    if far and wanted is not None and torch.device(wanted) != FAR:
        _note()
    found = operation(*tree_map(_held, args), **tree_map(_held, _at_home(kwargs)))
    there = torch.device(wanted) == FAR if wanted is not None else bool(far)
    if not there:
        return found
    wrapped = tree_map(lambda leaf: _Far(leaf) if isinstance(leaf, torch.Tensor) else leaf, found)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped) if far else wrapped


def _by_mask(operation: Any, args: Any) -> bool:
    masks = args[1] if operation is _ATEN.index.Tensor else ()
    return any(mask is not None and mask.dtype == torch.bool for mask in masks)


def _by_counts(operation: Any, kwargs: dict[str, Any]) -> bool:
    return operation is _ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None


def _held(leaf: Any) -> Any:
    return leaf.near if isinstance(leaf, _Far) else leaf


def _at_home(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs


def _note() -> None:
    waits.append(_place())


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if "/pipeline/" in frame.filename]
    return f"{frames[-1].filename.split('/pipeline/')[1]}: {frames[-1].name}" if frames else "a test"

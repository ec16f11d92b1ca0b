"""Devices and precisions: what is there, what the hardware is fast at, what is refused."""

import pytest
import torch

from pipeline import hardware
from pipeline.errors import DeviceError
from pipeline.hardware import choose_precision, find_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", ""])
def test_unknown_device_lists_those_that_are_there(device: str) -> None:
    with pytest.raises(DeviceError, match=rf"encode\.device {device} is not on this machine, which has cpu"):
        find_device(device, "encode.device")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2"}, "float32"),
        ({"avx2", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        ({"avx512_vnni", "avx_vnni", "amx_int8"}, "float32"),
        (set(), "float32"),
    ],
)
def test_auto_precision_looks_at_the_hardware(flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    assert choose_precision("auto", CPU, "train.precision") == expected


@pytest.mark.parametrize(("major", "expected"), [(6, "float32"), (7, "float16"), (8, "bfloat16"), (9, "bfloat16")])
def test_auto_precision_on_a_gpu_follows_its_capability(
    major: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (major, 0))
    assert choose_precision("auto", torch.device("cuda"), "train.precision") == expected


def test_a_precision_that_would_be_emulated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(DeviceError, match=r"train\.precision bfloat16: this cpu has no .*what it has: float32"):
        choose_precision("bfloat16", CPU, "train.precision")


def test_training_on_an_older_gpu_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (7, 5))
    among: tuple[hardware.Precision, ...] = ("float32", "bfloat16")
    assert choose_precision("auto", torch.device("cuda"), "train.precision", among) == "float32"

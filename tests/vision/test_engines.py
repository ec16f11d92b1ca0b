import importlib.util

import numpy as np
import pytest
import torch

from pipeline.errors import DependencyError, DeviceError
from pipeline.vision.backbones import build_backbone
from pipeline.vision.engines import Engine, choose_engine, fold_batch_norm

SIZE, BATCH = 64, 5
CPU = torch.device("cpu")
# Largest distance of a region's vector from that of the plain model, relative to that vector's length. float32: folding
# and the order of sums leave some 1e-6. bfloat16 keeps 8 bits of a number and float16 11, and 20 layers add up.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return build_backbone("resnet18", "random", SIZE, seed=4).module


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((7, 3, SIZE, SIZE)).astype(np.float32)


def _open(module: torch.nn.Module, engine: str, precision: str, batch_size: int = BATCH) -> Engine:
    if engine == "openvino":
        pytest.importorskip("openvino")
    try:
        return choose_engine(module, SIZE, engine, precision, "cpu", batch_size)
    except DeviceError:
        pytest.skip(f"no {precision} on this machine")


KINDS = [(engine, precision) for engine in ("torch", "openvino") for precision in BOUNDS]


@pytest.mark.parametrize(("engine", "precision"), KINDS)
def test_engine_is_close_to_the_plain_model(
    module: torch.nn.Module, images: np.ndarray, engine: str, precision: str
) -> None:
    with torch.no_grad():
        plain = module(torch.from_numpy(images)).permute(0, 2, 3, 1).reshape(7, 4, 512).numpy()
    opened = _open(module, engine, precision)
    fast = opened.encode(images)
    assert (opened.name, opened.precision, opened.grid, opened.channels) == (engine, precision, (2, 2), 512)
    assert fast.dtype == np.float32
    error = np.linalg.norm(fast - plain, axis=2) / np.linalg.norm(plain, axis=2)
    assert error.max() < BOUNDS[precision]
    if precision != "float32":
        assert error.max() > BOUNDS["float32"]  # the precision is really used, not only claimed


@pytest.mark.parametrize(("engine", "precision"), KINDS)
def test_an_image_gets_the_same_bytes_whatever_its_batch(
    module: torch.nn.Module, images: np.ndarray, engine: str, precision: str
) -> None:
    opened = _open(module, engine, precision)
    together = opened.encode(images)
    order = [6, 2, 0, 5, 1, 3, 4]
    assert opened.encode(images[order]).tobytes() == together[order].tobytes()
    for row in range(7):
        assert opened.encode(images[row : row + 1]).tobytes() == together[row : row + 1].tobytes()


def test_folding_removes_batch_norms_and_leaves_the_original(module: torch.nn.Module) -> None:
    kinds = [type(node) for node in fold_batch_norm(module).modules()]
    calls = [str(node.target) for node in fold_batch_norm(module).graph.nodes if node.op == "call_module"]  # type: ignore[union-attr]
    assert torch.nn.Conv2d in kinds
    assert not [name for name in calls if "bn" in name or name.endswith("downsample.1")]
    assert any("bn" in name for name, _ in module.named_modules())


def test_auto_engine_on_a_cpu_is_openvino_where_it_is_installed(module: torch.nn.Module) -> None:
    expected = "openvino" if importlib.util.find_spec("openvino") else "torch"
    assert choose_engine(module, SIZE, "auto", "float32", "cpu", BATCH).name == expected


def test_openvino_that_is_not_installed_says_how_to_get_it(
    module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(DependencyError, match=r'pip install "freezeframe\[openvino\]"'):
        choose_engine(module, SIZE, "openvino", "float32", "cpu", BATCH)
    assert choose_engine(module, SIZE, "auto", "float32", "cpu", BATCH).name == "torch"

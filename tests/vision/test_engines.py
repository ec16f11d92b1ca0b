import importlib.util
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import DependencyError, DeviceError
from pipeline.vision.backbones import Backbone, build_backbone
from pipeline.vision.engines import Engine, choose_engine
from pipeline.vision.graph import Graph, fold_batch_norm

SIZE, BATCH = 64, 5
# Largest distance of a region's vector from that of the plain model, relative to that vector's length. float32: folding
# and the order of sums leave some 1e-6. bfloat16 keeps 8 bits of a number and float16 11, and 20 layers add up. int8
# has 255 steps for all of a tensor, 12 deviations of its widest channel: rounding leaves at least 0.014 of a deviation.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2, "int8": 0.2}
KINDS = [(engine, precision) for engine in ("torch", "openvino") for precision in BOUNDS]
KINDS.remove(("torch", "int8"))

Images = list[NDArray[np.uint8]]


@pytest.fixture(scope="module", params=["resnet18", "timm/resnet18"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    if request.param.startswith("timm/"):
        pytest.importorskip("timm")
    return build_backbone(request.param, "random", SIZE, seed=4)


@pytest.fixture(scope="module")
def images() -> Images:
    """Seven of noise that is smooth on the scale of some pixels, as photographs are."""
    coarse = np.random.default_rng(7).integers(0, 256, (7, SIZE // 4, SIZE // 4, 3), dtype=np.uint8)
    return list(coarse.repeat(4, axis=1).repeat(4, axis=2))


@pytest.fixture(params=KINDS, ids="-".join, scope="module")
def engine(request: pytest.FixtureRequest, backbone: Backbone) -> Engine:
    name, precision = request.param
    return opened(backbone, name, precision)


def opened(backbone: Backbone, engine: str = "torch", precision: str = "float32") -> Engine:
    if engine == "openvino" and not importlib.util.find_spec("openvino"):
        pytest.skip("openvino is not installed")
    try:
        return choose_engine(backbone.module, backbone.preprocessing, engine, precision, "cpu", BATCH)
    except DeviceError:
        if precision == "int8":
            raise
        pytest.skip(f"this machine has no {precision} arithmetic")


def plain(backbone: Backbone, images: Images) -> NDArray[np.float32]:
    mean, std = (np.array(values, np.float32) for values in (backbone.preprocessing.mean, backbone.preprocessing.std))
    normal = ((np.stack(images) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        maps: NDArray[np.float32] = backbone.module(torch.from_numpy(np.ascontiguousarray(normal))).numpy()
    return maps.transpose(0, 2, 3, 1).reshape(len(images), -1, maps.shape[1])


def noise(backbone: Backbone) -> Images:
    """Seven of what the batch norms of random weights have their statistics from, and int8 its ranges."""
    mean, std = backbone.preprocessing.mean, backbone.preprocessing.std
    pixels = np.random.default_rng(7).normal(mean, std, (7, SIZE, SIZE, 3))
    return list((255 * pixels.clip(0, 1)).astype(np.uint8))


def test_engine_is_close_to_the_plain_model(backbone: Backbone, images: Images, engine: Engine) -> None:
    images = noise(backbone) if engine.precision == "int8" else images
    expected = plain(backbone, images)
    fast = engine.start(images).result()
    assert (engine.grid, engine.channels) == ((2, 2), expected.shape[2])
    assert fast.dtype == np.float32
    error = np.linalg.norm(fast - expected, axis=2) / np.linalg.norm(expected, axis=2)
    assert error.max() < BOUNDS[engine.precision]
    if engine.precision != "float32":
        assert error.max() > BOUNDS["float32"]  # the precision is really used, not only claimed


def test_an_image_gets_the_same_bytes_whatever_its_batch(images: Images, engine: Engine) -> None:
    together = engine.start(images).result()
    order = [6, 2, 0, 5, 1, 3, 4]
    assert engine.start([images[row] for row in order]).result().tobytes() == together[order].tobytes()
    for row in range(7):
        assert engine.start(images[row : row + 1]).result().tobytes() == together[row : row + 1].tobytes()


def test_batches_of_many_threads_do_not_mix(images: Images, engine: Engine) -> None:
    together = engine.start(images).result()
    chosen = np.random.default_rng(3).integers(0, 7, (8, 3))
    with ThreadPoolExecutor(4) as pool:
        begun = list(pool.map(lambda rows: engine.start([images[row] for row in rows]), chosen))
    for rows, future in zip(chosen, begun, strict=True):
        assert future.result().tobytes() == together[rows].tobytes()


def test_images_may_be_views_and_read_only(images: Images, engine: Engine) -> None:
    expected = engine.start(images[:1]).result()
    mirrored = np.ascontiguousarray(images[0][:, ::-1])[:, ::-1]
    mirrored.flags.writeable = False
    assert engine.start([mirrored]).result().tobytes() == expected.tobytes()


def test_a_batch_without_images_is_empty(engine: Engine) -> None:
    assert engine.start([]).result().shape == (0, 4, engine.channels)


def test_an_error_of_one_image_reaches_the_caller_and_the_engine_goes_on(images: Images, engine: Engine) -> None:
    wrong = np.zeros((SIZE + 1, SIZE, 3), np.uint8)
    futures: list[Future[NDArray[np.float32]]] = [engine.start([images[0], wrong]) for _ in range(20)]
    for future in futures:
        with pytest.raises((ValueError, RuntimeError)):
            future.result()
    assert engine.start(images[:1]).result().shape == (1, 4, engine.channels)


def test_folding_removes_batch_norms_and_leaves_the_original(backbone: Backbone) -> None:
    folded = fold_batch_norm(backbone.module)
    norms = [name for name, module in folded.named_modules() if "BatchNorm" in type(module).__name__]
    assert not norms
    assert [name for name, module in backbone.module.named_modules() if "BatchNorm" in type(module).__name__]


def test_the_graph_normalises_as_the_published_transform(images: Images) -> None:
    transforms = pytest.importorskip("torchvision.transforms.functional")
    backbone = build_backbone("resnet18", "random", SIZE, seed=0)
    preprocessing = backbone.preprocessing
    graph = Graph(torch.nn.Identity(), preprocessing)
    expected = transforms.normalize(transforms.to_tensor(images[0]), preprocessing.mean, preprocessing.std)
    found = graph(torch.from_numpy(images[0])[None]).transpose(1, 2).reshape(3, SIZE, SIZE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_auto_engine_on_a_cpu_is_openvino_where_it_is_installed(backbone: Backbone) -> None:
    expected = "openvino" if importlib.util.find_spec("openvino") else "torch"
    assert opened(backbone, "auto").name == expected


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")
def test_int8_has_no_need_to_name_its_engine_and_auto_never_is_int8(backbone: Backbone) -> None:
    chosen = opened(backbone, "auto", "int8")
    assert (chosen.name, chosen.precision) == ("openvino", "int8")
    assert opened(backbone, "auto", "auto").precision != "int8"


def test_openvino_that_is_not_installed_says_how_to_get_it(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(DependencyError, match=r"pip install -c constraints\.txt -e '\.\[openvino\]'"):
        choose_engine(backbone.module, backbone.preprocessing, "openvino", "float32", "cpu", BATCH)
    assert opened(backbone, "auto").name == "torch"


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")
def test_openvino_reports_nothing_to_its_makers() -> None:
    code = (
        "import sys, torch; from pipeline.vision.openvino_engine import OpenVinoEngine as Engine;"
        "from pipeline.vision.images import Preprocessing as P; triple = (0.5, 0.5, 0.5);"
        "Engine(torch.nn.Conv2d(3, 4, 3), P(32, triple, triple, 'bilinear'), 'float32');"
        "print(any(name.startswith('openvino_telemetry') and module for name, module in sys.modules.items()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

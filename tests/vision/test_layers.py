"""A layer by its name: its map is what the library's own model computes there, and nothing behind it is kept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torchvision import models

from pipeline.errors import WeightsError
from pipeline.vision.backbones import build_backbone
from pipeline.vision.encoder import encoder_like, open_encoder
from pipeline.vision.graph import fold_batch_norm
from tests.encoding.quick import SETTINGS
from tests.vision.test_engines import BOUNDS, images, opened, plain

__all__ = ["images"]  # a fixture
SIZE = 64


def hooked(name: str, layer: str, pixels: Tensor) -> Tensor:
    """What a module of the library's own model gives; statistics and weights as torch's seed 3 has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if name.startswith("timm/"):
            timm = pytest.importorskip("timm")
            model: nn.Module = timm.create_model(name.removeprefix("timm/"), num_classes=0, pretrained=False)
        else:
            model = models.get_model(name, weights=None)
    seen: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    with torch.no_grad():
        model.eval()(pixels)
    return seen[-1]


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("resnet18", "layer3", (256, 4, 4)),
        ("resnet18", "layer3.1.bn1", (256, 4, 4)),  # inside a block
        ("resnet18", "relu", (64, 32, 32)),
        ("efficientnet_b0", "features.5", (112, 4, 4)),
        ("densenet121", "features.denseblock2", (512, 8, 8)),
        ("swin_t", "features.5", (384, 4, 4)),  # channels last
        ("timm/resnet18", "layer2", (128, 8, 8)),
        ("timm/tf_efficientnet_lite0", "blocks.4", (112, 4, 4)),
    ],
)
def test_a_layers_map_is_what_its_module_gives(
    name: str, layer: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.vision.backbones.measure_batch_norm", lambda *_: None)
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found = build_backbone(name, "random", SIZE, seed=3, layer=layer).module(pixels)
    expected = hooked(name, layer, pixels)
    if name == "swin_t":
        expected = expected.permute(0, 3, 1, 2)
    assert found.shape[1:] == shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_of_a_module_called_twice_the_last_call_counts() -> None:
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    block, relu = (
        build_backbone("resnet18", "random", SIZE, seed=3, layer=layer).module(pixels)
        for layer in ("layer2.0", "layer2.0.relu")
    )
    assert torch.equal(block, relu)


def test_vggs_last_convolution_before_the_fifth_pooling_is_its_last_map() -> None:
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    backbone = build_backbone("vgg11", "random", 96, 0, layer="features.19")
    found = backbone.module(pixels)
    assert found.shape == (2, 512, 6, 6)
    assert torch.equal(found, backbone.maps.last()(pixels))
    before = backbone.maps.layers().until("features.18")(pixels)  # not as the ReLU behind it leaves it, in place
    assert before.min() < 0
    assert torch.equal(before.relu(), found)


def test_nothing_behind_the_layer_is_held() -> None:
    trunk = build_backbone("resnet18", "random", SIZE, seed=3, layer="layer2").module
    held = {name.split(".")[0] for name in trunk.state_dict()}
    assert held == {"conv1", "bn1", "layer1", "layer2"}


def test_a_trunk_has_the_tensors_and_the_hash_of_the_whole_backbone() -> None:
    whole, trunk = (build_backbone("resnet18", "random", SIZE, 3, layer) for layer in (None, "layer3"))
    assert trunk.weights_sha256 == whole.weights_sha256
    tensors = whole.module.state_dict()
    for name, value in trunk.module.state_dict().items():
        assert torch.equal(value, tensors[name]), name


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("resnet18", "layer5", r"layer5 is no layer of resnet18; nearest: layer4, layer3"),
        ("resnet18", "nonsense", r"of resnet18; its blocks are, .* at 64 px, relu 32 x 32 x 64, layer1 16 x 16 x 64, "
         r"layer2 8 x 8 x 128, layer3 4 x 4 x 256, layer4 2 x 2 x 512\."),
        ("swin_t", "nonsense", r"features\.1 16 x 16 x 96, features\.2\.norm 8 x 8 x 384, features\.3 8 x 8 x 192"),
        ("resnet18", "fc", r"fc of resnet18 gives no map: its shape is \(1, 1000\); its blocks are"),
        ("timm/resnet18", "layer5", r"layer5 is no layer of resnet18; nearest: layer4"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_map_is_answered_with_those_that_are(name: str, layer: str, message: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(WeightsError, match=message):
        build_backbone(name, "random", SIZE, 0, layer)


def test_timm_networks_whose_graph_cannot_be_traced_have_no_named_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")

    def trace(*_: object) -> None:
        raise fx.proxy.TraceError("symbolically traced variables\nin control flow")

    monkeypatch.setattr("pipeline.vision.maps.trace", trace)
    with pytest.raises(WeightsError, match=r"resnet18, whose graph cannot be traced \(symbolically traced variables\)"):
        build_backbone("timm/resnet18", "random", SIZE, 0, "layer2")
    assert build_backbone("timm/resnet18", "random", SIZE, 0).module(torch.zeros(1, 3, SIZE, SIZE)).shape[1] == 512


def test_axes_that_cannot_be_told_apart_are_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(WeightsError, match=r"shape \(1, 40, 40, 40\) at 160 px.*another encode\.image_size"):
        build_backbone("convnext_atto", "random", 160, 0, "stages.0")
    assert build_backbone("convnext_atto", "random", 128, 0, "stages.0").module(torch.zeros(1, 3, 128, 128)).shape == (
        1, 40, 32, 32,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_engine_runs_a_layer(engine: str, precision: str, images: list) -> None:  # type: ignore[type-arg]
    backbone = build_backbone("resnet18", "random", SIZE, 4, "layer3")
    built, expected = opened(backbone, engine, precision), plain(backbone, images)
    assert (built.grid, built.channels) == ((4, 4), 256)
    errors = torch.linalg.vector_norm(torch.from_numpy(built.start(images).result() - expected), dim=2)
    assert (errors / torch.from_numpy(expected).norm(dim=2)).max() < BOUNDS[built.precision]


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_the_batch_norms_of_a_trunk_are_folded(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    trunk = build_backbone(name, "random", SIZE, 4, "layer2").module
    assert any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fold_batch_norm(trunk).modules())


def test_a_layer_is_a_field_of_the_fingerprint_only_where_there_is_one() -> None:
    assert "layer" not in open_encoder(SETTINGS).fields
    layered = open_encoder(replace(SETTINGS, layer="layer3"))
    assert layered.fields["layer"] == "layer3"
    again, warnings = encoder_like(layered.fields, SETTINGS)
    assert (again.fields, warnings, again.engine.channels) == (layered.fields, [], 256)
    plainly, warnings = encoder_like(open_encoder(SETTINGS).fields, replace(SETTINGS, layer="layer3"))
    assert ("layer" in plainly.fields, warnings, plainly.engine.channels) == (False, [], 512)

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from pipeline.errors import DependencyError, MissingError, WeightsError
from pipeline.vision.backbones import build_backbone
from pipeline.vision.weights import read_state_dict

SIZE = 64


def test_torchvision_map_is_what_the_last_pooling_reads() -> None:
    torch.manual_seed(3)
    model = models.resnet18(weights=None).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        expected = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    built = build_backbone("resnet18", "random", SIZE, seed=3)
    built.module.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")})
    torch.testing.assert_close(built.module(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("vgg11", 96, (512, 6, 6)),  # before the fifth pooling, as Show, Attend and Tell has it
        ("squeezenet1_1", 64, (512, 3, 3)),  # before the classifier's convolution
        ("shufflenet_v2_x0_5", 64, (1024, 2, 2)),  # pools by mean()
        ("swin_t", 64, (768, 2, 2)),  # channels last inside
        ("mobilenet_v3_small", 64, (576, 2, 2)),  # pools inside its blocks as well
    ],
)
def test_every_family_gives_its_last_spatial_map(name: str, size: int, shape: tuple[int, ...]) -> None:
    built = build_backbone(name, "random", size, seed=0)
    assert built.module(torch.zeros(1, 3, size, size)).shape[1:] == shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("timm/resnet18", (512, 2, 2)),
        ("swin_tiny_patch4_window7_224", (768, 2, 2)),
        ("tf_efficientnet_lite0", (1280, 2, 2)),
    ],
)
def test_timm_map_has_channels_first(name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip("timm")
    built = build_backbone(name, "random", SIZE, seed=0)
    assert built.library == "timm"
    assert built.module(torch.zeros(1, 3, SIZE, SIZE)).shape[1:] == shape


def test_a_name_of_both_libraries_is_torchvisions() -> None:
    assert build_backbone("resnet18", "random", SIZE, seed=0).library == "torchvision"


def test_random_weights_follow_the_seed_and_measured_statistics_keep_regions_apart() -> None:
    first, again, other = (build_backbone("resnet18", "random", SIZE, seed=seed) for seed in (1, 1, 2))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    images = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    features = first.module(images)
    assert 0.1 < features.std() < 5  # untouched statistics give 25
    assert features.std(dim=0).mean() > 0.3 * features.std()  # images differ


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_backbone("resnet18", "random", SIZE, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_frozen_buffers_stay_equal_over_many_batches() -> None:
    module = build_backbone("resnet18", "random", SIZE, seed=0).module
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for _ in range(9):
        module(5 + 3 * torch.randn(4, 3, SIZE, SIZE))
    assert before
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.fixture
def state(tmp_path: Path) -> tuple[dict[str, torch.Tensor], Path]:
    torch.manual_seed(11)
    return models.resnet18(weights=None).state_dict(), tmp_path / "mine.pth"


def test_half_floats_of_a_state_dict_become_float32(state: tuple[dict[str, torch.Tensor], Path]) -> None:
    tensors, path = state
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}, path)
    built = build_backbone("resnet18", str(path), SIZE, seed=0)
    loaded = built.module.state_dict()["conv1.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, tensors["conv1.weight"].half().float())
    assert built.weights == "mine.pth"  # never the folder, which differs between machines


def test_another_classifier_fits(state: tuple[dict[str, torch.Tensor], Path]) -> None:
    tensors, path = state
    torch.save({**tensors, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, path)
    loaded = build_backbone("resnet18", str(path), SIZE, seed=0).module.state_dict()
    assert torch.equal(loaded["layer4.1.conv2.weight"], tensors["layer4.1.conv2.weight"].float())


def test_keys_that_do_not_fit_are_named_ten_of_each_kind(state: tuple[dict[str, torch.Tensor], Path]) -> None:
    tensors, path = state
    changed = {key: value for key, value in tensors.items() if not key.startswith("layer4")}
    changed.update({"layer9.odd": torch.zeros(1), "conv1.weight": torch.zeros(64, 3, 5, 5)})
    torch.save(changed, path)
    with pytest.raises(WeightsError, match="does not fit resnet18") as caught:
        build_backbone("resnet18", str(path), SIZE, seed=0)
    message = str(caught.value)
    assert "25 missing (layer4.0.bn1.bias" in message
    assert "1 unexpected (layer9.odd)" in message
    assert "conv1.weight (64, 3, 5, 5) instead of (64, 3, 7, 7)" in message
    assert message.count("layer4.") == 10


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00not a state dict", "cannot be read as a state dict"),
        ("code", "cannot be read as a state dict"),
        ([1, 2], "holds a list; expected a state dict"),
        ({"a": 3}, "other values than tensors"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(_Code() if content == "code" else content, path)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)
    assert capsys.readouterr().out == ""


def test_a_state_dict_that_is_absent_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.pth does not exist"):
        build_backbone("resnet18", str(tmp_path / "none.pth"), SIZE, seed=0)


def test_unknown_weights_name_lists_the_choices() -> None:
    with pytest.raises(
        WeightsError, match=r"IMAGENET1K_V9 is no weights name of resnet50.*IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        build_backbone("resnet50", "IMAGENET1K_V9", SIZE, seed=0)


def test_unknown_timm_weights_name_lists_the_choices() -> None:
    pytest.importorskip("timm")
    with pytest.raises(WeightsError, match=r"nonsense is no weights name of tf_efficientnet_lite2.*in1k"):
        build_backbone("tf_efficientnet_lite2", "nonsense", SIZE, seed=0)


def test_unknown_backbone_suggests_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"resnet19.*nearest: resnet18"):
        build_backbone("resnet19", "default", SIZE, seed=0)


def test_a_backbone_without_a_spatial_map_is_refused() -> None:
    with pytest.raises(WeightsError, match="vit_b_16 has no spatial feature map"):
        build_backbone("vit_b_16", "random", 224, seed=0)


def test_a_backbone_of_several_maps_is_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(WeightsError, match="coat_tiny has no spatial feature map: it gives several tensors"):
        build_backbone("coat_tiny", "random", 224, seed=0)


def test_timm_names_without_timm_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(DependencyError, match=r"pip install -c constraints\.txt -e '\.\[timm\]'"):
        build_backbone("timm/resnet18", "random", SIZE, seed=0)
    with pytest.raises(WeightsError, match=r"no backbone of torchvision.*-e '\.\[timm\]'"):
        build_backbone("tf_efficientnet_lite2", "random", SIZE, seed=0)


def test_a_download_that_fails_offline_says_to_give_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(
        WeightsError, match=r"resnet18 IMAGENET1K_V1 could not be fetched.*give its path in encode\.weights"
    ):
        build_backbone("resnet18", "default", SIZE, seed=0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_preprocessing_is_that_of_the_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    path = tmp_path / "lite.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), path)
    built = build_backbone("tf_efficientnet_lite0", str(path), SIZE, seed=0).preprocessing
    assert (built.mean, built.std, built.interpolation) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    assert built.image_size == SIZE


def test_inception_of_published_weights_rescales_inside(tmp_path: Path) -> None:
    path = tmp_path / "googlenet.pth"
    model = models.get_model("googlenet", weights=None, init_weights=True, transform_input=True).eval()
    torch.save(model.state_dict(), path)
    image = torch.randn(1, 3, SIZE, SIZE)
    seen: list[torch.Tensor] = []
    model.avgpool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(image)
    built: nn.Module = build_backbone("googlenet", str(path), SIZE, seed=0).module
    torch.testing.assert_close(built(image), seen[0])

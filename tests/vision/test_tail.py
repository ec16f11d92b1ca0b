"""A tail is the rest of the backbone, to the last bit of what it was frozen with, until it learns."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import DecoderShape
from pipeline.errors import CacheError, DependencyError, MissingError, SettingsError, WeightsError
from pipeline.files import sha256
from pipeline.vision.backbones import Backbone, build_backbone
from pipeline.vision.layers import Map
from pipeline.vision.tail import Tail, Tailed, build_tail

SIZE = 64
SHAPE = DecoderShape(vocabulary_size=9, channels=512, embedding_size=5, attention_size=3, hidden_size=7, dropout=0.0)
SOFT = {"activation": "tanh", "gate": True, "normalise": True, "tie": False}
CAPTIONS = torch.tensor([[[1, 4, 5, 6, 2]], [[1, 7, 2, 0, 0]], [[1, 8, 2, 0, 0]]])
LENGTHS = torch.tensor([[5], [3], [3]])


def fields(backbone: Backbone, layer: str | None, **changes: Any) -> dict[str, Any]:
    """Of the fingerprint, what a tail is built from."""
    made = {
        "backbone": backbone.name, "weights": backbone.weights, "weights_sha256": backbone.weights_sha256,
        "image_size": backbone.preprocessing.image_size, "seed": 3, **changes,
    }  # fmt: skip
    return made if layer is None else {**made, "layer": layer}


def cells(module: nn.Module, count: int = 3) -> Tensor:
    """A map as a cache has it, (B, N, C)."""
    pixels = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found: Tensor = module(pixels).flatten(2).transpose(1, 2).contiguous()
    return found


@pytest.fixture(scope="module")
def trunk() -> Backbone:
    return build_backbone("resnet18", "random", SIZE, seed=3, layer="layer3")


@pytest.fixture(scope="module")
def frozen(trunk: Backbone) -> Tail:
    """Not to be changed: see `tail`."""
    return build_tail(fields(trunk, "layer3"), "layer4", "unused")


@pytest.fixture
def tail(frozen: Tail) -> Tail:
    return copy.deepcopy(frozen)


@pytest.mark.parametrize(
    ("name", "layer", "first", "grid", "channels"),
    [
        ("resnet18", "layer2", "layer3", (2, 2), 512),  # two blocks
        ("squeezenet1_1", "features.10", "features.11", (3, 3), 512),
        ("swin_t", "features.5", "features.6", (2, 2), 768),  # channels last
        ("timm/tf_efficientnet_lite0", "blocks.5", "blocks.6", (2, 2), 1280),
    ],
)
def test_a_tail_gives_of_the_layers_cells_what_the_whole_backbone_gives(
    name: str, layer: str, first: str, grid: tuple[int, int], channels: int
) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    backbone = build_backbone(name, "random", SIZE, 3, layer)
    tail = build_tail(fields(backbone, layer), first, "unused").train()
    found = tail(cells(backbone.module))
    assert (tail.grid, tail.channels) == (grid, channels)
    assert found.is_contiguous()
    torch.testing.assert_close(found, cells(backbone.maps.last()), rtol=1e-4, atol=1e-4)


def test_a_tail_leaves_the_cells_it_is_given_alone() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(5, 2, 1))
    given = torch.randn(2, 6, 5)
    before = given.clone()
    assert Tail(network, Map((2, 3), 5, channels_last=False))(given).shape == (2, 6, 2)
    assert torch.equal(given, before)


def test_statistics_stay_while_the_norms_weights_learn(tail: Tail, trunk: Backbone) -> None:
    before = copy.deepcopy(tail.state_dict())
    optimiser = torch.optim.SGD(tail.train().parameters(), lr=0.1)
    for _ in range(3):
        tail(cells(trunk.module) + 3).square().mean().backward()
        optimiser.step()
    after = tail.state_dict()
    weights = {name for name, _ in tail.named_parameters()}
    assert len(weights) == 15  # five convolutions, and two weights of each of five norms
    assert all(not torch.equal(after[name], before[name]) for name in weights)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - weights)
    assert not any(module.training for module in tail.network.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cells_come_back_in_the_dtype_they_were_given_in(tail: Tail, trunk: Backbone, dtype: torch.dtype) -> None:
    given, expected = cells(trunk.module), tail(cells(trunk.module))
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = tail(given.to(dtype))
        assert found.dtype == dtype
        assert (found - expected).norm() / expected.norm() < 0.03


def tailed(tail: Tail) -> Tailed:
    torch.manual_seed(2)
    return Tailed(tail, build_captioner("soft", SHAPE, SOFT))


def test_a_tail_and_a_decoder_say_what_the_decoder_says_of_the_tails_cells(tail: Tail, trunk: Backbone) -> None:
    whole, given = tailed(tail), cells(trunk.module)
    pooling = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0.25, 0.25, 0.25, 0.25]])
    assert whole.look_through(pooling) is whole
    behind = tail(given).detach()
    expected = whole.decoder(behind, CAPTIONS, LENGTHS, None)
    found = whole(given, CAPTIONS, LENGTHS, None)
    assert found.attention.shape == (3, 1, 4, 3)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.attention, expected.attention)
    words = torch.tensor([1, 1, 1])
    for one, other in zip(
        whole.step(words, whole.start(given))[:2],
        whole.decoder.step(words, whole.decoder.start(behind))[:2],
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert not whole.start(given).select(torch.tensor([2])).memory[0].requires_grad  # type: ignore[attr-defined]


def test_gradients_reach_the_tail_through_the_decoder(tail: Tail, trunk: Backbone) -> None:
    whole, given = tailed(tail).train().double(), cells(trunk.module).double()
    weights = whole.tail.get_parameter("network.layer4.0.bn1.weight")

    def loss() -> Tensor:
        mean: Tensor = whole(given, CAPTIONS, LENGTHS, None).logits.square().mean()
        return mean

    loss().backward()
    assert all(bool((weights.grad != 0).any()) for weights in whole.parameters() if weights.grad is not None)
    assert all(weights.grad is not None for weights in whole.slow_parameters())
    with torch.no_grad():
        differences = []
        for sign in (1, -1):
            weights[7] += sign * 1e-6
            differences.append(sign * loss().item())
            weights[7] -= sign * 1e-6
    assert weights.grad is not None
    assert weights.grad[7].item() == pytest.approx(sum(differences) / 2e-6, rel=1e-4)


def test_the_tails_weights_learn_slowly_and_the_decoders_do_not(tail: Tail) -> None:
    whole = tailed(tail)
    slow = {id(weights) for weights in whole.slow_parameters()}
    assert {name.split(".")[0] for name, weights in whole.named_parameters() if id(weights) in slow} == {"tail"}
    assert {name.split(".")[0] for name, weights in whole.named_parameters() if id(weights) not in slow} == {"decoder"}


class _Own(nn.Module):
    def own_loss(self, *given: Tensor) -> tuple[Tensor, ...]:
        return given


def test_what_a_decoder_adds_to_the_loss_is_asked_of_it(tail: Tail) -> None:
    given = (torch.zeros(1), torch.ones(2), torch.ones(3))
    assert Tailed(tail, _Own()).own_loss(*given) == given  # type: ignore[arg-type]


def test_a_copy_lists_its_weights_in_the_same_order(tail: Tail) -> None:
    again = copy.deepcopy(tail)
    for kind in ("named_parameters", "named_buffers"):
        assert [name for name, _ in getattr(again, kind)()] == [name for name, _ in getattr(tail, kind)()]


def test_the_weights_of_a_state_dict_are_those_of_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.manual_seed(11)
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, path)
    made = {
        "backbone": "resnet18", "weights": "mine.pth", "weights_sha256": sha256(path), "image_size": SIZE,
        "seed": None, "layer": "layer3",
    }  # fmt: skip
    found = build_tail(made, "layer4", str(path)).state_dict()
    assert torch.equal(found["network.layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    with pytest.raises(WeightsError, match=r"state dict mine\.pth .*encode\.weights is other\.pth"):
        build_tail(made, "layer4", "other.pth")
    with pytest.raises(MissingError, match=r"mine\.pth does not exist"):
        build_tail(made, "layer4", str(tmp_path / "elsewhere" / "mine.pth"))
    torch.save({**state, "conv1.weight": state["conv1.weight"] + 1}, path)
    with pytest.raises(WeightsError, match=r"expected SHA-256 .*found"):
        build_tail(made, "layer4", str(path))


REFUSED: dict[str, tuple[Mapping[str, Any], str, type[Exception], str]] = {
    "the last map": ({}, "layer4", CacheError, r"holds the last map of resnet18: nothing that learns lies behind it.*"
                     r"layer3 for a ResNet's layer4.*train\.tail to null"),
    "the last block": ({"layer": "layer4"}, "layer4", CacheError, r"holds layer4 of resnet18: nothing .*"
                       r"Set encode\.layer to layer3, which layer4 reads"),
    "behind the last map": ({"layer": "avgpool"}, "fc", CacheError, r"holds avgpool of resnet18: nothing that learns"),
    "the second block": ({"layer": "layer2"}, "layer4", SettingsError, r"layer2 of resnet18, and what reads that is "
                         r"layer3.*Set train\.tail to layer3, or encode\.layer to layer3 and run"),
    "a part of the block": ({"layer": "layer3"}, "layer4.0", SettingsError, r"Set train\.tail to layer4"),
    "no block": ({"layer": "layer3"}, "layer9", SettingsError, r"Set train\.tail to layer4\."),
    "a shortcut": ({"layer": "layer4.0.conv1"}, "layer4.0.bn1", WeightsError, r"a shortcut leads .*blocks are"),
    "no layer": ({"layer": "layer7"}, "layer4", WeightsError, r"layer7 is no layer of resnet18; nearest"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "first", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tail_that_does_not_fit_is_answered_with_what_would(
    trunk: Backbone, changes: Mapping[str, Any], first: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        build_tail({**fields(trunk, None), **changes}, first, "unused")


def test_imported_features_have_no_tail() -> None:
    imported = {"backbone": "imported", "weights": "bottom-up.tsv", "weights_sha256": "0" * 64, "dtype": "float32"}
    with pytest.raises(CacheError, match=r"train\.tail is layer4, but .*imported from bottom-up\.tsv.*to null"):
        build_tail(imported, "layer4", "unused")


def test_random_weights_that_come_out_otherwise_are_refused(trunk: Backbone) -> None:
    with pytest.raises(WeightsError, match=r"random weights of resnet18 come out otherwise here.*dvc repro encode"):
        build_tail(fields(trunk, "layer3", seed=4), "layer4", "unused")


def test_a_tail_of_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch, trunk: Backbone) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(DependencyError, match=r"pip install -c constraints\.txt -e '\.\[timm\]'"):
        build_tail({**fields(trunk, "layer3"), "backbone": "timm/resnet18"}, "layer4", "unused")

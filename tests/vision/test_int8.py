"""Networks in int8: ranges that batch norms give, weights that overflow nowhere, integers where they are promised."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pipeline.errors import DependencyError, DeviceError
from pipeline.vision.backbones import Backbone, build_backbone
from pipeline.vision.engines import choose_engine
from pipeline.vision.graph import traced_copy
from pipeline.vision.images import Preprocessing
from pipeline.vision.int8 import Spread, quantise, spreads_of, weight_scales

SIZE = 64
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1), "bilinear")
# Of three channels: between them, an activation's kinks lie to the left, within and to the right.
BETA, GAMMA = (-0.7, 0.3, 5.0), (0.5, -1.1, 2.0)
needs_openvino = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")

Floats = NDArray[np.float64]


def norm(beta: tuple[float, ...] = BETA, gamma: tuple[float, ...] = GAMMA) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(len(beta)).requires_grad_(False)
    made.bias.copy_(torch.tensor(beta))
    made.weight.copy_(torch.tensor(gamma))
    return made.eval()


class Applied(nn.Module):
    """A function of a norm's output, or of two norms' outputs."""

    def __init__(self, function: Callable[..., Tensor], *norms: nn.Module) -> None:
        super().__init__()
        self.function, self.norms = function, nn.ModuleList(norms)

    def forward(self, values: Tensor) -> Tensor:
        return self.function(*(each(values) for each in self.norms))


def spread_of(network: nn.Module) -> Spread | None:
    """Of the network's output, where it is known."""
    traced = traced_copy(network)
    assert traced is not None
    (output,) = (node.args[0] for node in traced.graph.nodes if node.op == "output")
    assert isinstance(output, fx.Node)
    return spreads_of(traced, PREPROCESSING).get(output)


def samples(norm: nn.BatchNorm2d, seed: int) -> Floats:
    """(400,000, C) of what the norm's statistics say that it gives."""
    normal = np.random.default_rng(seed).standard_normal((400_000, norm.num_features))
    drawn: Floats = norm.bias.numpy() + normal * norm.weight.numpy()
    return drawn


def require_moments(spread: Spread | None, values: Floats) -> None:
    assert spread is not None
    np.testing.assert_allclose(spread.mean.numpy(), values.mean(0), atol=0.02)
    np.testing.assert_allclose(spread.variance.numpy(), values.var(0), rtol=0.02, atol=1e-3)


def test_pixels_reach_from_black_to_white() -> None:
    spread = spread_of(nn.Identity())
    assert spread is not None
    np.testing.assert_allclose(spread.low.numpy(), [-2, -2, -3])
    np.testing.assert_allclose(spread.high.numpy(), [2, 3, 7])


def test_a_norms_range_is_six_deviations_to_both_sides_whatever_its_sign() -> None:
    spread = spread_of(nn.Sequential(norm()))
    assert spread is not None
    np.testing.assert_allclose(spread.low.numpy(), [-3.7, -6.3, -7], rtol=1e-6)
    np.testing.assert_allclose(spread.high.numpy(), [2.3, 6.9, 17], rtol=1e-6)


def test_a_norm_without_weights_is_of_unit_deviation() -> None:
    spread = spread_of(nn.Sequential(nn.BatchNorm2d(2, affine=False)))
    assert spread is not None
    assert (spread.low.tolist(), spread.high.tolist()) == ([-6, -6], [6, 6])


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.SiLU(),
        nn.Hardswish(),
        nn.functional.gelu,
        torch.relu,
        lambda values: values.clamp(-1, 2),
        lambda values: nn.functional.leaky_relu(values, negative_slope=0.3),
    ],
    ids=["ReLU", "ReLU6", "SiLU", "Hardswish", "F.gelu", "torch.relu", "clamp", "F.leaky_relu"],
)
def test_moments_behind_an_activation_are_those_of_samples(activation: Callable[[Tensor], Tensor]) -> None:
    drawn = activation(torch.from_numpy(samples(norm(), 1))).numpy()
    found = spread_of(Applied(activation, norm()))
    require_moments(found, drawn)
    assert found is not None
    assert (found.low.numpy() <= drawn.min(0) + 1e-3).all()
    assert (found.high.numpy() >= drawn.max(0) - 1e-3).all()
    reach = activation(torch.linspace(-7, 17, 10_001, dtype=torch.float64))
    assert found.low.min() >= reach.min() - 1e-4  # no wider than what an activation can give
    assert found.high.max() <= reach.max() + 1e-4


def test_moments_of_a_sum_are_those_of_samples_and_its_range_six_deviations() -> None:
    first, second = norm(), norm((1.0, 0.2, -3.0), (0.1, 0.7, 1.5))
    for add in (torch.add, lambda one, other: one + other):
        found = spread_of(Applied(lambda one, other, add=add: add(one.relu(), other), first, second))
        values = samples(first, 2).clip(0) + samples(second, 3)
        require_moments(found, values)
        assert found is not None
        np.testing.assert_allclose(found.high.numpy(), values.mean(0) + 6 * values.std(0), rtol=0.02)


def test_channels_behind_each_other_keep_their_ranges_and_a_pooling_changes_none() -> None:
    first, second = norm((1.0, 2.0), (1.0, 1.0)), norm((3.0,), (0.5,))
    joined = Applied(lambda one, other: torch.cat((one, other), dim=1), first, second)
    found = spread_of(nn.Sequential(joined, nn.MaxPool2d(2)))
    assert found is not None
    np.testing.assert_allclose(found.high.numpy(), [7, 8, 6])


@pytest.mark.parametrize(
    "function",
    [
        nn.Conv2d(3, 5, 1),
        nn.Softmax(1),
        lambda values: values * 2,
        lambda values: values + 1,
        lambda values: values.mean((2, 3)),
        lambda values: torch.cat((values, values), dim=2),
        lambda values: values + torch.ones(3, 1, 1).sum(),
    ],
    ids=["convolution", "softmax", "product", "sum with a number", "mean", "cat of rows", "sum with a constant"],
)
def test_nothing_is_claimed_of_what_no_norm_or_known_function_gave(function: Callable[[Tensor], Tensor]) -> None:
    assert spread_of(Applied(function, norm())) is None
    assert spread_of(nn.Sequential(Applied(function, norm()), nn.ReLU())) is None


def greatest_pair(integers: NDArray[np.int64]) -> int:
    """The greatest magnitude of a sum of two products that vpmaddubsw forms, by trying all of them."""
    outputs, inputs, rows, columns = integers.shape
    greatest = 0
    for output, row, column in product(range(outputs), range(rows), range(columns)):
        for first in range(0, inputs, 2):
            pair = integers[output, first : first + 2, row, column]
            for bytes_ in product((0, 255), repeat=len(pair)):
                greatest = max(
                    greatest, abs(sum(int(weight) * byte for weight, byte in zip(pair, bytes_, strict=True)))
                )
    return greatest


def rounded(weight: Tensor) -> NDArray[np.int64]:
    whole: NDArray[np.int64] = np.rint(weight.numpy() / weight_scales(weight).numpy()[:, None, None, None]).astype(int)
    return whole


@pytest.mark.parametrize("shape", [(9, 7, 3, 2), (9, 8, 1, 1), (40, 2, 5, 5)], ids=["odd", "pointwise", "grouped"])
def test_no_pair_of_products_overflows_16_bits_and_none_has_room_to_spare(shape: tuple[int, int, int, int]) -> None:
    for seed in range(5):
        weight = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))
        for channel in weight.split(1):
            integers = rounded(channel)
            assert abs(integers).max() <= 127
            assert 126 * 255 <= greatest_pair(integers) <= 2**15 - 1


def test_equal_neighbours_share_the_range_and_opposite_or_tiny_ones_take_none_of_it() -> None:
    weight = torch.tensor([[0.5, 0.5, 0.1], [0.5, -0.5, 0.1], [0.5, 0.001, 0.5], [-0.5, -0.5, 0.0], [0.0, 0.0, 0.0]])
    expected = [[64, 64, 13], [127, -127, 25], [127, 0, 127], [-64, -64, 0], [0, 0, 0]]
    assert rounded(weight[:, :, None, None])[:, :, 0, 0].tolist() == expected


def test_a_channel_alone_in_its_group_keeps_all_127() -> None:
    weight = torch.from_numpy(np.random.default_rng(6).standard_normal((11, 1, 3, 3), np.float32))
    assert abs(rounded(weight)).max((1, 2, 3)).tolist() == [127] * 11


def backbone(name: str = "resnet18") -> Backbone:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    return build_backbone(name, "random", SIZE, seed=4)


def test_a_networks_weights_are_whole_steps_and_the_network_itself_is_left_alone() -> None:
    plain = backbone()
    before = {name: value.clone() for name, value in plain.module.state_dict().items()}
    convolutions = [each for each in quantise(plain.module, PREPROCESSING).modules() if isinstance(each, nn.Conv2d)]
    assert len(convolutions) == 20
    for each in convolutions:
        original = each.parametrizations.weight.original  # type: ignore[union-attr]
        scales = weight_scales(original)[:, None, None, None]  # type: ignore[arg-type]
        whole = (each.weight / scales).numpy()
        np.testing.assert_allclose(whole, np.rint(whole), atol=1e-4)
        assert len(np.unique(np.rint(whole))) > 100
    after = plain.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@needs_openvino
@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "mobilenet_v2", "timm/tf_efficientnet_lite0"])
def test_convolutions_poolings_and_additions_really_run_in_8_bits(name: str) -> None:
    from pipeline.vision.openvino_engine import compile_network

    plain = backbone(name)
    compiled = compile_network(plain.module, plain.preprocessing, "int8")
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    found = Counter((info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in told)
    # TensorFlow's padding of pixels by zeros that are not the integer 0 keeps the first convolution in floats.
    floats = {("Convolution", "f32"): 1} if "tf_" in name else {}
    assert {kind: count for kind, count in found.items() if kind[0] == "Convolution" and kind[1] != "u8"} == floats
    assert found["Convolution", "u8"] >= 19
    assert not found["Pooling", "f32"]
    # OpenVINO's name for elementwise arithmetic of its own: that of the pixels, and no addition.
    assert sum(count for (kind, _), count in found.items() if kind in ("Subgraph", "Eltwise")) == 1


@pytest.mark.parametrize("name", ["vgg11", "convnext_tiny"])
def test_a_network_without_batch_norms_is_refused(name: str) -> None:
    plain = backbone(name)
    with pytest.raises(DeviceError, match=r"encode\.precision int8 needs convolutions behind batch norms.*: auto\."):
        quantise(plain.module, plain.preprocessing)


class LooksAtValues(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values if values.sum() > 0 else -values


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), LooksAtValues(), nn.Conv2d(4, 5, 1)).eval()
    with pytest.raises(DeviceError, match=r"needs a network whose graph can be traced.*Set encode\.precision: auto"):
        quantise(network, PREPROCESSING)


@pytest.mark.parametrize(
    ("engine", "device"), [("torch", "cpu"), ("auto", "cuda"), ("torch", "cuda"), ("openvino", "cuda")]
)
def test_int8_is_refused_where_openvino_does_not_run(engine: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.vision.engines.find_device", lambda *_: torch.device(device))
    with pytest.raises(DeviceError, match=r"int8 is OpenVINO's, on a CPU; here .* Set encode\.engine: openvino"):
        choose_engine(nn.Identity(), PREPROCESSING, engine, "int8", device, 2)


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_int8_asks_for_openvino_where_it_is_not_installed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(
        DependencyError, match=r"precision int8 needs OpenVINO, .*Set encode\.precision: auto, .*\[openvino\]"
    ):
        choose_engine(nn.Identity(), PREPROCESSING, engine, "int8", "cpu", 2)


def test_a_sum_that_scales_one_of_its_parts_is_unknown() -> None:
    assert spread_of(Applied(lambda a, b: torch.add(a, b, alpha=100), norm(), norm())) is None
    assert spread_of(Applied(lambda a, b: torch.clamp(a, min=b), norm(), norm())) is None
    assert spread_of(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))) is None

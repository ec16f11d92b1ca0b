"""What runs on a GPU runs on a device that is not the CPU: nothing is left behind, and no step of training waits.

There it is the formulas that compute, as on a GPU, not the CPU's kernels; `far.py` says what such a device refuses.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners.ensemble import Ensemble
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.options import SearchOptions
from pipeline.captioners.search import find_captions
from pipeline.features.store import Quantisation
from pipeline.training.loop import Training
from pipeline.training.reward import CiderReward
from pipeline.training.self_critical import SelfCritical
from pipeline.training.settings import SelfCriticalSettings
from pipeline.training.view import View
from tests import far
from tests.captioners.test_decoders import Case, every_case, every_decoder
from tests.training.test_loop import CPU, training

CRITICAL = SelfCriticalSettings(epochs=2, samples=3, temperature=0.8, dropout=True, learning_rate=0.01)
OPTIONS = SearchOptions("beam", 3, 0.7, 1, 0.5, 1.0, 0, 1.0, 4, 0, 6)
KEYS = [f"{image:064x}" for image in range(5)]


@pytest.fixture(autouse=True)
def no_waits() -> None:
    far.waits.clear()


def begun(folder: Path, device: torch.device, case: Case, critical: bool = False) -> Training:
    """A training in float64, of batches of three images, whose every second batch makes a step."""
    own: dict[str, Any] = {
        "decoder": case.decoder,
        "decoder_options": case.options,
        "embedding_size": 5,
        "hidden_size": 5,
    }
    made = training(folder, device=device, dtype=torch.float64, accumulate=2, average=0.5, **own)
    if critical:
        words = {row: [[4 + row % 5, 5, 6, 2], [7, 4, 2]] for row in range(11)}
        made.phase = SelfCritical(CRITICAL, CiderReward(words, 10, device), max_length=5)
    return made


def end_of_epoch(made: Training) -> tuple[list[list[str]], list[Tensor], dict[str, float]]:
    """What each batch of an epoch waited for, the weights after it, and its record."""
    waited = []
    for batch in made.batches_of(0, 0):
        far.waits.clear()
        made.take(batch)
        waited.append(list(far.waits))
    made.end_epoch({})
    weights = [far.back(weights.detach()) for weights in made.optimiser.average.captioner.parameters()]
    return waited, weights, made.progress.history[-1]


def hold(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


@every_case
def test_training_waits_for_no_step_and_ends_where_the_cpu_does(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected, record = end_of_epoch(begun(tmp_path / "near", CPU, case))
    with far.far_device(monkeypatch):
        waited, found, far_record = end_of_epoch(begun(tmp_path / "far", far.FAR, case))
        assert waited == [[], [], []]
        hold(found, expected)
    assert far_record == pytest.approx(record, rel=1e-9)


@every_decoder
def test_self_critical_training_waits_for_what_is_drawn_alone(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected, record = end_of_epoch(begun(tmp_path / "near", CPU, case, critical=True))
    with far.far_device(monkeypatch):
        waited, found, far_record = end_of_epoch(begun(tmp_path / "far", far.FAR, case, critical=True))
        assert {place for places in waited for place in places} == {
            "captioners/captioner.py: regrouped",
            "captioners/state.py: select",
            "captioners/sampling.py: _go_on",
            "training/self_critical.py: _longest_first",
        }
        hold(found, expected)
    assert far_record == pytest.approx(record, rel=1e-9)


def told(found: list[Hypothesis]) -> list[tuple[Any, ...]]:
    return [(each.words, each.finished, pytest.approx(each.log_probability, rel=1e-9)) for each in found]


def searched(device: torch.device, case: Case, **options: Any) -> list[Hypothesis]:
    """Captions of two decoders together, of images stored as bytes on a grid of their own."""
    stored = np.random.default_rng(4).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    view = View((3, 2), (4, 4), Quantisation((0.03,) * 7, (90,) * 7), device, torch.float64)
    members = [case.fast(seed).eval().to(device).look_through(view.pooling) for seed in (3, 8)]
    return find_captions(Ensemble(members, [None] * 2), view.see(stored), dataclasses.replace(OPTIONS, **options), KEYS)


SEARCHES: dict[str, dict[str, Any]] = {
    "beam": {"method": "beam"},
    "blocked": {"method": "beam", "block_ngrams": 2},
    "diverse": {"method": "beam", "beam": 4, "beam_groups": 2},
    "sample": {"method": "sample", "top_k": 5, "top_p": 0.9},
}


@pytest.mark.parametrize("options", SEARCHES.values(), ids=list(SEARCHES))
@every_decoder
def test_searches_find_what_the_cpu_finds(case: Case, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = searched(CPU, case, **options)
    with far.far_device(monkeypatch):
        found = searched(far.FAR, case, **options)
    assert told(found) == told(expected)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own.attention, other.attention, rtol=1e-5, atol=1e-7)


def test_the_device_refuses_what_a_gpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with far.far_device(monkeypatch):
        there = torch.ones(3, device=far.FAR)
        assert (there * 2 + torch.tensor(1.0)).device == far.FAR
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            there + torch.ones(3)
        assert far.waits == []
        assert bool(there.sum() == 3)
        assert there[there > 0].cpu().tolist() == [1.0, 1.0, 1.0]
        assert far.waits == ["a test"] * 3

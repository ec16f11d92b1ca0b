"""Self-critical training follows the gradient of the expected reward, and goes on from cross-entropy."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners import sampling
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, DecoderShape
from pipeline.captioners.sampling import Samples
from pipeline.errors import DivergedError
from pipeline.language.vocabulary import END, PAD, START, UNKNOWN
from pipeline.scoring.cider import CiderD
from pipeline.training import checkpoint, self_critical
from pipeline.training.batches import Batch
from pipeline.training.loop import Training
from pipeline.training.reward import CiderReward
from pipeline.training.self_critical import SelfCritical, advantages_of, said_log_probabilities
from pipeline.training.settings import SelfCriticalSettings
from pipeline.training.together import train_alone
from tests.training.conftest import SETTINGS
from tests.training.test_loop import Killed, training, weights

CPU = torch.device("cpu")
CRITICAL = SelfCriticalSettings(epochs=3, samples=3, temperature=0.8, dropout=False, learning_rate=0.01)
WORDS = (4, 5)
MOST = 2
# All that can be drawn: every caption of up to two words that ends, and those of two words that are cut.
CAPTIONS = [
    [*words, *end]
    for count in range(MOST + 1)
    for words in itertools.product(WORDS, repeat=count)
    for end in ([END], []) [: 2 if count == MOST else 1]
]  # fmt: skip


def decoder(vocabulary: int = 6, dropout: float = 0.5, name: str = "soft", **options: float) -> Captioner:
    torch.manual_seed(5)
    options = {**SETTINGS.decoder_options, **options}
    made = build_captioner(name, DecoderShape(vocabulary, 5, 4, 3, 7, dropout), options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)  # far from even, so that a wrong weight shows
    return made


def regions(images: int = 1) -> Tensor:
    return torch.randn(1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).expand(images, -1, -1)


def batch_of(images: int) -> Batch:
    return Batch(tuple(range(images)), regions(images), torch.zeros(images, 1, 2).long(), torch.ones(images, 1).long())


class Judge:
    """Any reward of each caption will do."""

    def __call__(self, _: Sequence[int], captions: Tensor, lengths: Tensor) -> Tensor:
        said = [[words[:length] for words, length in zip(*own, strict=True)]
                for own in zip(captions.tolist(), lengths.tolist(), strict=True)]  # fmt: skip
        return torch.tensor([[worth(words) for words in own] for own in said], dtype=torch.float64)


def worth(caption: list[int]) -> float:
    return float(np.sin(1 + 3 * CAPTIONS.index(caption))) + 2


def phase(samples: int = 2, most: int = MOST) -> SelfCritical:
    settings = dataclasses.replace(CRITICAL, samples=samples)
    return SelfCritical(settings, cast(Any, Judge()), most)


@torch.no_grad()
def likelihoods(captioner: Captioner) -> list[float]:
    """The probability of each of `CAPTIONS`, word by word from the decoder's steps, in float64."""
    found = []
    for caption in CAPTIONS:
        state, words, total = captioner.start(regions()), [START, *caption], 1.0
        for word, following in itertools.pairwise([*words, PAD] if END not in caption else words):
            logits, _, state = captioner.step(torch.tensor([word]), state)
            logits[:, [PAD, START, UNKNOWN]] = -torch.inf
            shares = torch.softmax(logits[0] / CRITICAL.temperature, 0)
            total *= float(1 - shares[END] if following == PAD else shares[following])
        found.append(total)
    return found


def directed(captioner: Captioner) -> tuple[list[Tensor], float]:
    """A direction of the weights, and how fast the expected reward rises along it, by central differences."""
    chance = torch.Generator().manual_seed(2)
    way = [torch.randn(one.shape, generator=chance, dtype=one.dtype) for one in captioner.parameters()]
    expected = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for one, direction in zip(captioner.parameters(), way, strict=True):
                one.add_(direction, alpha=step)
        shares = likelihoods(captioner)
        expected.append(sum(share * worth(caption) for share, caption in zip(shares, CAPTIONS, strict=True)))
    with torch.no_grad():
        for one, direction in zip(captioner.parameters(), way, strict=True):
            one.add_(direction, alpha=1e-5)
    return way, (expected[0] - expected[1]) / 2e-5


def forced(pair: Sequence[list[int]]) -> Samples:
    """Captions as `sample` gives them, of one image."""
    words = torch.full((1, len(pair), MOST + 2), PAD)
    words[..., 0] = START
    for line, caption in zip(words[0], pair, strict=True):
        line[1 : 1 + len(caption)] = torch.tensor(caption)
    return Samples(words, (words != PAD).sum(-1), torch.zeros(0), torch.zeros(0))


def test_all_that_can_be_drawn_has_a_probability_of_one() -> None:
    assert len(CAPTIONS) == 11
    assert sum(likelihoods(decoder())) == pytest.approx(1, rel=1e-12)


def test_over_all_pairs_of_captions_the_estimate_is_the_gradient_of_the_expected_reward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner, critical = decoder(), phase()
    way, slope = directed(captioner)
    shares = likelihoods(captioner)
    for (one, first), (other, second) in itertools.product(zip(CAPTIONS, shares, strict=True), repeat=2):
        monkeypatch.setattr(self_critical, "sample", lambda *_, pair=(one, other), **__: forced(pair))
        lesson = critical.lesson(captioner, batch_of(1), torch.Generator())
        loss, _ = critical.loss(captioner, lesson, (1, 1))
        (first * second * loss).backward()
    found = sum(float((one.grad * direction).sum()) for one, direction in zip(captioner.parameters(), way, strict=True)
                if one.grad is not None)  # fmt: skip
    assert found == pytest.approx(-2 * slope, rel=1e-5)
    assert abs(slope) > 0.01


def test_the_estimate_of_many_samples_comes_near_the_gradient() -> None:
    captioner, critical = decoder(), phase(samples=5)
    way, slope = directed(captioner)
    lesson = critical.lesson(captioner, batch_of(4000), torch.Generator().manual_seed(0))
    loss, sums = critical.loss(captioner, lesson, (4000, 1))
    loss.backward()
    found = sum(float((one.grad * direction).sum()) for one, direction in zip(captioner.parameters(), way, strict=True)
                if one.grad is not None)  # fmt: skip
    assert found == pytest.approx(-5 * slope, rel=0.03)
    expected = sum(share * worth(caption) for share, caption in zip(likelihoods(captioner), CAPTIONS, strict=True))
    assert float(sums[1] / sums[2]) == pytest.approx(expected, rel=0.01)
    assert sums[2] == 20_000


def test_the_baseline_is_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 4.0, 7.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    assert advantages_of(rewards).tolist() == [[1 - 5.5, 0, 7 - 2.5], [0, 0, 0]]


def test_what_learns_is_what_was_drawn_without_dropout_and_cut_captions_count_their_last_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[Samples] = []

    def drawn_once(*given: Any, **named: Any) -> Samples:
        kept.append(sampling.sample(*given, **named))
        return kept[0]

    monkeypatch.setattr("pipeline.training.self_critical.sample", drawn_once)
    captioner, critical = decoder(9).float(), SelfCritical(CRITICAL, cast(Any, lambda *_: torch.rand(7, 3)), 4)
    batch = dataclasses.replace(batch_of(7), regions=torch.randn(7, 4, 5))
    lesson = critical.lesson(captioner, batch, torch.Generator().manual_seed(3))
    output = captioner(lesson.batch.regions, lesson.batch.captions, lesson.batch.lengths, None)
    logs = said_log_probabilities(output, lesson.batch.captions, lesson.batch.lengths, 1.0).detach()
    (found,) = kept
    drawn = {(row, *words): line
             for row, (own, lines) in enumerate(zip(found.captions.tolist(), found.log_probabilities, strict=True))
             for words, line in zip(own, lines, strict=True)}  # fmt: skip
    rows = [row for row in lesson.batch.rows for _ in range(3)]
    counts = (lesson.batch.lengths - 1).flatten().tolist()
    cut = 0
    for row, words, own in zip(rows, lesson.batch.captions.flatten(0, 1).tolist(), logs.split(counts), strict=True):
        said = drawn[row, *words]
        if END not in words:
            cut += 1
            assert own[-1] < 0
            own = own[:-1]
        torch.testing.assert_close(own, said[: len(own)], rtol=1e-4, atol=1e-5)
        assert not said[len(own) :].any()
    assert 0 < cut < 21


def test_a_lesson_is_longest_first_and_keeps_regions_rows_and_rewards_with_their_captions() -> None:
    captioner = decoder(9).float()
    chance = torch.Generator().manual_seed(4)
    batch = dataclasses.replace(batch_of(5), rows=(8, 3, 5, 9, 1), regions=torch.randn(5, 4, 5, generator=chance))
    places = {tuple(own.flatten().tolist()): row for own, row in zip(batch.regions, batch.rows, strict=True)}
    seen: dict[tuple[int, tuple[int, ...]], float] = {}

    def judge(rows: Sequence[int], captions: Tensor, lengths: Tensor) -> Tensor:
        rewards = torch.arange(float(captions[..., 0].numel())).view(captions.shape[:2]).double() ** 1.5
        for row, own, lines, worths in zip(rows, captions.tolist(), lengths.tolist(), rewards.tolist(), strict=True):
            seen.update({(row, tuple(w)): v for w, n, v in zip(own, lines, worths, strict=True)})
        return rewards

    critical = SelfCritical(dataclasses.replace(CRITICAL, samples=4), cast(Any, judge), 6)
    lesson = critical.lesson(captioner, batch, chance)
    drawn, rewards, advantages = lesson.batch, lesson.rewards, lesson.advantages
    assert rewards is not None and advantages is not None
    lengths = drawn.lengths
    assert (lengths[:, :-1] >= lengths[:, 1:]).all()
    assert lengths[:, 0].tolist() == sorted(lengths[:, 0].tolist(), reverse=True)
    assert sorted(drawn.rows) == sorted(batch.rows) and drawn.rows != batch.rows
    for row, own, lines, worths in zip(drawn.rows, drawn.regions, drawn.captions.tolist(), rewards, strict=True):
        assert places[tuple(own.flatten().tolist())] == row
        assert {seen[row, tuple(words[1:])] for words in lines} <= set(worths.tolist())
    torch.testing.assert_close(advantages, advantages_of(rewards))


def test_with_dropout_hard_attention_learns_of_the_regions_that_it_drew_words_from() -> None:
    captioner = decoder(dropout=0.0, name="hard", reward_weight=1.0, entropy_weight=0.0)
    losses = []
    for dropout in (False, True):
        critical = SelfCritical(dataclasses.replace(CRITICAL, dropout=dropout), cast(Any, Judge()), MOST)
        lesson = critical.lesson(captioner, batch_of(6), torch.Generator().manual_seed(3))
        losses.append(critical.loss(captioner, lesson, (1, 1))[0])
    assert torch.equal(*losses)


def test_words_that_are_never_said_learn_nothing() -> None:
    captioner, critical = decoder(), phase(samples=3)
    lesson = critical.lesson(captioner, batch_of(6), torch.Generator().manual_seed(1))
    critical.loss(captioner, lesson, (1, 1))[0].backward()
    gradient = captioner.get_parameter("output.bias").grad
    assert gradient is not None
    assert gradient[[PAD, START, UNKNOWN]].tolist() == [0, 0, 0]
    assert gradient[END] != 0


# Whole trainings, on the data of test_loop: 8 images whose captions are random.


def phases(folder: Path, told: list[Any] | None = None, **changes: Any) -> list[Training]:
    """Cross-entropy, then self-critical training of the same captioner."""
    critical = dataclasses.replace(CRITICAL, **changes.pop("critical", {}))
    first = training(folder, told, self_critical=critical, **changes)
    captions = first.images._captions
    references: dict[int, list[list[int]]] = {row: [] for row in first.images._lines}
    for row, words, length in zip(captions.row, captions.words, captions.lengths, strict=True):
        if row in references:
            references[int(row)].append(words[1:length].tolist())
    reward = CiderReward(references, 10, CPU)
    second = Training(
        first.captioner, first.settings, first.images, first.validation, checkpoint.Checkpoint(folder / "second"),
        torch.float32, first.tell, first.ranks, SelfCritical(critical, reward, 9), first.checkpoint,
    )  # fmt: skip
    return [first, second]


def stop_at(monkeypatch: pytest.MonkeyPatch, instant: int) -> None:
    step, count = Training._step, [0]

    def killed(self: Training, group: Any) -> None:
        if count[0] == instant:
            raise Killed
        count[0] += 1
        step(self, group)

    monkeypatch.setattr(Training, "_step", killed)


@pytest.mark.parametrize("instant", [3, 12, 13, 17])
def test_interrupted_in_either_phase_it_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: int
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)  # after every step
    changes: dict[str, Any] = {"average": 0.9, "monitor": "cider", "accumulate": 2, "batch_images": 2, "patience": 9}
    changes["epochs"] = 6  # of 2 steps each, then 3 of the second phase
    whole = phases(tmp_path / "whole", **changes)
    history = train_alone(*whole)
    assert len(history) == 9
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, instant)
        train_alone(*phases(tmp_path / "stopped", **changes))
    resumed = phases(tmp_path / "stopped", **changes)
    assert train_alone(*resumed) == history
    assert weights(resumed[1].captioner) == weights(whole[1].captioner)


def test_it_begins_with_the_best_weights_of_cross_entropy_and_a_fresh_optimiser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = phases(tmp_path, average=0.5)
    scores, seen = iter([1.0, 5.0, 2.0, 3.0]), []

    def judge(captioner: Captioner, _: Any) -> dict[str, float]:
        seen.append(weights(captioner))
        return {"loss": 1.0, "bleu4": next(scores), "cider": 0.0}

    monkeypatch.setattr(first, "validation", judge)
    train_alone(first)
    second.resume()
    assert weights(second.captioner) == seen[1]
    assert not second.optimiser.adam.state
    assert weights(second.optimiser.average.captioner) == seen[1]
    assert (second.progress.epoch, second.progress.best, second.progress.best_epoch) == (4, 5.0, 1)
    assert not second.over


def test_records_go_on_counting_and_hold_the_mean_reward(tmp_path: Path) -> None:
    told: list[Any] = []
    history = train_alone(*phases(tmp_path, told))
    assert len(history) == 7
    assert "train/reward" not in history[3]
    assert set(history[4]) == {
        "train/reward", "train/learning_rate", "validation/loss", "validation/bleu4", "validation/cider",
    }  # fmt: skip
    assert {record["train/learning_rate"] for record in history[4:]} == {0.01}
    assert [len(records) for records, _ in told] == [1, 2, 3, 4, 4, 5, 6, 7]  # once where the second begins
    assert 0 < history[4]["train/reward"] < 1000


@pytest.mark.parametrize(("scores", "best"), [([3, 9, 4, 4, 8, 8, 8], 1), ([3, 9, 4, 4, 8, 10, 8], 5)])
def test_the_best_of_both_phases_is_kept_by_the_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], best: int
) -> None:
    first, second = phases(tmp_path, monitor="cider")
    given, seen = iter(scores), []

    def judge(captioner: Captioner, _: Any) -> dict[str, float]:
        seen.append(weights(captioner))
        return {"loss": 1.0, "bleu4": 0.0, "cider": next(given)}

    for one in (first, second):
        monkeypatch.setattr(one, "validation", judge)
    train_alone(first, second)
    assert second.progress.best_epoch == best
    assert weights(second.captioner) == seen[best]


def test_patience_counts_within_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = phases(tmp_path, epochs=9, patience=2, critical={"epochs": 9})
    for one in (first, second):
        monkeypatch.setattr(one, "validation", lambda *_: {"loss": 1.0, "bleu4": 1.0, "cider": 0.0})
    assert len(train_alone(first, second)) == 3 + 2


def test_a_finished_first_phase_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = train_alone(*phases(tmp_path))
    for path in (tmp_path / "best.pt", tmp_path / "state.pt"):
        path.unlink()
    monkeypatch.setattr(Training, "_step", None)
    assert train_alone(*phases(tmp_path)) == history


def test_another_second_phase_begins_from_the_kept_end_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_alone(*phases(tmp_path))
    (tmp_path / "state.pt").unlink()
    (tmp_path / "second").rename(tmp_path / "away")
    steps, step = list[Training](), Training._step

    def counted(self: Training, group: Any) -> None:
        steps.append(self)
        step(self, group)

    monkeypatch.setattr(Training, "_step", counted)
    first, second = phases(tmp_path, critical={"samples": 2, "epochs": 2})
    assert len(train_alone(first, second)) == 6
    assert set(steps) == {second}
    again = training(tmp_path, self_critical=dataclasses.replace(CRITICAL, epochs=0))  # and cross-entropy alone is over
    assert len(train_alone(again)) == 4
    assert len(steps) == 6


def test_batches_of_a_group_count_by_their_words(tmp_path: Path) -> None:
    first, second = phases(tmp_path, clip_norm=1e6, accumulate=2, batch_images=5, critical={"learning_rate": 1e-9})
    group = list(first.batches_of(0, 0))
    kept: list[Tensor] = []
    second.optimiser.adam.step = lambda: kept.extend(one.grad.clone() for one in second.captioner.parameters())  # type: ignore
    second._step(group)
    plain = [torch.zeros_like(one) for one in kept]
    words = 0
    for number, batch in enumerate(group):
        lesson = second.phase.lesson(second.captioner, batch, second._generator(number))
        words += int(lesson.batch.counts[0])
        second.optimiser.adam.zero_grad()
        second.phase.loss(second.captioner, lesson, (1, 1))[0].backward()
        for total, one in zip(plain, second.captioner.parameters(), strict=True):
            total += one.grad if one.grad is not None else 0
    for ours, total in zip(kept, plain, strict=True):
        torch.testing.assert_close(ours, total / words, rtol=1e-4, atol=1e-7)


def test_the_reward_is_cider_of_the_samples_with_their_end(tmp_path: Path) -> None:
    first, second = phases(tmp_path)
    batch = next(first.batches_of(0, 0))
    lesson = second.phase.lesson(second.captioner, batch, torch.Generator().manual_seed(1))
    captions = first.images._captions
    references = [[[str(word) for word in words[1:length]]
                   for own, words, length in zip(captions.row, captions.words, captions.lengths, strict=True)
                   if own == row] for row in range(8)]  # fmt: skip
    said = [[str(word) for word in words[1:] if word != PAD] for own in lesson.batch.captions.tolist() for words in own]
    scores = CiderD(references).score(said, [row for row in lesson.batch.rows for _ in range(3)])
    assert lesson.rewards is not None
    np.testing.assert_allclose(lesson.rewards.flatten().numpy(), scores, rtol=1e-9, atol=1e-12)


def test_a_reward_that_is_no_number_stops_and_names_the_phases_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = phases(tmp_path)
    monkeypatch.setattr(second.phase, "reward", lambda *_: torch.full((3, 3), float("nan")))
    told = r"epoch 5, step 1 of 3: the loss is nan .*Lower train\.self_critical\.learning_rate \(0\.01\)"
    with pytest.raises(DivergedError, match=told):
        train_alone(first, second)


def test_captions_get_better(tmp_path: Path) -> None:
    first, second = phases(
        tmp_path, epochs=6, patience=20, dropout=0.0, critical={"epochs": 12, "learning_rate": 0.03, "samples": 5}
    )
    rewards = [record["train/reward"] for record in train_alone(first, second)[6:]]
    assert rewards[-1] > 1.5 * rewards[0]

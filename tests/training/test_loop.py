"""Training decides, saves, goes on after an interruption as if there had been none, and stops at nonsense."""

import copy
import dataclasses
import gc
import math
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, DecoderShape
from pipeline.errors import CheckpointError, DivergedError
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import MARKS, Vocabulary
from pipeline.training import checkpoint, cross_entropy, schedule
from pipeline.training.batches import CaptionedImages, Regions
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Training
from pipeline.training.losses import Loss, captioning_loss
from pipeline.training.progress import Record
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.together import train, train_alone
from pipeline.training.validation import Validation
from tests.training.conftest import SETTINGS, MemoryReader

VOCABULARY = Vocabulary((*MARKS, "a", "red", "blue", "dot", "left", "of"))
IMAGES = 11
CPU = torch.device("cpu")


def training(
    folder: Path,
    told: list[Any] | None = None,
    images: int = 8,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    device: torch.device = CPU,
    **changes: Any,
) -> Training:
    settings = dataclasses.replace(SETTINGS, **changes)
    generator = np.random.default_rng(2)
    rows = [row for row in range(IMAGES) for _ in range(1 + row % 3)]
    captions = [[1, *generator.integers(4, 10, 2 + index % 4).tolist(), 2] for index in range(len(rows))]
    encoded = EncodedCaptions.of(rows, captions)
    regions = Regions(cast(Any, MemoryReader(IMAGES)), (2, 3), device, dtype)
    references = [
        [VOCABULARY.decode(captions[index]) for index in range(len(rows)) if rows[index] == row] for row in (8, 9, 10)
    ]
    torch.manual_seed(settings.seed)
    shape = DecoderShape(
        10, 5, settings.embedding_size, settings.attention_size, settings.hidden_size, settings.dropout
    )
    captioner = build_captioner(settings.decoder, shape, settings.decoder_options).to(device, dtype)
    validation = Validation(CaptionedImages(encoded, [8, 9, 10], regions), [8, 9, 10], references, VOCABULARY, 3)
    taught = CaptionedImages(encoded, range(images), regions)

    def tell(history: list[Record], measured: Record) -> None:
        if told is not None:
            told.append((list(history), measured))

    return Training(captioner, settings, taught, validation, Checkpoint(folder), torch.float32, tell, ranks)


def weights(captioner: Captioner) -> bytes:
    return b"".join(value.numpy().tobytes() for value in captioner.state_dict().values())


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize("instant", [1, 2, 3, 4, 7, 11])
@pytest.mark.parametrize("slowing", ["cosine", "plateau"])
def test_an_interrupted_training_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: int, slowing: str
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)  # after every step
    whole = training(tmp_path / "whole", schedule=slowing)
    history = train_alone(whole)
    interrupted = training(tmp_path / "interrupted", schedule=slowing)
    step, count = interrupted._step, [0]

    def killed(group: Any) -> None:
        if count[0] == instant:
            raise Killed
        count[0] += 1
        step(group)

    monkeypatch.setattr(interrupted, "_step", killed)
    with pytest.raises(Killed):
        train_alone(interrupted)
    resumed = training(tmp_path / "interrupted", schedule=slowing)
    again: list[int] = []
    later = resumed._step

    def counted(group: Any) -> None:
        again.append(1)
        later(group)

    monkeypatch.setattr(resumed, "_step", counted)
    assert train_alone(resumed) == history
    assert weights(resumed.captioner) == weights(whole.captioner)
    lost = 1 if instant % 3 == 0 and instant else 0  # an epoch's last step is saved with its validation
    assert len(again) <= 12 - instant + lost


def test_the_best_epoch_is_kept_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(tmp_path)
    scores, seen = iter([1.0, 5.0, 5.0, 2.0]), []

    def judge(captioner: Captioner, _: Any) -> Record:
        seen.append(weights(captioner))
        return {"loss": 1.0, "bleu4": next(scores), "cider": 0.0}

    monkeypatch.setattr(run, "validation", judge)
    train_alone(run)
    assert weights(run.captioner) == seen[1]
    assert run.progress.best_epoch == 1


def test_of_epochs_with_one_score_the_one_of_least_loss_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(tmp_path, patience=2)
    losses = iter([5.0, 4.0, 4.5, 4.0])
    monkeypatch.setattr(run, "validation", lambda *_: {"loss": next(losses), "bleu4": 0.0, "cider": 0.0})
    assert len(train_alone(run)) == 4
    assert run.progress.best_epoch == 1


def test_patience_ends_a_training_that_gets_no_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(tmp_path, epochs=50, patience=3)
    monkeypatch.setattr(run, "validation", lambda *_: {"loss": 1.0, "bleu4": 1.0, "cider": 0.0})
    assert len(train_alone(run)) == 4


def test_every_epoch_is_recorded_and_told(tmp_path: Path) -> None:
    told: list[Any] = []
    history = train_alone(training(tmp_path, told))
    assert [len(records) for records, _ in told] == [1, 2, 3, 4]
    assert set(history[0]) == {
        "train/loss", "train/penalty", "train/top5_accuracy", "train/learning_rate",
        "validation/loss", "validation/bleu4", "validation/cider",
    }  # fmt: skip
    assert {"captions_per_second", "waiting", "seconds"} == set(told[0][1])
    assert history[-1]["train/loss"] < history[0]["train/loss"]


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)
    run = training(tmp_path)
    step, count = run._step, [0]

    def poisoned(group: Any) -> None:
        count[0] += 1
        if count[0] == 5:
            group[0].regions.fill_(float("nan"))
        step(group)

    monkeypatch.setattr(run, "_step", poisoned)
    told = rf"epoch 2, step 2 of 3: the loss is nan .*saved last is in {tmp_path}\. Lower train\.learning_rate"
    with pytest.raises(DivergedError, match=told):
        train_alone(run)
    state = Checkpoint(tmp_path).load("state", torch.device("cpu"))
    assert state is not None
    assert all(value.isfinite().all() for value in state["captioner"].values())
    assert state["progress"]["epoch"] == 1
    assert state["progress"]["batches"] == 1
    assert state["progress"]["sums"].isfinite().all()


def test_a_step_that_is_seen_late_to_be_bad_has_changed_no_weight_nor_has_any_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", math.inf)
    run = training(tmp_path)
    run._between_looks = 1000  # as on a GPU, where a look at every step would cost
    step, seen = run._step, list[bytes]()

    def poisoned(group: Any) -> None:
        if len(seen) == 4:
            group[0].regions.fill_(float("nan"))
        step(group)
        seen.append(weights(run.captioner))

    monkeypatch.setattr(run, "_step", poisoned)
    with pytest.raises(DivergedError, match=r"epoch 2, step 2 of 3: the loss is nan "):
        train_alone(run)
    assert len(seen) == 6
    assert seen[2] != seen[3] == seen[4] == seen[5]
    state = Checkpoint(tmp_path).load("state", torch.device("cpu"))
    assert state is not None
    assert state["progress"]["epoch"] == 1


def test_a_look_that_comes_late_changes_nothing(tmp_path: Path) -> None:
    often, seldom = training(tmp_path / "often"), training(tmp_path / "seldom")
    seldom._between_looks = 1000
    assert train_alone(often) == train_alone(seldom)
    assert weights(often.captioner) == weights(seldom.captioner)


class Floats(TorchDispatchMode):
    """Counts how often a floating number is fetched from a tensor: on a GPU each would wait for all work before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fetched = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if "_local_scalar_dense" in str(function) and arguments[0].is_floating_point():
            self.fetched += 1
        return function(*arguments, **(named or {}))


def test_no_step_fetches_a_number_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, looks = training(tmp_path), list[int]()
    run._between_looks = 3
    monkeypatch.setattr(run, "look", lambda: looks.append(run.progress.batches))
    with Floats() as floats:
        for batch in run.images.in_order(3):
            run.take(batch)
    assert floats.fetched == 0
    assert looks == [3]


@pytest.mark.parametrize("images", [8, 7, 5])
def test_accumulated_batches_make_the_step_of_one_batch_of_all(tmp_path: Path, images: int) -> None:
    changes: dict[str, Any] = {"dropout": 0.0, "attention_penalty": 0.7, "dtype": torch.float64}
    small = training(tmp_path / "small", images=images, batch_images=2, accumulate=3, **changes)
    large = training(tmp_path / "large", images=images, batch_images=6, **changes)
    assert (small.batches, small.steps) == (math.ceil(images / 2), large.steps)
    for ours, theirs in zip(train_alone(small), train_alone(large), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    for own, other in zip(small.captioner.parameters(), large.captioner.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)


def test_an_interrupted_group_of_batches_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", -1.0)
    changes: dict[str, Any] = {"batch_images": 1, "accumulate": 3}
    whole, stopped = training(tmp_path / "whole", **changes), training(tmp_path / "stopped", **changes)
    history = train_alone(whole)
    take, count = stopped.take, [0]

    def killed(batch: Any) -> None:
        count[0] += 1
        if count[0] == 13:  # the fifth batch of the second epoch, the second of its group
            raise Killed
        take(batch)

    monkeypatch.setattr(stopped, "take", killed)
    with pytest.raises(Killed):
        train_alone(stopped)
    resumed = training(tmp_path / "stopped", **changes)
    resumed.resume()
    assert resumed.position == (1, 3)
    assert train_alone(resumed) == history
    assert weights(resumed.captioner) == weights(whole.captioner)


def test_no_tensor_is_kept_from_one_epoch_to_the_next(tmp_path: Path) -> None:
    held: list[int] = []

    def count(*_: Any) -> None:
        gc.collect()
        held.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))

    run = training(tmp_path)
    run.tell = count
    train_alone(run)
    assert len(held) == 4
    assert len(set(held)) == 1


def test_a_damaged_checkpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged: .*Delete"):
        train_alone(training(tmp_path))


def test_gradients_are_clipped_by_their_common_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(tmp_path, clip_norm=0.001)
    norms = []
    step = run.optimiser.adam.step

    def measured(*arguments: Any) -> Any:
        gradients = [value.grad.flatten() for value in run.captioner.parameters() if value.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        return step(*arguments)

    monkeypatch.setattr(run.optimiser.adam, "step", measured)
    run._step([next(run.images.in_order(3))])
    assert norms == [pytest.approx(0.001, rel=1e-2)]


def test_a_step_is_adamw_on_the_weighted_sum_of_both_losses(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"attention_penalty": 0.7, "label_smoothing": 0.2, "weight_decay": 0.3, "dropout": 0.0}
    run = training(tmp_path, clip_norm=1e6, **changes)
    other = copy.deepcopy(run.captioner)
    optimiser = torch.optim.AdamW(other.parameters(), weight_decay=0.3)
    for step, batch in enumerate(run.images.in_order(3)):
        run._step([batch])
        run.progress.batches += 1
        output = other(batch.regions, batch.captions, batch.lengths, None)
        loss = captioning_loss(output, batch.captions, batch.lengths, 0.2)
        optimiser.param_groups[0]["lr"] = run.schedule.rate(step)
        optimiser.zero_grad()
        (loss.words + 0.7 * loss.penalty).backward()
        optimiser.step()
    for (name, ours), theirs in zip(run.captioner.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_every_step_has_a_dropout_mask_of_its_own_that_the_seed_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: dict[int, list[int]] = {3: [], 4: []}
    for seed, seen in seeds.items():
        run = training(tmp_path / str(seed), seed=seed)
        forward = run.captioner.forward

        def noted(*arguments: Any, forward: Any = forward, seen: list[int] = seen) -> Any:
            if arguments[3] is not None:
                seen.append(arguments[3].initial_seed())
            return forward(*arguments)

        monkeypatch.setattr(run.captioner, "forward", noted)
        train_alone(run)
    assert len(set(seeds[3]) | set(seeds[4])) == 24


def test_a_record_holds_means_over_words_and_over_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = training(tmp_path, epochs=1), []

    def noted(*arguments: Any) -> Loss:
        seen.append(captioning_loss(*arguments))
        return seen[-1]

    monkeypatch.setattr(cross_entropy, "captioning_loss", noted)
    record = train_alone(run)[0]
    words = sum(loss.count for loss in seen)
    assert record["train/loss"] == pytest.approx(sum(loss.words.item() * loss.count for loss in seen) / words)
    assert record["train/penalty"] == pytest.approx(sum(loss.penalty.item() for loss in seen) / 3)
    assert record["train/top5_accuracy"] == pytest.approx(100 * sum(int(loss.top5) for loss in seen) / words)
    assert record["train/learning_rate"] == run.schedule.rate(2)


def test_the_monitor_decides_which_epoch_is_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for monitor, best in (("bleu4", 0), ("cider", 3)):
        run = training(tmp_path / monitor, monitor=monitor)
        scores = iter(range(1, 5))
        monkeypatch.setattr(run, "validation", lambda *_, s=scores: {"loss": 1.0, "bleu4": -(n := next(s)), "cider": n})
        train_alone(run)
        assert run.progress.best_epoch == best


def test_a_gradient_that_is_no_number_stops_as_well(tmp_path: Path) -> None:
    run = training(tmp_path)
    next(run.captioner.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = weights(run.captioner)
    with pytest.raises(DivergedError, match=r"the loss is \d.* and the gradient's norm (inf|nan)") as caught:
        train_alone(run)
    assert weights(run.captioner) == before
    assert not list(tmp_path.iterdir())
    assert "saved last" not in str(caught.value)


def test_the_error_of_a_training_that_diverged_does_not_hold_its_memory(tmp_path: Path) -> None:
    run = training(tmp_path)
    next(run.captioner.parameters()).register_hook(lambda gradient: gradient * math.inf)
    (error,), held = train([run]).values(), weakref.ref(run)
    del run
    gc.collect()
    assert "Training stopped" in str(error)
    assert held() is None


def test_training_and_validation_compute_in_the_precision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for precision in (torch.float32, torch.bfloat16):
        run = training(tmp_path / str(precision), epochs=1)
        seen: list[Any] = []
        run.precision = precision
        forward = run.captioner.forward

        def noted(*arguments: Any, forward: Any = forward, seen: list[Any] = seen) -> Any:
            output = forward(*arguments)
            seen.append((arguments[3] is None, output.logits.dtype))
            return output

        monkeypatch.setattr(run.captioner, "forward", noted)
        train_alone(run)
        assert set(seen) == {(False, precision), (True, precision)}
        assert all(value.dtype == torch.float32 for value in run.captioner.state_dict().values())


def test_a_checkpoint_forgets_half_written_files_and_loads_no_pickle(tmp_path: Path) -> None:
    (tmp_path / ".state.pt.123.partial").write_bytes(b"half")
    checkpoint = Checkpoint(tmp_path)
    assert not list(tmp_path.iterdir())
    torch.save({"captioner": Path("anything")}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        checkpoint.load("state", torch.device("cpu"))


def test_plateau_slows_a_training_down_and_a_restart_does_not_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "PLATEAU_EPOCHS", 1)
    rates = []
    for epochs in (3, 4):  # the second run goes on from the first
        run = training(tmp_path, epochs=epochs, schedule="plateau", warmup_epochs=0, learning_rate=0.5, patience=9)
        monkeypatch.setattr(run, "validation", lambda *_: {"loss": 1.0, "bleu4": 1.0, "cider": 0.0})
        rates = [record["train/learning_rate"] for record in train_alone(run)]
    assert rates == pytest.approx([0.5, 0.5, 0.4, 0.32])


def test_slow_weights_learn_at_a_rate_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipeline.captioners.soft.SoftCaptioner.slow_parameters", lambda self: list(self.attention.parameters())
    )
    run = training(tmp_path, learning_rate=0.02, tail_learning_rate=0.005, weight_decay=0.0, clip_norm=1e6)
    before = {name: one.detach().clone() for name, one in run.captioner.named_parameters()}
    run._step([next(run.images.in_order(3))])
    rate = run.schedule.rate(0)
    # Adam's first step is as long as the rate wherever the gradient is not tiny.
    for name, one in run.captioner.named_parameters():
        longest = (one - before[name]).abs().max().item()
        assert longest == pytest.approx(rate / 4 if name.startswith("attention.") else rate, rel=1e-3), name


def test_weights_that_do_not_learn_stay_as_they_are(tmp_path: Path) -> None:
    run = training(tmp_path, weight_decay=0.5)
    frozen = run.captioner.get_parameter("initial.weight").requires_grad_(False)
    before = frozen.clone()
    run = type(run)(
        run.captioner, run.settings, run.images, run.validation, run.checkpoint, run.precision, run.tell
    )  # fmt: skip
    train_alone(run)
    assert torch.equal(frozen, before)


def test_what_a_decoder_adds_to_the_loss_counts_as_a_mean_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def own_loss(_: Captioner, output: Any, losses: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        asked.append((losses.requires_grad, len(losses), int((lengths - 1).clamp(min=0).sum())))
        share: torch.Tensor = 3 * output.logits.mean()
        return share

    monkeypatch.setattr(Captioner, "own_loss", own_loss)
    changes: dict[str, Any] = {"dropout": 0.0, "label_smoothing": 0.0, "clip_norm": 1e6, "accumulate": 2}
    run = training(tmp_path, **changes)
    other = copy.deepcopy(run.captioner)
    group = list(run.images.in_order(3))[:2]
    kept: list[torch.Tensor] = []
    run.optimiser.adam.step = lambda: kept.extend(one.grad.clone() for one in run.captioner.parameters())  # type: ignore
    run._step(group)
    words, captions = torch.stack([batch.counts for batch in group]).sum(0).tolist()
    for batch in group:
        output = other(batch.regions, batch.captions, batch.lengths, None)
        loss = captioning_loss(output, batch.captions, batch.lengths, 0.0)
        own = 3 * output.logits.mean()
        penalty = loss.penalty * int(batch.counts[1]) / captions
        ((loss.words + own) * loss.count / words + penalty).backward()
    for ours, one in zip(kept, other.parameters(), strict=True):
        torch.testing.assert_close(ours, one.grad, rtol=1e-4, atol=1e-7)
    assert all(not gradients and count == expected for gradients, count, expected in asked)
    assert len(asked) == 2

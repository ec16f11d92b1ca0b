import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError, MissingError
from pipeline.language.captions import EncodedCaptions, choose, short_enough

ROWS, NUMBERS = [2, 2, 5], [[1, 7, 8, 2], [1, 9, 2], [1, 4, 4, 4, 2]]
FIVE = [[letter] for letter in "abcde"]


def test_captions_are_padded_to_the_longest() -> None:
    encoded = EncodedCaptions.of(ROWS, NUMBERS)
    assert encoded.words.tolist() == [[1, 7, 8, 2, 0], [1, 9, 2, 0, 0], [1, 4, 4, 4, 2]]
    assert encoded.lengths.tolist() == [4, 3, 5]
    assert encoded.row.tolist() == ROWS


def test_written_captions_read_back_and_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    encoded = EncodedCaptions.of(ROWS, NUMBERS)
    encoded.write(one)
    encoded.write(other)
    assert one.read_bytes() == other.read_bytes()
    read = EncodedCaptions.read(one)
    for name in ("row", "words", "lengths"):
        assert getattr(read, name).dtype == np.int32
        np.testing.assert_array_equal(getattr(read, name), getattr(encoded, name))


def test_captions_of_another_data_set_are_refused(tmp_path: Path) -> None:
    EncodedCaptions.of(ROWS, NUMBERS, "5d").write(tmp_path / "captions.npz")
    captions = EncodedCaptions.read(tmp_path / "captions.npz")
    captions.require_dataset("5d")
    with pytest.raises(DataError, match=r'another data set.*Run "dvc repro tokenize"'):
        captions.require_dataset("5e")


def test_missing_captions_name_the_stage(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="dvc repro tokenize"):
        EncodedCaptions.read(tmp_path / "captions.npz")


GOOD = {
    "row": np.array(ROWS, np.int32),
    "words": np.array([[1, 7, 2], [1, 9, 2], [1, 2, 0]], np.int32),
    "lengths": np.array([3, 3, 2], np.int32),
    "dataset": np.array("5d"),
}
DAMAGED = {
    "missing array": {"words": None},
    "of no data set": {"dataset": None},
    "other type": {"row": np.array(ROWS, np.int64)},
    "pickled": {"row": np.array([object()] * 3)},
    "rows too few": {"row": np.array([2, 5], np.int32)},
    "too long": {"lengths": np.array([3, 3, 4], np.int32)},
    "too short": {"lengths": np.array([3, 3, 1], np.int32)},
    "wrong end": {"lengths": np.array([3, 2, 2], np.int32)},
    "no start": {"words": np.array([[0, 7, 2], [1, 9, 2], [1, 2, 0]], np.int32)},
    "flat": {"words": np.array([1, 2, 3], np.int32)},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_damaged_captions_are_refused(tmp_path: Path, change: dict[str, np.ndarray | None]) -> None:
    arrays = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    np.savez(tmp_path / "captions.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"captions\.npz does not hold captions.*dvc repro -f tokenize"):
        EncodedCaptions.read(tmp_path / "captions.npz")


class Executed:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickled_array_is_not_executed(tmp_path: Path) -> None:
    objects = np.array([Executed(tmp_path / "executed")], dtype=object)
    np.savez(tmp_path / "captions.npz", **{**GOOD, "row": objects})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not hold captions"):
        EncodedCaptions.read(tmp_path / "captions.npz")
    assert not (tmp_path / "executed").exists()


def test_whole_arrays_are_accepted(tmp_path: Path) -> None:
    np.savez(tmp_path / "captions.npz", **GOOD)  # type: ignore[arg-type]
    assert EncodedCaptions.read(tmp_path / "captions.npz").lengths.tolist() == [3, 3, 2]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_truncated_captions_are_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "captions.npz"
    EncodedCaptions.of(ROWS, NUMBERS).write(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="does not hold captions"):
        EncodedCaptions.read(path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.npz").write_bytes(pickle.dumps({"row": [1]}))
    with pytest.raises(DataError, match="does not hold captions"):
        EncodedCaptions.read(tmp_path / "captions.npz")


def test_long_captions_are_left_out() -> None:
    assert short_enough([["a"] * 4, ["b"] * 3, [], ["c"] * 2], 3) == [["b"] * 3, ["c"] * 2]


def test_an_image_of_long_captions_keeps_its_shortest_cut() -> None:
    assert short_enough([["a"] * 6, ["b"] * 5, []], 3) == [["b"] * 3]


def test_an_image_without_words_keeps_nothing() -> None:
    assert short_enough([[], []], 3) == []
    assert choose([], 4, 0, "x") == []


def test_all_keeps_every_caption_in_order() -> None:
    assert choose(FIVE, "all", 0, "x") == FIVE


def test_a_sample_has_no_caption_twice_and_keeps_the_order() -> None:
    samples = [choose(FIVE, 3, seed, "x") for seed in range(40)]
    for sample in samples:
        assert len(sample) == 3
        assert sample == [caption for caption in FIVE if caption in sample]
    assert {caption[0] for sample in samples for caption in sample} == set("abcde")


def test_too_few_captions_are_repeated_evenly() -> None:
    repeated = choose(FIVE[:2], 5, 0, "x")
    assert sorted(map(repeated.count, FIVE[:2])) == [2, 3]


def test_a_choice_depends_on_seed_and_image_alone() -> None:
    assert choose(FIVE, 2, 1, "x") == choose(FIVE, 2, 1, "x")
    assert len({str(choose(FIVE, 2, seed, "x")) for seed in range(20)}) > 1
    assert len({str(choose(FIVE, 2, 1, image)) for image in "abcdefgh"}) > 1

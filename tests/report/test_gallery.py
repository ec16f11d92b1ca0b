import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.report import gallery
from pipeline.report.results import Caption


def caption(words: str, *references: str) -> Caption:
    split = words.split()
    return Caption("x", split, list(references), -2.0, np.full((len(split), 4), 0.25, dtype=np.float32))


@pytest.mark.parametrize(
    ("count", "wanted", "expected"), [(10, 2, [2, 7]), (7, 3, [1, 3, 5]), (3, 8, [0, 1, 2]), (5, 0, []), (0, 4, [])]
)
def test_gallery_is_spread_evenly(count: int, wanted: int, expected: list[int]) -> None:
    assert gallery.spread(count, wanted) == expected


def test_extremes_come_most_extreme_first_and_never_twice() -> None:
    scores = np.array([3.0, 1.0, 5.0, 1.0, 4.0])
    assert gallery.extremes(scores, 2) == ([2, 4], [1, 3])
    assert gallery.extremes(np.zeros(3), 4) == ([0], [1])
    assert gallery.extremes(np.zeros(1), 4) == ([], [])


def test_scores_are_cider_times_100_and_none_for_a_single_image() -> None:
    same = caption("a red dog runs", "a red dog runs")
    other = caption("two cats sleep here", "blue birds fly away")
    scores = gallery.image_scores([same, other])
    assert scores is not None
    np.testing.assert_allclose(scores, [1000, 0], atol=1e-9)
    assert gallery.image_scores([same]) is None


def test_attention_is_packed_by_word_relative_to_its_strongest() -> None:
    attention = np.array([[0.1, 0.2, 0.4, 0.1], [0, 0, 0, 0]], dtype=np.float32)
    packed, peaks = gallery.pack(attention)
    assert list(base64.b64decode(packed)) == [64, 128, 255, 64, 0, 0, 0, 0]
    assert peaks == ["2.0", "0.0"]


def test_card_holds_a_small_jpeg_of_the_whole_picture(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    Image.new("RGB", (1000, 500), "#3060c0").save(path)
    card = gallery.card(3, caption("a b"), path, 12.0)
    kind, _, data = card.picture.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg;base64"
    assert picture.size == card.size == (320, 160)
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 70)).save(small)
    assert gallery.card(1, caption("a"), small, None).size == (40, 70)


def test_card_of_an_image_that_is_gone_names_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png"):
        gallery.card(1, caption("a"), tmp_path / "gone.png", None)


def test_card_tells_which_words_looked_at_one_region_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6)).save(path)
    attention = np.array([[0, 0, 1, 0], [0.2, 0.3, 0.3, 0.2], [1, 0, 0, 0]], dtype=np.float32)
    jumped = Caption("x", ["a", "red", "dog"], [], -2.0, attention)
    assert gallery.card(1, jumped, path, None).alone == [2, None, 0]


def test_card_tells_how_much_of_a_word_comes_from_looking(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6)).save(path)
    attention = np.array([[0.02, 0.04, 0, 0.06], [0.2, 0.3, 0.3, 0.2], [0, 0, 0, 0]], dtype=np.float32)
    remembered = Caption("x", ["of", "red", "the"], [], -2.0, attention)
    assert gallery.card(1, remembered, path, None).looked == [12, 100, 0]

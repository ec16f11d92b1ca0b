from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.datasets.dataset import ImageFile
from pipeline.errors import DataError
from pipeline.features.foreign import open_foreign
from pipeline.features.matching import Regions, axes, common_axes, find_names
from tests.features.filled import noise
from tests.features.foreign_files import folder, images, keys, table

IDS = ["7", "12", "305"]
FLOAT = np.dtype(np.float32)


@pytest.mark.parametrize(
    ("shape", "said", "expected"),
    [
        ((36, 2048), None, Regions(36, 2048, None)),
        ((49, 2048), None, Regions(49, 2048, None)),  # a square number is no grid
        ((49, 2048), (7, 7), Regions(49, 2048, (7, 7))),
        ((36, 2048), (7, 7), Regions(36, 2048, None)),
        ((1, 2048), None, Regions(1, 2048, None)),
        ((2048, 5), None, Regions(2048, 5, None)),
        ((7, 9, 64), None, Regions(63, 64, (7, 9))),
        ((64, 7, 9), None, Regions(63, 64, (7, 9), channels_first=True)),
    ],
)
def test_axes_are_read_by_their_lengths(
    shape: tuple[int, ...], said: tuple[int, int] | None, expected: Regions
) -> None:
    assert axes((shape, FLOAT), said) == expected


@pytest.mark.parametrize(
    "shape", [(), (2048,), (14, 14, 14), (64, 64, 7), (7, 64, 64), (7, 64, 9), (1, 36, 2048), (1, 7, 7, 64), (0, 5)]
)
def test_shapes_that_may_mean_two_things_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(regions, channels\).*found|is empty"):
        axes((shape, FLOAT), None)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "object", "complex64", "S3"])
def test_only_floating_point_is_features(dtype: str) -> None:
    with pytest.raises(ValueError, match="expected floating-point numbers, found"):
        axes(((6, 5), np.dtype(dtype)), None)


def test_channels_first_becomes_row_major_regions() -> None:
    grid = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 8)
    first = np.ascontiguousarray(grid.transpose(2, 0, 1))
    found = axes((first.shape, FLOAT), None).of(first)
    assert np.array_equal(found, grid.reshape(6, 8))
    assert np.array_equal(axes((grid.shape, FLOAT), None).of(grid), found)


@pytest.mark.parametrize(
    ("image", "there"),
    [
        ("COCO_val2014_000000391895.jpg", "391895"),
        ("val2014/COCO_val2014_000000391895.jpg", "391895"),
        ("000000391895.jpg", "391895"),
        ("COCO_val2014_000000391895.jpg", "COCO_val2014_000000391895"),
        ("val2014/a.jpg", "a.jpg"),
        ("val2014/a.jpg", "val2014/a"),
        ("val2014/a.jpg", "a"),
        ("1000268201_693b08cb0e.jpg", "1000268201_693b08cb0e"),
        ("a/b.jpg", "a%2Fb.jpg"),
        ("a.b.jpg", "a.b"),
    ],
)
def test_an_image_is_found_by_id_stem_or_coco_number(tmp_path: Path, image: str, there: str) -> None:
    with open_foreign(folder(tmp_path / "source", [noise(1)[0]], [there])) as foreign:
        assert find_names(foreign, images(image)) == {image: there}


def test_the_whole_id_comes_before_its_stem_and_its_number(tmp_path: Path) -> None:
    names = ["COCO_val2014_000000000005.jpg", "COCO_val2014_000000000005", "5"]
    with open_foreign(folder(tmp_path / "source", list(noise(3)), names)) as foreign:
        assert find_names(foreign, images(names[0])) == {names[0]: names[0]}


def test_an_image_is_found_by_its_file_where_its_id_is_another(tmp_path: Path) -> None:
    with open_foreign(folder(tmp_path / "source", [noise(1)[0]], ["photo"])) as foreign:
        assert find_names(foreign, [ImageFile("id 1", "sub/photo.jpg", "")]) == {"id 1": "photo"}


@pytest.mark.parametrize("image", ["1000268201_000000000005x.jpg", "12345.jpg", "x_00000391895.jpg"])
def test_only_twelve_digits_are_a_coco_number(tmp_path: Path, image: str) -> None:
    with (
        open_foreign(folder(tmp_path / "source", list(noise(3)), ["5", "45", "391895"])) as foreign,
        pytest.raises(DataError, match=r"0 of 1 images; first missing"),
    ):
        find_names(foreign, images(image))


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    with (
        open_foreign(table(tmp_path / "source.tsv", list(noise(3)), IDS)) as foreign,
        pytest.raises(
            DataError, match=r"has the features of 1 of 4 images; first missing: 8\.jpg\. .* there are 12, 305, 7"
        ),
    ):
        find_names(foreign, images("12.jpg", "8.jpg", "9.jpg", "10.jpg"))


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    with (
        open_foreign(folder(tmp_path / "source", [noise(1)[0]], ["5"])) as foreign,
        pytest.raises(
            DataError, match=r"COCO_train2014_000000000005\.jpg and COCO_val2014_000000000005\.jpg would both be 5"
        ),
    ):
        find_names(foreign, images("COCO_train2014_000000000005.jpg", "COCO_val2014_000000000005.jpg"))


def common(path: Path) -> Regions:
    with open_foreign(path) as foreign:
        return common_axes(foreign, {name: name for name in foreign.names()})


def boxes(*counts: int) -> list[NDArray[np.float32]]:
    return [np.ones((count, 5), np.float32) for count in counts]


@pytest.mark.parametrize("write", [table, keys, folder])
def test_an_adaptive_number_of_boxes_is_refused(
    tmp_path: Path, write: Callable[[Path, list[NDArray[np.float32]], list[str]], Path]
) -> None:
    path = write(tmp_path / "source", boxes(10, 100, 36), IDS)
    with pytest.raises(DataError, match=r"found 10 to 100 regions of 5 channels, .* regions of 5 and .*adaptive"):
        common(path)


def test_two_dtypes_of_one_shape_are_one_form(tmp_path: Path) -> None:
    path = folder(tmp_path / "source", [noise(3)[0], noise(3)[1].astype(np.float16), noise(3)[2]], IDS)
    assert common(path) == Regions(6, 5, None)


def test_an_array_that_cannot_be_features_is_named(tmp_path: Path) -> None:
    path = keys(tmp_path / "source", [noise(1)[0], np.zeros(2048, np.float32)], ["7", "12"])
    with pytest.raises(
        DataError, match=r"the features of 12 cannot be used: expected \(regions, channels\).*\(2048,\)"
    ):
        common(path)

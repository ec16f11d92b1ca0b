import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.datasets.records import Record
from pipeline.datasets.splits import SplitLists, deal, dealt, require_every_split
from pipeline.errors import DataError, MissingError


def record(name: str, split: str | None = None) -> Record:
    return Record(name, (name,), ("A dog",), split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names",
    [
        ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt"),
        ("train.txt", "val.txt", "test.txt"),
        ("flickr30k_train.txt", "flickr30k_valid.txt", "flickr30k_test.txt"),
        ("train_images.txt", "validation-list.txt", "my.test.txt"),
    ],
)
def test_lists_are_known_by_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, image in zip(names, "abc", strict=True):
        (tmp_path / name).write_text(f"{image}.jpg\r\n\r\n")
    for other in ("readme.txt", "Flickr8k.token.txt", "contest.txt", "latest.txt", "train.csv"):
        (tmp_path / other).write_text("x.jpg\n")
    assert SplitLists(tmp_path).splits == {"a.jpg": "train", "b.jpg": "validation", "c.jpg": "test"}


def test_unlisted_images_are_counted_and_listed_names_without_an_image_told(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\ufeffb.jpg\ncafe\u0301\nlost.jpg\n", encoding="utf-8")
    records, unlisted, absent = SplitLists(tmp_path).apply(
        [record("sub/b.jpg", "test"), record("z.jpg"), record("caf\u00e9.jpg")]
    )
    assert unlisted == 1
    assert absent == ("lost.jpg",)
    assert [(r.id, r.split, len(r.captions)) for r in records] == [
        ("sub/b.jpg", "train", 1),
        ("caf\u00e9.jpg", "train", 1),
    ]


def test_a_listed_name_may_be_the_id_or_the_file_with_or_without_folder_and_suffix(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("7\nsub/b.jpg\nc.jpg\nv1.2/d\ne\n")
    files = {"7": "x.jpg", "8": "sub/b.jpg", "9": "other/c.jpg", "10": "v1.2/d.jpg", "11": "f/e.png", "12": "v1.2/g"}
    given = [Record(id, (file,), ("A dog",), None) for id, file in files.items()]  # noqa: A001
    records, unlisted, absent = SplitLists(tmp_path).apply(given)
    assert ([record.id for record in records], unlisted, absent) == (["7", "8", "9", "10", "11"], 1, ())


def test_an_image_in_two_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.jpg\n")
    (tmp_path / "test.txt").write_text("a.jpg\n")
    with pytest.raises(DataError, match=r"a\.jpg is listed in test and in train"):
        SplitLists(tmp_path)


def test_a_folder_without_lists_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split lists; expected files such as train\.txt"):
        SplitLists(tmp_path)
    with pytest.raises(MissingError, match=r"gone does not exist"):
        SplitLists(tmp_path / "gone")


def test_a_table_or_karpathys_file_gives_splits(tmp_path: Path) -> None:
    table, document = tmp_path / "splits.csv", tmp_path / "dataset.json"
    table.write_text("image,split\na.jpg,restval\nb.jpg,test\n")
    images = [{"filename": n, "split": s, "sentences": []} for n, s in (("a.jpg", "restval"), ("b.jpg", "test"))]
    document.write_text(json.dumps({"images": images}))
    assert SplitLists(table).splits == SplitLists(document).splits == {"a.jpg": "train", "b.jpg": "test"}


def test_a_row_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(f"image,split\na.jpg,test\n{'b' * 140_000},test\n")
    with pytest.raises(DataError, match=r"splits.csv, line 3: no row of a table \(field larger than"):
        SplitLists(tmp_path / "splits.csv")


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("file,part\na.jpg,test\n")
    with pytest.raises(DataError, match="expected the columns image and split, found file, part"):
        SplitLists(tmp_path / "splits.csv")


def test_the_deal_is_eighty_ten_ten_by_sha256() -> None:
    counts = Counter(dealt(f"{number}.jpg", 4) for number in range(4000))
    assert abs(counts["train"] - 3200) < 100
    assert abs(counts["validation"] - 400) < 80
    place = int(hashlib.sha256(b"4:7.jpg").hexdigest()[:12], 16) / 16**12
    assert dealt("7.jpg", 4) == ("train" if place < 0.8 else "validation" if place < 0.9 else "test")


def test_added_images_never_move_the_others() -> None:
    few = deal(tuple(record(f"{n}.jpg") for n in range(50)), 1, Path("x"))
    more = deal(tuple(record(f"{n}.jpg") for n in range(-30, 90)), 1, Path("x"))
    assert {r.id: r.split for r in few}.items() <= {r.id: r.split for r in more}.items()


def test_another_seed_deals_otherwise() -> None:
    assert [dealt(f"{n}.jpg", 1) for n in range(50)] != [dealt(f"{n}.jpg", 2) for n in range(50)]


def test_some_splits_and_some_none_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"captions\.csv gives a split to some images and none to 1 others, first b\.jpg"
    ):
        deal((record("a.jpg", "test"), record("b.jpg")), 0, Path("captions.csv"))


def test_an_empty_split_is_named_with_the_remedy() -> None:
    assert require_every_split(["test", "train", "validation", "train"])["train"] == 2
    with pytest.raises(
        DataError, match=r"No image is in validation and test, found: 2 train, 0 validation, 0 test.*seed"
    ):
        require_every_split(["train", "train"])

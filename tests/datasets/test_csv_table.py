from pathlib import Path

import pytest

from pipeline.datasets import csv_table
from pipeline.datasets.records import CaptionsFile, Record
from pipeline.errors import DataError


def source(tmp_path: Path, content: str | bytes) -> CaptionsFile:
    raw = content.encode() if isinstance(content, str) else content
    (tmp_path / "captions.csv").write_bytes(raw)
    return CaptionsFile(tmp_path / "captions.csv")


def test_quoted_commas_quotes_and_line_ends_belong_to_the_caption(tmp_path: Path) -> None:
    content = 'image,caption\r\na.jpg,"A dog, ""Rex"", runs"\r\n\r\nb.jpg,"two\r\nlines"\r\na.jpg,A "big" dog\r\n'
    assert csv_table.read(source(tmp_path, content)) == (
        Record("a.jpg", ("a.jpg",), ('A dog, "Rex", runs', 'A "big" dog'), None),
        Record("b.jpg", ("b.jpg",), ("two\nlines",), None),
    )


def test_columns_stand_in_any_order_beside_others_and_after_a_bom(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfCaption,note,split, image\nA dog,x,dev,a.jpg\nA cat,y,test,b.jpg\n"
    records = csv_table.read(source(tmp_path, content))
    assert [(r.id, r.captions, r.split) for r in records] == [
        ("a.jpg", ("A dog",), "validation"),
        ("b.jpg", ("A cat",), "test"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,text\na,b\n", "expected the columns image and caption, its first line has file, text"),
        ("image;caption\na.jpg;a dog\n", r"image;caption; its columns are separated by \";\": save it with commas"),
        ("Image\tsplit\tCaption\na.jpg\ta dog\n", "its columns are separated by tabs: save it with commas"),
        ("a.jpg,a dog\n", r"its first line has a\.jpg, a dog; the first line must name the columns"),
        ("A.JPG;a dog\n", r"its first line has a\.jpg;a dog; the first line must name the columns"),
        ("image,caption\n\na.jpg,a dog, running\n", r"line 3: 3 cells under 2 columns \(image, caption\).*quotes"),
        ("image,caption,Caption\na.jpg,a,b\n", "its first line has the column caption more than once"),
        pytest.param("x" * 140_000, "its first line is no row of a table", id="long"),
        ("image,caption\na.jpg\n", "line 2: 1 cells under 2 columns"),
        ('image,caption\na.jpg,"a "big" dog"\n', "line 2: .*quotes inside quotes are doubled"),
        ("image,caption\n,a dog\n", "line 2: the column image is empty"),
        ("image,caption,split\na.jpg,a,learn\n", "line 2: 'learn' is not a split"),
        ("image,caption,split\na.jpg,a,test\na.jpg,b,train\n", "line 3: a.jpg is in split train, and before in test"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        csv_table.read(source(tmp_path, content))


def test_lines_may_end_in_a_carriage_return_alone(tmp_path: Path) -> None:
    found = csv_table.read(source(tmp_path, b"image,caption\ra.jpg,a dog\rb.jpg,a cat\r"))
    assert [(record.id, record.captions) for record in found] == [("a.jpg", ("a dog",)), ("b.jpg", ("a cat",))]


def test_flickr30ks_results_with_their_broken_line(tmp_path: Path) -> None:
    content = (
        "image_name| comment_number| comment\n"
        '1.jpg| 0| A "dog" , | here .\n'
        "2.jpg| 4   A dog runs across the grass .\n"
        "1.jpg| 1| Another .\n"
    )
    captions = source(tmp_path, content)
    assert csv_table.mismatch(captions) is None
    assert csv_table.read(captions) == (
        Record("1.jpg", ("1.jpg",), ('A "dog" , | here .', "Another ."), None),
        Record("2.jpg", ("2.jpg",), ("A dog runs across the grass .",), None),
    )

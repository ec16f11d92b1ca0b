from pathlib import Path

import pytest

from pipeline.datasets import flickr
from pipeline.datasets.records import CaptionsFile, Record
from pipeline.errors import DataError


def source(tmp_path: Path, content: bytes) -> CaptionsFile:
    (tmp_path / "tokens.txt").write_bytes(content)
    return CaptionsFile(tmp_path / "tokens.txt")


def test_captions_are_gathered_by_image_in_order_of_first_appearance(tmp_path: Path) -> None:
    content = b"b.jpg#0\tA dog .\na.jpg#0\tA cat .\nb.jpg#1\tTwo dogs .\n"
    assert flickr.read(source(tmp_path, content)) == (
        Record("b.jpg", ("b.jpg",), ("A dog .", "Two dogs ."), None),
        Record("a.jpg", ("a.jpg",), ("A cat .",), None),
    )


def test_bom_crlf_blank_lines_tabs_and_duplicates(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfa.jpg#0\tone\ttwo\r\n\r\n   \r\na.jpg#1\tsame\r\na.jpg#2\tsame\r\n"
    (record,) = flickr.read(source(tmp_path, content))
    assert record.id == "a.jpg"
    assert record.captions == ("one\ttwo", "same", "same")


def test_lines_may_end_in_a_carriage_return_alone(tmp_path: Path) -> None:
    found = flickr.read(source(tmp_path, b"a.jpg#0\tone\rb.jpg#0\ttwo\r"))
    assert [(record.id, record.captions) for record in found] == [("a.jpg", ("one",)), ("b.jpg", ("two",))]


def test_a_line_separator_inside_a_caption_ends_no_line(tmp_path: Path) -> None:
    (record,) = flickr.read(source(tmp_path, "a.jpg#0\tone\u2028two\x85three\n".encode()))
    assert record.captions == ("one\u2028two\x85three",)


def test_the_misspelt_name_of_flickr8k_means_the_image(tmp_path: Path) -> None:
    content = b"2258277193_586949ec62.jpg.1#0\tpeople waiting\nodd.jpg.1#0\tanother\n"
    assert [r.id for r in flickr.read(source(tmp_path, content))] == ["2258277193_586949ec62.jpg", "odd.jpg.1"]


def test_a_name_may_hold_the_sign_that_ends_it(tmp_path: Path) -> None:
    (record,) = flickr.read(source(tmp_path, b"no#1 dog.jpg#3\tA dog #1\n"))
    assert record.id == "no#1 dog.jpg"


def test_a_line_of_another_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokens\.txt, line 3: expected NAME#NUMBER.*found 'b.jpg no tab'"):
        flickr.read(source(tmp_path, b"a.jpg#0\tx\n\nb.jpg no tab\n"))


def test_names_spelt_in_two_unicode_forms_are_one_image(tmp_path: Path) -> None:
    content = "cafe\u0301.jpg#0\tone\ncaf\u00e9.jpg#1\ttwo\n".encode()
    (record,) = flickr.read(source(tmp_path, content))
    assert (record.id, record.captions) == ("caf\u00e9.jpg", ("one", "two"))

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.datasets.readers import open_source, read_captions
from pipeline.errors import DataError, MissingError
from tests.datasets.builders import settings, write_images

KARPATHY = {"images": [{"filename": "a.png", "split": "train", "sentences": [{"raw": "A"}]}]}
COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "A"}]}
SAMPLES = {
    "flickr": "a.png#0\tA\n",
    "karpathy": json.dumps(KARPATHY),
    "coco": json.dumps(COCO, indent=1),
    "csv": "image,caption\na.png,A\n",
    "jsonl": '{"image": "a.png", "captions": ["A"]}\n',
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_format_is_recognised_by_its_content_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "captions.dat"
    path.write_text("\ufeff" + SAMPLES[name], encoding="utf-8")
    found, records = read_captions(path, "auto")
    assert found == name
    assert [(record.id, record.captions) for record in records] == [("a.png", ("A",))]


def test_a_folder_is_recognised_as_cocos(tmp_path: Path) -> None:
    (tmp_path / "captions_val2014.json").write_text(SAMPLES["coco"])
    assert read_captions(tmp_path, "auto")[0] == "coco"


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        (
            "some notes\n",
            "auto",
            r"of no known format:\n  flickr: expected NAME#.*\n  karpathy: it is not JSON\n  coco",
        ),
        (
            "file,text\na.png,A\n",
            "auto",
            r"\n  csv: expected the columns image and caption, its first line has file, text",
        ),
        ("file,text\na.png,A\n", "csv", r"not of the format csv:\n  csv: expected the columns image and caption"),
        ('{"images": [\n  {"a": 1},,\n]}', "auto", r"karpathy: is not valid JSON: .* at line 2, column 12"),
        ('{"images": [\n  {"a": 1},,\n]}', "karpathy", r"not valid JSON: .* at line 2, column 12"),
        ('{"image": "a.png",\n', "jsonl", r"line 1: not valid JSON: .* at column"),
        ("", "auto", r"is empty: no captions"),
        (" \n\n", "flickr", r"is empty: no captions"),
        ("image,caption\n", "auto", r"holds no captions"),
        ("image,caption\na.png,\nb.png,  \n", "csv", r"holds no captions"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, content: str, format: str, message: str) -> None:  # noqa: A002
    (tmp_path / "captions.txt").write_text(content)
    with pytest.raises(DataError, match=rf"(?s)captions\.txt .*{message}"):
        read_captions(tmp_path / "captions.txt", format)


@pytest.mark.parametrize(
    ("name", "first"),
    [("a.csv", "csv"), ("a.CSV", "csv"), ("a.tsv", "csv"), ("a.jsonl", "jsonl"), ("a.json", "karpathy")],
)
def test_the_format_of_the_suffix_is_told_first(tmp_path: Path, name: str, first: str) -> None:
    (tmp_path / name).write_text("some notes\n")
    with pytest.raises(DataError, match=rf"of no known format:\n  {first}: ") as caught:
        read_captions(tmp_path / name, "auto")
    assert str(caught.value).count("\n") == 7


def test_text_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_bytes(b"a.png#0\tcaf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8 text: byte 11 is 0xe9"):
        read_captions(tmp_path / "captions.txt", "flickr")


def test_missing_captions_are_told(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"gone\.txt does not exist"):
        read_captions(tmp_path / "gone.txt", "auto")


def table(root: Path, *rows: str) -> None:
    (root / "captions.txt").write_text("\n".join(("image,caption,split", *rows)) + "\n", encoding="utf-8")


def whole(root: Path) -> None:
    write_images(root / "images", "a.png", "b.png", "c.png")
    table(root, "a.png,A,train", "b.png,B,val", "c.png,C,test")


def test_images_keep_the_order_of_the_source(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    table(tmp_path, "c.png,C,test", "a.png, A ,train", "b.png,B,val", "a.png,,train", "a.png,A,train")
    source = open_source(settings(tmp_path), tmp_path)
    assert [(image.id, image.split, image.captions) for image in source.images] == [
        ("c.png", "test", ("C",)),
        ("a.png", "train", ("A", "A")),
        ("b.png", "validation", ("B",)),
    ]
    assert (source.format, source.empty_captions, source.skipped) == ("csv", 1, ())


def test_relative_paths_start_from_the_workspace(tmp_path: Path) -> None:
    whole(tmp_path)
    source = open_source(settings(tmp_path, images="images", captions="captions.txt", splits="captions.txt"), tmp_path)
    assert len(source.images) == 3


def test_a_file_in_another_unicode_form_is_found_under_its_own_name(tmp_path: Path) -> None:
    whole(tmp_path)
    write_images(tmp_path / "images", "cafe\u0301.png")
    table(tmp_path, "a.png,A,train", "b.png,B,val", "c.png,C,test", "caf\u00e9.png,D,test")
    image = open_source(settings(tmp_path), tmp_path).images[3]
    assert (image.id, image.file) == ("caf\u00e9.png", "cafe\u0301.png")


def test_folders_in_another_unicode_form_are_found_under_their_own_names(tmp_path: Path) -> None:
    write_images(tmp_path / "images", *(f"e\u0301/sub/{name}.png" for name in "abc"))
    table(tmp_path, "\u00e9/sub/a.png,A,train", "\u00e9/sub/b.png,B,val", "e\u0301/sub/c.png,C,test")
    images = open_source(settings(tmp_path), tmp_path).images
    assert [(image.id, image.file) for image in images] == [
        (f"\u00e9/sub/{name}.png", f"e\u0301/sub/{name}.png") for name in "abc"
    ]


def test_dots_and_doubled_slashes_name_the_same_file(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png", "c.png", "sub/d.png")
    table(tmp_path, "./a.png,A,train", "b.png,B,val", "c.png,C,test", ".//sub/./d.png,D,test", "a.png,E,train")
    source = open_source(settings(tmp_path), tmp_path)
    assert [(image.id, image.file) for image in source.images] == [
        (n, n) for n in ("a.png", "b.png", "c.png", "sub/d.png")
    ]
    assert source.images[0].captions == ("A", "E")


def test_lists_of_splits_may_have_dots_and_doubled_slashes_too(tmp_path: Path) -> None:
    whole(tmp_path)
    (tmp_path / "splits.csv").write_text("image,split\n./a.png,test\nb.png,train\n.//c.png,val\n")
    source = open_source(settings(tmp_path, splits=tmp_path / "splits.csv"), tmp_path)
    assert [(image.id, image.split) for image in source.images] == [
        ("a.png", "test"),
        ("b.png", "train"),
        ("c.png", "validation"),
    ]


def test_an_address_is_an_id_as_it_is(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    splits = zip("abc", ("train", "val", "test"), strict=True)
    lines = [{"id": f"http://host/{n}", "image": f"./{n}.png", "caption": "A", "split": split} for n, split in splits]
    (tmp_path / "captions.txt").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    images = open_source(settings(tmp_path), tmp_path).images
    assert [(image.id, image.file) for image in images] == [(f"http://host/{n}", f"{n}.png") for n in "abc"]


def test_a_sub_folder_may_be_a_link(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", "a.png", "b.png", "c.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "sub").symlink_to(tmp_path / "elsewhere")
    table(tmp_path, "sub/a.png,A,train", "sub/b.png,B,val", "sub/c.png,C,test")
    assert open_source(settings(tmp_path), tmp_path).images[0].file == "sub/a.png"


def test_a_silent_images_name_need_not_be_utf8(tmp_path: Path) -> None:
    whole(tmp_path)
    shutil.copy(os.fsencode(tmp_path / "images" / "a.png"), os.fsencode(tmp_path / "images") + b"/caf\xe9.png")
    source = open_source(settings(tmp_path, on_missing="skip"), tmp_path)
    assert source.skipped == (("caf\\xe9.png", "no caption"),)


def misfits(root: Path) -> None:
    """Three images that fit, and each way not to."""
    whole(root)
    write_images(root / "images", "silent.png", "mute.png")
    write_images(root, "outside.png")
    rows = ["a.png,A,train", "b.png,B,val", "c.png,C,test", "mute.png,,train"]
    rows += ["../outside.png,O,train", "/etc/x.png,O,train", "sub/../../outside.png,O,train", "C:\\x.png,O,train"]
    table(root, *rows, *(f"gone{n}.png,G,train" for n in range(12)))


def test_misfits_stop_and_are_counted_and_named(tmp_path: Path) -> None:
    misfits(tmp_path)
    with pytest.raises(DataError, match="do not fit together") as caught:
        open_source(settings(tmp_path), tmp_path)
    named = ", ".join(f"gone{n}.png" for n in range(10))
    assert f"\n  12 captions without an image file: {named}, ...\n" in str(caught.value)
    assert "\n  2 images without a caption: mute.png, silent.png\n" in str(caught.value)
    assert "\n  4 names that lead out of the images folder: outside.png, x.png, outside.png, x.png\n" in str(
        caught.value
    )
    assert "data.on_missing: skip" in str(caught.value)


def test_names_that_only_a_list_has_are_told_as_such(tmp_path: Path) -> None:
    whole(tmp_path)
    write_images(tmp_path / "images", "mute.png")
    (tmp_path / "splits.csv").write_text(
        "image,split\na.png,train\nb.png,val\nc.png,test\nmute.png,test\nlost.png,test\n"
    )
    place = settings(tmp_path, splits=tmp_path / "splits.csv")
    with pytest.raises(DataError, match="do not fit together") as caught:
        open_source(place, tmp_path)
    assert "\n  1 images without a caption: mute.png\n" in str(caught.value)
    assert "\n  2 names listed in data.splits, but absent from the captions: mute.png, lost.png\n" in str(caught.value)
    source = open_source(settings(tmp_path, splits=tmp_path / "splits.csv", on_missing="skip"), tmp_path)
    assert ("lost.png", "listed in data.splits, but absent from the captions") in source.skipped


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_names_without_the_files_suffix_are_told_as_such(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path / "images", *(f"{name}{suffix}" for name in "abc"))
    table(tmp_path, "a,A,train", "b,B,val", "c,C,test")
    with pytest.raises(DataError, match="do not fit together") as caught:
        open_source(settings(tmp_path), tmp_path)
    assert f"without an image file: a, b, c (they lack the files' suffix, such as {suffix})\n" in str(caught.value)
    assert str(caught.value).endswith("\nMend the names or add what is missing.")  # skipped, no image would be left


def test_misfits_are_skipped_with_their_reasons(tmp_path: Path) -> None:
    misfits(tmp_path)
    source = open_source(settings(tmp_path, on_missing="skip"), tmp_path)
    assert [image.id for image in source.images] == ["a.png", "b.png", "c.png"]
    assert ("silent.png", "no caption") in source.skipped
    assert ("gone11.png", "no image file") in source.skipped
    assert ("outside.png", "its name leads out of the images folder") in source.skipped
    assert len(source.skipped) == 18


def test_images_in_no_list_may_be_absent(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png", "b.png", "c.png", "extra.png")
    (tmp_path / "captions.txt").write_text("".join(f"{n}.png#0\tA\n" for n in ("a", "b", "c", "gone", "extra")))
    for split, name in (("train", "a"), ("dev", "b"), ("test", "c")):
        (tmp_path / f"odd.{split}Images.txt").write_text(f"{name}.png\n")
    source = open_source(settings(tmp_path, splits=tmp_path), tmp_path)
    assert [image.split for image in source.images] == ["train", "validation", "test"]
    assert source.unlisted == 2


def test_only_the_sub_folders_in_use_are_searched_for_silent_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "x/a.png", "x/b.png", "x/c.png", "unused/d.png", "x/._a.png")
    table(tmp_path, "x/a.png,A,train", "x/b.png,B,val", "x/c.png,C,test")
    assert open_source(settings(tmp_path), tmp_path).skipped == ()


def test_a_sub_folder_is_tried_for_coco(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "val2017/a.png", "val2017/b.png", "val2017/c.png")
    images = [{"id": n, "file_name": f"{n}.png"} for n in "abc"]
    annotations = [{"image_id": n, "caption": "A"} for n in "abc"]
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "splits.csv").write_text("image,split\na.png,train\nb.png,val\nc.png,test\n")
    source = open_source(settings(tmp_path, captions=path, splits=tmp_path / "splits.csv"), tmp_path)
    assert [image.file for image in source.images] == ["val2017/a.png", "val2017/b.png", "val2017/c.png"]


@pytest.mark.parametrize(
    ("prepare", "kind", "message"),
    [
        (lambda _: None, MissingError, "images does not exist"),
        (lambda images: images.mkdir(), DataError, r"images holds no images \(\.jpg"),
        (lambda images: images.write_text("x"), DataError, "images is a file where the folder"),
    ],
    ids=["missing", "empty", "file"],
)
def test_an_images_folder_that_cannot_be_used_is_told(
    tmp_path: Path, prepare: object, kind: type, message: str
) -> None:
    table(tmp_path, "a.png,A,train")
    prepare(tmp_path / "images")  # type: ignore[operator]
    with pytest.raises(kind, match=message):
        open_source(settings(tmp_path), tmp_path)


def test_an_empty_split_is_told(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png")
    (tmp_path / "captions.txt").write_text("image,caption\na.png,A\n")
    with pytest.raises(DataError, match="No image is in"):
        open_source(settings(tmp_path), tmp_path)

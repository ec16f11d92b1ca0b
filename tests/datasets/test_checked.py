import hashlib
import os
from pathlib import Path

import pytest

from pipeline.datasets.checked import check_images
from tests.datasets.builders import write_images

FILES = ["a.png", "sub/b.png", "text.png"]


def folder(tmp_path: Path) -> Path:
    images = write_images(tmp_path / "images", *FILES[:2])
    (images / "text.png").write_text("hello")
    return images


def test_hashes_and_reasons_by_file(tmp_path: Path) -> None:
    images = folder(tmp_path)
    checked, decoded = check_images(images, FILES, 2, tmp_path / "memory")
    assert decoded == 3
    assert list(checked) == FILES
    assert [checked[f].sha256 for f in FILES] == [hashlib.sha256((images / f).read_bytes()).hexdigest() for f in FILES]
    assert [checked[f].reason is None for f in FILES] == [True, True, False]


def test_an_unchanged_file_is_not_decoded_again(tmp_path: Path) -> None:
    images, memory = folder(tmp_path), tmp_path / "memory"
    first, _ = check_images(images, FILES, 1, memory)
    again, decoded = check_images(images, FILES, 1, memory)
    assert (again, decoded) == (first, 0)


def test_a_changed_file_is_decoded_again_and_a_touched_or_renamed_one_is_not(tmp_path: Path) -> None:
    images, memory = folder(tmp_path), tmp_path / "memory"
    check_images(images, FILES, 1, memory)
    write_images(images, "other.png", "third.png", "text.png")
    os.utime(images / "a.png", ns=(1, 1))
    (images / "sub/b.png").rename(images / "c.png")
    checked, decoded = check_images(images, ["a.png", "c.png", "text.png"], 1, memory)
    assert decoded == 1
    assert checked["text.png"].reason is None


def test_a_file_of_other_content_is_noticed_though_its_size_and_time_are_the_same(tmp_path: Path) -> None:
    images, memory = folder(tmp_path), tmp_path / "memory"
    before, _ = check_images(images, FILES, 1, memory)
    times = (images / "a.png").stat()
    content = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    os.utime(images / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    after, decoded = check_images(images, FILES, 1, memory)
    assert decoded == 1
    assert after["a.png"].sha256 == hashlib.sha256((images / "a.png").read_bytes()).hexdigest()
    assert {file for file in FILES if after[file] != before[file]} == {"a.png"}


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b'[1]\n"x"\n{"path": "a"}\nnull\n'])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, damage: bytes) -> None:
    images, memory = folder(tmp_path), tmp_path / "memory"
    first, _ = check_images(images, FILES, 1, memory)
    memory.write_bytes(damage)
    assert check_images(images, FILES, 1, memory) == (first, 3)


def test_a_torn_last_line_costs_one_image_only(tmp_path: Path) -> None:
    images, memory = folder(tmp_path), tmp_path / "memory"
    first, _ = check_images(images, FILES, 1, memory)
    memory.write_bytes(memory.read_bytes()[:-20])
    assert check_images(images, FILES, 1, memory) == (first, 1)
    assert check_images(images, FILES, 1, memory) == (first, 0)


def test_a_file_that_cannot_be_read_is_told_and_not_remembered(tmp_path: Path) -> None:
    images, memory = folder(tmp_path), tmp_path / "memory"
    (images / "a.png").unlink()
    checked, _ = check_images(images, FILES, 1, memory)
    assert checked["a.png"].reason == "it cannot be read (No such file or directory)"
    write_images(images, "a.png")
    assert check_images(images, FILES, 1, memory)[0]["a.png"].reason is None

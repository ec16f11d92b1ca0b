"""The bench of training runs from end to end; what it calls needed is what is computed; its page is renewed."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import renew, train
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import DecoderShape
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import END, START
from pipeline.training.losses import captioning_loss

TINY = ["--images", "16", "--cells", "2", "--channels", "24", "--size", "16", "--plain-batches", "1", "--rounds", "1"]


def test_train_ends_with_its_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train, "peak", lambda _: 1e12)  # a second of products
    monkeypatch.setattr(sys, "argv", ["bench", "--json", *TINY, "--encoder", "resnet18"])
    train.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) - {"share_of_peak_bfloat16"} == {"share_of_peak", "ratio_plain", "ratio_tutorial", "ratio_memory"}
    assert all(np.isfinite(figure) and figure > 0 for figure in found.values())
    assert found["ratio_tutorial"] > found["ratio_plain"]


def test_the_operations_needed_are_those_of_the_products(tmp_path: Path) -> None:
    """Counted by torch in the plain formulas, where every image has one caption and all are as long: no row is idle."""
    images, length, cells, channels, size, words = 3, 9, 9, 640, 32, 50
    captions = EncodedCaptions.of(range(images), [[START, *[5] * (length - 1), END]] * images)
    on = train.Subject(tmp_path, (3, 3), captions, tuple(range(images)), words)
    shape = DecoderShape(words, channels, size, size, size, 0.0)
    options = {"activation": "relu", "gate": True, "normalise": False, "tie": False}
    captioner = build_captioner("soft", shape, options).double()
    lengths = torch.full((images, 1), length + 1)
    said = torch.from_numpy(captions.words.astype(np.int64))[:, None]
    with FlopCounterMode(display=False) as counter:
        output = captioner(torch.rand(images, cells, channels, dtype=torch.float64), said, lengths, None)
        captioning_loss(output, said, lengths, 0.0).words.backward()
    needed = images * train.operations(on, channels, size)  # an image has one caption
    first_states = 2 * 2 * images * (channels * 2 * size + cells * channels / 2)
    assert counter.get_total_flops() == pytest.approx(needed + first_states, rel=0.02)


def test_every_bench_has_its_place_on_the_page() -> None:
    page = renew.PAGE.read_text(encoding="utf-8")
    assert set(renew.benches()) >= {"train", "read", "search", "encode", "cache"}
    for name in renew.benches():
        assert "\n$ python -m bench." + name + "\nnew\n" in renew.renewed(page, name, "new\n")


def test_a_page_is_renewed_in_that_place_alone() -> None:
    page = "a\n<!-- bench.one -->\nold\n<!-- end -->\nb\n<!-- bench.two -->\nold\n<!-- end -->\n"
    block = "```text\n$ python -m bench.two\n2.0 \\g<0>\n```\n"
    assert renew.renewed(page, "two", "2.0 \\g<0>\n") == page.replace("two -->\nold\n", f"two -->\n{block}")
    with pytest.raises(SystemExit, match=r"no lines <!-- bench\.three -->"):
        renew.renewed(page, "three", "")


def test_a_bench_that_fails_leaves_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- bench.nothing -->\nold\n<!-- end -->\n", encoding="utf-8")
    monkeypatch.setattr(renew, "PAGE", page)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda _: argparse.Namespace(names=["nothing"]))
    with pytest.raises(SystemExit, match=r"bench\.nothing ended with status 1"):
        renew.main()
    assert "old" in page.read_text(encoding="utf-8")

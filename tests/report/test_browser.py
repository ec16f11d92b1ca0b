"""The page in a real browser; skipped where no Chromium is installed."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report import attention
from pipeline.report.page import ReportSettings
from stages import report
from tests.report import sample

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(NAMES)} is installed")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
    "--dump-dom",
]
WIDTHS = (360, 390, 768, 1280)
# A page that frames the report at each width, uses the first as a person would and writes down what it saw.
WRAPPER = """<!doctype html><output></output>FRAMES<script>
onload = () => {
  const saw = { widths: Array.from(frames).map(({ document: { documentElement: root } }) =>
    [root.scrollWidth, root.clientWidth]) };
  const page = frames[0].document;
  const figure = page.getElementById("caption-3");
  const [one, two, three] = figure.querySelectorAll(".word");
  const press = (word, key) => word.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const acts = {
    "point at two": () => two.dispatchEvent(new PointerEvent("pointerenter", { pointerType: "mouse" })),
    "leave": () => two.parentElement.dispatchEvent(new PointerEvent("pointerleave")),
    "focus one": () => one.focus(),
    "arrow right": () => press(one, "ArrowRight"),
    "end": () => press(two, "End"),
    "arrow right at the end": () => press(three, "ArrowRight"),
    "home": () => press(three, "Home"),
    "leave by tab": () => one.blur(),
    "tap three": () => three.click(),
    "focus two": () => two.focus(),
    "leave again": () => two.blur(),
    "escape": () => press(three, "Escape"),
    "tap twice": () => { three.click(); three.click(); },
    "tap two": () => two.click(),
  };
  frames[0].focus();
  saw.acts = Object.entries(acts).map(([name, act]) => { act(); return [name, figure.dataset.word ?? null]; });
  saw.stops = [one, two, three].map((word) => word.tabIndex);
  const [picture, canvas] = ["img", "canvas"].map((name) => figure.querySelector(name));
  const place = (element) => Object.values(element.getBoundingClientRect().toJSON());
  const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const paper = copy.getContext("2d", { willReadFrequently: true });
  const pixels = () => {
    paper.clearRect(0, 0, copy.width, copy.height);
    paper.drawImage(canvas, 0, 0);
    return [...paper.getImageData(0, 0, copy.width, copy.height).data];
  };
  saw.places = [place(picture), place(canvas)];
  saw.opacity = frames[0].getComputedStyle(canvas).opacity;
  saw.size = [canvas.width, canvas.height];
  saw.pixels = pixels();
  three.click();
  saw.framed = pixels();
  const reading = figure.querySelector(".reading");
  one.click();
  saw.dim = pixels();
  saw.share = reading.textContent;
  three.click();
  saw.reading = [reading.textContent, reading.getBoundingClientRect().right <= place(picture)[0] + place(picture)[2]];
  document.querySelector("output").textContent = JSON.stringify(saw);
};
</script>"""


def open_page(address: str, folder: Path) -> str:
    """The document after its scripts ran without any message."""
    command = [str(PROGRAM), *QUIET, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", address]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = sample.write(tmp_path_factory.mktemp("browser") / "run")
    report.run(workspace, ReportSettings(6), "pictures")
    return workspace.report


@pytest.fixture(scope="module")
def chosen(page: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return open_page(f"{page.as_uri()}#caption-3-word-2", tmp_path_factory.mktemp("chosen"))


@pytest.fixture(scope="module")
def saw(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    frame = '<iframe src="{}" width="{}" height="900" frameborder="0"></iframe>'
    wrapper = page.with_name("wrapper.html")
    frames = "".join(frame.format(page.name, width) for width in WIDTHS)
    wrapper.write_text(WRAPPER.replace("FRAMES", frames), encoding="utf-8")
    document = open_page(wrapper.as_uri(), tmp_path_factory.mktemp("wrapper"))
    written = re.findall(r"<output>(.*?)</output>", document, re.DOTALL)[0]
    seen: dict[str, Any] = json.loads(html.unescape(written))
    return seen


def test_script_runs_to_its_end_and_nothing_in_a_caption_runs(chosen: str) -> None:
    assert 'data-ready="true"' in chosen
    assert "<title>freezeframe: captions of 6 test images</title>" in chosen


def test_fragment_selects_one_word(chosen: str) -> None:
    card = re.findall(r'<figure class="card[^>]*id="caption-3".*?</figure>', chosen, re.DOTALL)[0]
    assert re.findall(r'id="(\S+)" aria-pressed="true"', chosen) == ["caption-3-word-2"]
    assert 'data-word="2"' in card
    assert re.search(r'class="reading"[^>]*>small: peak \d+\.\d × the mean<', card)


def test_pointing_focus_keys_and_taps_show_and_hide_attention(saw: dict[str, Any]) -> None:
    assert saw["acts"] == [
        ["point at two", "2"],
        ["leave", None],
        ["focus one", "1"],
        ["arrow right", "2"],
        ["end", "3"],
        ["arrow right at the end", "3"],
        ["home", "1"],
        ["leave by tab", None],
        ["tap three", "3"],
        ["focus two", "2"],
        ["leave again", "3"],
        ["escape", None],
        ["tap twice", None],
        ["tap two", "2"],
    ]
    assert saw["stops"] == [-1, 0, -1]


def shown(pixels: list[int], size: list[int], colour: tuple[int, int, int]) -> np.ndarray:
    """A picture of one colour under the canvas."""
    over = np.array(pixels, dtype=float).reshape(size[1], size[0], 4)
    opacity = over[:, :, 3:] / 255
    return np.array(colour) * (1 - opacity) + over[:, :, :3] * opacity


def test_attention_lies_over_the_picture_as_on_paper(saw: dict[str, Any]) -> None:
    assert saw["places"][0] == saw["places"][1]
    assert saw["opacity"] == "1"
    assert saw["size"] == [90, 60]
    plain = Image.new("RGB", (90, 60), (200, 30, 200))
    for shot, word in (("pixels", 7), ("framed", sample.ALONE), ("dim", sample.REMEMBERED)):  # 7 is "small"
        expected = attention.overlay(plain, sample.attention()[word], sample.GRID)
        assert abs(shown(saw[shot], saw["size"], (200, 30, 200)) - np.asarray(expected, dtype=float)).max() < 3


def test_a_word_that_jumped_to_one_region_is_read_with_its_place_within_the_picture(saw: dict[str, Any]) -> None:
    assert saw["reading"] == ["squares: row 2 of 3, column 4 of 5 alone", True]


def test_a_word_said_from_memory_in_part_tells_how_much_came_from_looking(saw: dict[str, Any]) -> None:
    assert saw["share"] == "two: peak 10.8 × the mean, 25 % from looking"


def test_nothing_scrolls_sideways_from_phone_to_desktop(saw: dict[str, Any]) -> None:
    assert saw["widths"] == [[width, width] for width in WIDTHS]

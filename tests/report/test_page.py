import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.report import page
from pipeline.report.page import ReportSettings
from stages import report
from tests.report import sample

SOURCE = Path(page.__file__).parent
VOID = {"meta", "link", "img"}


class Outline(HTMLParser):
    """Every element with its attributes, and the text of the page outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make(root: Path, gallery: int = 4, drawn: bool = False, weights: str = "random") -> str:
    workspace = sample.write(root, drawn=drawn, weights=weights)
    report.run(workspace, ReportSettings(gallery), "pictures")
    return workspace.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def outline(html: str) -> Outline:
    return Outline(html)


def test_every_element_is_closed_and_every_id_is_unique(outline: Outline) -> None:
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for attributes in outline.named("a")}
    assert {f"#{name}" for name in ids} >= links


def test_captions_references_and_names_are_escaped(html: str, outline: Outline) -> None:
    assert sample.EVIL not in html
    assert "<b>4.png" not in html
    assert len(outline.named("script")) == 1
    assert sample.EVIL in outline.text
    assert f"a {sample.EVIL} dog" in [attributes["alt"] for attributes in outline.named("img")]


def test_nothing_is_fetched_from_anywhere(html: str, outline: Outline) -> None:
    for _, attributes in outline.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:"))
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttpRequest", html)


def test_policy_allows_exactly_this_style_and_script(html: str, outline: Outline) -> None:
    [policy] = [a["content"] for a in outline.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    style = html.split("<style>")[1].split("</style>")[0]
    script = html.split("<script>")[1].split("</script>")[0]
    assert policy == page.content_policy(style, script)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_kept_epoch_and_the_few_images_are_told(outline: Outline) -> None:
    assert "The weights of epoch 2 were kept, the best by bleu4 on validation." in outline.text
    assert "So few images say little" in outline.text


def test_scores_stand_beside_the_blind_ones_and_the_signature(outline: Outline) -> None:
    for said in ("19.4", "7.3", "61.0", "44.8", "83.4 %", "17.1 %", "a red & blue shape", sample.METRICS["signature"]):
        assert said in outline.text
    assert "METEOR" not in outline.text


@pytest.mark.parametrize(
    ("models", "lede", "training"),
    [
        ("[captioner]", "The decoder soft wrote these captions", None),
        ("[ada]", "The model ada wrote these captions", "which did not write these captions: ada did."),
        (
            "[a, b, c]",
            "An ensemble of 3 models wrote these captions",
            "which did not write these captions: a, b, c did.",
        ),
        (
            "[a, captioner]",
            "An ensemble of 2 models wrote these captions",
            "one of the models that wrote these captions.",
        ),
    ],
)
def test_the_models_that_were_scored_are_named_and_told_from_the_one_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: str, lede: str, training: str | None
) -> None:
    monkeypatch.setattr(sample, "PARAMS", sample.PARAMS.replace("beam: 5", f"beam: 5, models: {models}"))
    text = " ".join(Outline(make(tmp_path)).text.split())
    assert lede in text
    told = "This is the training of models/captioner"
    assert (f"{told} , {training}" in text or f"{told}, {training}" in text) if training else told not in text


def test_fragments_are_told_where_they_were_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fragment" not in Outline(make(tmp_path / "before")).text
    monkeypatch.setitem(sample.METRICS, "fragments", 12.345)
    assert "12.3 %" in Outline(make(tmp_path / "counted")).text


def test_headings_descend_one_level_at_a_time_and_landmarks_are_there(outline: Outline) -> None:
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(outline.named(landmark)) == 1
    assert all(attributes.get("alt") for attributes in outline.named("img"))


def test_every_word_is_a_button_and_a_caption_one_tab_stop(outline: Outline) -> None:
    words = [a for a in outline.named("button") if (a["id"] or "").startswith("caption-2-")]
    assert [word["id"] for word in words] == [f"caption-2-word-{n}" for n in (1, 2, 3)]
    assert [word["tabindex"] for word in words] == ["0", "-1", "-1"]
    toolbars = [a for a in outline.named("div") if a.get("role") == "toolbar"]
    assert all(toolbar["aria-label"] for toolbar in toolbars)


def test_words_said_from_memory_in_part_carry_what_came_from_looking(
    tmp_path: Path, outline: Outline, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {a["id"]: a["data-looked"] for a in outline.named("button") if "data-looked" in a}
    assert {name.split("-word-")[1] for name in shares if name} == {"1"}
    assert set(shares.values()) == {"25"}
    assert "said from memory" in outline.text
    monkeypatch.setattr(sample, "REMEMBERED", len(sample.attention()))
    assert "said from memory" not in Outline(make(tmp_path / "run")).text


def test_gallery_comes_first_then_best_and_worst(outline: Outline) -> None:
    numbers = [a["id"] for a in outline.named("figure") if a.get("class") == "card"]
    assert numbers == [f"caption-{number}" for number in range(1, 4 + 3 + 3 + 1)]


def test_demonstration_is_said_plainly(tmp_path: Path) -> None:
    drawn, random, real = (
        Outline(make(tmp_path / name, drawn=drawn, weights=weights)).text
        for name, drawn, weights in (("a", True, "random"), ("b", False, "random"), ("c", False, "default"))
    )
    assert "This is a demonstration." in drawn
    assert "drew the images itself" in drawn
    assert "never trained" in drawn
    assert "drew the images itself" not in random
    assert "never trained" in random
    assert "demonstration" not in real


def test_settings_show_no_absolute_path_and_nothing_without_effect(html: str, outline: Outline) -> None:
    for said in ("learning_rate", "0.002", "decoder_options.gate", "true", "decoder_options.activation", "null"):
        assert said in outline.text
    assert "/home/somebody" not in html
    assert "pictures" in outline.text
    assert "workers" not in html
    assert "stream" not in outline.text


def test_what_was_left_out_is_named_with_its_reason(outline: Outline) -> None:
    assert "1 image met at ingest" in outline.text
    assert "empty" in outline.text


def test_same_inputs_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    assert make(tmp_path / "one") == make(tmp_path / "elsewhere" / "two")


def test_without_cider_the_ranking_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sample.METRICS, "cider", None)
    monkeypatch.setattr(sample, "CAPTIONS", sample.CAPTIONS[:1])
    monkeypatch.setattr(sample, "NAMES", sample.NAMES[:1])
    text = Outline(make(tmp_path / "run")).text
    assert "with a single image it has no meaning" in text
    assert "ranks captions only among several images" in text


def test_caption_of_an_unknown_image_is_refused(tmp_path: Path) -> None:
    workspace = sample.write(tmp_path / "run")
    path = workspace.dataset / "dataset.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(DataError, match=r"1 captions are about images.*first: id-0\.png"):
        report.run(workspace, ReportSettings(2), "pictures")


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("paper", "raised", "sunken")]
    + [("ink", "accent-wash"), ("note-ink", "note")],
)
def test_text_has_the_contrast_of_wcag_aa(theme: int, ink: str, ground: str) -> None:
    style = (SOURCE / "page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", style.split(":root {")[theme + 1].split("}")[0]))
    low, high = sorted((luminance(colours[ink]), luminance(colours[ground])))
    assert (high + 0.05) / (low + 0.05) >= 4.5

"""Settings: everything wrong is told at once, with its path; params.yaml and the presets name the same keys."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from pipeline.commands.settings import SECTIONS, check_settings, read_settings
from pipeline.errors import MissingError, SettingsError
from pipeline.settings import Range, check, read_params
from tests.import_graph import ROOT

OF_DATA, OF_SYSTEM = ["data", "tokenize"], ["encode", "train", "evaluate", "report"]
PRESETS = sorted((ROOT / "params").glob("*.yaml"))


@dataclass(frozen=True)
class Inner:
    deep: bool


@dataclass(frozen=True)
class Sample:
    count: Annotated[int, Range(1, 9)]
    rate: Annotated[float, Range(0, 1, open_ended=True)]
    kind: Literal["warm", "cold"]
    size: Annotated[int, Range(2)] | Literal["native"]
    limit: int | None
    inner: Inner


GOOD: dict[str, Any] = {
    "count": 3, "rate": 0, "kind": "cold", "size": "native", "limit": None, "inner": {"deep": True},
}  # fmt: skip


def problems(**changes: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        check({"part": Sample}, {"part": {**GOOD, **changes}}, Path("params.yaml"))
    return str(caught.value)


def test_good_values_become_the_dataclass() -> None:
    built = check({"part": Sample}, {"part": GOOD}, Path("params.yaml"))["part"]
    assert built == Sample(3, 0.0, "cold", "native", None, Inner(True))
    assert isinstance(built.rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 2.5}, "part.count: expected a whole number at least 1 and at most 9, found 2.5"),
        ({"count": True}, "part.count: expected a whole number at least 1 and at most 9, found True"),
        ({"count": 10}, "part.count: 10 is out of range; expected at least 1 and at most 9"),
        ({"rate": "1e-3"}, "found '1e-3' (text; write the number without quotes)"),
        ({"rate": 1}, "part.rate: 1.0 is out of range; expected at least 0 and below 1"),
        ({"rate": float("nan")}, "part.rate: expected a number"),
        ({"kind": "hot"}, "part.kind: expected warm or cold, found 'hot'"),
        ({"size": 1}, "part.size: 1 is out of range; expected at least 2"),
        ({"size": "wide"}, "part.size: expected a whole number at least 2 or native, found 'wide'"),
        ({"limit": "none"}, "part.limit: expected a whole number or null, found 'none'"),
        ({"inner": {"deep": 1}}, "part.inner.deep: expected true or false, found 1"),
        ({"inner": None}, "part.inner: expected a section with its keys, found nothing"),
        ({"cuont": 3}, "part.cuont: unknown key; did you mean count?"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_told_with_its_path(change: dict[str, Any], message: str) -> None:
    assert message in problems(**change)


def test_all_problems_are_told_at_once() -> None:
    message = problems(count="many", kind=3, extra=1)
    assert message.startswith("3 settings do not fit in params.yaml:")
    assert all(key in message for key in ("part.count", "part.kind", "part.extra"))


def test_a_missing_key_is_a_problem_for_there_are_no_defaults() -> None:
    with pytest.raises(SettingsError, match=r"part\.rate: missing"):
        check({"part": Sample}, {"part": {key: GOOD[key] for key in GOOD if key != "rate"}}, Path("p"))


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  learning_rate: 1e-3\n", encoding="utf-8")
    assert read_params(path) == {"train": {"learning_rate": 0.001}}


def test_broken_yaml_is_told_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  epochs: [1, 2\n  seed: 0\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"params\.yaml is not valid YAML: .* at line \d, column \d"):
        read_params(path)
    path.write_text("train:\n  seed: 0\n  device: c\x07pu\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"params\.yaml is not valid YAML: character U\+0007 at line 3, column 12"):
        read_params(path)
    for value in ("2001-99-99", "!!int ten", "!!bool perhaps"):
        path.write_text(f"train:\n  seed: {value}\n", encoding="utf-8")
        with pytest.raises(SettingsError, match=r"params\.yaml is not valid YAML: a value cannot be read \(.+\)"):
            read_params(path)
    path.write_text("just text", encoding="utf-8")
    with pytest.raises(SettingsError, match="holds no sections"):
        read_params(path)
    with pytest.raises(MissingError, match="does not exist"):
        read_params(tmp_path / "other.yaml")


def test_int8_is_a_precision_of_encoding_alone() -> None:
    document = read_params(ROOT / "params.yaml")
    for section in ("encode", "train"):
        document[section]["precision"] = "int8"
    with pytest.raises(SettingsError) as caught:
        check(SECTIONS, document, Path("params.yaml"))
    assert str(caught.value).startswith("1 setting does not fit")
    assert "train.precision: expected auto or float32 or bfloat16, found 'int8'" in str(caught.value)


def test_params_yaml_is_whole() -> None:
    document = read_params(ROOT / "params.yaml")
    assert list(document) == list(SECTIONS)
    for name, kind in SECTIONS.items():
        assert list(document[name]) == [field.name for field in fields(kind)]
    read_settings(ROOT / "params.yaml")


OF_DECODERS = [path for path in PRESETS if list(read_params(path).get("train", [])) == ["decoder", "decoder_options"]]


@pytest.mark.parametrize("path", OF_DECODERS, ids=lambda path: path.stem)
def test_a_decoders_preset_holds_the_decoder_and_its_options_alone(path: Path) -> None:
    preset, document = read_params(path), read_params(ROOT / "params.yaml")
    assert list(preset) == ["train"]
    check_settings({**document, "train": {**document["train"], **preset["train"]}}, path)


@pytest.mark.parametrize("path", [path for path in PRESETS if path not in OF_DECODERS], ids=lambda path: path.stem)
def test_presets_name_every_key_of_their_sections(path: Path) -> None:
    preset, document = read_params(path), read_params(ROOT / "params.yaml")
    assert list(preset) in (OF_DATA, OF_SYSTEM)
    for section in preset:
        assert list(preset[section]) == list(document[section])
    check_settings({**document, **preset}, path)


def test_the_shipped_settings_are_the_demonstration() -> None:
    document = read_params(ROOT / "params.yaml")
    shapes, demo = read_params(ROOT / "params" / "shapes.yaml"), read_params(ROOT / "params" / "demo.yaml")
    assert document == {**shapes, **demo}


def test_a_device_of_no_machine_is_told_for_every_section() -> None:
    document = read_params(ROOT / "params.yaml")
    wrong = {section: {**document[section], "device": "gpu:0"} for section in ("encode", "train", "evaluate")}
    with pytest.raises(SettingsError) as caught:
        check_settings({**document, **wrong}, "here")
    for section in wrong:
        assert f"{section}.device: expected auto, cpu, cuda or cuda:NUMBER, found 'gpu:0'" in str(caught.value)
    check_settings({**document, "train": {**document["train"], "device": "cuda:1"}}, "here")


@pytest.mark.parametrize("device", [3, None, ["cpu"]])
def test_a_device_that_is_no_text_is_told(device: Any) -> None:
    document = read_params(ROOT / "params.yaml")
    with pytest.raises(SettingsError, match=r"^1 setting does not fit in here:\n  train\.device: expected text, found"):
        check_settings({**document, "train": {**document["train"], "device": device}}, "here")


def test_an_unknown_section_and_an_unknown_decoder_are_told_together() -> None:
    document = read_params(ROOT / "params.yaml")
    document["trian"] = {}
    document["train"] = {**document["train"], "decoder": "sotf", "epochs": 0}
    with pytest.raises(SettingsError) as caught:
        check_settings(document, "params.yaml")
    message = str(caught.value)
    assert message.startswith("3 settings do not fit")
    assert "train.decoder: expected soft or adaptive or" in message
    assert "trian: unknown section" in message

"""From a section of `params.yaml` to the frozen dataclass that its owner defines.

Owns the checking: unknown and missing keys, wrong types, impossible values and unknown choices are told all
at once, each with its full path. Knows no setting by name, and no default: those live in `params.yaml` only.

A field's type says what is accepted: `int`, `float` (an int too), `bool`, `str`, `Literal[...]`, unions of these
with `None`, lists of one of them, a nested dataclass, `dict[str, Any]` (checked by whoever owns it), and
`Annotated[int, Range(1, None)]` for bounds.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from pipeline.errors import SettingsError
from pipeline.files import read_text

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, each inclusive unless `open_ended` says that the upper one is not; None is no bound."""

    least: float | None = None
    most: float | None = None
    open_ended: bool = False

    def holds(self, number: float) -> bool:
        """Whether the number lies within."""
        if self.least is not None and number < self.least:
            return False
        if self.most is None:
            return True
        return number < self.most if self.open_ended else number <= self.most

    def __str__(self) -> str:
        lower = "" if self.least is None else f"at least {self.least:g}"
        upper = "" if self.most is None else f"{'below' if self.open_ended else 'at most'} {self.most:g}"
        return " and ".join(part for part in (lower, upper) if part)


def read_params(path: Path, sections: str = "data, tokenize, encode, train, evaluate and report") -> dict[str, Any]:
    """Read `params.yaml`, or another file of sections (YAML 1.2, so `1e-3` is a number).

    Args:
        path: the file.
        sections: what it should hold, for the message.

    Raises:
        SettingsError: it is not YAML, or no mapping of sections.
        MissingError: it is not there.
    """
    document = parse_yaml(read_text(path), str(path))
    if not isinstance(document, dict):
        raise SettingsError(f"{path} holds no sections; expected {sections}.")
    return document


def parse_yaml(text: str, source: str) -> Any:
    """What a YAML text holds.

    Args:
        text: YAML 1.2.
        source: where it stands, for the message.

    Raises:
        SettingsError: it is not YAML, or a value that looks like a date or a number is none; the message has line and
            column where they are known.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        problem = f"{error.problem} at line {mark.line + 1}, column {mark.column + 1}" if mark else error.problem
        raise SettingsError(f"{source} is not valid YAML: {problem}.") from error
    except ReaderError as error:
        before = text[: error.position].split("\n")
        problem = f"character U+{error.character:04X} at line {len(before)}, column {len(before[-1]) + 1}"
        raise SettingsError(f"{source} is not valid YAML: {problem}.") from error
    except (ValueError, LookupError) as error:  # what a value is made with, such as a date
        raise SettingsError(f"{source} is not valid YAML: a value cannot be read ({error}).") from error


def load_section(path: Path, section: str, kind: type[Settings]) -> Settings:
    """One section of `params.yaml`, checked.

    Raises:
        SettingsError: something in the section does not fit; everything that does not is listed.
    """
    return check({section: kind}, read_params(path), path)[section]  # type: ignore[no-any-return]


def check(kinds: Mapping[str, type], document: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Build one settings object a section.

    Args:
        kinds: section name to the dataclass that describes it.
        document: the sections as read.
        source: the file they come from, for the message.

    Raises:
        SettingsError: lists every problem of every section.
    """
    problems: list[str] = []
    built = {name: collect(kind, document.get(name), name, problems) for name, kind in kinds.items()}
    refuse(problems, source)
    return built


def refuse(problems: list[str], source: Path | str) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        count = "1 setting does" if len(problems) == 1 else f"{len(problems)} settings do"
        raise SettingsError(f"{count} not fit in {source}:\n" + "\n".join(f"  {problem}" for problem in problems))


def collect(kind: type, value: Any, place: str, problems: list[str]) -> Any:
    """One settings object from a mapping, or None if it cannot be built.

    Args:
        kind: the dataclass.
        value: the mapping as read.
        place: its full path, such as `train.decoder_options`.
        problems: everything that does not fit is added here.
    """
    if not isinstance(value, Mapping):
        found = "nothing" if value is None else repr(value)
        problems.append(f"{place}: expected a section with its keys, found {found}")
        return None
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    problems += [_unknown(place, key, names) for key in value if key not in names]
    problems += [f"{place}.{name}: missing; no key has a default" for name in names if name not in value]
    checked = {name: _value(hints[name], value[name], f"{place}.{name}", problems) for name in names if name in value}
    return kind(**checked) if checked.keys() == set(names) else None


def _unknown(place: str, key: object, names: list[str]) -> str:
    close = difflib.get_close_matches(str(key), names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
    return f"{place}.{key}: unknown key; {hint}"


def _value(hint: Any, value: Any, place: str, problems: list[str]) -> Any:
    options = list(_options(hint))
    for option, bounds in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return collect(option, value, place, problems)
        if _fits(option, value):
            value = float(value) if option is float else value
            if not all(bound.holds(value) for bound in bounds):
                problems.append(f"{place}: {value!r} is out of range; expected {' and '.join(map(str, bounds))}")
            return value
    problems.append(f"{place}: expected {_described(options)}, found {value!r}{_advice(options, value)}")
    return None


def _options(hint: Any, bounds: tuple[Range, ...] = ()) -> Iterator[tuple[Any, tuple[Range, ...]]]:
    """The types that a hint admits, each with its bounds."""
    if typing.get_origin(hint) is typing.Annotated:
        yield from _options(hint.__origin__, tuple(extra for extra in hint.__metadata__ if isinstance(extra, Range)))
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _options(part, bounds)
    else:
        yield hint, bounds


def _fits(option: Any, value: Any) -> bool:
    if typing.get_origin(option) is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(option))
    if option is types.NoneType:
        return value is None
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(option) is list:
        return isinstance(value, list) and all(_fits(typing.get_args(option)[0], one) for one in value)
    return isinstance(value, typing.get_origin(option) or option)


def _described(options: list[tuple[Any, tuple[Range, ...]]]) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    parts: list[str] = []
    for option, bounds in options:
        if typing.get_origin(option) is typing.Literal:
            parts += [str(choice) for choice in typing.get_args(option)]
        elif typing.get_origin(option) is list:
            parts.append(f"a list, each {_described([(typing.get_args(option)[0], ())])}")
        else:
            parts.append(" ".join((words.get(option, "a mapping"), *map(str, bounds))))
    return " or ".join(parts)


def _advice(options: list[tuple[Any, tuple[Range, ...]]], value: Any) -> str:
    if isinstance(value, str) and {int, float} & {option for option, _ in options}:
        try:
            float(value)
        except ValueError:
            return ""
        return " (text; write the number without quotes)"
    return ""

"""The documents hold: commands, options, settings, presets, links and the tree are those of the project."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from cli import CONTEXT, main
from pipeline.settings import read_params
from tests.import_graph import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PARAMS: dict[str, Any] = read_params(ROOT / "params.yaml")
PRESETS = {path.stem for path in (ROOT / "params").glob("*.yaml")}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Folders that stages write: named in the documents, absent from a fresh clone.
MADE = ("data/", "models/", "results/", "dvc_plots/", ".freezeframe/", ".dvc/tmp/", ".venv/")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def fenced(path: Path) -> list[str]:
    """The fenced blocks of commands; output has a language."""
    return [block for language, block in FENCE.findall(text(path)) if not language]


def said(path: Path) -> Iterator[str]:
    """All code of a document: lines of fenced blocks and spans in sentences."""
    for block in fenced(path):
        yield from (line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text(path)))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_commands_stand_where_they_are_checked(path: Path) -> None:
    assert not re.findall(
        r"^(?: {4}|\t)\$? ?(?:freezeframe|dvc|make|python) .*", FENCE.sub("", text(path)), re.MULTILINE
    )


def words(program: str) -> list[list[str]]:
    """Every command of a program in any document (a signature begins with the version)."""
    lines = [line for path in DOCUMENTS for line in said(path) if re.match(rf"{program} [a-z-]", line)]
    return [shlex.split(line)[1:] for line in lines]


def find(names: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = main
    while isinstance(command, click.Group) and names and not names[0].startswith("-"):
        assert names[0] in command.commands, f"there is no command {names[0]}"
        command, names = command.commands[names[0]], names[1:]
    return command, names


@pytest.mark.parametrize("arguments", words("freezeframe"), ids=" ".join)
def test_commands_and_options_exist(arguments: list[str]) -> None:
    if any(word == "PRESET" for word in arguments):
        return
    command, rest = find(arguments)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert options <= known, f"unknown: {options - known}"
    if command.name == "use" and rest and "--help" not in rest:
        # click keeps the help option of the first context a command is parsed in, so it has to be the real one's
        parsed = command.make_context("use", list(rest), parent=click.Context(main, **CONTEXT)).params
        assert set(parsed["presets"]) <= PRESETS
        for assignment in parsed["assignments"]:
            assert exists(assignment.partition("=")[0]), assignment


def exists(setting: str) -> bool:
    value: Any = PARAMS
    for key in setting.split("."):
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


@pytest.mark.parametrize("arguments", words("make"), ids=" ".join)
def test_make_targets_exist(arguments: list[str]) -> None:
    assert set(arguments) <= TARGETS


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_settings_exist(path: Path) -> None:
    sections = "|".join(PARAMS)
    named = re.findall(rf"(?<![\w./-])((?:{sections})(?:\.[a-z_]+)+)(?![\w/.(*-])", text(path))
    files = {name for name in named if name.endswith((".py", ".html", ".jsonl", ".json", ".zarr", ".pt", ".txt"))}
    missing = {name for name in named if not exists(name)} - files
    assert not missing


def test_every_preset_is_in_the_readme() -> None:
    assert {preset for preset in PRESETS if f"`{preset}`" in text(ROOT / "README.md") or used(preset)} == PRESETS


def used(preset: str) -> bool:
    return any(preset in arguments for arguments in words("freezeframe") if arguments[0] == "use")


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", text(path)):
        if not target.startswith(("https://", "http://")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:cli\.py|[a-z_.]+/)[\w./-]*\.(?:py|md|yaml|json|txt|html|css|js))`", text(path)):
        if not name.startswith(MADE) and "NAME" not in name:
            inside = [ROOT / name, ROOT / "pipeline" / name, path.parent / name]
            assert any(candidate.exists() for candidate in inside), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_no_document_names_a_machine(path: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:tmp|home|root|work|mnt|Users)/", text(path))


def tree() -> list[str]:
    """The paths of the README's tree, folders with a slash at the end."""
    (block,) = [block for block in fenced(ROOT / "README.md") if block.startswith("freezeframe/\n")]
    paths, above = [], list[str]()
    for line in block.splitlines()[1:]:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        above = [*above[:depth], name]
        paths.append("".join(above))
    return paths


def test_the_tree_is_there() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()]
    assert not missing


def test_the_tree_leaves_out_no_stage_and_no_package() -> None:
    stages = {relative(path) for path in (ROOT / "stages").glob("*.py")} - {"stages/__init__.py"}
    parts = {
        relative(path) + "/" * path.is_dir() for path in (ROOT / "pipeline").iterdir() if not path.name.startswith("__")
    }
    assert stages | parts <= set(tree())


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", text(folder / "README.md"))
    assert sorted(listed) == sorted(path.name for path in folder.glob("[0-9]*.md"))

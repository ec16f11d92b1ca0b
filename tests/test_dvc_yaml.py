"""dvc.yaml says what the code does: deps, params, outs."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.settings import SECTIONS
from pipeline.files import Workspace
from pipeline.report.page import WITHOUT_EFFECT
from pipeline.settings import read_params
from tests.import_graph import ROOT, STAGES, code_deps, is_code

PIPELINE: dict[str, Any] = read_params(ROOT / "dvc.yaml")
PARAMS: dict[str, Any] = read_params(ROOT / "params.yaml")


def paths(stage: str, kind: str) -> list[str]:
    return [path if isinstance(path, str) else next(iter(path)) for path in PIPELINE["stages"][stage].get(kind, [])]


def outs(stage: str) -> list[str]:
    return paths(stage, "outs") + paths(stage, "metrics")


def test_the_stages_are_those_of_the_house() -> None:
    assert tuple(PIPELINE["stages"]) == STAGES
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_what_the_stage_reaches_by_import(stage: str) -> None:
    listed = [dep for dep in paths(stage, "deps") if is_code(dep)]
    assert listed == code_deps(stage), 'run "make deps"'


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_a_stage_loads_is_a_dep(stage: str) -> None:
    script = (
        f"import stages.{stage}, sys; print('\\n'.join(m.__file__ for m in sys.modules.values() "
        "if getattr(m, '__file__', None)))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {Path(line) for line in result.stdout.splitlines()}
    loaded = {
        path.relative_to(ROOT).as_posix()
        for path in ours
        if path.is_relative_to(ROOT / "pipeline") or path.is_relative_to(ROOT / "stages")
    }
    assert loaded <= set(paths(stage, "deps"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_run_from_its_own_workspace(stage: str) -> None:
    assert PIPELINE["stages"][stage]["cmd"] == f"python cli.py {stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_exist(stage: str) -> None:
    for name in PIPELINE["stages"][stage].get("params", []):
        section, _, key = name.partition(".")
        assert section in PARAMS
        assert not key or key in PARAMS[section]


def settings_of(sections: Iterable[str]) -> set[str]:
    return {f"{section}.{key}" for section in sections for key in PARAMS[section]}


def declared(stage: str) -> set[str]:
    """The settings that DVC watches for a stage; the name of a section stands for all of it."""
    names = set(PIPELINE["stages"][stage]["params"])
    return (names - set(SECTIONS)) | settings_of(names & set(SECTIONS))


def test_what_changes_no_byte_is_a_setting() -> None:
    assert settings_of(SECTIONS) >= WITHOUT_EFFECT


@pytest.mark.parametrize("section", SECTIONS)
def test_a_stage_declares_its_section_but_for_what_changes_no_byte(section: str) -> None:
    stage = {"data": "ingest"}.get(section, section)
    own = {name for name in declared(stage) if name.startswith(f"{section}.")}
    assert own == settings_of([section]) - WITHOUT_EFFECT


def test_the_report_shows_every_setting_and_so_declares_them_all() -> None:
    assert declared("report") == settings_of(SECTIONS) - WITHOUT_EFFECT


def test_outs_are_the_places_of_the_workspace() -> None:
    workspace = Workspace(Path())
    assert outs("ingest") == [workspace.dataset.as_posix()]
    assert outs("tokenize") == [workspace.tokens.as_posix()]
    assert outs("encode") == [workspace.features.as_posix()]
    results = workspace.train_results.as_posix()
    assert outs("train") == [workspace.captioner.as_posix(), f"{results}/plots/metrics", f"{results}/metrics.json"]
    assert all(Path(out).parent == workspace.evaluate_results for out in outs("evaluate"))
    assert outs("report") == [workspace.report.as_posix()]


def test_every_dep_on_data_is_an_out_of_an_earlier_stage() -> None:
    made: set[str] = set()
    for stage in STAGES:
        for dep in paths(stage, "deps"):
            known = any(f"{dep}/".startswith(f"{out}/") or out.startswith(f"{dep}/") for out in made)
            assert is_code(dep) or dep.startswith("${") or known, dep
        made |= set(outs(stage))


def test_evaluate_depends_on_every_model_that_of_train_included() -> None:
    workspace = Workspace(Path())
    assert workspace.models.as_posix() in paths("evaluate", "deps")
    assert workspace.captioner.is_relative_to(workspace.models)

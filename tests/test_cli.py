"""The command line: exit statuses, one paragraph an error, examples in every help, no torch for it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cli import CONTEXT, main
from pipeline.files import Workspace, lock
from pipeline.training.batches import Regions
from pipeline.training.checkpoint import train_lock
from pipeline.version import VERSION
from tests import tiny
from tests.import_graph import ROOT, STAGES


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group by its words."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="freezeframe")


def test_the_commands_are_the_stages_and_the_agreed_ones() -> None:
    assert {path[0] for path in commands() if path} == {*STAGES, "use", "sweep", "caption", "score", "cache", "pack"}


def examples(words: tuple[str, ...]) -> list[str]:
    """The lines below "Example:", continued ones joined."""
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert run(*words, "-h").stdout == result.stdout
    lines = result.stdout.partition("  Example:\n")[2].replace("\\\n", " ")
    return [" ".join(line.split()) for line in lines.splitlines()]


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_help_ends_with_an_example_that_parses(words: tuple[str, ...]) -> None:
    shown = examples(words)
    assert shown[0].startswith(" ".join(("freezeframe", *words)))
    for line in shown:
        program, *arguments = line.split()
        command: click.Command = main if program == "freezeframe" else click.Group("dvc")
        while isinstance(command, click.Group) and program == "freezeframe":
            name, *arguments = arguments
            command = command.commands[name]
            command.make_context(name, list(arguments), parent=click.Context(main, **CONTEXT))
        assert line == "dvc repro" or program == "freezeframe"


def test_the_version_is_the_projects() -> None:
    assert run("--version").stdout == f"freezeframe, version {VERSION}\n"


@pytest.mark.parametrize(("terminal", "seconds"), [(False, "10"), (True, None)])
def test_bars_are_few_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, seconds: str | None
) -> None:
    monkeypatch.delenv("TQDM_MININTERVAL")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: terminal, raising=False)
        assert run("ingest").exit_code == 1
    assert os.environ.get("TQDM_MININTERVAL") == seconds


def test_help_loads_no_torch() -> None:
    script = (
        "import sys, cli\n"
        "for words in ([], ['train'], ['caption'], ['use'], ['score'], ['cache', 'info']):\n"
        "    try: cli.main([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'torchvision', 'timm', 'openvino', 'PIL', 'numpy', 'zarr', 'dask'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("arguments", [["trian"], ["use"], ["caption"], ["score", "one"], ["train", "--fast"]])
def test_wrong_usage_is_status_two(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: freezeframe")
    assert "Error: " in result.stderr


def told(result: Result) -> str:
    """The paragraph of an error: on stderr, no traceback, status 1."""
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.stderr[result.stderr.rindex("Error: ") :]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_settings_is_one_paragraph(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    result = run(stage)
    assert told(result) == f"Error: {tmp_path}/params.yaml does not exist. Check the path.\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    "words", [("cache", "info"), ("ingest",), ("use", "shapes"), ("caption", "a.jpg"), ("pack", "x")]
)
def test_a_folder_that_is_no_project_is_told_where_to_go(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "results" / "train").mkdir(parents=True)
    (tmp_path / "project" / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path / "project" / "results" / "train")
    paragraph = told(run(*words))
    assert paragraph.endswith(f"holds no project; run this in the folder that holds dvc.yaml: {tmp_path}/project\n")
    monkeypatch.chdir(tmp_path)
    assert told(run(*words)).endswith("holds no project; run this in the folder that holds dvc.yaml.\n")


def test_score_needs_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "said.json").write_text('{"a": "a dog"}')
    (tmp_path / "known.json").write_text('{"a": ["a dog"]}')
    assert run("score", "said.json", "known.json").exit_code == 0


@pytest.mark.parametrize("stage", ["tokenize", "encode", "train", "evaluate", "report"])
def test_a_stage_before_its_time_names_the_stage_to_run(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_params(Workspace(tmp_path))
    paragraph = told(run(stage))
    assert re.search(r'does not exist\. Run "dvc repro (ingest|encode|train|evaluate)"\.\n$', paragraph)
    assert paragraph.count("\n") == 1


def test_every_stage_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    tiny.write_params(workspace, train__epochs=1)
    for stage in STAGES:
        result = run(stage)
        assert result.exit_code == 0, result.output
    assert workspace.report.exists()
    assert f"Open {workspace.report} in a browser." in result.stdout


def test_settings_that_do_not_fit_are_told_before_a_stage_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_params(Workspace(tmp_path), train__epochs=0, evaluate__beam="wide")
    paragraph = told(run("ingest"))
    assert "2 settings do not fit" in paragraph
    assert "train.epochs: 0 is out of range" in paragraph
    assert "evaluate.beam: expected a whole number" in paragraph
    assert not (tmp_path / "data").exists()


def test_a_loss_that_is_no_number_ends_with_status_one(evaluated: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated.root)
    tiny.write_params(evaluated, train__seed=1)
    before = tiny.content(evaluated.captioner)
    ready = Regions.ready
    monkeypatch.setattr(Regions, "ready", lambda *given: ready(*given) * float("nan"))
    paragraph = told(run("train"))
    assert "Training stopped at epoch 1, step 1 of 5" in paragraph
    assert "Lower train.learning_rate" in paragraph
    assert tiny.content(evaluated.captioner) == before


def test_a_second_trainer_ends_with_status_one(encoded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(encoded.root)
    with lock(train_lock(encoded), "training"):
        assert f"Another process is training here: process {os.getpid()}" in told(run("train"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_anywhere_is_one_paragraph(
    number: int, evaluated_once: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.chdir(evaluated_once.root)
    monkeypatch.setattr("pipeline.commands.cache.cache_info", full)
    paragraph = told(run("cache", "info"))
    assert "The disk is full" in paragraph
    assert "/somewhere/file" in paragraph


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
@pytest.mark.parametrize("below", ["x", "x/y"])
def test_a_path_below_a_file_is_one_paragraph(
    kind: str, below: str, evaluated_once: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("precious")
    monkeypatch.chdir(evaluated_once.root)
    paragraph = told(run("cache", "export", "--format", kind, str(tmp_path / "file" / below)))
    assert re.match(rf"Error: {tmp_path}/file(/x)?: (File exists|Not a directory)\. Check the path", paragraph)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_defect_of_ours_is_not_hidden(evaluated_once: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.chdir(evaluated_once.root)
    monkeypatch.setattr("pipeline.commands.cache.cache_info", broken)
    with pytest.raises(OSError, match="input/output"):
        CliRunner().invoke(main, ["cache", "info"], catch_exceptions=False)


def test_use_writes_settings_and_tells_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    result = run("use", "shapes", "--set", "train.epochs=3", "--set", "train.seed=5")
    assert result.exit_code == 0
    assert "Decoder: soft, 3 epochs." in result.stdout
    assert 'no preset "sharps"' in told(run("use", "sharps"))


def test_caption_prints_a_line_an_image_or_json(evaluated_once: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated_once.root)
    entries = json.loads((evaluated_once.evaluate_results / "captions.json").read_text())
    paths = [f"data/dataset/images/{entry['image']}" for entry in entries[:2]]
    assert run("caption", paths[0]).stdout == f"{entries[0]['caption']}\n"
    said = run("caption", *paths).stdout.splitlines()
    assert said == [f"{path}: {entry['caption']}" for path, entry in zip(paths, entries, strict=False)]
    found = json.loads(run("caption", *paths, "--json").stdout)
    assert [entry["caption"] for entry in found] == [entry["caption"] for entry in entries[:2]]
    assert "gone.jpg does not exist" in told(run("caption", "gone.jpg"))


def test_score_prints_the_metrics_of_evaluate_again(evaluated_once: Workspace) -> None:
    folder = evaluated_once.evaluate_results
    known = json.loads((folder / "metrics.json").read_text())
    arguments = ("score", str(folder / "captions.json"), str(evaluated_once.dataset / "dataset.jsonl"))
    found = json.loads(run(*arguments, "--json").stdout)
    for name in ("bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l", "mean_length", "distinct", "images"):
        assert found[name] == pytest.approx(known[name]), name
    assert f"bleu1            {known['bleu1']:.2f}\n" in run(*arguments).stdout


def test_cache_info_prints_text_or_json(evaluated_once: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated_once.root)
    assert "30 images x 4 regions (2 x 2) x 512 channels, float16" in run("cache", "info").stdout
    assert json.loads(run("cache", "info", "--json").stdout)["complete"]["shape"] == [30, 4, 512]


def test_ctrl_c_is_told_without_a_traceback_and_goes_on_later(encoded: Workspace) -> None:
    tiny.write_params(encoded, train__epochs=3000, train__patience=3000)
    command = [sys.executable, str(ROOT / "cli.py"), "train"]
    with subprocess.Popen(
        command,
        cwd=encoded.root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell's background job is born deaf to Ctrl-C, and so would be its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        try:
            while not list(encoded.work("train").glob("*/state.pt")) and child.poll() is None:
                time.sleep(0.01)
            os.killpg(child.pid, signal.SIGINT)
            said = child.communicate(timeout=120)[1]
        finally:
            child.kill()
    assert child.returncode == 130
    assert "Stopped. What was finished is kept; run the same command again to go on." in said
    assert "Traceback" not in said
    assert not encoded.captioner.exists()
    assert not list(encoded.root.rglob("*.partial"))


def test_another_python_is_told_how_to_find_the_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.commands.settings", None)
    result = CliRunner().invoke(main, ["ingest"])
    assert result.exit_code == 1
    assert "is not installed for" in result.stderr
    assert "source .venv/bin/activate" in result.stderr

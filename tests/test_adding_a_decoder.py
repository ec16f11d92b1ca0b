"""CONTRIBUTING's way to a new decoder, done as it stands there: what it takes, and that it works."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.import_graph import ROOT

USED = """
import torch
from pathlib import Path
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.search import beam_search
from pipeline.files import Workspace
from pipeline.commands.use import use

print(use(Workspace(Path()), ["plain"], None, None, None, ()))
torch.manual_seed(0)
captioner = build_captioner("plain", DecoderShape(11, 7, 5, 6, 8, 0.0), {"normalise": True})
regions, words = torch.randn(3, 9, 7), torch.tensor([[[1, 5, 6, 2]], [[1, 9, 2, 0]], [[1, 4, 4, 2]]])
lengths, rates = torch.tensor([[4], [3], [4]]), torch.optim.Adam(captioner.parameters(), 0.05)
for step in range(150):
    output = captioner(regions, words, lengths, torch.Generator().manual_seed(step))
    loss = torch.nn.functional.cross_entropy(output.logits, torch.tensor([5, 6, 2, 9, 2, 4, 4, 2]))
    rates.zero_grad()
    loss.backward()
    rates.step()
found = beam_search(captioner.eval(), regions, beam=2, length_penalty=1.0, max_length=5)
print([caption.words for caption in found])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, with the decoder of CONTRIBUTING.md added by its own steps."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("pipeline", "stages", "params", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / file, root / file)
    code, line, preset = blocks()
    (root / "pipeline/captioners/plain.py").write_text(code)
    (root / "params/plain.yaml").write_text(preset)
    build = root / "pipeline/captioners/build.py"
    before = build.read_text()
    build.write_text(
        before.replace(
            "from pipeline.captioners.soft import",
            "from pipeline.captioners.plain import PlainCaptioner, PlainOptions\nfrom pipeline.captioners.soft import",
        ).replace("\n}\n", f"\n    {line.strip()}\n}}\n", 1)
    )
    return root


def blocks() -> list[str]:
    """The code, the line and the preset."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    chapter = text.partition("## Adding a decoder")[2].partition("\n## ")[0]
    return [textwrap.dedent(block) for block in re.findall(r"```(?:python|yaml)\n(.*?)```", chapter, re.S)]


def run(project: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_decoder_is_one_file_and_one_line_and_make_deps_does_the_rest(project: Path) -> None:
    run(project, "-m", "tests.import_graph")
    before = (ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()
    after = (project / "dvc.yaml").read_text(encoding="utf-8").splitlines()
    added = [line for line in after if line not in before]
    assert added == ["    - pipeline/captioners/plain.py"] * 2  # train and evaluate; encode never sees a decoder
    assert len(after) == len(before) + 2


def test_the_decoder_learns_and_is_searched(project: Path) -> None:
    told = run(project, "-c", USED)
    assert "Decoder: plain" in told
    assert told.splitlines()[-1] == "[(5, 6), (9,), (4, 4)]"


def test_the_code_of_the_chapter_is_in_the_projects_style(project: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    settings = ["--config", str(ROOT / "pyproject.toml"), str(project / "pipeline/captioners/plain.py")]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *check, *settings], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

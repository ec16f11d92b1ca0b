"""The house holds: who may import whom, and what a stage never loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import ROOT, imports, reached

# From the top down: a package may use those on later lines, never one beside or above it.
LINES = (
    "commands",
    "encoding",
    "training",
    "report",
    "scoring",
    "features",
    "datasets",
    "vision",
    "captioners",
    "language",
    "settings",
    "hdf5",
    "files",
    "hardware",
    "ahead",
    "errors",
    "version",
)
CODE = sorted(path for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*.py"))


def line(path: Path) -> int:
    part = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    return LINES.index(part)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in CODE if p.name != "__init__.py"], ids=relative)
def test_arrows_run_down_only(path: Path) -> None:
    for other in imports(path):
        if other.name == "__init__.py":
            continue
        assert other.name != "cli.py", f"{relative(path)} imports cli.py"
        if path.is_relative_to(ROOT / "stages"):
            assert other.is_relative_to(ROOT / "pipeline"), f"{relative(path)} imports {relative(other)}"
            continue
        assert other.is_relative_to(ROOT / "pipeline"), f"{relative(path)} imports {relative(other)}"
        beside = path.parent == other.parent and path.parent != ROOT / "pipeline"
        assert beside or line(path) < line(other), f"{relative(path)} imports {relative(other)}, which is not below it"


@pytest.mark.parametrize("path", [p for p in CODE if p.name == "__init__.py"], ids=relative)
def test_packages_do_nothing_when_imported(path: Path) -> None:
    (only,) = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), "more than a docstring"


def loaded_by(statement: str) -> set[str]:
    script = f"{statement}; import sys; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_command_line_loads_no_torch() -> None:
    loaded = loaded_by("import cli")
    assert not loaded & {"torch", "torchvision", "zarr", "dvclive", "PIL", "nltk"}


def test_train_loads_no_images_and_no_encoder() -> None:
    loaded = loaded_by("import stages.train")
    assert "torch" in loaded
    assert not loaded & {"torchvision", "timm", "PIL", "openvino"}
    assert not any(name.startswith("pipeline.vision") for name in loaded)


def test_train_reaches_the_encoder_through_tails_alone() -> None:
    paths = reached(ROOT / "stages" / "train.py")
    outside = [path for path in paths if "vision" not in path.parts]
    doors = {relative(path) for path in outside if any("vision" in other.parts for other in imports(path))}
    assert doors == {"pipeline/training/tails.py"}
    found = {path.stem for path in paths if "vision" in path.parts}
    assert found == {"__init__", "tail", "layers", "maps", "backbones", "weights", "images"}  # and no engine


def test_encode_knows_no_decoder() -> None:
    assert not any(name.startswith("pipeline.captioners") for name in loaded_by("import stages.encode"))
    assert not [path for path in reached(ROOT / "stages" / "encode.py") if "captioners" in path.parts]


def test_only_the_features_package_knows_zarr() -> None:
    for path in CODE:
        found = re.search(r"^\s*(?:import|from) (?:zarr|tensorstore)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert (found is None) or path.parent.name == "features", relative(path)

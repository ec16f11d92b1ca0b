"""Who imports whom, read from the source.

Owns the graph that the architecture is held to and that `make deps` writes into `dvc.yaml`. Imports inside functions
count: they are what a stage may run.
"""

import ast
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STAGES = ("ingest", "tokenize", "encode", "train", "evaluate", "report")


@cache
def imports(path: Path) -> frozenset[Path]:
    """The project's files that a file imports by itself, packages' `__init__.py` included."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _files(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute in this project"
            for alias in node.names:
                found |= _files(f"{node.module}.{alias.name}") or _files(node.module or "")
    return frozenset(found - {path})


def _files(module: str) -> set[Path]:
    """A module's file and those of the packages around it; nothing for a foreign module."""
    base = ROOT.joinpath(*module.split("."))
    if base.with_suffix(".py").exists():
        own = base.with_suffix(".py")
    elif (base / "__init__.py").exists():
        own = base / "__init__.py"
    else:
        return set()
    around = {folder / "__init__.py" for folder in own.parents if folder != ROOT and folder.is_relative_to(ROOT)}
    return {own} | {path for path in around if path.exists()}


def reached(path: Path) -> set[Path]:
    """A file and all it reaches by import."""
    seen: set[Path] = set()
    waiting = {path} | {
        folder / "__init__.py" for folder in path.parents if folder != ROOT and folder.is_relative_to(ROOT)
    }
    while waiting:
        file = waiting.pop()
        seen.add(file)
        waiting |= imports(file) - seen
    return seen


def data_files(path: Path) -> set[Path]:
    """Files beside the code it reaches that are read there: the report's template, the kernels' source."""
    folders, kinds = {code.parent for code in reached(path)}, (".html", ".css", ".js", ".cpp", ".hpp")
    return {file for folder in folders for file in folder.iterdir() if file.suffix in kinds}


def code_deps(stage: str) -> list[str]:
    """What `dvc.yaml` must list as the code of a stage."""
    start = ROOT / "stages" / f"{stage}.py"
    return sorted(file.relative_to(ROOT).as_posix() for file in reached(start) | data_files(start))


def is_code(dep: str) -> bool:
    """Whether a dep of `dvc.yaml` is one of the project's own files."""
    return dep.split("/")[0] in ("pipeline", "stages")


def write_deps(path: Path) -> None:
    """Bring the code deps of every stage up to date, comments kept."""
    yaml = YAML()
    yaml.width = 4096
    document = yaml.load(path.read_text(encoding="utf-8"))
    for stage in STAGES:
        deps = document["stages"][stage]["deps"]
        data = [dep for dep in deps if not is_code(dep)]
        deps[:] = data + code_deps(stage)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)


if __name__ == "__main__":
    write_deps(ROOT / "dvc.yaml")

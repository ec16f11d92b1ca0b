"""Run every bench and put what it prints into docs/performance.md.

python -m bench.renew [NAME ...]

Owns which benches there are (every module here with a `main`) and where their output goes: between the lines
`<!-- bench.NAME -->` and `<!-- end -->`. Measures nothing.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "performance.md"


def benches() -> list[str]:
    """The names of all benches."""
    modules = [path for path in sorted(FOLDER.glob("*.py")) if path.name != Path(__file__).name]
    return [path.stem for path in modules if "\ndef main() -> None:" in path.read_text(encoding="utf-8")]


def run(name: str) -> str:
    """What a bench prints; it is shown as it comes.

    Raises:
        SystemExit: the bench failed.
    """
    lines = []
    with subprocess.Popen([sys.executable, "-m", f"bench.{name}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"bench.{name} ended with status {process.returncode}; {PAGE} keeps its older figures.")
    return "".join(lines)


def renewed(page: str, name: str, printed: str) -> str:
    """The page with a bench's figures.

    Raises:
        SystemExit: the page has no place for them.
    """
    place = re.compile(rf"(<!-- bench\.{name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(page):
        raise SystemExit(f"{PAGE} has no lines <!-- bench.{name} --> and <!-- end --> for the figures of bench.{name}.")
    block = f"```text\n$ python -m bench.{name}\n{printed.strip()}\n```\n"
    return place.sub(lambda found: found[1] + block + found[2], page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of benches; without any, all")
    for name in parser.parse_args().names or benches():
        renewed(PAGE.read_text(encoding="utf-8"), name, "")  # is there a place for it?
        printed = run(name)
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), name, printed), encoding="utf-8")


if __name__ == "__main__":
    main()

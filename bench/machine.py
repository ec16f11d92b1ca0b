"""What a figure was taken on, and how it is printed: shared by all benches.

Owns the line that names the machine, the timing of a call and the two forms of output. Knows nothing that is measured.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.hardware import CPU_FLAGS, cpu_flags


def machine() -> str:
    """Cores and the instruction sets that matter."""
    wanted = ("avx2", "avx512f", *sorted(set().union(*CPU_FLAGS.values())))
    sets = [flag for flag in wanted if flag in cpu_flags()] or ["unknown instruction sets"]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {', '.join(sets)}; torch {torch.__version__}, {torch.get_num_threads()} threads"


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The least of several times; the first call, which compiles and warms up, does not count."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def peak(dtype: torch.dtype, size: int = 2048, repeats: int = 12) -> float:
    """Operations a second of a product of two square matrices: what no training can exceed."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, repeats)


def wants_json(description: str) -> bool:
    """Read the command line of a bench: `--json` or nothing."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return bool(parser.parse_args().json)


def show(rows: list[tuple[str, float, str]], ratios: dict[str, float], as_json: bool) -> None:
    """Print the machine, a table of (what, figure, unit), and the ratios."""
    print(machine())
    width = max(len(name) for name, _, _ in rows)
    for name, figure, unit in rows:
        print(f"{name:<{width}}  {figure:>10.2f} {unit}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    if as_json:
        print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()}))

"""The processes of a dask cluster for tests: a scheduler, workers, and waiting for what they do."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.encoding.run import Receipt
from tests.import_graph import ROOT

QUIET = {  # several processes on few cores: no profiles of what they do
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "9s",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass
class Machines:
    """The processes of a cluster; none outlives the test session."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        own = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **QUIET, **environment}
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "dask", *arguments]
            process = subprocess.Popen(command, cwd=self.folder, env=own, stdout=log, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def scheduler(self) -> str:
        place = self.folder / "scheduler.json"
        # Should even the tests' process be killed, it ends by itself, and the workers after it.
        where = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        options = (*where, "--idle-timeout", "1800", "--scheduler-file", str(place))
        self.start("scheduler", "scheduler", *options)
        until(place.exists)
        until(lambda: place.read_text().endswith("}"))
        self.address = str(json.loads(place.read_text())["address"])
        return self.address

    def worker(self, name: str, *options: str, quick: bool = True, **environment: str) -> subprocess.Popen[bytes]:
        fixed: tuple[str, ...] = (
            "--no-nanny",
            "--no-dashboard",
            "--memory-limit",
            "0",
            "--death-timeout",
            "60",
            "--name",
            name,
        )
        if quick:
            fixed = (*fixed, "--preload", "tests.encoding.quick_worker")
            environment |= {"PYTHONPATH": str(ROOT), "NOTES": str(self.notes), "GATE": str(self.gate), "NAME": name}
        return self.start(name, "worker", self.address, *fixed, *options, **environment)

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def joined(self, *names: str) -> None:
        for name in names:
            until(partial(_registered, self.folder / f"{name}.log"))

    def noted(self, name: str) -> int:
        """How many images a worker has begun."""
        return self.notes.read_text().split().count(name) if self.notes.exists() else 0

    def end(self, start: int = 0) -> None:
        """End all processes from one on."""
        for process in self.processes[start:]:
            process.kill()
            process.wait()
        del self.processes[start:]


def _registered(log: Path) -> bool:
    return b"Registered to" in log.read_bytes()


def until(there: Callable[[], bool], run: Future[Receipt] | None = None, seconds: float = 300) -> None:
    """Wait for something to be there; should the run end before, its error is the news."""
    deadline = time.monotonic() + seconds
    while not there():
        if run is not None and run.done():
            run.result()
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)

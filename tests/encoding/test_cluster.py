"""A real scheduler and real worker processes: the bytes of a local run, whatever happens to the workers.

The scheduler runs where it cannot import this project. Workers of different tests live at one scheduler, told apart by
the resource they offer.
"""

import contextlib
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from pipeline import errors
from pipeline.datasets.dataset import read_images
from pipeline.encoding import connection
from pipeline.encoding.cluster import ClusterMaker, open_cluster
from pipeline.encoding.run import Receipt, make_cache
from pipeline.errors import ClusterError, FreezeframeError
from pipeline.files import Workspace
from pipeline.vision.encoder import EncodeSettings, open_encoder
from tests.encoding.machines import Machines, until
from tests.encoding.quick import SETTINGS, content, draw, encode, quick_encoder, shards
from tests.import_graph import ROOT

IMAGES = 31
QUICK = replace(SETTINGS, dtype="float32")  # rounding to float16 would load torch


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A scheduler and two workers."""
    with contextlib.ExitStack() as stack:
        machines = Machines(tmp_path_factory.mktemp("machines"))
        stack.callback(machines.end)
        machines.scheduler()
        machines.worker("one", "--nthreads", "2", "--resources", "PAIR=1")
        machines.worker("two", "--nthreads", "1", "--resources", "PAIR=1")
        machines.joined("one", "two")
        yield machines


@pytest.fixture
def machines(standing: Machines) -> Iterator[Machines]:
    """The same; what a test starts ends with it."""
    before = len(standing.processes)
    try:
        yield standing
    finally:
        standing.end(before)
        standing.gate.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run without a cluster writes."""
    workspace = Workspace(tmp_path_factory.mktemp("local"))
    draw(workspace, range(IMAGES))
    encode(workspace, quick_encoder(), QUICK)
    return content(workspace.features)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    draw(workspace, range(IMAGES))
    return workspace


def on_cluster(
    workspace: Workspace,
    address: str,
    resource: str | None = "PAIR",
    tell: Callable[[str], None] = lambda _: None,
    settings: EncodeSettings = QUICK,
) -> Receipt:
    settings = replace(settings, resource=resource)
    with open_cluster(address, settings, tell) as maker:
        images = read_images(workspace.dataset)
        return make_cache(workspace, images, workspace.dataset / "images", maker, settings, tell)


def test_workers_write_the_bytes_of_a_local_run(machines: Machines, workspace: Workspace, local: Any) -> None:
    told: list[str] = []
    receipt = on_cluster(workspace, machines.address, tell=told.append)
    assert receipt.images == IMAGES
    assert re.fullmatch(rf"2 workers at {machines.address}; dashboard: http://127\.0\.0\.1:\d+/status\.", told[0])
    assert machines.noted("one") > 0 < machines.noted("two")
    assert content(workspace.features) == local
    assert not list(workspace.root.rglob("*.partial"))


def test_a_worker_without_this_project_installed_writes_the_same_with_a_real_encoder(
    machines: Machines, tmp_path: Path
) -> None:
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    machines.worker("real", "--nthreads", "1", "--resources", "REAL=1", quick=False)
    for workspace in (here, there):
        draw(workspace)
    settings = replace(SETTINGS, codec="blosc")
    encode(here, open_encoder(settings), settings)
    machines.joined("real")
    on_cluster(there, machines.address, "REAL", settings=settings)
    assert content(there.features) == content(here.features)


def test_a_killed_worker_costs_its_unfinished_shards_and_a_late_one_takes_part(
    machines: Machines, workspace: Workspace, local: Any
) -> None:
    offer = ("--nthreads", "2", "--resources", "SHAKY=1")
    killed = machines.worker("killed", *offer, HOLD="0")
    machines.worker("left", *offer, HOLD="6")
    machines.joined("killed", "left")
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(on_cluster, workspace, machines.address, "SHAKY")
        until(lambda: machines.noted("killed") > 0 and machines.noted("left") > 6, run)
        machines.worker("late", *offer)
        machines.joined("late")
        killed.send_signal(signal.SIGKILL)
        until(lambda: machines.noted("late") > 0, run)
        machines.gate.touch()
        run.result()
    assert content(workspace.features) == local
    lost = 2 * QUICK.shard_images  # two shards were in its hands
    begun = sum(machines.noted(name) for name in ("killed", "left", "late"))
    assert IMAGES <= begun <= IMAGES + lost


def test_a_worker_of_another_encoder_writes_nothing_however_late_it_comes(
    machines: Machines, workspace: Workspace
) -> None:
    offer = ("--nthreads", "2", "--resources", "MIXED=1")
    machines.worker("fit", *offer, HOLD="0")
    machines.joined("fit")
    refusal = r"Worker tcp://\S+ would not write .* its encoder differs: precision: expected None, found 'float32'"
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(on_cluster, workspace, machines.address, "MIXED")
        until(lambda: machines.noted("fit") > 0, run)
        machines.worker("misfit", *offer, FIELDS='{"precision": "float32"}')
        with pytest.raises(ClusterError, match=refusal):
            run.result()
        machines.gate.touch()
    assert machines.noted("misfit") == 0
    with pytest.raises(ClusterError, match=r"its encoder differs: precision: .*set encode\.precision"):
        on_cluster(workspace, machines.address, "MIXED")


def test_a_worker_of_other_code_is_refused(machines: Machines, workspace: Workspace) -> None:
    machines.worker("old", "--resources", "OLD=1", CODE="older")
    machines.joined("old")
    with pytest.raises(ClusterError, match=r"its code differs: code: expected '\w+', found 'older'\. Restart it"):
        on_cluster(workspace, machines.address, "OLD")


def test_a_worker_that_cannot_import_the_project_is_left_alone_until_it_is_to_work(
    machines: Machines, workspace: Workspace, local: Any
) -> None:
    blind = machines.folder / "blind.py"
    blind.write_text("import sys\nsys.modules['pipeline'] = None\n")
    machines.worker("stranger", "--resources", "STRANGE=1", "--preload", str(blind), quick=False)
    machines.joined("stranger")
    on_cluster(workspace, machines.address)
    assert content(workspace.features) == local
    with pytest.raises(ClusterError, match=r"Worker tcp://\S+ cannot run this project's code: .*ModuleNotFoundError"):
        on_cluster(workspace, machines.address, "STRANGE")


def test_two_clones_are_found_by_the_workers_and_leave_nothing_with_the_scheduler(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_cluster(machines.address, replace(QUICK, resource="PAIR"), print):
        monkeypatch.setattr(connection, "ROOT", tmp_path)
        with open_cluster(machines.address, replace(QUICK, resource="PAIR"), print) as second:
            found = second._client.run(lambda: list(sys.path))
    assert all({str(ROOT), str(tmp_path)} <= set(paths) for paths in found.values())
    with connection.connected(machines.address) as client:
        left = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
    assert not [name for name in left if "freezeframe" in name]


def test_a_resource_that_nobody_offers_is_an_error_at_once(machines: Machines, workspace: Workspace) -> None:
    expected = rf"encode\.resource GPU: none of .* offer .*PAIR.*dask worker {machines.address} --resources GPU=1"
    with pytest.raises(ClusterError, match=expected):
        on_cluster(workspace, machines.address, "GPU")


def test_images_that_a_worker_cannot_see_are_told(machines: Machines, workspace: Workspace) -> None:
    settings = replace(QUICK, resource="PAIR")
    with (
        open_cluster(machines.address, settings, print) as maker,
        pytest.raises(ClusterError, match=r"Worker tcp://\S+ cannot see /nowhere/\d+\.png: No such file"),
    ):
        make_cache(workspace, read_images(workspace.dataset), Path("/nowhere"), maker, settings, print)


def test_an_error_on_a_worker_is_ours_and_the_next_run_goes_on(
    machines: Machines, workspace: Workspace, local: Any
) -> None:
    image = workspace.dataset / "images" / "30.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:99])
    with pytest.raises(FreezeframeError, match=r"30\.png has changed since.*\(Said by worker tcp://"):
        on_cluster(workspace, machines.address)
    image.write_bytes(whole)
    before = shards(workspace)
    assert before
    assert on_cluster(workspace, machines.address).found == len(before) * QUICK.shard_images
    assert before.items() <= shards(workspace).items()
    assert content(workspace.features) == local


def test_interrupted_it_takes_back_what_is_out_and_the_next_run_goes_on(
    machines: Machines, workspace: Workspace, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = ClusterMaker._receive

    def interrupted(*arguments: Any) -> None:
        receive(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClusterMaker, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            on_cluster(workspace, machines.address)
    assert not list(workspace.root.rglob(".beacon*"))
    assert on_cluster(workspace, machines.address).found > 0
    assert content(workspace.features) == local


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_without_a_shared_disk_shards_are_handed_over(
    machines: Machines, workspace: Workspace, tmp_path: Path, codec: Any
) -> None:
    other = Workspace(tmp_path / "other")
    draw(other, range(IMAGES))
    settings = replace(QUICK, codec=codec, shared=f"file://{tmp_path}/bucket/")
    encode(other, quick_encoder(), replace(QUICK, codec=codec))
    on_cluster(workspace, machines.address, settings=settings)
    assert content(workspace.features) == content(other.features)
    assert [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()] == []


def test_without_a_shared_disk_old_rows_are_kept(machines: Machines, workspace: Workspace, tmp_path: Path) -> None:
    other, fewer = Workspace(tmp_path / "other"), range(1, IMAGES)
    settings = replace(QUICK, shared=f"file://{tmp_path}/bucket")
    on_cluster(workspace, machines.address, settings=settings)
    before = machines.noted("one") + machines.noted("two")
    for one in (workspace, other):
        draw(one, fewer)
    encode(other, quick_encoder(), QUICK)
    assert on_cluster(workspace, machines.address, settings=settings).taken == len(fewer)
    assert machines.noted("one") + machines.noted("two") == before
    assert content(workspace.features) == content(other.features)


def test_scales_of_uint8_come_from_a_worker(machines: Machines, workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other")
    draw(other, range(IMAGES))
    settings = replace(QUICK, dtype="uint8")
    encode(other, quick_encoder(), settings)
    on_cluster(workspace, machines.address, settings=settings)
    assert content(workspace.features) == content(other.features)


CHILD = """
import sys, time
from dataclasses import replace
from functools import partial
from pipeline.encoding.cluster import open_cluster
from tests.encoding.quick import SETTINGS
with open_cluster(sys.argv[1], replace(SETTINGS, resource="PAIR"), print) as maker:
    print("open", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_client_left_on_the_workers_is_closed_by_the_next(machines: Machines) -> None:
    command = [sys.executable, "-c", CHILD, machines.address]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        until(lambda: child.stdout.readline() == b"open\n")  # type: ignore[union-attr]
        child.kill()

    def plugins(dask_worker: Any) -> list[str]:
        return [name for name in dask_worker.plugins if name.startswith("freezeframe-")]

    with open_cluster(machines.address, replace(QUICK, resource="PAIR"), print) as maker:
        found = maker._client.run(plugins)
        assert set(map(tuple, found.values())) == {(connection.plugin_name(maker._client),)}


def test_a_scheduler_without_workers_and_one_that_is_lost_are_told(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = Machines(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(machines.end)
        address = machines.scheduler()
        with pytest.raises(ClusterError, match=rf'{address} has no worker\. Start one .*"dask worker {address}"'):
            on_cluster(workspace, address, None)
        machines.worker("only", HOLD="6")
        machines.joined("only")
        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(on_cluster, workspace, address, None)
            until(lambda: machines.noted("only") > 6, run)
            machines.processes[0].kill()
            with pytest.raises(ClusterError, match=rf"The scheduler at {address} was lost\. What was finished is kept"):
                run.result()
    monkeypatch.setattr(connection, "CONNECT", 0.5)
    with pytest.raises(ClusterError, match=rf'No dask scheduler answers at {address} .*"dask scheduler"'):
        on_cluster(workspace, address, None)


def test_a_scheduler_that_is_lost_between_two_questions_is_told_too(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise RuntimeError("ConnectionPool is closed")

    machines = Machines(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(machines.end)
        address = machines.scheduler()
        monkeypatch.setattr(Client, "scheduler_info", lambda *_, **__: {"type": "Scheduler"})
        monkeypatch.setattr(Client, "unregister_worker_plugin", gone)
        with pytest.raises(ClusterError, match=rf"The scheduler at {address} was lost"):
            on_cluster(workspace, address, None)


@pytest.mark.parametrize("address", ["there", "127.0.0.1", "ftp://there:1", "http://127.0.0.1:1", "tcp://there:abc"])
def test_an_address_that_is_none_is_told_before_a_client_is_made(
    workspace: Workspace, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(connection, "Client")
    told = (
        rf"{address} is no address of a dask scheduler .*unset DASK_SCHEDULER_ADDRESS and set encode\.scheduler: local"
    )
    with pytest.raises(ClusterError, match=told):
        on_cluster(workspace, address)


def test_an_address_that_needs_a_certificate_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(connection, "Client")
    with pytest.raises(ClusterError, match=r"tls://127\.0\.0\.1:8786 .* needs a certificate, and none is configured"):
        on_cluster(workspace, "tls://127.0.0.1:8786")
    with (
        dask.config.set({f"distributed.comm.tls.{key}": "/nowhere/own.pem" for key in ("ca-file", "client.cert")}),
        pytest.raises(ClusterError, match=r"cannot be read \(.*No such file.*\)\. Set distributed\.comm\.tls"),
    ):
        on_cluster(workspace, "tls://127.0.0.1:8786")


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FreezeframeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_travel(kind: type[FreezeframeError]) -> None:
    again = pickle.loads(pickle.dumps(kind("what is wrong, and what to do")))
    assert type(again) is kind
    assert str(again) == "what is wrong, and what to do"

"""A write to HDF5 that fails is told, and crashes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import ROOT

WRITE_HDF5 = """
import sys
from pathlib import Path
import h5py
import numpy as np
from pipeline.errors import SpaceError
from pipeline.files import replacing
from pipeline.hdf5 import writing_hdf5
from tests.room import room_for
path = Path(sys.argv[1])
try:
    with room_for(int(sys.argv[2])), replacing(path) as temporary, writing_hdf5(temporary) as (file, check):
        file.create_dataset("ids", data=["a", "b"] * 20, dtype=h5py.string_dtype())
        for number in range(500):
            check()
            file.create_dataset(str(number), data=np.ones(1000, np.uint8))
except SpaceError as error:
    print(number, error)
"""


@pytest.mark.parametrize("room", [300, 3_000, 100_000])
def test_a_full_disk_while_writing_hdf5_is_told_at_once_and_crashes_nothing(tmp_path: Path, room: int) -> None:
    command = [sys.executable, "-c", WRITE_HDF5, str(tmp_path / "out" / "a.hdf5"), str(room)]
    garbage = {**os.environ, "MALLOC_PERTURB_": "165"}  # in memory that nothing was read into
    done = subprocess.run(command, cwd=ROOT, env=garbage, capture_output=True, text=True, check=True)
    number, _, told = done.stdout.partition(" ")
    assert int(number) <= room // 1000
    assert "a.hdf5 could not be written (File too large)" in told
    assert done.stderr == ""
    assert list((tmp_path / "out").iterdir()) == []

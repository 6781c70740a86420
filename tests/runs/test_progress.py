"""progress.csv: every row whole on the disk or not there, and numbers that come back."""

from __future__ import annotations

import csv
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.runs.progress import ProgressFile, read_rows

COLUMNS = ("time/iterations", "rollout/ep_rew_mean", "with,comma")
HEAD = 'time/iterations,rollout/ep_rew_mean,"with,comma"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress.csv"


def written(path: Path, *rows: dict[str, float], offset: int = 0, waiting: Any = ()) -> int:
    """Append rows and return the offset after them."""
    file = ProgressFile(path, COLUMNS, offset, waiting)
    for row in rows:
        file.write_row(row)
    file.sync()
    file.close()
    return file.offset


class TestRows:
    def test_bytes(self, path: Path) -> None:
        end = written(
            path,
            {"time/iterations": 1.0, "rollout/ep_rew_mean": -0.1, "unknown": 3.0},
            {"time/iterations": 2.0, "with,comma": 1e300},
        )
        assert path.read_bytes().decode() == f"{HEAD}1,-0.1,\n2,,1e+300\n"
        assert end == path.stat().st_size

    def test_each_is_there_once_it_is_written(self, path: Path) -> None:
        file = ProgressFile(path, COLUMNS)
        for i in range(1, 4):
            file.write_row({"time/iterations": i})
            assert [row["time/iterations"] for row in read_rows(path)] == list(
                map(str, range(1, i + 1))
            )
            assert file.offset == path.stat().st_size
        file.close()

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_a_number_reads_back_as_the_same_bits(
        self, tmp_path_factory: pytest.TempPathFactory, number: float
    ) -> None:
        path = tmp_path_factory.mktemp("rows") / "progress.csv"
        written(path, {"rollout/ep_rew_mean": number})
        (row,) = read_rows(path)
        assert float(row["rollout/ep_rew_mean"]) == number

    def test_other_readers(self, path: Path) -> None:
        written(path, {"time/iterations": 1, "with,comma": 0.5}, {"time/iterations": 2})
        with path.open(newline="") as file:
            assert [row["with,comma"] for row in csv.DictReader(file)] == ["0.5", ""]
        with path.open() as file:  # as pandas does: by name, an empty cell is no number
            next(file)
            table = np.genfromtxt(file, delimiter=",", names=["iteration", "reward", "other"])
        assert table["iteration"].tolist() == [1, 2]
        assert math.isnan(table["other"][1])


class TestGoingOn:
    def test_what_is_beyond_the_offset_is_cut_off(self, path: Path) -> None:
        written(path, {"time/iterations": 1})
        kept = path.stat().st_size
        written(path, {"time/iterations": 8}, {"time/iterations": 9}, offset=kept)
        with path.open("a") as file:
            file.write("10,0.")  # the process died here
        written(path, {"time/iterations": 2}, offset=kept)
        assert [row["time/iterations"] for row in read_rows(path)] == ["1", "2"]

    def test_from_the_first_byte_it_begins_anew(self, path: Path) -> None:
        path.write_text("something else\n1\n")
        written(path)
        assert path.read_text() == HEAD

    def test_a_file_that_lost_rows_is_refused(self, path: Path) -> None:
        end = written(path, {"time/iterations": 1})
        os.truncate(path, end - 1)
        before = path.read_bytes()
        with pytest.raises(OSError, match=r"progress\.csv is shorter than the checkpoint says"):
            ProgressFile(path, COLUMNS, end)
        assert path.read_bytes() == before

    def test_no_descriptor_is_left(self, path: Path) -> None:
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for _ in range(3):
            written(path)
            with pytest.raises(OSError, match="shorter"):
                ProgressFile(path, COLUMNS, 10_000)
        if before:
            assert len(os.listdir("/proc/self/fd")) == before


class Full:
    """A disk that takes so many bytes more, and then none."""

    def __init__(self, room: int) -> None:
        self.room, self.write = room, os.pwrite

    def __call__(self, descriptor: int, data: bytes, at: int) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        done = self.write(descriptor, data[: self.room], at)
        self.room -= done
        return done


class TestDisk:
    def test_rows_wait_and_none_is_lost_or_doubled(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = ProgressFile(path, COLUMNS)
        file.write_row({"time/iterations": 1})
        full = Full(3)  # half of a row
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            with caplog.at_level(logging.WARNING):
                file.write_row({"time/iterations": 2, "rollout/ep_rew_mean": 5})
                file.write_row({"time/iterations": 3})
            assert [row["time/iterations"] for row in read_rows(path)] == ["1"]
            assert path.read_bytes().endswith(b"\n2,5")
        assert file.waiting == ["2,5,\n", "3,,\n"]
        (said,) = caplog.records
        assert "No space left on device): training goes on, and its rows wait" in said.getMessage()
        file.write_row({"time/iterations": 4})
        assert file.waiting == []
        assert path.read_text() == f"{HEAD}1,,\n2,5,\n3,,\n4,,\n"
        file.close()

    def test_waiting_rows_come_first_where_it_goes_on(self, path: Path) -> None:
        end = written(path, {"time/iterations": 1})
        written(path, {"time/iterations": 3}, offset=end, waiting=["2,,\n"])
        assert [row["time/iterations"] for row in read_rows(path)] == ["1", "2", "3"]


class TestReading:
    def test_a_line_without_its_end_is_no_row(self, path: Path) -> None:
        path.write_text(f"{HEAD}1,2,3\n2,3,")
        assert [row["time/iterations"] for row in read_rows(path)] == ["1"]
        path.write_text(HEAD[:-1])
        assert read_rows(path) == []
        path.write_text("")
        assert read_rows(path) == []

    def test_between_two_offsets(self, path: Path) -> None:
        ends = [written(path, {"time/iterations": 0})]
        for i in (1, 2, 3):
            ends.append(written(path, {"time/iterations": i}, offset=ends[-1]))
        assert [x["time/iterations"] for x in read_rows(path, ends[0], ends[2])] == ["1", "2"]
        assert [x["time/iterations"] for x in read_rows(path, ends[1])] == ["2", "3"]
        assert [x["time/iterations"] for x in read_rows(path, 0, ends[0])] == ["0"]
        assert read_rows(path, ends[3]) == []
        assert read_rows(path, ends[0], ends[1] - 1) == []

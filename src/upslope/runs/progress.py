"""progress.csv: a row at a time, each whole on the disk or not there, from any row on."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger("upslope")
CLOCKS = ("time/time_elapsed", "time/fps")
COLUMNS = (
    "time/total_timesteps", "time/iterations", *CLOCKS,
    "rollout/ep_rew_mean", "rollout/ep_rew_std", "rollout/ep_len_mean", "rollout/episodes",
    "rollout/success_rate", "rollout/valid_share", "rollout/clipped_share",
    "train/policy_gradient_loss", "train/value_loss", "train/entropy_loss", "train/approx_kl",
    "train/clip_fraction", "train/clip_range", "train/clip_range_vf", "train/explained_variance",
    "train/learning_rate", "train/grad_norm", "train/is_line_search_success",
    "train/line_search_scale", "train/normalizer_kl", "train/gradient_snr",
    "eval/mean_reward", "eval/mean_ep_length", "eval/success_rate",
)  # fmt: skip


class ProgressFile:
    """Rows of numbers under fixed columns, appended; what the disk refuses waits for the next row.

    Args:
        path: the file; what is there beyond ``offset`` is cut off.
        columns: the names in the first line, which is written where ``offset`` is 0.
        offset: bytes of it that stay.
        waiting: lines that come after them and are not on the disk yet.

    Raises:
        OSError: if it cannot be opened, or is shorter than ``offset``.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], offset: int = 0, waiting: Sequence[str] = ()
    ) -> None:
        self.path, self._columns = path, columns
        self.waiting = list(waiting)
        self._failed = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if os.fstat(self._file).st_size < offset:
            os.close(self._file)
            raise OSError(f"{path} is shorter than the checkpoint says: rows were cut off it")
        os.ftruncate(self._file, offset)
        self.offset = offset
        if offset == 0:
            self._append(_line(columns))

    def write_row(self, values: Mapping[str, float]) -> None:
        """Append one row; other columns stay empty, other values are left out."""
        cells = [_number(values[name]) if name in values else "" for name in self._columns]
        self.waiting.append(_line(cells))
        self._flush()

    def _flush(self) -> None:
        """Append what waits; what the disk refuses goes on waiting."""
        try:
            while self.waiting:
                self._append(self.waiting[0])
                del self.waiting[0]
        except OSError as error:
            if not self._failed:
                log.warning(
                    "%s cannot be written (%s): training goes on, and its rows wait in memory",
                    self.path, error.strerror,
                )  # fmt: skip
            self._failed = True

    def sync(self) -> None:
        """Have what was written reach the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Write what waits, if that is possible by now, and close the file."""
        self._flush()
        os.close(self._file)

    def _append(self, line: str) -> None:
        """Write a line after the last whole one: what a failure left of it is written over."""
        data = line.encode()
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self.offset + done)
        self.offset += len(data)


def read_rows(path: Path, first: int = 0, last: int | None = None) -> list[dict[str, str]]:
    """Return the rows of a progress.csv, or of the bytes from ``first`` to ``last`` of it.

    A line without its end, which a crash left behind, is no row.

    Raises:
        OSError: if it cannot be read.
    """
    data = path.read_bytes()
    head, _, _ = data.partition(b"\n")
    body = data[max(first, len(head) + 1) : last]
    whole = body[: body.rfind(b"\n") + 1]
    text = (head + b"\n" + whole).decode(errors="replace")
    return list(csv.DictReader(io.StringIO(text)))


def _line(cells: Sequence[str]) -> str:
    held = io.StringIO()
    csv.writer(held, lineterminator="\n").writerow(cells)
    return held.getvalue()


def _number(value: float) -> str:
    """Write a float so that it reads back as the same bits; integers without a point."""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))

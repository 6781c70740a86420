"""TensorBoard events, where its extra is installed."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("upslope")
WAIT = 5.0  # seconds that the first rows may lie here: a short run is over before the import


class Events:
    """Scalars into one events file, laid out by TensorBoard's own record writer.

    Importing it takes a good part of a second, so that happens some seconds into the run, or at its
    end; ``progress.csv`` has every row at once. What the disk refuses waits for the next row, as it
    does there: the records go through a buffer here, not through TensorBoard's thread, which would
    lose them.

    ``first_step``: where a run goes on, what an earlier file of it has from that step on is void.
    """

    def __init__(self, directory: Path, first_step: int | None = None) -> None:
        stamp = f"{time.time():010.0f}.{platform.node()}.{os.getpid()}.0"
        self._path = directory / f"events.out.tfevents.{stamp}"
        self._waiting: list[tuple[float, dict[str, float], int]] = []
        self._first_step, self._offset = first_step, 0
        self._is_open = self._has_failed = False

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers under their tags at a step (environment steps), as one event."""
        self._waiting.append((time.time(), dict(values), step))
        if self._is_open or self._waiting[-1][0] > self._waiting[0][0] + WAIT:
            self._write()

    def close(self) -> None:
        """Write what waits."""
        self._write()

    def _write(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._is_open = True
        try:
            if self._offset == 0:
                self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
                if self._first_step is not None:
                    start = SessionLog(status=SessionLog.START)
                    said = Event(wall_time=time.time(), step=self._first_step, session_log=start)
                    self._append(said)
            while self._waiting:
                wall_time, values, step = self._waiting[0]
                each = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
                self._append(Event(wall_time=wall_time, step=step, summary=Summary(value=each)))
                del self._waiting[0]
        except OSError as error:
            if not self._has_failed:
                log.warning(
                    "%s cannot be written (%s): training goes on, and what it would hold waits in "
                    "memory", self._path, error.strerror,
                )  # fmt: skip
            self._has_failed = True

    def _append(self, event: Any) -> None:
        """Write one record after the last whole one: what a failure left of it is written over."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with open(self._path, "r+b" if self._offset else "wb") as file:
            file.seek(self._offset)
            file.write(record.getbuffer())
        self._offset += record.tell()


def open_events(directory: Path, first_step: int | None = None) -> Events | None:
    """Return the writer, or None where the extra is not installed."""
    found = importlib.util.find_spec("tensorboard")
    return Events(directory, first_step) if found else None

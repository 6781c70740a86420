"""TensorBoard events, where its extra is installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WAIT = 5.0  # seconds that the first rows may lie here: a short run is over before the import


class Events:
    """Scalars into one events file by TensorBoard's own writer, without torch's wrapper of it.

    Importing it takes a good part of a second, so that happens some seconds into the run, or at its
    end; ``progress.csv`` has every row at once.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._waiting: list[tuple[float, dict[str, float], int]] = []
        self._writer: Any = None

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers under their tags at a step (environment steps), as one event."""
        self._waiting.append((time.time(), dict(values), step))
        if self._writer is not None or self._waiting[-1][0] > self._waiting[0][0] + WAIT:
            self._write()

    def close(self) -> None:
        """Write what waits, flush and close the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None:
            self._writer = EventFileWriter(str(self._directory))
        for wall_time, values, step in self._waiting:
            each = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            event = Event(wall_time=wall_time, step=step, summary=Summary(value=each))
            self._writer.add_event(event)
        self._waiting.clear()


def open_events(directory: Path) -> Events | None:
    """Return the writer, or None where the extra is not installed."""
    return Events(directory) if importlib.util.find_spec("tensorboard") else None

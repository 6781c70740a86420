"""TensorBoard events, where its extra is installed; it is not imported before the first row."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path


class Events:
    """Scalars into one events file by TensorBoard's own writer, without torch's wrapper of it."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write one number under its tag at a step (environment steps)."""
        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=value)])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


def open_events(directory: Path) -> Events | None:
    """Return the writer, or None where the extra is not installed."""
    return Events(directory) if importlib.util.find_spec("tensorboard") else None

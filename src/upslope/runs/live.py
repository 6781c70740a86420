"""Live progress: the average return first, then steps, speed, time left, the machine's use.

On a terminal a few lines are redrawn in place; elsewhere about twenty plain lines are printed a
run. The loss is not shown: its value says nothing about performance.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Self

from upslope.training import WINDOW, Event

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from upslope.agent import Agent

LINES_PER_RUN = 20
REDRAWN_AFTER = 0.25  # seconds: fast iterations are not each worth a drawing
_BARS = "▁▂▃▄▅▆▇█"


class LiveProgress:
    """A callback of ``learn`` and a context manager that shows how training goes.

    Args:
        agent: whose training it is.
        total_timesteps: the goal.
        stream: standard error by default.
        title: first line on a terminal.
    """

    def __init__(
        self, agent: Agent, total_timesteps: int, stream: IO[str] | None = None, title: str = ""
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._title = total_timesteps, title
        self._returns: list[float] = []
        self._next_line = 0.0
        self._drawn_at = 0.0
        self._undrawn: Event | None = None
        self._usage = _Usage()
        self._live: Live | None = None
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), auto_refresh=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None and self._undrawn is not None:
            self._draw(self._live, self._undrawn)
        self._stop()

    def __call__(self, event: Event) -> bool:
        """Show one iteration."""
        mean = event.metrics.get("rollout/ep_rew_mean")
        if mean is not None:
            self._returns.append(mean)
        if self._live is not None:
            self._undrawn = event
            if time.perf_counter() - self._drawn_at >= REDRAWN_AFTER:
                self._draw(self._live, event)
        elif event.timesteps >= self._next_line:
            step = self._total / LINES_PER_RUN
            self._next_line = (event.timesteps // step + 1) * step
            self._print(plain_line(event, self._usage.text()))
        return True

    def _draw(self, live: Live, event: Event) -> None:
        """Draw an iteration; a terminal that went away does not stop training."""
        try:
            live.update(self._screen(event), refresh=True)
        except (OSError, ValueError):
            self._stop()
            self._next_line = math.inf
        self._drawn_at, self._undrawn = time.perf_counter(), None

    def _stop(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()
            self._live = None

    def _screen(self, event: Event) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        spread = event.metrics.get("rollout/ep_rew_std", 0.0)
        shown = return_text(event)
        if self._returns:
            shown += f"  (spread {spread:,.1f})"
        grid.add_row(
            Text("return", "bold"), Text(shown, "bold green"), Text(sparkline(self._returns))
        )
        done = f"{event.timesteps:,} of {self._total:,}"
        bar = ProgressBar(total=self._total, completed=min(event.timesteps, self._total), width=30)
        grid.add_row("steps", done, bar)
        fps = event.metrics["time/fps"]
        grid.add_row("speed", f"{fps:,.0f} steps/s", f"{left_text(event)} left")
        grid.add_row("machine", self._usage.text(), "")
        if not self._title:
            return grid
        outer = Table.grid()
        outer.add_row(Text(self._title, "dim"))
        outer.add_row(grid)
        return outer

    def _print(self, line: str) -> None:
        """Print a line; a reader that went away (a closed pipe) does not stop training."""
        try:
            print(line, file=self._stream, flush=True)
        except (OSError, ValueError):
            self._next_line = math.inf


def plain_line(event: Event, usage: str) -> str:
    """One line for logs: return, steps, steps a second, time left, the machine's use."""
    share = min(100, 100 * event.timesteps / event.total_timesteps)
    return (
        f"return {return_text(event)} | {event.timesteps:,} steps ({share:.0f} %) | "
        f"{event.metrics['time/fps']:,.0f} steps/s | {left_text(event)} left | {usage}"
    )


def return_text(event: Event) -> str:
    """The average return of the last 100 finished episodes, or that there is none yet."""
    mean = event.metrics.get("rollout/ep_rew_mean")
    if mean is None:
        return "no finished episode yet"
    count = min(WINDOW, int(event.metrics["rollout/episodes"]))
    return f"{mean:,.1f} over {count} episodes"


def left_text(event: Event) -> str:
    """Time left at the average speed so far, as h:mm:ss or m:ss."""
    seconds = max(0, event.total_timesteps - event.timesteps) / max(event.metrics["time/fps"], 1e-9)
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def sparkline(values: list[float], width: int = 30) -> str:
    """Draw the last values as one line of block characters, each column the mean of its share."""
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


class _Usage:
    """Processor cores in use since the last look, and memory held."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def text(self) -> str:
        wall, cpu = time.perf_counter(), time.process_time()
        cores = (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._wall, self._cpu = wall, cpu
        return f"{cores:.1f} of {os.cpu_count()} cores, {_memory_mb():,.0f} MB"


def _memory_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

"""``report.html``: what a run reached, whether its numbers are healthy, and what is wrong if not.

Everything is imported where it is used: training pays for the report only when it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.runs.report.animation import PlayedEpisode
    from upslope.runs.report.findings import Finding

REPORT = "report.html"
VIDEOS, FILM = "videos", "report.mp4"  # the film of the page, as a file of its own
BRIEF, LONG = 1.0, 30.0  # seconds that an episode may take: as training ends, and when asked for


def write_report(run: Path, agent: Agent | None) -> list[str]:
    """Write ``report.html`` into a run directory; return one sentence a finding.

    Args:
        run: a run directory, whose run may have ended in any way.
        agent: plays one episode, at most a second of it, for the page; None leaves that out.

    Raises:
        ConfigError: the directory is damaged, cannot be written, or jinja2 is missing.
    """
    played = None if agent is None else play(agent, film=False)
    _, findings = report([run], run / REPORT, played)
    return [finding.sentence for finding in findings[0]]


def play(agent: Agent, *, film: bool) -> PlayedEpisode | str:
    """Play one episode for a page, with a film where one can be made; else say why there is none.

    Without a film at most a second is spent, and no library for pictures is imported.
    """
    from upslope.runs.report.animation import play_episode

    return play_episode(agent, film=film, seconds=LONG if film else BRIEF)


def report(
    runs: Sequence[Path], out: Path, episode: PlayedEpisode | str | None
) -> tuple[int, list[list[Finding]]]:
    """Write one page about one run or several; return its bytes and each run's findings.

    Raises:
        ConfigError: a run is damaged, ``out`` cannot be written, or jinja2 is missing.
    """
    from upslope.errors import ConfigError, ModelFileError
    from upslope.runs.durable import replace_file
    from upslope.runs.report.data import read_run
    from upslope.runs.report.findings import diagnose
    from upslope.runs.report.page import render

    records = [read_run(Path(run)) for run in runs]
    try:
        findings = [diagnose(record) for record in records]
        page = render(records, episode).encode("utf-8", "replace")
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{', '.join(map(str, runs))}: the recorded numbers do not fit together "
            f"({type(error).__name__}: {error!s:.100}); the run directory is damaged"
        ) from error
    try:
        replace_file(out, [page], "the report")
    except ModelFileError as error:
        raise ConfigError(f"{error}; --out names another place") from error
    return len(page), findings


def keep_film(run: Path, episode: PlayedEpisode | str | None) -> Path | None:
    """Write the film of a page into the run's ``videos/`` too; return its path, None without one.

    Raises:
        ModelFileError: it cannot be written.
    """
    from upslope.runs.durable import replace_file

    film = getattr(episode, "film", None)
    if film is None:
        return None
    path = run / VIDEOS / FILM
    replace_file(path, [film], "the film")
    return path

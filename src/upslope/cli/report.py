"""``upslope report RUN...``: one page about one run, or the curves of several together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upslope.cli.parser import Parser
from upslope.errors import ConfigError, ModelFileError, UpslopeError

if TYPE_CHECKING:
    from upslope.runs.report.animation import PlayedEpisode


def parser() -> Parser:
    """Return the parser of ``upslope report``."""
    made = Parser(
        "upslope report", "Write a page about a run, or about several: curves, diagnosis, a film."
    )
    made.add_argument("runs", metavar="RUN", nargs="+", help="a run directory")
    made.add_argument(
        "--out",
        metavar="FILE.html",
        help="where the page goes (default: report.html in the run, or here for several)",
    )
    made.add_argument(
        "--env", metavar="ENV", help="the environment, needed where it is the user's own"
    )
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    runs = [Path(name) for name in asked.runs]
    if asked.env and len(runs) > 1:
        raise ConfigError("--env names the environment of one run: give one RUN with it")

    from upslope.runs.report import REPORT, report
    from upslope.runs.report.data import read_run

    folders = [read_run(path).path for path in runs]
    if asked.out:
        out = Path(asked.out)
    else:
        out = Path(REPORT) if len(runs) > 1 else folders[0] / REPORT
    episode = _episode(folders[0], asked.env) if len(runs) == 1 else None
    size, findings = report(folders, out, episode)
    if isinstance(episode, str):
        print(episode)
    for folder, found in zip(folders, findings, strict=True):
        name = f" in {folder}" if len(folders) > 1 else ""
        for finding in found:
            print(f"finding  {finding.sentence}{name}")
    if not any(findings):
        print("findings none")
    _keep_film(folders[0], episode)
    print(f"report   {out} ({size / 1000:,.0f} kB)")
    return 0


def _keep_film(folder: Path, episode: PlayedEpisode | str | None) -> None:
    """Where the run's directory cannot be written, the page has its film all the same."""
    from upslope.runs.report import keep_film

    try:
        film = keep_film(folder, episode)
    except ModelFileError as error:
        print(f"film     only in the page: {error}")
        return
    if film is not None:
        print(f"film     {film}")


def _episode(folder: Path, env: str | None) -> PlayedEpisode | str:
    """Play the run's policy, or say why that cannot be; an environment that was named must do."""
    from upslope.cli.eval import load_run
    from upslope.runs.report import play

    try:
        agent, _ = load_run(str(folder), env)
    except UpslopeError as error:
        if env is not None:
            raise
        return f"No episode is shown: {error}."
    return play(agent, film=True)

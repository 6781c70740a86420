"""``upslope resume RUN``: finish a run that was interrupted or killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.parser import Parser, whole_number
from upslope.cli.session import Session
from upslope.imports import imports_of_a_command

if TYPE_CHECKING:
    from upslope.runs.directory import RunDirectory
    from upslope.runs.resume import Reopened


def parser() -> Parser:
    """Return the parser of ``upslope resume``."""
    made = Parser(
        "upslope resume",
        "Go on from the newest checkpoint of a run, with the settings that it was started with.",
    )
    made.add_argument("run", metavar="RUN", help="a run directory")
    made.add_argument("--total-timesteps", "-n", type=whole_number(1), metavar="N",
                      help="environment steps (default: the run's)")  # fmt: skip
    made.add_argument(
        "--exact",
        action="store_true",
        help="go back to the newest scheduled checkpoint, though a signal left a newer one",
    )
    made.add_argument(
        "--env", metavar="ENV", help="the environment, needed where it is the user's own"
    )
    made.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    with imports_of_a_command():
        from upslope.runs.resume import reopen

    path = Path(asked.run)
    with reopen(path, asked.env, total_timesteps=asked.total_timesteps, exact=asked.exact) as again:
        if again.is_over and _is_evaluated(path, again.command):
            if not asked.quiet:
                print(
                    f"{path} is finished ({again.agent.num_timesteps:,} steps): "
                    "go on with --total-timesteps N"
                )
            return 0
        if not asked.quiet:
            print(_where(again))
        return _session(again, asked.quiet).run()


def _session(again: Reopened, quiet: bool) -> Session:
    def train(callbacks: Sequence[Any], directory: RunDirectory) -> None:
        again.train_into(directory, callbacks)

    return Session(
        again.agent, again.total_timesteps, again.path, again.command, quiet,
        again.directory, train,
    )  # fmt: skip


def _where(again: Reopened) -> str:
    """One line: the checkpoint that the run goes on from, and what is done again."""
    from upslope.runs.directory import PROGRESS
    from upslope.runs.progress import read_rows

    done = again.agent.num_timesteps
    text = f"resume   from iteration {again.checkpoint.number}, {done:,} steps"
    rows = read_rows(again.path / PROGRESS)
    lost = int(rows[-1]["time/total_timesteps"]) - done if rows else 0
    return text + (f"; {lost:,} steps after it are trained again" if lost > 0 else "")


def _is_evaluated(path: Path, command: dict[str, Any]) -> bool:
    """Whether what comes after training was done too."""
    from upslope.runs.directory import EVALUATION
    from upslope.runs.report import REPORT

    evaluated = not command.get("episodes") or (path / EVALUATION).exists()
    return evaluated and (path / REPORT).exists()

"""``upslope verify-resume RUN``: prove that a run resumes to the very same bits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upslope.cli.parser import Parser
from upslope.errors import ModelFileError
from upslope.imports import imports_of_a_command

if TYPE_CHECKING:
    from upslope.runs.verify import Verification


def parser() -> Parser:
    """Return the parser of ``upslope verify-resume``."""
    made = Parser(
        "upslope verify-resume",
        "Replay a run from one checkpoint to the next, in a copy, and compare everything.",
    )
    made.add_argument("run", metavar="RUN", help="a run directory")
    made.add_argument(
        "--env", metavar="ENV", help="the environment, needed where it is the user's own"
    )
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 5 where the replay came out differently."""
    asked = parser().parse(arguments)
    with imports_of_a_command():
        from upslope.runs.verify import verify_resume

    found = verify_resume(Path(asked.run), asked.env)
    print(text(found))
    if found.difference is None:
        print(f"same to the bit: {asked.run} resumes as the undisturbed run", file=sys.stdout)
        return 0
    raise ModelFileError(
        f"{asked.run} does not resume exactly: from iteration {found.first} to {found.last}, "
        f"{found.difference}; an environment that is not determined by its seed is the usual cause"
    )


def text(found: Verification) -> str:
    """A line a part: what was compared, and whether it is the same."""
    lines = [f"iteration {found.first} -> {found.last}, replayed"]
    for part, count in found.compared.items():
        unit = "rows" if part == "progress.csv" else "numbers" if part != "streams" else "entries"
        same = found.differs[part] is None
        lines.append(f"{part:<12} {count:>9,} {unit:<8} {'same' if same else 'DIFFER'}")
    return "\n".join(lines)

"""What run.json says of the times that a run was resumed, in sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_GOAL = re.compile(r"(?:^|\s)(?:-n[ =]?|--total[-_]timesteps[ =])([0-9][0-9_]*)(?=\s|$)")


def resumes(state: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each resume of a run, the first one first; of what is damaged, none."""
    return [
        f"resumed at checkpoint {entry.get('checkpoint')} on {entry.get('at')}"
        + (
            ", which is scheduled: still the undisturbed run"
            if entry.get("scheduled") is True
            else ", which is not scheduled: no longer the undisturbed run"
        )
        for entry in _entries(state)
    ]


def how_to_repeat(state: Mapping[str, Any], command: str | None) -> str | None:
    """Return the sentence on what the first command of a resumed run repeats; None of another run.

    Args:
        state: what run.json holds.
        command: what command.txt holds.
    """
    entries = _entries(state)
    if not entries:
        return None
    off = sum(entry.get("scheduled") is not True for entry in entries)
    times = "once" if len(entries) == 1 else f"{len(entries)} times"
    said = (
        f"The run was resumed {times}, and the command that began it reproduces it only where "
        f"every resume was from a scheduled checkpoint, which {_they_were(off, len(entries))}"
    )
    goal = state.get("total_timesteps")
    asked = [int(steps.replace("_", "")) for steps in _GOAL.findall(command or "")][-1:]
    if isinstance(goal, int) and asked != [goal]:
        said += f"; its goal in the end was {goal:,} steps (--total-timesteps {goal})"
        if asked:
            said += f", not the {asked[0]:,} of the command, and both have schedules of their own"
    return f"{said}."


def _they_were(off: int, n: int) -> str:
    if off == 0:
        return "it was" if n == 1 else "all were"
    return "it was not" if n == 1 else f"{off} of {n} {'was' if off == 1 else 'were'} not"


def _entries(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = state.get("resumed")
    known = found if isinstance(found, list) else []
    return [entry for entry in known if isinstance(entry, Mapping)]

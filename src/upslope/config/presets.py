"""Tuned settings per environment and algorithm, taken by ``upslope train ENV`` and ``preset="auto"``.

Scores they reach, five seeds each, are in bench/scores; every entry says where its settings come from.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[tuple[str, str], dict[str, Any]] = {}

# Environment steps a preset is meant for.
BUDGETS: dict[tuple[str, str], int] = {}


def preset(env_id: str, algorithm: str) -> dict[str, Any]:
    """Return the tuned settings for an environment id and algorithm, or ``{}`` where there are none."""
    return dict(PRESETS.get((env_id, algorithm), {}))


def preset_timesteps(env_id: str | None, algorithm: str, wanted: str) -> int:
    """Return how many steps to train where nobody says: the preset's budget, else 100,000."""
    tuned = BUDGETS.get((env_id or "", algorithm)) if wanted == "auto" else None
    return tuned or 100_000

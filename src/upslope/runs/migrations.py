"""Headers of older model files, step by step to the present format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Header = dict[str, Any]
FORMAT = 2


def from_1_to_2(header: Header) -> Header:
    """Say what format 1 left open about spaces, and what its self-test holds.

    Discrete spaces had no dtype but int64, and a MultiBinary space of one axis was one of a number.
    The self-test was of rows that each began an episode, without masks, and compared outputs and
    values but no probabilities.
    """
    spaces: Header = {
        key: _completed(header[key])
        for key in ("observation_space", "action_space")
        if key in header
    }
    self_test = {"given": ["observations"], "gave": ["outputs", "values"]}
    return {**header, **spaces, "self_test": self_test}


def _completed(described: Any) -> Any:
    """Return a space's description with the fields of format 2, at any depth."""
    if isinstance(described, list):
        return [_completed(part) for part in described]
    if not isinstance(described, dict):
        return described
    n = described.get("n")
    if described.get("type") == "Discrete":
        return {**described, "dtype": "int64"}
    if described.get("type") == "MultiBinary" and isinstance(n, list) and len(n) == 1:
        return {**described, "n": n[0]}
    return {key: _completed(part) for key, part in described.items()}


# Format n -> the function that turns a header of format n into one of format n + 1.
MIGRATIONS: dict[int, Callable[[Header], Header]] = {1: from_1_to_2}

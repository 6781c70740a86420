"""What the entropy of a policy is measured against: how many choices or dimensions it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upslope.runs.report.data import mapping, number

GAUSSIAN = 0.5 * math.log(2 * math.pi * math.e)  # nats of a standard normal
LARGEST_LOG_STD = 2.0  # as upslope.policies.box_actions.LOG_STD_RANGE bounds it
MOST_ENTRIES = 1_000_000  # of an action; a damaged file may say anything
UNIFORM = {"squashed": math.log(2), "beta": 0.0}  # nats of the uniform on (-1, 1) and (0, 1)


@dataclass(frozen=True)
class ActionFacts:
    """A purely discrete space by the entropy of its uniform, a Box by its dimensions."""

    is_discrete: bool
    size: int  # dimensions of a Box; 0 for discrete spaces
    uniform: float = 0.0  # nats

    def most_entropy(self, action_dist: Any) -> float:
        """Return the largest entropy in nats that a policy over this space can have."""
        if self.is_discrete:
            return self.uniform
        of_one = UNIFORM.get(str(action_dist), GAUSSIAN + LARGEST_LOG_STD)
        return self.size * of_one


def action_facts(described: Mapping[str, Any] | None) -> ActionFacts | None:
    """Read a space as a model file describes it; None for mixed and unknown ones."""
    space = mapping(described)
    if space.get("type") == "Box":
        size = _product(space.get("shape"))
        return None if size is None else ActionFacts(False, size)
    counts = [number(n) for n in _choices(space)]
    if not counts or any(n is None or n < 1 for n in counts):
        return None
    uniform = sum(math.log(n) for n in counts if n is not None)
    return ActionFacts(True, 0, uniform) if uniform > 0 else None


def _choices(space: Mapping[str, Any]) -> list[Any]:
    """How many values each choice has; none for other spaces."""
    if space.get("type") == "Discrete":
        return [space.get("n")]
    if space.get("type") == "MultiDiscrete":
        return _flat(space.get("nvec"))
    if space.get("type") == "MultiBinary":
        return [2] * (_product(space.get("n")) or 0)
    return []


def _product(shape: Any) -> int | None:
    """Number of entries of an array; None where ``shape`` is no shape, or none to believe."""
    sizes = [number(n) for n in shape] if isinstance(shape, list) else [None]
    size = math.prod(int(n) for n in sizes if n is not None)
    return size if None not in sizes and 0 < size < MOST_ENTRIES else None


def _flat(value: Any) -> list[Any]:
    """Entries of nested lists, in order."""
    if not isinstance(value, list):
        return [value]
    return [entry for part in value for entry in _flat(part)]

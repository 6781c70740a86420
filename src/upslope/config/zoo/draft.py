"""The settings that an entry of the zoo becomes, while they are put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from upslope.config.zoo.literal import read_literal
from upslope.errors import ConfigError


@dataclass
class Draft:
    """Settings so far, and a sentence for everything that has no equivalent.

    ``where`` names the entry and its file in every sentence.
    """

    where: str
    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lacks(self, what: str, instead: str) -> None:
        """Say that ``what`` has no equivalent and what is done instead."""
        self.notes.append(f"{self.where}: {what} has no equivalent: {instead}")

    def refuse(self, sentence: str) -> NoReturn:
        """Raise :class:`ConfigError`, naming the entry."""
        raise ConfigError(f"{self.where}: {sentence}")

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        """Return a table that may be written as a Python literal; ``{}`` for nothing."""
        if isinstance(value, str):
            value = read_literal(value, f"{self.where}: {key}")
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            self.refuse(f"{key}={value!r} is no table of names and values")
        return dict(value)

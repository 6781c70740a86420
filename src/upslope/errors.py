"""Typed errors: each is one sentence (what, where, what to do) and carries an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UpslopeError(Exception):
    """Base of every error raised on purpose; the command line returns its ``exit_code``."""

    exit_code = 1


class ConfigError(UpslopeError, ValueError):
    """A setting, a flag, a path or a combination of them that cannot be used."""

    exit_code = 2


class UnknownEnvironmentError(ConfigError):
    """An environment id, file or factory that does not exist or cannot be made."""


class UnsupportedSpaceError(ConfigError):
    """An observation or action space that no policy here can read or write."""


class StaleRolloutError(UpslopeError, RuntimeError):
    """Data the current policy did not collect; policy gradients are on-policy."""

    exit_code = 2


class EnvironmentFaultError(UpslopeError, RuntimeError):
    """The environment broke its own contract, or raised."""

    exit_code = 3


class NonFiniteError(UpslopeError, FloatingPointError):
    """A reward, observation, gradient or parameter that is not a finite number."""

    exit_code = 4


class ModelFileError(UpslopeError):
    """A model file or checkpoint that is damaged, foreign, from the future, or does not fit."""

    exit_code = 5


class RunDirectoryBusyError(UpslopeError):
    """Another process holds the run directory."""

    exit_code = 6


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, ``""`` when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: Exception) -> str:
    """Return the first line of ``error``, short enough to stand inside a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

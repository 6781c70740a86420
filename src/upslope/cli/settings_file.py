"""What ``--config FILE`` says: settings by name, a run's ``config.json``, or the RL Zoo's files."""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.config import CONFIGS
from upslope.errors import ConfigError, did_you_mean, first_line

log = logging.getLogger("upslope")
ZOO = (".yml", ".yaml")
MAX_BYTES = 2**18  # of a settings file; the zoo's longest has 12,000


@dataclass(frozen=True)
class FileSettings:
    """Settings that a file gives, the steps to train if it says so, and the environment's id."""

    settings: dict[str, Any]
    total_timesteps: int | None
    env: str


def settings_from_file(
    path: str | None, algorithm: str, env: str, given: Mapping[str, Any]
) -> FileSettings:
    """Read a settings file; nothing in it is evaluated. What has no equivalent is logged.

    Args:
        path: a .toml, .json, .yml or .yaml file; None reads nothing.
        algorithm: whose settings they must be.
        env: the environment to train on, which chooses the entry of a zoo's file.
        given: settings from flags, which override the file's.

    Raises:
        ConfigError: if it cannot be read, or holds what is no setting.
    """
    if path is None:
        return FileSettings({}, None, env)
    if Path(path).suffix in ZOO:
        from upslope.config.zoo import read_zoo

        entry = read_zoo(_text(path), path, algorithm, env, given)
        for note in entry.notes:
            log.warning("%s", note)
        return FileSettings(entry.settings, entry.total_timesteps, entry.env_id)
    settings = _read(path)
    settings.pop("algo", None)
    known = {name.replace("-", "_"): value for name, value in settings.items()}
    CONFIGS[algorithm].from_settings(known)
    return FileSettings(known, None, env)


def algorithm_asked(arguments: Sequence[str]) -> str:
    """Look for ``--algo`` first, which decides what flags there are; a settings file may say it."""
    found: Any = _value_of("--algo", arguments)
    path = _value_of("--config", arguments)
    if found is None and path is not None:
        if Path(path).suffix in ZOO:
            from upslope.config.zoo import algorithm_of

            found = algorithm_of(path)
        else:
            found = _read(path).get("algo")
    model = _value_of("--from", arguments)
    if found is None and model is not None:
        from upslope.cli.eval import model_of
        from upslope.runs.model_file import read_header

        found = read_header(model_of(model)).get("algorithm")
    found = "ppo" if found is None else found
    if not isinstance(found, str) or found not in CONFIGS:
        raise ConfigError(
            f"--algo {found} is not one of {', '.join(CONFIGS)}{did_you_mean(str(found), CONFIGS)}"
        )
    return found


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Return what follows a flag, or its ``=``."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else arguments[i + 1] if i + 1 < len(arguments) else ""
    return None


def _read(path: str) -> dict[str, Any]:
    """Return the table of a .toml or .json file."""
    suffix = Path(path).suffix
    if suffix not in (".toml", ".json"):
        raise ConfigError(
            f"--config {path}: give a .toml or .json file, or one of the zoo's in .yml"
        )
    text = _text(path)
    try:
        settings = tomllib.loads(text) if suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path} cannot be read: {first_line(error)}") from error
    if isinstance(settings, dict) and {"settings", "algorithm"} <= set(settings):
        of_run = settings["settings"]  # config.json of a run
        settings = {**of_run, "algo": settings["algorithm"]} if isinstance(of_run, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {path} must hold a table of settings, such as gamma = 0.98")
    return settings


def _text(path: str) -> str:
    """Read a text of bounded length."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"--config {path} is longer than {MAX_BYTES} bytes, which no settings file is"
            )
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(f"--config {path} cannot be read: {reason}; check the path") from error

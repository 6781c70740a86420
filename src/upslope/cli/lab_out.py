"""``--out`` of the lab's commands: whatever keeps results from being written is said at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from upslope.errors import ConfigError


def output_folder(path: str, figure: str) -> Path:
    """Return the folder, made if need be, before anything is measured for it.

    Args:
        path: what ``--out`` was given.
        figure: name of the picture that will be drawn there.

    Raises:
        ConfigError: if the folder cannot be made, or matplotlib is missing.
    """
    require_matplotlib(figure)
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--out {path} cannot be made: {reason}; name a folder") from error
    return folder


def require_matplotlib(figure: str) -> None:
    """Raise unless the figure can be drawn.

    Raises:
        ConfigError: with the command that installs what is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"drawing {figure} needs matplotlib: run pip install 'upslope[plots]'")

"""A YAML file -> plain values, within bounds of memory and time; no tag of it makes an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upslope.errors import ConfigError, first_line

ALGORITHMS = ("ppo", "a2c", "trpo")  # those that both the zoo and this library have
OTHERS = ("ars", "crossq", "ddpg", "dqn", "her", "qrdqn", "sac", "td3", "tqc")  # files of the zoo
MAX_DEPTH = 32
MAX_NODES = 100_000  # with every alias counted as what it stands for


def algorithm_of(path: str) -> str | None:
    """Return the algorithm that a file's name says (``ppo.yml``), or None.

    Raises:
        ConfigError: if it names one of the zoo's algorithms that is no policy gradient.
    """
    stem = Path(path).stem
    if stem in OTHERS:
        raise ConfigError(
            f"--config {path} holds settings of {stem}, which is not trained here: "
            f"take the zoo's file of {', '.join(ALGORITHMS)}"
        )
    known = {**{name: name for name in ALGORITHMS}, "ppo_lstm": "ppo"}
    return known.get(stem)


def read_yaml(text: str, name: str) -> Any:
    """Return what a YAML text holds, in plain types.

    Raises:
        ConfigError: if it is no YAML, asks for an object (``!!python/...``), is nested too deeply,
            or grows too large through its aliases; or without PyYAML.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"--config {name} needs PyYAML: run pip install 'upslope[zoo]'") from None
    try:
        _check_size(yaml, text)
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML raises whatever the conversion of a scalar raises
        if isinstance(error, yaml.MarkedYAMLError):
            line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
            problem = f"{error.problem}{line}"
        else:
            problem = first_line(error)
        raise ConfigError(f"--config {name} cannot be read: {problem}") from error


def _check_size(yaml: Any, text: str) -> None:
    """Count what aliases and merge keys will grow to, before anything is built."""
    sizes: dict[str, int | None] = {}  # of each anchor; None while it is open
    stack: list[tuple[str | None, int]] = []  # anchor and size of the collections that are open
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, 1))
            sizes |= {event.anchor: None} if event.anchor else {}
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = stack.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            known = sizes.get(event.anchor, 0)
            if known is None:
                raise ValueError(f"its anchor &{event.anchor} contains itself")
            anchor, size = None, known
        else:
            continue
        if anchor:
            sizes[anchor] = size
        if stack:
            stack[-1] = (stack[-1][0], stack[-1][1] + size)
            size = stack[-1][1]
        if size > MAX_NODES:
            raise ValueError(f"its aliases grow to more than {MAX_NODES} values")

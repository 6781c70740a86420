"""``upslope lab ...``: measure policy gradients; one file a command beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from upslope.cli.parser import Parser
from upslope.errors import ConfigError, did_you_mean

COMMANDS = {
    "estimators": "every estimator against the exact gradient, on small processes",
    "gradient": "signal and noise of the gradient of a trained policy",
    "ladder": "from REINFORCE to PPO, one idea a rung, with paired seeds",
}


def run(arguments: Sequence[str]) -> int:
    """Run one of the lab's commands and return its exit code."""
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return import_module(f"upslope.cli.lab_{name}").run(arguments[1:])  # type: ignore[no-any-return]
    if not name.startswith("-"):
        known = ", ".join(COMMANDS)
        raise ConfigError(
            f"there is no command {name!r} of the lab{did_you_mean(name, COMMANDS)}; "
            f"its commands are {known}"
        )
    help_text = "Measure policy gradients against what theory says of them."
    Parser("upslope lab", help_text, commands=COMMANDS).parse(arguments[:1] or ["--help"])
    raise ConfigError(f"{name} needs a command: type `upslope lab --help`")

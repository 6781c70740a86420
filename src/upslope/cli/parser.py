"""argparse with our manners: one sentence an error, the nearest flag, hyphens or underscores.

Flags of the hyperparameters are read off the Configs, so there is no second list of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from upslope.config import Config, parse_text
from upslope.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """One command's parser; it raises :class:`ConfigError` and never prints usage on an error."""

    def __init__(
        self, prog: str, description: str, commands: Mapping[str, str] | None = None
    ) -> None:
        epilog = None
        if commands is not None:
            width = max(map(len, commands))
            lines = [f"  {name:<{width}} {what}" for name, what in commands.items()]
            epilog = "commands:\n" + "\n".join(lines) + f"\n\n`{prog} COMMAND --help` says more."
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            usage=f"{prog} COMMAND ..." if commands else None,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        self.add_argument("--version", action=_Version)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse, naming an unknown flag and the nearest one."""
        spelled = _with_values([_with_hyphens(argument) for argument in arguments])
        namespace, unknown = self.parse_known_args(spelled)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            word = unknown[0].partition("=")[0]
            hint = did_you_mean(word, flags) if word.startswith("-") else ""
            raise ConfigError(
                f"{self.prog} does not know {word!r}{hint}; `{self.prog} --help` lists its flags"
            )
        return namespace

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see `{self.prog} --help`")


def add_settings(parser: Parser, config: type[Config], leave_out: Iterable[str] = ()) -> None:
    """Add one flag per field of a config, grouped; its declaration gives doc line and default."""
    groups: dict[str | None, Any] = {group.title: group for group in parser._action_groups}
    for declared in dataclasses.fields(config):
        if declared.name in leave_out:
            continue
        rule = declared.metadata
        title = f"{config.algorithm} settings" if rule["group"] == "algorithm" else rule["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        flag = "--" + declared.name.replace("_", "-")
        help_text = f"{rule['doc']}{_default_text(declared)}".replace("%", "%%")
        if rule["kind"] == "bool":
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None, help=help_text
            )
        elif rule["kind"] == "mapping":
            group.add_argument(flag, nargs="+", metavar="K=V", action="extend", help=help_text)
        else:
            metavar = (
                "{" + ",".join(rule["choices"]) + "}" if rule["choices"] else rule["kind"].upper()
            )
            group.add_argument(flag, metavar=metavar, default=None, help=help_text)


def settings_given(namespace: argparse.Namespace, config: type[Config]) -> dict[str, Any]:
    """Return the settings that were typed, by name, in the types of the config."""
    given: dict[str, Any] = {}
    for declared in dataclasses.fields(config):
        value = getattr(namespace, declared.name, None)
        if value is None:
            continue
        if declared.metadata["kind"] == "mapping":
            value = dict(pair(text) for text in value)
        given[declared.name] = parse_text(declared, value) if isinstance(value, str) else value
    return given


def whole_number(low: int = 0) -> Any:
    """Return an argparse type for whole numbers >= ``low``; 1e6 and 1_000_000 are such numbers."""

    def parse(text: str) -> int:
        try:
            number = float(text.replace("_", ""))
            if number != int(number) or number < low:
                raise ValueError
        except (ValueError, OverflowError):
            wrong = f"{text} is not a whole number >= {low}"
            raise argparse.ArgumentTypeError(wrong) from None
        return int(number)

    return parse


def finite_number() -> Any:
    """Return an argparse type for finite numbers."""

    def parse(text: str) -> float:
        try:
            number = float(text)
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number") from None
        return number

    return parse


class _Version(argparse.Action):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "nargs": 0, "help": "print the version"})

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from upslope import __version__

        print(f"upslope {__version__}")
        parser.exit()


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def _with_hyphens(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Join a flag with the negative number after it, which argparse may take for a flag."""
    joined: list[str] = []
    for argument in arguments:
        is_number = re.fullmatch(r"-(\d|\.\d|inf|nan).*", argument) is not None
        if is_number and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def pair(text: str) -> tuple[str, Any]:
    """``K=V`` with V a JSON value, or a bare word."""
    import json

    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(
            f"--env-kwargs {text!r} is not NAME=VALUE: "
            "write for example --env-kwargs continuous=true gravity=-5"
        )
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, {"True": True, "False": False, "None": None}.get(value, value)


def _default_text(declared: dataclasses.Field[Any]) -> str:
    """The default in words; where it is derived, the doc line says from what."""
    default = declared.default
    if default is None and "derived" in declared.metadata["doc"]:
        return ""
    if default is dataclasses.MISSING or default in ((), None):
        return " (default: none)"
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f" (default: {shown})"

"""``upslope``: find the command, run it, turn what happens into an exit code and a sentence."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from upslope.cli.parser import Parser
from upslope.errors import ConfigError, UpslopeError, did_you_mean
from upslope.interrupts import begin_command, end_command, stop_asked

COMMANDS = {
    "train": "train a policy on an environment",
    "resume": "finish a run that was interrupted or killed",
    "verify-resume": "prove that a run resumes to the very same bits",
    "eval": "evaluate a trained policy on fresh episodes",
    "compare": "train algorithms or settings with several seeds, and decide which is better",
    "play": "watch a trained policy, or film it",
    "export": "write a trained policy as ONNX or .pt2, or its model card",
    "report": "write a page about runs: curves, diagnosis, a film",
    "doctor": "look at an environment: what stands in the way of learning",
    "lab": "measure policy gradients against what theory says of them",
    "envs": "list the environments that are installed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (also the console script)."""
    is_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    _open_closed_streams()
    begin_command()
    try:
        return _command(arguments)(arguments[1:])
    except SystemExit as done:  # --help and --version
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 2
    except KeyboardInterrupt as stopped:
        notes = getattr(stopped, "__notes__", [])
        print("; ".join(["upslope: interrupted", *notes]), file=sys.stderr)
        return getattr(stopped, "exit_code", 130)
    except BrokenPipeError:  # `upslope envs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UpslopeError as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"upslope: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (number := stop_asked()) is not None:  # an import can turn a signal into its own error
            print("upslope: interrupted", file=sys.stderr)
            return 128 + number
        if debug:
            traceback.print_exc()
        else:
            print(
                f"upslope: unexpected {type(error).__name__}: {error}; "
                "this is a bug, and --debug shows where",
                file=sys.stderr,
            )
        return 1
    finally:
        _flush()
        if is_process:
            end_command()


def _command(arguments: Sequence[str]) -> Callable[[Sequence[str]], int]:
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return import_module(f"upslope.cli.{name.replace('-', '_')}").run  # type: ignore[no-any-return]
    if not name.startswith("-"):
        known = ", ".join(COMMANDS)
        raise ConfigError(
            f"there is no command {name!r}{did_you_mean(name, COMMANDS)}; the commands are {known}"
        )
    help_text = "Train policies by policy gradients."
    Parser("upslope", help_text, commands=COMMANDS).parse(arguments[:1] or ["--help"])
    raise ConfigError(f"{name} needs a command: type `upslope --help`")


def _open_closed_streams() -> None:
    """Where a shell closed stdin, stdout or stderr (``2>&-``), put nothing in its place.

    Its number would go to the next file that is opened, and Python's name for it is None.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads, or its disk is full: Python would try again
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""The command line, in this process or in one of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from upslope.cli.main import main


class Done(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; what a user's files do to the import system is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def upslope_command(here: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Done]]:
    """``upslope_command(*arguments)`` in this process, which must end with ``code`` (0)."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object, code: int = 0) -> Done:
        capfd.readouterr()
        given = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert given == code, err
        return Done(given, out, err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def upslope_process(here: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``upslope_process(*arguments)`` starts a process of its own, in its own group."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "upslope", *(str(argument) for argument in arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()

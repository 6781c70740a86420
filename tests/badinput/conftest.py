"""The command line in this process: its exit code, and what it said."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upslope.cli.main import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; what a user's files do to the import system is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def refused(here: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """``refused(*arguments)``: the one sentence of a command that must end with ``code`` (2)."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str, code: int = 2) -> str:
        given = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert given == code, err
        assert out == ""
        assert err.startswith("upslope: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, f"not one line: {err}"
        return err

    yield run
    signal.signal(signal.SIGTERM, handler)

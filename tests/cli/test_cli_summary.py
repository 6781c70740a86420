"""The closing lines of a run: also where it ended early, and where nobody reads them any more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import upslope
from upslope.cli.session import Session
from upslope.cli.summary import train_summary

Start = Callable[..., subprocess.Popen[str]]


def test_a_run_that_ended_before_training_did_has_no_seconds() -> None:
    agent = upslope.PPO("CartPole-v1", n_envs=1, n_steps=16, batch_size=16, net_arch=(4,))
    state = {"seconds": None, "total_timesteps": 64, "state": "interrupted"}
    directory: Any = SimpleNamespace(state=state, path=Path("runs/x"))
    lines = train_summary(agent, directory, None, None).splitlines()
    assert "trained  0 steps (interrupted)" in lines
    state["seconds"] = 1.25
    assert "trained  0 steps in 1.2 s (interrupted)" in train_summary(agent, directory, None, None)


def test_a_reader_that_went_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upslope.cli.summary.train_summary", lambda *_: "return   1.0")
    read, write = os.pipe()
    os.close(read)
    session: Any = SimpleNamespace(agent=None, command={})
    stream = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    Session._summarise(session, cast(Any, None), None, ["a note"])
    with contextlib.suppress(BrokenPipeError):  # of what could not be written
        stream.close()


@pytest.mark.slow
def test_a_reader_that_went_away_leaves_the_exit_code(upslope_process: Start, here: Path) -> None:
    """As of `upslope train ... | head -1` and Ctrl-C."""
    process = upslope_process("train", "CartPole-v1", "-n", "100000000", "--run-dir=run")
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while not list((here / "run" / "checkpoints").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert "BrokenPipe" not in process.stderr.read()

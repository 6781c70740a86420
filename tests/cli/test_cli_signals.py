"""Ctrl-C, SIGTERM and closed pipes: the iteration is finished, the model saved, the exit told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upslope

Start = Callable[..., subprocess.Popen[str]]
LONG = ["--n-steps=32", "--batch-size=32", "--n-epochs=1", "--net-arch=8", "-n", "100000000",
        "--compile=never", "--log-interval=1", "--run-dir=run"]  # fmt: skip


def wait_for_rows(process: subprocess.Popen[str], run: Path, rows: int = 2) -> None:
    """Until training has written that many rows of progress.csv."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        file = run / "progress.csv"
        if file.exists() and file.read_text().count("\n") > rows:
            return
        time.sleep(0.05)
    pytest.fail("training did not start within a minute")


def state(run: Path) -> Any:
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize(
    ("number", "code", "group", "more"),
    [
        (signal.SIGINT, 130, False, ["--n-envs=2"]),
        (signal.SIGTERM, 143, False, ["--n-envs=2"]),
        (signal.SIGINT, 130, True, ["--n-envs=2", "--vec=async"]),  # as a terminal sends it
        (signal.SIGTERM, 143, True, ["--n-envs=2", "--vec=async"]),
    ],
    ids=["ctrl-c", "sigterm", "ctrl-c-async", "sigterm-async"],
)
def test_a_signal(
    upslope_process: Start, here: Path, number: int, code: int, group: bool, more: list[str]
) -> None:
    process = upslope_process("train", "CartPole-v1", *LONG, *more)
    wait_for_rows(process, here / "run")
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == ""
    assert "(interrupted)" in out
    assert "\nrun      run\n" in out
    ended = state(here / "run")
    assert (ended["state"], ended["exit_code"]) == ("interrupted", code)
    assert ended["timesteps"] == 64 * ended["iterations"]
    upslope.load(here / "run" / "model.safetensors").evaluate(1)
    assert not (here / "run" / "evaluation.json").exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_ctrl_c_before_anything_began(upslope_process: Start, here: Path) -> None:
    process = upslope_process("train", "CartPole-v1", *LONG)
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while "torch" not in maps.read_text():  # its libraries are being loaded
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err) == ("", "upslope: interrupted\n")
    assert list(here.iterdir()) == []


def test_ctrl_c_in_the_final_evaluation(upslope_process: Start, here: Path) -> None:
    process = upslope_process(
        "train", "CartPole-v1", "--n-envs=2", "--n-steps=8", "--batch-size=8", "-n", "16",
        "--episodes=1000000", "--run-dir=run", "--quiet",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (here / "run" / "model.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.count("\n") <= 1
    upslope.load(here / "run" / "model.safetensors")
    assert state(here / "run")["exit_code"] == 130


def test_a_pipe_that_closes_does_not_stop_training(upslope_process: Start, here: Path) -> None:
    process = upslope_process(
        "train", "CartPole-v1", "--n-envs=2", "--n-steps=32", "--batch-size=32", "--n-epochs=1",
        "-n", "2000", "--episodes=2", "--run-dir=run",
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("return ")
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    process.stdout = process.stderr = None
    ended = state(here / "run")
    assert (ended["state"], ended["timesteps"]) == ("finished", 2048)
    assert (here / "run" / "evaluation.json").exists()

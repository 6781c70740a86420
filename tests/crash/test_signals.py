"""Ctrl-C and SIGTERM: at any moment, twice, in a step that does not end, and when ignored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.runs.checkpoint import newest, read_checkpoint
from upslope.runs.progress import read_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="moments are read from /proc")
GRACE = 5.0
RUN = ["--preset=none", "--n-envs=2", "--n-steps=8", "--batch-size=16", "--n-epochs=1",
       "--net-arch=8", "--log-interval=1", "-n=1000000", "--run-dir=run", "--quiet"]  # fmt: skip


@pytest.fixture
def signals(suites: Any) -> Any:
    """The module ``signals`` of bench/crash."""
    import signals  # type: ignore[import-not-found]

    return signals


def start(folder: Path, env: str, *more: str, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "upslope", "train", env, *RUN, *more], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **how,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ended(process: subprocess.Popen[str], *, sent: float) -> tuple[int, str]:
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < GRACE
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return process.returncode, said
        time.sleep(0.01)
    pytest.fail("a process was left behind")


def few(signals: Any, known: Any, folder: Path, setting: str, trials: range) -> None:
    for number in trials:
        trial = folder / str(number)
        trial.mkdir()
        found = signals.trial(known(setting), trial, setting, number)
        assert found["failure"] == "", found


def test_a_few_moments(signals: Any, known: Any, tmp_path: Path) -> None:
    few(signals, known, tmp_path, "CartPole PPO", range(1002, 1004))


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", ["CartPole PPO", "CartPole PPO, async", "Pendulum A2C, normalised, evaluated"]
)
def test_more_moments(signals: Any, known: Any, tmp_path: Path, setting: str) -> None:
    few(signals, known, tmp_path, setting, range(2000, 2004))


@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_twice(tmp_path: Path, gap: float) -> None:
    """In a step that would take half a minute: the second ends the process at once."""
    shutil.copy(Path(__file__).with_name("envs_for_signals.py"), tmp_path / "mine.py")
    process = start(tmp_path, "mine.py:Slow")
    wait_for(process, (tmp_path / "slow").exists)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(gap)
    process.send_signal(signal.SIGINT)  # without a gap the system may make one of the two
    code, said = ended(process, sent=sent)
    assert time.monotonic() - sent < (GRACE if gap == 0 else 2.5)
    assert code == 130
    assert "Traceback" not in said
    assert newest(tmp_path / "run" / "checkpoints").number >= 0


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Slow", "Native"])
@pytest.mark.parametrize("vec", ["sync", "async"])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_step_that_does_not_end(tmp_path: Path, env: str, vec: str, kind: signal.Signals) -> None:
    shutil.copy(Path(__file__).with_name("envs_for_signals.py"), tmp_path / "mine.py")
    process = start(tmp_path, f"mine.py:{env}", f"--vec={vec}")
    wait_for(process, (tmp_path / "slow").exists)
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(kind)
    code, said = ended(process, sent=sent)
    assert code == 128 + kind
    assert said.count("\n") == 1
    assert "the run goes on from its newest checkpoint: upslope resume run" in said
    found = newest(tmp_path / "run" / "checkpoints")  # of the last whole iteration
    assert not found.is_scheduled
    rows = read_rows(tmp_path / "run" / "progress.csv")
    assert found.number == int(rows[-1]["time/iterations"])
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (state["state"], state["exit_code"]) == ("interrupted", code)


def test_what_the_parent_ignores_stays_ignored(tmp_path: Path) -> None:
    """As in ``nohup`` and a shell's background jobs; SIGTERM still ends it."""
    process = start(
        tmp_path, "CartPole-v1", "--vec=sync",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    progress = tmp_path / "run" / "progress.csv"
    wait_for(process, lambda: progress.exists() and progress.read_text().count("\n") > 1)
    process.send_signal(signal.SIGINT)
    rows = progress.read_text().count("\n")
    wait_for(process, lambda: progress.read_text().count("\n") > rows + 3)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, said = ended(process, sent=sent)
    assert (code, said) == (143, "")


def test_exact_goes_back_before_every_other_way(tmp_path: Path) -> None:
    """A scheduled checkpoint of a run that went on off schedule is not the undisturbed run's."""
    run = tmp_path / "run"
    made = upslope.A2C("CartPole-v1", preset="none", n_envs=2, n_steps=8, net_arch=(8,),
                       max_episode_steps=8, checkpoints=5, run_dir=run)  # fmt: skip

    def interrupt(at: int) -> Callable[[Any], bool]:
        def call(event: Any) -> bool:
            if event.iteration == at:
                signal.raise_signal(signal.SIGINT)
            return True

        return call

    with pytest.raises(KeyboardInterrupt):
        made.learn(800, interrupt(25))
    assert (found := newest(run / "checkpoints")).number == 25
    assert not found.is_scheduled
    with pytest.raises(KeyboardInterrupt):
        upslope.resume(run, callback=interrupt(45))
    assert read_checkpoint(run / "checkpoints" / "000040").is_scheduled
    exact = newest(run / "checkpoints", scheduled=True)
    assert (exact.number, exact.is_undisturbed) == (20, True)

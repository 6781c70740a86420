"""One process at a time is at work on a run directory; the others are told who."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upslope.errors import RunDirectoryBusyError
from upslope.runs.lock import RunLock, check_free

BUSY = re.compile(r"is in use by process (\d+) on (\S+) since (\d{4}-\d\d-\d\dT\S+): wait for it")
TRAIN = ["train", "CartPole-v1", "--run-dir=run", "--quiet", "--n-envs=2", "--n-steps=32",
         "--batch-size=32", "--n-epochs=1", "--net-arch=8", "--episodes=2",
         "--preset=none"]  # fmt: skip


def wait_for(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def upslope_process(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "upslope", *arguments], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_fifty_races(saver: Any, tmp_path: Path) -> None:
    for race in range(50):
        folder = tmp_path / str(race)
        folder.mkdir()
        go = tmp_path / f"go-{race}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
            heard.bind(f"{go}.socket")
            heard.settimeout(30)
            both = {saver.fork("hold_lock", folder, go, wait=False) for _ in range(2)}
            go.touch()
            said = heard.recv(4096).decode()
        wait_for(lambda at=folder: list(at.glob("won-*")))  # type: ignore[misc]
        (winner,) = [int(path.name[4:]) for path in folder.glob("won-*")]
        named = BUSY.search(said)
        assert named is not None, said
        assert winner in both
        assert int(named[1]) == winner
        assert named[2] == platform.node()
        (folder / "release").touch()
        wait_for(lambda at=folder: is_free(at))  # type: ignore[misc]


def is_free(folder: Path) -> bool:
    try:
        check_free(folder)
    except RunDirectoryBusyError:
        return False
    return True


def test_a_killed_holder_is_none(saver: Any, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    holder = saver.fork("hold_lock", tmp_path, tmp_path / "go", wait=False)
    wait_for(lambda: list(tmp_path.glob("won-*")))
    with pytest.raises(RunDirectoryBusyError, match=f"process {holder} on"):
        RunLock(tmp_path)
    with pytest.raises(RunDirectoryBusyError, match=f"process {holder} on"):
        check_free(tmp_path)
    os.kill(holder, signal.SIGKILL)
    wait_for(lambda: is_free(tmp_path), 5)
    RunLock(tmp_path).release()


def test_the_name_of_an_earlier_holder_is_not_given(tmp_path: Path) -> None:
    """Between its lock and its name a holder is not taken for the one before, who is dead."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True, text=True)  # fmt: skip
    held = RunLock(tmp_path)
    stale = {"pid": int(gone.stdout), "host": platform.node(), "started": "2020-01-01T00:00:00"}
    (tmp_path / ".lock").write_text(json.dumps(stale))
    with pytest.raises(RunDirectoryBusyError, match="in use by another process"):
        RunLock(tmp_path)
    held.release()


def test_a_run_in_progress_is_not_resumed_or_begun_again(tmp_path: Path) -> None:
    first = upslope_process(tmp_path, *TRAIN, "-n=100000000")
    try:
        wait_for(lambda: (tmp_path / "run" / "config.json").exists())
        others = [
            upslope_process(tmp_path, "resume", "run"),
            upslope_process(tmp_path, *TRAIN, "-n=64"),
        ]
        for other in others:
            out, err = other.communicate(timeout=60)
            assert (other.returncode, out) == (6, ""), err
            named = BUSY.search(err)
            assert named is not None, err
            assert int(named[1]) == first.pid
            assert err.count("\n") == 1
    finally:
        first.kill()
        first.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_two_resumes_of_a_killed_run(tmp_path: Path) -> None:
    first = upslope_process(tmp_path, *TRAIN, "-n=8000")
    wait_for(lambda: (tmp_path / "run" / "config.json").exists())
    first.kill()
    first.communicate()
    both = [upslope_process(tmp_path, "resume", "run") for _ in range(2)]
    ended = [(each.communicate(timeout=120), each.returncode) for each in both]
    codes = sorted(code for _, code in ended)
    assert codes in ([0, 6], [0, 0]), ended  # 0 twice: the one was over before the other began
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"

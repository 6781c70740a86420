"""``upslope lab ladder``: what it prints and writes, what it refuses, and how it stops."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upslope.cli import lab_ladder
from upslope.lab.ladder import Tick
from upslope.lab.ladder_rungs import RUNGS

Command = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]
TINY = ["-n", "64", "--jobs=1"]
RAISING = """
import gymnasium as gym, multiprocessing, numpy as np

class Own(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        if multiprocessing.parent_process() is not None:
            raise RuntimeError('the motor is off')
        return np.zeros(2, np.float32), 0.0, True, False, {}
"""


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_text(upslope_command: Command, here: Path) -> None:
    done = upslope_command("lab", "ladder", "CartPole-v1", *TINY, "--seeds=1")
    assert "One seed decides nothing" in done.out
    table = done.out.split("Returns (")[1].split("\n\n")[0].splitlines()[2:]
    assert [line[:2] for line in table] == [f"{i} " for i in range(1, 10)]
    assert all(rung.name in line for rung, line in zip(RUNGS, table, strict=True))
    assert done.out.count("Gradient of one episode at the") == 2
    assert "\n6-9 GAE(0.97) " in done.out
    assert "2 reward-to-go: the past is dropped" in done.out
    assert "    returns episode -> to-go\n" in done.out
    assert max(map(len, done.out.splitlines())) <= 140
    lines = done.err.splitlines()
    assert [line.split()[0] for line in lines] == [f"{i}/9" for i in range(1, 10)]
    assert lines[0].startswith("1/9 REINFORCE, seed 0: ")
    assert list(here.iterdir()) == []


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    with lab_ladder._progress(quiet=False) as show:
        assert show is not None
        show(Tick(1, 2, 50, 100, "PPO, seed 0: 3.0"))
        show(Tick(1, 2, 75, 100, None))
    last = [line for line in stream.getvalue().splitlines() if "runs" in line][-1]
    assert "1/2 runs" in last
    assert "75 %" in last
    assert "PPO, seed 0: 3.0" in last  # what has finished last stays


def test_json_and_out(upslope_command: Command, here: Path) -> None:
    asked = ["lab", "ladder", "CartPole-v1", *TINY, "--seeds=2", "--out=new/dir"]
    done = upslope_command(*asked, "--json")
    assert done.err == ""
    found = json.loads(done.out)
    assert done.out.count("\n") == 1
    out = here / "new" / "dir"
    assert sorted(file.name for file in out.iterdir()) == [
        "ladder.csv", "ladder.json", "ladder.png", "runs.jsonl",
    ]  # fmt: skip
    assert json.loads((out / "ladder.json").read_text()) == found
    assert found["seeds"] == [0, 1]
    assert found["findings"][1].startswith("2 seeds decide nothing")
    assert (out / "ladder.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "ladder.csv").read_text().splitlines()))
    assert len(rows) == 9 * len(found["curve_steps"])
    last = rows[-1]
    assert (last["rung"], last["name"], float(last["timesteps"])) == ("9", "PPO", 64.0)
    point = found["rungs"][8]["curve"][-1]
    assert float(last["mean"]) == point["mean"]
    assert [float(last["ci95_low"]), float(last["ci95_high"])] == point["ci95"]
    seeds = [float(last["seed_0"]), float(last["seed_1"])]
    assert seeds == [run["curve"][-1] for run in found["rungs"][8]["runs"]]

    again = upslope_command(*asked)
    assert again.err == f"18/18 18 finished runs taken from {Path('new/dir/runs.jsonl')}\n"
    assert again.out.endswith("\nwritten  new/dir/ladder.json, ladder.csv, ladder.png\n")


def test_continuous_actions_and_no_finished_episode(upslope_command: Command) -> None:
    """Pendulum's episodes take 200 steps, and a rollout has 128 of each environment."""
    found = json.loads(
        upslope_command("lab", "ladder", "Pendulum-v1", *TINY, "--seeds=2", "--json", "--out=o").out
    )
    means = [rung["final"]["mean"] for rung in found["rungs"]]
    assert all(mean < -200 for mean in means[:4])
    assert means[4:] == [None] * 5
    assert [pair["verdict"] for pair in found["pairs"]][3:] == ["refused: no data"] * 5
    assert "not every run of TD error, GAE(0.97), NPG, TRPO, PPO finished" in found["findings"][0]
    assert found["gradient"][0]["episodes"] == 10 * found["batch_episodes"] == 50


def test_settings_of_the_environment(upslope_command: Command) -> None:
    found = json.loads(
        upslope_command(
            "lab", "ladder", "CartPole-v1", *TINY, "--seeds=1", "--json", "--max-episode-steps=4",
            "--env-kwargs", "sutton_barto_reward=true",
        ).out
    )  # fmt: skip
    settings = found["rungs"][0]["settings"]
    assert settings["env_kwargs"] == {"sutton_barto_reward": True}
    assert settings["max_episode_steps"] == 4
    assert found["rungs"][0]["final"]["mean"] == 0.0
    assert "-0." not in json.dumps(found["findings"][0])


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["CartPole-v1", "--seeds=0"], "0 is not a whole number >= 1"),
            (["CartPole-v1", "--jobs=0"], "0 is not a whole number >= 1"),
            (["CartPole-v1", "-n", "1.5"], "1.5 is not a whole number >= 1"),
            (["CartPol-v1"], "did you mean CartPole-v1"),
            (["none.py:make"], "there is no file 'none.py'"),
            (["CartPole-v1", "--seed=3"], "did you mean '--seeds'"),
            (["CartPole-v1", "--env-kwargs", "length"], "is not NAME=VALUE"),
            ([], "required: ENV"),
            (["CartPole-v1", "--out=taken"], "give another --out"),
        ],
    )
    def test_in_one_sentence(
        self, upslope_command: Command, here: Path, arguments: list[str], sentence: str
    ) -> None:
        (here / "taken").write_text("")
        done = upslope_command("lab", "ladder", *arguments, code=2)
        assert sentence in done.err
        assert done.err.startswith("upslope: ")
        assert done.err.count("\n") == 1
        assert done.out == ""

    @pytest.mark.slow
    @pytest.mark.parametrize("debug", [False, True])
    def test_an_environment_that_raises(
        self, upslope_command: Command, here: Path, debug: bool
    ) -> None:
        """In a worker process, whose error is told like any other, with its traceback if wanted."""
        (here / "own.py").write_text(RAISING)
        asked = ["lab", "ladder", "own.py:Own", "-n", "64", "--jobs=2"]
        done = upslope_command(*asked, *["--debug"] * debug, code=3)
        assert "raised RuntimeError in step 1 of episode 0" in done.err
        assert (done.err.count("\n") == 1) is not debug
        assert ("raise RuntimeError('the motor is off')" in done.err) is debug
        assert multiprocessing.active_children() == []

    def test_a_missing_extra_before_training(
        self, upslope_command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = importlib.util.find_spec

        def without(name: str, *more: Any) -> Any:
            return None if name == "matplotlib" else real(name, *more)

        monkeypatch.setattr(importlib.util, "find_spec", without)
        done = upslope_command("lab", "ladder", "CartPole-v1", "--out=x", code=2)
        assert done.err == (
            "upslope: drawing ladder.png needs matplotlib: run pip install 'upslope[plots]'\n"
        )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
class TestSignals:
    LONG = ("lab", "ladder", "CartPole-v1", "-n", "500", "--seeds=100", "--out=out")

    def wait_for(self, process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not ready():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def see_gone(self, started: list[int]) -> None:
        """Within moments of their parent: multiprocessing's own helper goes by itself."""
        deadline = time.monotonic() + 5
        while not all(map(is_gone, started)):
            assert time.monotonic() < deadline, started
            time.sleep(0.02)

    @pytest.mark.parametrize(
        ("number", "code", "group"),
        [
            (signal.SIGINT, 130, True),
            pytest.param(signal.SIGTERM, 143, False, marks=pytest.mark.slow),
        ],
        ids=["ctrl-c", "sigterm"],
    )
    def test_leaves_no_process(
        self, upslope_process: Start, here: Path, number: int, code: int, group: bool
    ) -> None:
        process = upslope_process(*self.LONG)

        def importing() -> bool:
            maps = [Path(f"/proc/{pid}/maps").read_text() for pid in children(process.pid)]
            return sum("torch" in text for text in maps) == 2

        self.wait_for(process, importing)
        for worker in children(process.pid):  # a terminal's Ctrl-C reaches them, and is not theirs
            os.kill(worker, signal.SIGINT)
        file = here / "out" / "runs.jsonl"
        self.wait_for(process, lambda: file.exists() and b"\n" in file.read_bytes())
        started = children(process.pid)
        assert len(started) >= 2
        (os.killpg if group else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code
        assert out == ""
        assert err.endswith("upslope: interrupted\n")
        assert "Traceback" not in err
        self.see_gone(started)
        finished = file.read_text().splitlines()
        assert all(json.loads(line)["result"]["timesteps"] >= 500 for line in finished)
        assert not (here / "out" / "ladder.json").exists()

    @pytest.mark.slow
    def test_workers_that_hang(self, upslope_process: Start, here: Path) -> None:
        (here / "own.py").write_text(RAISING.replace("raise", "import time; time.sleep(600)  #"))
        process = upslope_process("lab", "ladder", "own.py:Own", "-n", "500", "--out=out")

        def asleep() -> bool:
            """All workers have read the file, and nothing finishes."""
            stats = [Path(f"/proc/{pid}/stat").read_text() for pid in children(process.pid)]
            maps = [Path(f"/proc/{pid}/maps").read_text() for pid in children(process.pid)]
            states = [stat.rpartition(")")[2].split()[0] for stat in stats]
            return sum("torch" in text for text in maps) == 2 and set(states) == {"S"}

        self.wait_for(process, asleep)
        time.sleep(1)
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        self.see_gone(started)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from upslope.cli.main import main\n"
        "assert main(['lab', 'ladder', '--help']) == 0\n"
        "assert not {'torch', 'gymnasium', 'numpy', 'scipy', 'rich'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for flag in ("--seeds K", "--total-timesteps N", "--jobs N", "--out DIR", "--json"):
        assert flag in done.stdout

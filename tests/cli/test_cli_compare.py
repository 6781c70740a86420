"""``upslope compare``: what it prints and writes, what it refuses, and how it stops."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upslope.cli import compare
from upslope.lab.compare import Plan, Progress
from upslope.lab.compare_runs import Arm

Command = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]
TINY = ["-n", "64", "--jobs=1", "--episodes=2", "--preset=none"]


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_text(upslope_command: Command, here: Path) -> None:
    done = upslope_command(
        "compare", "CartPole-v1", "--algos=a2c,reinforce", *TINY, "--seeds=2", "--out=new/dir"
    )
    lines = done.out.splitlines()
    assert lines[0].startswith("CartPole-v1: a2c and reinforce, 2 seeds each (others for each)")
    assert "a2c minus reinforce: refused: fewer than 5 seeds." in done.out
    assert [line.split()[0] for line in lines if line.startswith(("arm ", "a2c ", "reinforce "))][
        :2
    ] == ["a2c", "arm"]
    assert re.search(r"^a2c: \d", done.out, re.MULTILINE)
    assert lines[-1] == f"written  {Path('new/dir/compare.json')}, compare.csv, compare.png"
    assert max(map(len, lines)) <= 110
    said = done.err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "1/4 a2c", "2/4 reinforce", "3/4 a2c", "4/4 reinforce",
    ]  # fmt: skip
    again = upslope_command(
        "compare", "CartPole-v1", "--algos=a2c,reinforce", *TINY, "--seeds=2", "--out=new/dir"
    )
    assert again.out == done.out
    assert again.err == f"4 finished runs taken from {Path('new/dir/runs.jsonl')}\n"


def test_json_and_files(upslope_command: Command, here: Path) -> None:
    done = upslope_command(
        "compare", "CartPole-v1", "--algos", "a2c,a2c", *TINY, "--seeds=5", "--paired", "--json"
    )
    assert (done.err, done.out.count("\n")) == ("", 1)
    found = json.loads(done.out)
    (out,) = (here / "compare").iterdir()
    assert out.name.startswith("CartPole-v1__")
    assert sorted(file.name for file in out.iterdir()) == [
        "compare.csv", "compare.json", "compare.png", "plan.json", "runs.jsonl",
    ]  # fmt: skip
    assert json.loads((out / "compare.json").read_text()) == found
    (pair,) = found["pairs"]
    assert pair.keys() >= {"a", "b", "difference", "ci", "p", "verdict"}
    assert (pair["a"], pair["b"], pair["difference"]) == ("a2c", "a2c-2", 0.0)
    assert pair["verdict"] == "not distinguishable"
    assert len(found["runs"]) == 10
    rows = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    assert [(row["arm"], int(row["seed"]), float(row["mean"])) for row in rows] == [
        (run["arm"], run["seed"], run["mean"]) for run in found["runs"]
    ]


def test_settings_files(upslope_command: Command, here: Path) -> None:
    small = ["--n-steps=8", "--n-envs=2", "--net-arch=4", "-n", "32", "--episodes=0", "--quiet"]
    upslope_command("train", "CartPole-v1", "--algo=a2c", *small, "--seed=7", "--run-dir=runs/old")
    (here / "low.toml").write_text('algo = "a2c"\nn-steps = 8\nn-envs = 2\nnet_arch = [4]\n')
    done = upslope_command(
        "compare", "CartPole-v1", "--configs=runs/old/config.json,low.toml", *TINY, "--seeds=1",
        "--max-episode-steps=4", "--env-kwargs", "sutton_barto_reward=true", "--json",
    )  # fmt: skip
    found = json.loads(done.out)
    assert [arm["name"] for arm in found["arms"]] == ["old", "low"]
    assert [arm["algorithm"] for arm in found["arms"]] == ["a2c", "a2c"]
    for arm in found["arms"]:
        assert arm["settings"]["n_steps"] == 8
        assert arm["settings"]["net_arch"] in ([4], {"pi": [4], "vf": [4]})
        assert arm["settings"]["max_episode_steps"] == 4
        assert "seed" not in arm["settings"]
    assert [run["mean"] for run in found["runs"]] == [0.0, 0.0]
    assert [run["seed"] for run in found["runs"]] == [0, 100]


def test_a_zoo_file_names_the_version_that_can_be_made_for_all_arms(
    upslope_command: Command, here: Path
) -> None:
    entry = "HalfCheetah-v4:\n  n_timesteps: 32\n  policy: MlpPolicy\n  n_steps: 16\n"
    (here / "ppo.yml").write_text(f"{entry}  batch_size: 8\n")
    (here / "own.toml").write_text('algo = "a2c"\nn_envs = 1\n')
    for files in ("own.toml,ppo.yml", "ppo.yml,own.toml"):
        asked = compare.parser().parse(["HalfCheetah-v4", f"--configs={files}", *TINY])
        plan = compare._plan(asked)
        assert plan.env == "HalfCheetah-v5"
        assert plan.to_json()["environment"] == "HalfCheetah-v5"
    made = compare._plan(compare.parser().parse(["HalfCheetah-v4", "--configs=own.toml,own.toml"]))
    assert made.env == "HalfCheetah-v4"


def test_a_live_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    plan = Plan("E", (Arm("ppo", "ppo", {}), Arm("a2c", "a2c", {})), total_timesteps=100)
    with compare._progress(plan, quiet=False) as show:
        assert show is not None
        show(Progress([[3.0, 5.0], []], [250, 50], 5, "2/10 ppo, seed 1: 5"))
        show(Progress([[3.0, 5.0], []], [300, 50], 5, None))
    shown = stream.getvalue()
    assert "next look at 5 seeds" in shown
    last = shown[shown.rindex("next look") :]
    (row,) = [line for line in last.splitlines() if "ppo" in line and "2/5" in line]
    assert [word.strip() for word in re.split("[│┃]", row)[1:-1]] == [
        "ppo", "2/5", "60 %", "4", "3", "5",
    ]  # fmt: skip
    assert "2/10 ppo, seed 1: 5" in last  # what has finished last stays


def test_without_matplotlib(
    upslope_command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *x: None if name == "matplotlib" else real(name)
    )
    done = upslope_command(
        "compare", "CartPole-v1", "--algos=a2c,reinforce", *TINY, "--seeds=1", "--out=o"
    )
    assert done.out.endswith(
        "compare.csv\n         compare.png needs matplotlib: run pip install 'upslope[plots]'\n"
    )
    assert not (here / "o" / "compare.png").exists()
    assert (here / "o" / "compare.json").exists()


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["CartPole-v1"], "either --algos ppo,a2c or --configs"),
            (["CartPole-v1", "--algos=ppo,a2c", "--configs=a,b"], "either --algos"),
            (["CartPole-v1", "--algos=ppo"], "at least two arms"),
            (["CartPole-v1", "--algos=ppo,a3c"], "did you mean 'a2c'"),
            (["CartPole-v1", "--algos=ppo,a2c", "--seeds=31"], "take at most 30"),
            (["CartPole-v1", "--algos=ppo,a2c", "--seeds=0"], "0 is not a whole number >= 1"),
            (["CartPole-v1", "--algos=ppo,a2c", "--margin=-1"], "--margin -1 must be above 0"),
            (["CartPole-v1", "--algos=ppo,a2c", "--preset=best"], "is not one of auto, none"),
            (["CartPole-v1", "--algos=ppo,a2c", "--seed=3"], "did you mean '--seeds'"),
            (["CartPol-v1", "--algos=ppo,a2c"], "did you mean CartPole-v1"),
            (["none.py:make", "--algos=ppo,a2c"], "there is no file 'none.py'"),
            (["CartPole-v1", "--configs=a.toml,b.toml"], "a.toml cannot be read"),
            (["CartPole-v1", "--configs=wrong.toml,wrong.toml"], "did you mean 'gamma'"),
            (["CartPole-v1", "--algos=ppo,a2c", "--out=taken"], "give another --out"),
            (["--algos=ppo,a2c"], "required: ENV"),
        ],
    )
    def test_in_one_sentence(
        self, upslope_command: Command, here: Path, arguments: list[str], sentence: str
    ) -> None:
        (here / "taken").write_text("")
        (here / "wrong.toml").write_text("gama = 0.9\n")
        done = upslope_command("compare", *arguments, code=2)
        assert sentence in done.err
        assert done.err.startswith("upslope: ")
        assert done.err.count("\n") == 1
        assert done.out == ""
        assert not (here / "compare").exists()

    def test_another_plan_in_the_same_place(self, upslope_command: Command) -> None:
        asked = ["compare", "CartPole-v1", "--algos=a2c,reinforce", *TINY, "--seeds=1", "--out=o"]
        upslope_command(*asked)
        done = upslope_command(*asked, "--margin=3", code=2)
        assert "other margin, which were fixed before" in done.err


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_stopped_it_leaves_no_process_and_goes_on(
    upslope_process: Start, upslope_command: Command, here: Path, number: int, code: int
) -> None:
    asked = ["compare", "CartPole-v1", "--algos=a2c,reinforce", "-n", "3000", "--seeds=5",
             "--episodes=2", "--preset=none"]  # fmt: skip
    process = upslope_process(*asked, "--out=out")
    file, deadline = here / "out" / "runs.jsonl", time.monotonic() + 90
    while not (file.exists() and b"\n" in file.read_bytes()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = children(process.pid)
    assert len(started) >= 2
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-2:] == [
        "finished runs are kept: `upslope " + " ".join([*asked, "--out=out"]) + "` goes on",
        "upslope: interrupted",
    ]
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kept = file.read_text().splitlines()
    assert 1 <= len(kept) < 10
    upslope_command(*asked, "--jobs=1", "--out=out", "--json")
    undisturbed = upslope_command(*asked, "--jobs=1", "--out=other", "--json").out
    assert json.loads((here / "out" / "compare.json").read_text()) == json.loads(undisturbed)
    assert file.read_text().splitlines()[: len(kept)] == kept

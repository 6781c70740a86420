"""The runs that are disturbed, what ends up equal in them, and processes that die on the dot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upslope.runs.checkpoint import CHECKPOINTS, newest, numbers
from upslope.runs.model_file import read_model
from upslope.runs.progress import CLOCKS, read_rows

RUN = "run"
SHORT = ("--preset=none", "--n-envs=8", "--checkpoints=8", "--log-interval=1", "--episodes=6",
         "--quiet", f"--run-dir={RUN}")  # fmt: skip
CARTPOLE = ("CartPole-v1", "--algo=ppo", "-n=4000", "--n-steps=32", "--max-episode-steps=30")
PENDULUM = ("Pendulum-v1", "--algo=a2c", "-n=3200", "--n-steps=16", "--max-episode-steps=20")
MORE = ("--norm-obs", "--norm-reward", "--eval-freq=900")
SETTINGS = {
    "CartPole PPO": (*CARTPOLE, "--vec=sync"),
    "CartPole PPO, normalised, evaluated": (*CARTPOLE, "--vec=sync", *MORE),
    "Pendulum A2C": (*PENDULUM, "--vec=sync"),
    "Pendulum A2C, normalised, evaluated": (*PENDULUM, "--vec=sync", *MORE),
    "CartPole PPO, native": (*CARTPOLE, "--vec=native"),
    "CartPole PPO, EnvPool": (*CARTPOLE, "--vec=envpool"),
    "CartPole PPO, async": (*CARTPOLE, "--vec=async", "--n-envs=2", "--n-steps=128"),
}
TIMEOUT = 300.0  # seconds after which a process counts as hanging


@dataclass(frozen=True)
class Reference:
    """The undisturbed run of a setting, and how long its process lived."""

    folder: Path
    whole: float  # processor seconds of its main thread
    since_directory: float  # those from the directory to the exit
    since_handlers: float  # those from the moment it handles signals
    before_handlers: float  # wall seconds until then


class Process:
    """``upslope`` as a process of its own, in its own group, inside ``folder``."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upslope", *arguments], cwd=folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait_until(self, happened: Callable[[], bool]) -> bool:
        """Wait; return whether it happened before the process ended."""
        while not happened():
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    def processor_seconds(self) -> float:
        """What its main thread has computed so far."""
        try:
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, IndexError):
            return float("inf")

    def handles_signals(self) -> bool:
        """Whether it has a handler for SIGTERM."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and what it said on standard error."""
        try:
            _, said = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            return 1, f"hung for {TIMEOUT:g} s"
        return self.process.returncode, said

    def has_orphans(self, within: float = 1.0) -> bool:
        """Whether others of its group still live, some moments after its end."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.02)
        return True


def train(folder: Path, setting: str) -> Process:
    """Start the run of a setting."""
    return Process(folder, "train", *SHORT, *SETTINGS[setting])


def resume(folder: Path, *more: str) -> Process:
    """Go on with it."""
    return Process(folder, "resume", RUN, "--quiet", *more)


def reference(folder: Path, setting: str) -> Reference:
    """Let a setting run undisturbed, looking at how its time goes by."""
    folder.mkdir(parents=True)
    process = train(folder, setting)
    handled = seen = last = 0.0
    before = 0.0
    while process.process.poll() is None:
        now = process.processor_seconds()
        last = now if now != float("inf") else last
        if not handled and process.handles_signals():
            handled, before = last, time.monotonic() - process.started
        if not seen and (folder / RUN).exists():
            seen = last
        time.sleep(0.001)
    code, said = process.end()
    if code:
        raise RuntimeError(f"the undisturbed run of {setting} ended with {code}: {said}")
    return Reference(folder / RUN, last, last - seen, last - handled, before)


def difference(expected: Path, found: Path) -> str:
    """Say how a finished run differs from the undisturbed one; empty where it does not."""
    for name in ("model.safetensors", "best_model.safetensors"):
        if (expected / name).exists() != (found / name).exists():
            return f"{name} is in one of the two only"
        if (expected / name).exists():
            one, other = (read_model(run / name)[1] for run in (expected, found))
            if said := _unequal(one, other):
                return f"{name}: {said}"
    one, other = (newest(run / CHECKPOINTS).moments() for run in (expected, found))
    if said := _unequal(one, other):
        return f"optimiser: {said}"
    names = [numbers(run / CHECKPOINTS) for run in (expected, found)]
    if names[0] != names[1]:
        return f"checkpoints {names[1]} instead of {names[0]}"
    if _bytes(expected / "evaluation.json") != _bytes(found / "evaluation.json"):
        return "evaluation.json"
    rows = [_rows(run) for run in (expected, found)]
    if rows[0] != rows[1]:
        return f"progress.csv: {len(rows[1])} rows instead of {len(rows[0])}, or others"
    left = [path.name for path in found.rglob("*") if "tmp" in path.name]
    if left:
        return f"left behind: {left}"
    if not (found / "report.html").exists():
        return "no report.html"
    state = json.loads((found / "run.json").read_bytes())
    return "" if state["state"] == "finished" else f"run.json says {state['state']}"


def where(run: Path) -> str:
    """What a run had reached, as its files say."""
    if not (run / "config.json").exists():
        return "start"
    if (run / "report.html").exists():
        return "report"
    if (run / "evaluation.json").exists():
        return "evaluated"
    if (run / "model.safetensors").exists():
        return "evaluation"
    names = numbers(run / CHECKPOINTS)
    return f"training, checkpoint {int(names[-1])}" if names else "no checkpoint"


def _unequal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    if sorted(one) != sorted(other):
        return "other tensors"
    return next((name for name in one if not torch.equal(one[name], other[name])), "")


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = read_rows(run / "progress.csv")
    return [{key: x for key, x in row.items() if key not in CLOCKS} for row in rows]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None

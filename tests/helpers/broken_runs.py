"""Runs whose process died after a checkpoint, and all that differs from the run nobody disturbed.

A process that is killed leaves checkpoints, a progress.csv that is ahead of them, and a run.json
that says "running": a finished run is turned into that by taking its later files away.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import upslope
from upslope.agent import AGENTS, Agent
from upslope.runs.checkpoint import MANIFEST, _seal
from upslope.runs.model_file import read_model
from upslope.runs.progress import CLOCKS, read_rows
from upslope.runs.self_test import PREFIX

CLOCKS_OF_A_RUN = ("started", "finished", "seconds", "resumed", "time_to_return", "phase_seconds")
TINY: dict[str, Any] = {
    "n_envs": 2, "net_arch": (4,), "max_episode_steps": 7, "log_interval": 1, "checkpoints": 50,
}  # fmt: skip
TINY_OF: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
    "a2c": {"n_steps": 8},
    "vpg": {"n_steps": 8, "batch_size": 8, "n_critic_updates": 2},
    "npg": {"n_steps": 8, "batch_size": 8, "n_critic_updates": 2},
    "trpo": {"n_steps": 8, "batch_size": 8, "n_critic_updates": 2},
    "reinforce": {"batch_episodes": 4},
}


class Telling(gym.Wrapper[Any, Any, Any, Any]):
    """Says how fast it was, and whether that was a success, at the end of each episode."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        speed = float(abs(obs[1]))
        return obs, reward, terminated, truncated, info | {"speed": speed, "is_success": speed > 1}


def telling() -> gym.Env[Any, Any]:
    """CartPole that reports."""
    return Telling(gym.make("CartPole-v1"))


class Restless(gym.Env[Any, Any]):
    """Rewards hang on a generator of the whole process, not on the seed."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)
    chance = np.random.default_rng(5)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return obs, float(self.chance.random()), self.t == 5, False, {}


def tiny(algorithm: str, env: Any, path: Path | None, **settings: Any) -> Agent:
    """An agent whose run of some 300 steps has a checkpoint every second iteration."""
    return AGENTS[algorithm](env, run_dir=path, **(TINY | TINY_OF[algorithm] | settings))


def checkpoints(run: Path) -> list[int]:
    """Numbers of the checkpoints, oldest first."""
    return sorted(int(x.name) for x in (run / "checkpoints").iterdir() if x.name.isdigit())


def killed_after(run: Path, number: int, copy: Path) -> Path:
    """A copy of a finished run as if it had been killed on the way from a checkpoint on."""
    shutil.copytree(run, copy)
    for later in checkpoints(run):
        if later > number:
            shutil.rmtree(copy / "checkpoints" / f"{later:06}")
    for name in ("model.safetensors", "evaluation.json"):
        (copy / name).unlink(missing_ok=True)
    state = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(state | {"state": "running", "exit_code": None}))
    with (copy / "progress.csv").open("a") as file:
        file.write("99999,1")  # a row that was being written
    return copy


def seal_anew(checkpoint: Path) -> None:
    """Have the manifest of a checkpoint say what its files are now."""
    (checkpoint / MANIFEST).unlink()
    _seal(checkpoint)


def unlike(run: Path, other: Path) -> list[str]:
    """Everything in which a run differs from the undisturbed one, but clocks; empty if nothing."""
    names = {x.name for x in run.iterdir() if not x.name.startswith("events")}
    said = [f"{name} is missing" for name in sorted(names) if not (other / name).exists()]
    for name in ("model.safetensors", "best_model.safetensors"):
        if (run / name).exists() and _policy(run / name) != _policy(other / name):
            said.append(f"{name} differs")
    if checkpoints(run) != checkpoints(other):
        said.append(f"checkpoints {checkpoints(other)}, not {checkpoints(run)}")
    for number in checkpoints(run):
        said += _unlike_checkpoints(*(x / "checkpoints" / f"{number:06}" for x in (run, other)))
    for name in ("config.json", "run.json"):
        one, two = (json.loads((x / name).read_text()) for x in (run, other))
        said += _keys(name, _timeless(one), _timeless(two))
    rows, again = (_rows(x) for x in (run, other))
    if rows != again:
        said.append(f"progress.csv: {again}, not {rows}")
    return said


def _policy(path: Path) -> tuple[Any, dict[str, bytes]]:
    """What a model file says and holds, but its self-test: on rows of whichever episode ran."""
    header, tensors = read_model(path)
    return (
        {name: x for name, x in header.items() if name not in ("self_test", "tensors_sha256")},
        {n: x.numpy().tobytes() for n, x in tensors.items() if not n.startswith(PREFIX)},
    )


def _unlike_checkpoints(one: Path, two: Path) -> list[str]:
    said = [
        f"{one.name}/{name} differs"
        for name in ("model.safetensors", "optim.safetensors")
        if (one / name).read_bytes() != (two / name).read_bytes()
    ]
    before, after = (json.loads((x / "state.json").read_text()) for x in (one, two))
    for state in (before, after):
        state["training"].pop("seconds")
        state["run"] = _timeless(state["run"])
        state["progress"].pop("offset")  # clocks are of any length
    return said + _keys(f"{one.name}/state.json", before, after)


def _timeless(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in CLOCKS_OF_A_RUN}


def _keys(where: str, one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    keys = sorted({*one, *two})
    return [f"{where}: {x} {two.get(x)} not {one.get(x)}" for x in keys if one.get(x) != two.get(x)]


def _rows(run: Path) -> list[dict[str, str]]:
    rows = read_rows(run / "progress.csv")
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def resumed(run: Path, env: Any = None, **more: Any) -> Agent:
    """Resume, and release the environments."""
    agent = upslope.resume(run, env, **more)
    agent.close()
    return agent

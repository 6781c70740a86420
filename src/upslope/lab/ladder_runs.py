"""One run of one rung: its curve, and for one of them the gradient's variance at two policies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from upslope.agent import AGENTS, Agent
from upslope.config import CONFIGS
from upslope.envs.episodes import Environments
from upslope.envs.make import environment_settings, make_environments
from upslope.errors import ConfigError
from upslope.lab.estimators import Estimator, Steps, advantage, applicable, weights_of
from upslope.lab.ladder_statistics import gradient_rows
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout
from upslope.runs.policy_file import versions
from upslope.seeding import SeedTree
from upslope.training import Event
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

Result = dict[str, Any]
FORMAT = 1  # of a result: one more with every change of what it holds
POINTS = 20  # of a learning curve
GAE_LAMBDA = 0.97
LEAST_BATCHES = 10
MOST_NUMBERS = 2**27  # of gradients that are held at once, from where fewer batches are taken

_KNOWN = {estimator.name: estimator for estimator in applicable()}
ESTIMATORS = (
    _KNOWN["episode return"],
    _KNOWN["reward-to-go without gamma^t"],
    _KNOWN["reward-to-go - leave-one-out"],
    _KNOWN["reward-to-go - V"],
    _KNOWN["TD residual"],
    Estimator(
        f"GAE({GAE_LAMBDA:g})", advantage(GAE_LAMBDA), reads_values=True, bootstraps=True
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run: what to train on what, for how long, and whether gradients are measured on the way.

    ``gradient_batches`` of ``gradient_episodes`` each are played by the initial policy and by the
    one half way; 0 measures nothing.
    """

    env: str
    algorithm: str
    settings: dict[str, Any]
    total_timesteps: int
    gradient_batches: int
    gradient_episodes: int

    def __str__(self) -> str:
        return f"{self.algorithm} with seed {self.settings['seed']}"

    @cached_property
    def key(self) -> str:
        """What a result depends on, as one line of JSON."""
        path = self.env.rpartition(":")[0]
        is_file = path.endswith(".py") and os.path.isfile(path)
        measured = (
            (self.gradient_batches, self.gradient_episodes) if self.gradient_batches else None
        )
        said = {
            "format": FORMAT,
            "env": self.env,
            "file": hashlib.sha256(Path(path).read_bytes()).hexdigest() if is_file else None,
            "algorithm": self.algorithm,
            "settings": CONFIGS[self.algorithm].from_settings(self.settings).to_json(),
            "total_timesteps": self.total_timesteps,
            "gradient": measured,
            "versions": _versions(),
        }
        return json.dumps(said, sort_keys=True)


@cache
def _versions() -> dict[str, str]:
    """Those of this process, which are slow to ask for."""
    return versions()


def run_job(job: Job, report: Callable[[int], None]) -> Result:
    """Train, and return what there is to say of the run as JSON types.

    Args:
        job: the run.
        report: told the environment steps so far, after each iteration.
    """
    agent = AGENTS[job.algorithm](job.env, **job.settings)
    with contextlib.closing(agent):
        return _train(job, agent, report)


def _train(job: Job, agent: Agent, report: Callable[[int], None]) -> Result:
    training, total = agent.training, job.total_timesteps
    before = weights_digest(agent.policy)
    finished: list[tuple[int, float]] = []
    gradient = [_measured(job, agent, "initial")] if job.gradient_batches else []

    def on_iteration(event: Event) -> bool:
        finished.extend((event.timesteps, episode.ret) for episode in event.episodes)
        if len(gradient) == 1 and 2 * event.timesteps >= total:
            gradient.append(_measured(job, agent, "trained"))
        report(event.timesteps)
        return True

    training.run(total, on_iteration, agent)
    recent = [episode.ret for episode in training.recent]
    curve = learning_curve(finished, total)
    known = [value for value in curve if value is not None]
    settings = agent.config.to_json()
    return {
        "seed": settings.pop("seed"),
        "settings": {"algorithm": job.algorithm, **settings},
        "initial_actor": before,
        "final_actor": weights_digest(agent.policy),
        "timesteps": training.timesteps,
        "updates": training.iteration,
        "episodes": training.episodes,
        "final": sum(recent) / len(recent) if recent else None,
        "final_episodes": len(recent),
        "area": sum(known) / len(known) if known else None,
        "curve": curve,
        "gradient": gradient,
    }


def weights_digest(policy: ActorCritic) -> str:
    """SHA-256 of the actor's weights, the same for the same bits."""
    named, digest = dict(policy.named_parameters()), hashlib.sha256()
    for name in policy.part_names("all" if policy.shared_network else "actor"):
        digest.update(name.encode() + named[name].detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def learning_curve(finished: list[tuple[int, float]], total: int) -> list[float | None]:
    """Mean return of the episodes that finished in each of ``POINTS`` equal parts of a run.

    A part in which none did repeats the one before; None until the first. Episodes of an iteration
    count where it ended, those of one that overshoots in the last part.

    Args:
        finished: ``(steps of the run at the end of the iteration, return)`` of every episode.
        total: the steps that were asked for.
    """
    parts: list[list[float]] = [[] for _ in range(POINTS)]
    for timesteps, value in finished:
        parts[min(POINTS - 1, (timesteps - 1) * POINTS // total)].append(value)
    curve: list[float | None] = []
    for part in parts:
        before = curve[-1] if curve else None
        curve.append(sum(part) / len(part) if part else before)
    return curve


def point_steps(total: int) -> list[float]:
    """Environment steps at which the parts of a curve end."""
    return [total * (k + 1) / POINTS for k in range(POINTS)]


def _measured(job: Job, agent: Agent, name: str) -> dict[str, Any]:
    """Variance and SNR of every rung's gradient at the agent's policy, on episodes of their own."""
    policy, source = agent.policy, agent.source
    assert source is not None
    size = job.gradient_episodes
    envs = make_environments(
        source,
        n_envs=min(8, size),
        seed=SeedTree(agent.config.seed).integer("ladder gradient"),
        vec="sync",
        **environment_settings(agent.config),
    )
    try:
        means, returns, steps = batch_gradients(
            policy, envs, agent.config.gamma, size, job.gradient_batches
        )
    finally:
        envs.close()
    return {
        "policy": name,
        "seed": agent.config.seed,
        "timesteps": agent.num_timesteps,
        "mean_return": sum(returns) / len(returns),
        "episodes": len(returns),
        "steps": steps,
        "batch_episodes": size,
        "estimators": gradient_rows(means, size),
    }


def batch_gradients(
    policy: ActorCritic, envs: Environments, gamma: float, size: int, n_batches: int
) -> tuple[dict[str, Tensor], list[float], int]:
    """Gradient of every estimator on the same episodes, one row a batch.

    The unit is a batch, because a leave-one-out mean ties its episodes together. Every estimator is
    summed over an episode and averaged over episodes, also where its algorithm divides by rows.

    Args:
        policy: nothing of it changes; its own critic gives the values.
        envs: for whole episodes.
        gamma: discount per step.
        size: episodes of a batch, at least 2.
        n_batches: rows; fewer, but at least 10, where the network is so large that they would take
            more than half a GiB.

    Returns:
        name -> ``[n_batches, d]``, the returns of the episodes, and the number of steps.
    """
    means: dict[str, list[Tensor]] = {estimator.name: [] for estimator in ESTIMATORS}
    losses = {name: pseudo_loss(name) for name in means}
    returns: list[float] = []
    steps, numbers = 0, len(means) * sum(p.numel() for p in policy.parameters())
    for _ in range(min(n_batches, max(LEAST_BATCHES, MOST_NUMBERS // numbers))):
        rollout = collect(envs, policy, n_episodes=size)
        evaluated = evaluate_rollout(policy, rollout)
        weights = weights_of(ESTIMATORS, Steps.of(policy, rollout, evaluated, gamma))
        units = episode_units(rollout, size)
        sums = unit_gradients(policy, rollout, evaluated, losses, weights, units)
        for name, rows in sums.items():
            means[name].append(rows[0] / size)
        returns += [episode.ret for episode in rollout.episodes]
        steps += rollout.n_valid
    return {name: torch.stack(rows) for name, rows in means.items()}, returns, steps


class RunLog:
    """Finished runs, a line of JSON each, in ``runs.jsonl`` of a directory; of nothing without one.

    A line that cannot be read, such as one cut off by a crash, counts as not there.

    Raises:
        ConfigError: if the directory cannot be made, read or written.
    """

    def __init__(self, directory: Path | None) -> None:
        self.path = None if directory is None else directory / "runs.jsonl"
        self._known: dict[str, Result] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                self._read(file)
        except OSError as error:
            raise ConfigError(
                f"cannot use {str(self.path)!r:.300}: {error.strerror or error}; give another --out"
            ) from error

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        text = file.read()
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
            except (ValueError, TypeError, KeyError):
                continue
        if text and not text.endswith(b"\n"):
            file.write(b"\n")

    def find(self, job: Job) -> Result | None:
        """The result of a job, where it has finished before."""
        return self._known.get(job.key)

    def add(self, job: Job, result: Result) -> None:
        """Append a result, whole or not at all as far as a reader can tell."""
        self._known[job.key] = result
        if self.path is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"key": job.key, "result": result}) + "\n")
            file.flush()
            os.fsync(file.fileno())

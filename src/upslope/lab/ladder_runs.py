"""One run of one rung: its curve, and for one of them the gradient's variance at two policies."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from upslope.agent import AGENTS, Agent
from upslope.config import CONFIGS
from upslope.envs.episodes import Environments
from upslope.envs.make import environment_settings, make_environments
from upslope.lab.estimators import Estimator, Steps, advantage, applicable, weights_of
from upslope.lab.ladder_statistics import gradient_rows
from upslope.lab.seeded_runs import Result, learning_curve, run_key
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout
from upslope.seeding import SeedTree
from upslope.training import Event
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

FORMAT = 1  # of a result: one more with every change of what it holds
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
        measured = (
            (self.gradient_batches, self.gradient_episodes) if self.gradient_batches else None
        )
        return run_key(
            self.env,
            format=FORMAT,
            algorithm=self.algorithm,
            settings=CONFIGS[self.algorithm].from_settings(self.settings).to_json(),
            total_timesteps=self.total_timesteps,
            gradient=measured,
        )


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

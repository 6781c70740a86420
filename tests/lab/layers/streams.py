"""Every stream of a small process with its probability, as the record that the pages read.

A *column* is one stream of one environment, so a rollout holds all of them side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from upslope.envs.episodes import Episode
from upslope.envs.tabular import MDP
from upslope.lab import exact
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import Rollout

FLOAT = torch.float64


@dataclass(frozen=True)
class Columns:
    """Streams ``[T, N]`` and their probabilities ``[N]``; rows that are not ``valid`` are none."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    episode_step: Tensor
    episode: Tensor
    prob: Tensor

    @property
    def ended(self) -> Tensor:
        """``[T, N]``: rows on which an episode ended."""
        return (self.terminated | self.truncated) & self.valid

    def pick(self, column: int) -> Columns:
        """One stream by itself."""
        parts = {name: value[..., [column]] for name, value in vars(self).items()}
        return Columns(**parts)


def single_episodes(mdp: MDP, pi: Tensor) -> Columns:
    """Every trajectory of one episode, padded at its end."""
    batch, prob = exact.enumerate_trajectories(mdp, pi, mdp.horizon or 0)
    steps, n = batch.valid.shape
    return Columns(
        *batch,
        episode_step=torch.arange(steps)[:, None].expand(steps, n) * batch.valid,
        episode=torch.arange(n).expand(steps, n),
        prob=prob,
    )


def two_episodes(mdp: MDP, pi: Tensor, reset_row: bool = False) -> Columns:
    """Every pair of trajectories, the second right behind the first, padded at its end.

    ``reset_row`` puts a row between them as an engine that resets on the next step does: it shows
    the final observation, its action is ignored, and it is no transition.
    """
    one = single_episodes(mdp, pi)
    horizon, n = one.valid.shape
    first, second = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    between = one.valid.sum(0)[first] + int(reset_row)
    steps = 2 * horizon + int(reset_row)
    row = torch.arange(steps)[:, None].expand(steps, n * n)
    in_first = (row < horizon) & (row < one.valid.sum(0)[first])
    in_second = (row >= between) & (row - between < horizon)

    def joined(table: Tensor) -> Tensor:
        left = table[row.clamp(max=horizon - 1), first]
        right = table[(row - between).clamp(0, horizon - 1), second]
        return torch.where(in_first, left, torch.where(in_second, right, torch.zeros_like(left)))

    fields = {name: joined(table) for name, table in vars(one).items() if name != "prob"}
    if reset_row:
        lost, column = between - 1, torch.arange(n * n)
        fields["states"][lost, column] = fields["next_states"][lost - 1, column]
        fields["actions"][lost, column] = 1
    fields["episode"] = 2 * torch.arange(n * n) + in_second.long()
    return Columns(**fields, prob=one.prob[first] * one.prob[second])


def continued(mdp: MDP, pi: Tensor, steps: int) -> Columns:
    """Every stream of ``steps`` rows from a fresh start, an end being followed by a new episode."""
    start, outcomes, limit = mdp.start.tolist(), _outcomes(mdp, pi), mdp.horizon
    found: list[tuple[float, list[tuple[Any, ...]]]] = []
    running: list[tuple[float, int, int, int, list[tuple[Any, ...]]]] = [
        (p, s, 0, 0, []) for s, p in enumerate(start) if p > 0
    ]
    for t in range(steps):
        going, running = running, []
        for p, s, k, e, path in going:
            for q, a, reward, arrival, terminated in outcomes[s]:
                truncated = limit is not None and k + 1 >= limit
                row = (s, a, reward, arrival, terminated, truncated, True, k, e)
                if t == steps - 1:
                    found.append((p * q, [*path, row]))
                elif terminated or truncated:
                    running += [
                        (p * q * chance, new, 0, e + 1, [*path, row])
                        for new, chance in enumerate(start)
                        if chance > 0
                    ]
                else:
                    running.append((p * q, arrival, k + 1, e, [*path, row]))
    kinds = (torch.int64, torch.int64, FLOAT, torch.int64, torch.bool, torch.bool, torch.bool)
    fields = [
        torch.tensor([[row[i] for row in path] for _, path in found], dtype=kind).T
        for i, kind in enumerate((*kinds, torch.int64, torch.int64))
    ]
    return Columns(*fields, prob=torch.tensor([p for p, _ in found], dtype=FLOAT))


def as_rollout(policy: ActorCritic, columns: Columns) -> Rollout:
    """The record that collecting these streams would have left."""
    shown = torch.eye(policy.observation_space.shape[0], dtype=FLOAT)
    obs, rows = shown[columns.states], columns.ended.nonzero()
    with torch.no_grad():
        log_prob = policy.distribution(obs.flatten(0, 1)).log_prob(columns.actions.reshape(-1))
    episodes = [
        Episode(int(columns.episode[t, b]), 0.0, int(columns.episode_step[t, b]) + 1, True, {})
        for t, b in rows.tolist()
    ]
    return Rollout(
        obs=obs,
        actions=columns.actions,
        rewards=columns.rewards,
        terminated=columns.terminated,
        truncated=columns.truncated,
        valid=columns.valid,
        episode_step=columns.episode_step,
        episode=torch.where(columns.valid, columns.episode, torch.full_like(columns.episode, -1)),
        last_obs=shown[columns.next_states[-1]],
        final_rows=rows,
        final_obs=shown[columns.next_states[rows[:, 0], rows[:, 1]]],
        log_prob=log_prob.view(columns.valid.shape),
        episodes=tuple(episodes),
        policy_version=policy.version,
        clipped_share=0.0,
    )


def policy_for(
    mdp: MDP, values: Tensor | None = None, seed: int = 0, hidden: int = 0
) -> ActorCritic:
    """A policy over one-hot states with weights away from 0, whose critic is a table.

    ``hidden`` units make a network of it, so that states share their features.
    """
    n = mdp.n_states
    box, actions = gym.spaces.Box(0, 1, (n,), np.float32), gym.spaces.Discrete(mdp.n_actions)
    arch = {"pi": (hidden,) if hidden else (), "vf": ()}
    policy = ActorCritic(box, actions, net_arch=arch, dtype="float64")
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (*policy.actor.parameters(), *policy.actor_head.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=FLOAT))
        if values is not None:
            policy.critic_head.weight.copy_(values[None])
    return policy


def _outcomes(mdp: MDP, pi: Tensor) -> list[list[tuple[float, int, float, int, bool]]]:
    """By state: probability, action, reward, successor, and whether the transition terminates."""
    found: list[list[tuple[float, int, float, int, bool]]] = [[] for _ in range(mdp.n_states)]
    for s, a, arrival in np.ndindex(*mdp.rewards.shape):
        p = float(pi[s, a] * mdp.transitions[s, a, arrival])
        ends = float(mdp.termination[s, a, arrival])
        for chance, terminated in ((1 - ends, False), (ends, True)):
            if p * chance > 0:
                reward = float(mdp.rewards[s, a, arrival])
                found[s].append((p * chance, a, reward, arrival, terminated))
    return found

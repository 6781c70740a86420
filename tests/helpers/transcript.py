"""Rollouts read row by row, as their documentation says, with nothing but Python loops."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from upslope.algorithms.ppo import Learner
from upslope.config import PPOConfig
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout


class Transition(NamedTuple):
    """One valid row and the observation that truly followed it."""

    t: int
    b: int
    obs: np.ndarray
    action: Any
    reward: float
    successor: np.ndarray
    terminated: bool
    truncated: bool


def transitions(rollout: Rollout) -> list[Transition]:
    """Every valid row in order of time, slot by slot."""
    steps, n_envs = rollout.rewards.shape
    finals = {(int(t), int(b)): k for k, (t, b) in enumerate(rollout.final_rows)}
    assert len(finals) == len(rollout.final_rows) == len(rollout.final_obs)
    rows = []
    for b in range(n_envs):
        for t in range(steps):
            if not rollout.valid[t, b]:
                assert (t, b) not in finals
                continue
            ended = bool(rollout.terminated[t, b] or rollout.truncated[t, b])
            assert ended == ((t, b) in finals)
            if ended:
                successor = rollout.final_obs[finals[t, b]]
            else:
                successor = rollout.last_obs[b] if t + 1 == steps else rollout.obs[t + 1, b]
            rows.append(
                Transition(
                    t,
                    b,
                    rollout.obs[t, b].numpy(),
                    rollout.actions[t, b].numpy(),
                    float(rollout.rewards[t, b]),
                    successor.numpy(),
                    bool(rollout.terminated[t, b]),
                    bool(rollout.truncated[t, b]),
                )
            )
    return rows


def advantages_by_hand(
    policy: ActorCritic, rollout: Rollout, gamma: float, gae_lambda: float
) -> dict[tuple[int, int], float]:
    """A_t as the sum it is: TD errors of the same episode, as far as this rollout goes."""
    rows = transitions(rollout)
    delta = {}
    for row in rows:
        value, after = policy.value(np.stack([row.obs, row.successor])).tolist()
        tail = 0.0 if row.terminated else gamma * after
        delta[row.t, row.b] = row.reward + tail - value
    ended = {(row.t, row.b): row.terminated or row.truncated for row in rows}
    result = {}
    for t, b in delta:
        total, weight, k = 0.0, 1.0, t
        while True:
            total += weight * delta[k, b]
            if ended[k, b] or (k + 1, b) not in delta:
                break
            weight, k = weight * gamma * gae_lambda, k + 1
        result[t, b] = total
    return result


def advantages_of_ppo(
    policy: ActorCritic,
    rollout: Rollout,
    evaluated: EvaluatedRollout,
    gamma: float,
    gae_lambda: float,
) -> dict[tuple[int, int], float]:
    """What PPO's own page weighs each valid row with; no weight of the policy moves."""
    steps, n_envs = rollout.rewards.shape
    config = PPOConfig(
        gamma=gamma, gae_lambda=gae_lambda, n_steps=steps, batch_size=2, normalize_advantage=False
    )
    learner = Learner(config.resolve(n_envs), policy)
    seen: dict[str, Any] = {}

    def watch(batch: Any, *_: Any, **__: Any) -> dict[str, float]:
        seen.update(batch)
        return {}

    learner.optimizers["all"].run = watch  # type: ignore[method-assign]
    learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
    grid = seen["weights"].view(steps, n_envs)
    return {(int(t), int(b)): float(grid[t, b]) for t, b in rollout.valid.nonzero()}

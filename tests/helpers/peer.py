"""Stable-Baselines3 set up to compute what we do: our weights, our rollout, in float64.

Stable-Baselines3 computes in float32. A features extractor that casts back, a buffer of float64
arrays and `policy.double()` make its own code run in float64; only the sampled actions stay numbers
that float32 can hold, since its buffer casts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.optim.minibatches import Columns
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, collect, evaluate_rollout

TASKS = ["CartPole-v1", "Pendulum-v1"]
T, B = 32, 4
SETTINGS = {"gamma": 0.97, "gae_lambda": 0.9, "ent_coef": 0.01, "vf_coef": 0.7}
PEER_NAMES = {
    "actor.": "mlp_extractor.policy_net.",
    "critic.": "mlp_extractor.value_net.",
    "actor_head.": "action_net.",
    "critic_head.": "value_net.",
    "actions.": "",
}


class DoubleFeatures(FlattenExtractor):
    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(observations).double()


class DoubleBuffer(RolloutBuffer):
    def reset(self) -> None:
        super().reset()
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, getattr(self, name).astype(np.float64))


class Capture:
    """Stands in for a page's optimiser: keeps what `update` would have followed."""

    def run(self, batch: Any, minibatches: Any, hyper: Any, until: Any = None) -> dict[str, float]:
        self.batch, self.minibatches, self.hyper = batch, minibatches, hyper
        return {"value_loss": 0.0}

    def first_minibatch(self) -> Any:
        """The columns that the loss of the first step would read."""
        columns = Columns(self.batch)
        return columns.batch_of(columns.first(self.minibatches))[0]


class FixedOrder:
    """Stands in for a generator: hands out the given orders of the rows."""

    def __init__(self, orders: Iterable[Any]) -> None:
        self._orders = iter(orders)

    def permutation(self, n_rows: int) -> Any:
        return next(self._orders)


def make_policy(env: Any, dtype: str = "float64", **settings: Any) -> ActorCritic:
    policy = ActorCritic(env.observation_space, env.action_space, seed=1, dtype=dtype, **settings)
    move(policy, seed=2)
    return policy


def move(policy: ActorCritic, seed: int, scale: float = 0.1) -> None:
    """Add noise to every weight, so that no head is near 0 and no bias is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in policy.parameters():
            noise = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            weights.add_(scale * noise.to(weights.dtype))


def gather(task: str, dtype: str = "float64") -> tuple[ActorCritic, Rollout, EvaluatedRollout]:
    """A rollout without truncation, its actions rounded to what float32 can hold."""
    envs = make_environments(find_environment(task), n_envs=B, seed=3, vec="sync")
    policy = make_policy(envs, dtype)
    rollout = collect(envs, policy, n_steps=T)
    envs.close()
    assert not rollout.truncated.any()
    assert rollout.terminated.any() == (task == "CartPole-v1")
    if rollout.actions.is_floating_point():
        actions = rollout.actions.float().to(policy.dtype)
        with torch.no_grad():
            log_prob = policy.distribution(rollout.obs).log_prob(actions)
        rollout = dataclasses.replace(rollout, actions=actions, log_prob=log_prob)
    return policy, rollout, evaluate_rollout(policy, rollout)


def make_peer(cls: Any, envs: DummyVecEnv, policy: ActorCritic, **settings: Any) -> Any:
    """Stable-Baselines3's algorithm with our weights, in our precision."""
    precise: dict[str, Any] = {}
    if policy.dtype == torch.float64:
        precise["rollout_buffer_class"] = DoubleBuffer
        precise["policy_kwargs"] = {"features_extractor_class": DoubleFeatures}
    peer = cls("MlpPolicy", envs, device="cpu", **precise, **settings)
    peer.policy.to(policy.dtype)
    peer.set_logger(Logger(folder=None, output_formats=[]))
    with torch.no_grad():
        for name, weights in peer_parameters(peer, policy).items():
            weights.copy_(policy.get_parameter(name))
    return peer


def peer_parameters(peer: Any, policy: ActorCritic) -> dict[str, Tensor]:
    """Our names -> Stable-Baselines3's parameters, all of them."""
    theirs = dict(peer.policy.named_parameters())
    ours = [name for name, _ in policy.named_parameters()]
    prefixes = {name: f"{name.partition('.')[0]}." for name in ours}
    pairs = {name: PEER_NAMES[p] + name.removeprefix(p) for name, p in prefixes.items()}
    assert set(pairs.values()) == set(theirs)
    return {name: theirs[pair] for name, pair in pairs.items()}


def fill(peer: Any, rollout: Rollout, values: Tensor, last_values: Tensor) -> None:
    """Put a rollout in the peer's buffer row by row, and let the peer weigh it."""
    buffer, starts = peer.rollout_buffer, rollout.episode_step == 0
    buffer.reset()
    for t in range(len(rollout.rewards)):
        row = (rollout.obs[t], rollout.actions[t], rollout.rewards[t], starts[t])
        buffer.add(*(x.numpy() for x in row), values[t], rollout.log_prob[t])
    buffer.compute_returns_and_advantage(last_values, rollout.done[-1].numpy())


def record_gradients(peer: Any, policy: ActorCritic) -> list[dict[str, Tensor]]:
    """A list to which each of the peer's optimiser steps adds the gradient that it follows."""
    steps: list[dict[str, Tensor]] = []

    def note(*_: Any) -> None:
        pairs = peer_parameters(peer, policy).items()
        steps.append(
            {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in pairs}
        )

    peer.policy.optimizer.register_step_pre_hook(note)
    return steps


def plain_envs(task: str) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make(task)] * B)


def gradients(loss: Tensor, policy: ActorCritic) -> dict[str, Tensor]:
    names, weights = zip(*policy.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def largest_gap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)

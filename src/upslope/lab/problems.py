"""The problems of the study: a small process, a discount and a policy, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from upslope.envs.tabular import MDP, delayed_reward, gridworld, random_mdp, sentinel, two_state
from upslope.errors import ConfigError, did_you_mean
from upslope.lab.exact import state_probabilities, visitation
from upslope.policies.actor_critic import ActorCritic
from upslope.seeding import SeedTree

LEFT_OVER = 1e-12  # chance of an episode that is longer than the recursions look


@dataclass(frozen=True)
class Problem:
    """A process with the policy whose gradient is measured in it.

    ``logits [S, A]`` are those of a table; ``hidden`` makes it a network of so many units, whose
    states share their features.
    """

    name: str
    mdp: MDP
    gamma: float
    logits: Tensor
    hidden: int = 0

    @property
    def limit(self) -> str:
        """Whose the time limit is: ``none``, the ``task``'s, or the ``sampling``'s."""
        if self.mdp.horizon is None:
            return "none"
        return "task" if self.mdp.limit_is_task else "sampling"

    def policy(self) -> ActorCritic:
        """The policy, in float64. Its critic answers with the number of the state.

        So the values that evaluating a rollout gives say which state each row was in and which
        truly followed it, and tables of any value function can be read with them.
        """
        n = self.mdp.n_states
        box, actions = (
            gym.spaces.Box(0, 1, (n,), np.float32),
            gym.spaces.Discrete(len(self.logits[0])),
        )
        arch = {"pi": (self.hidden,) if self.hidden else (), "vf": ()}
        policy = ActorCritic(box, actions, net_arch=arch, dtype="float64")
        with torch.no_grad():
            policy.critic_head.weight.copy_(torch.arange(n, dtype=torch.float64)[None])
            policy.critic_head.bias.zero_()
            if self.hidden:
                rng = SeedTree(n).torch_generator("features")
                for parameter in (*policy.actor.parameters(), *policy.actor_head.parameters()):
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
                    )
            else:
                policy.actor_head.weight.copy_(self.logits.T)
                policy.actor_head.bias.zero_()
        return policy

    def limited(self) -> MDP:
        """The process for the exact recursions: without a limit, one that no episode reaches."""
        if self.mdp.horizon is not None:
            return self.mdp
        pi, horizon = state_probabilities(self.mdp, self.policy()), 8
        while visitation(self.mdp, pi, 1.0, horizon)[-1].sum() > LEFT_OVER:
            horizon += 8
        return self.mdp.with_limit(horizon, is_task=False)


def _table(*shape: int, scale: float, seed: int) -> Tensor:
    rng = SeedTree(seed).torch_generator("logits")
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def _two_state() -> Problem:
    return Problem("two-state", two_state(horizon=6), 0.95, torch.tensor([[0.0, 0.4], [0.6, 0.0]]))


def _delayed_reward() -> Problem:
    corridor = delayed_reward(4).with_limit(None, is_task=False)
    return Problem("delayed-reward", corridor, 0.95, torch.tensor([[0.0, 0.5]] * 4))


def _sentinel() -> Problem:
    mdp = sentinel(horizon=4).with_limit(4, is_task=False)
    return Problem("sentinel", mdp, 0.8, torch.tensor([[0.5, -0.2], [0.0, 0.3], [-0.4, 0.4]]))


def _gridworld() -> Problem:
    towards = torch.tensor([-0.8, 1.5, -0.8, 1.0]).expand(9, 4)  # up, down, left, right
    return Problem("gridworld", gridworld(horizon=None), 0.95, towards)


def _random(n_states: int = 5, n_actions: int = 3, seed: int = 1, hidden: int = 3) -> Problem:
    mdp = random_mdp(n_states, n_actions, 8, seed, termination=0.1)
    mdp = replace(mdp, limit_is_task=False)
    logits = _table(n_states, n_actions, scale=0.7, seed=seed)
    name = "random" if hidden else f"random-{n_states}x{n_actions}-s{seed}"
    return Problem(name, mdp, 0.9, logits, hidden)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "two-state": _two_state,
    "delayed-reward": _delayed_reward,
    "gridworld": _gridworld,
    "sentinel": _sentinel,
    "random": _random,
}


def find_problem(name: str) -> Problem:
    """Return a problem by its name, or the random one that ``random-SxA-sSEED`` describes.

    Raises:
        ConfigError: if there is none, with the nearest.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]()
    described = re.fullmatch(r"random-(\d+)x(\d+)(?:-s(\d+))?", name)
    if described is None:
        known = ", ".join(PROBLEMS)
        raise ConfigError(
            f"there is no process {name!r}{did_you_mean(name, PROBLEMS)}; there are {known}, and "
            "random-SxA-sSEED such as random-10x3-s4"
        )
    n_states, n_actions, seed = (int(number or 0) for number in described.groups())
    if not (1 <= n_states <= 30 and 2 <= n_actions <= 10):
        raise ConfigError(f"{name}: give 1 to 30 states and 2 to 10 actions")
    return _random(n_states, n_actions, seed, hidden=0)

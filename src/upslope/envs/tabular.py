"""Small Markov decision processes whose values and gradients are known, as real environments.

An :class:`MDP` is its tables; :class:`TabularEnv` plays it for any policy of this library, with
one-hot observations. Episodes end in an ordinary state, whose value the critic may well get wrong:
only so can a test see a bootstrap that should not be there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOAT = torch.float64


@dataclass(frozen=True)
class MDP:
    """A finite Markov decision process in float64 tables.

    ``horizon`` is a time limit in steps. Where ``limit_is_task`` the limit belongs to the task and
    ends an episode for good (terminated); otherwise it only ends the sampling (truncated).
    """

    name: str
    transitions: Tensor  # [S, A, S] probability of the successor
    rewards: Tensor  # [S, A, S] reward of the transition
    termination: Tensor  # [S, A, S] probability that the transition ends the episode
    start: Tensor  # [S] probability of the first state
    horizon: int | None = None
    limit_is_task: bool = True

    def __post_init__(self) -> None:
        one = torch.ones((), dtype=FLOAT)
        for table in (self.transitions.sum(-1), self.start.sum(-1)):
            if not torch.allclose(table, one.expand_as(table), rtol=0, atol=1e-12):
                raise ValueError(f"the probabilities of {self.name} do not sum to 1")

    @property
    def n_states(self) -> int:
        """S."""
        return self.transitions.shape[0]

    @property
    def n_actions(self) -> int:
        """A."""
        return self.transitions.shape[1]

    @property
    def continuing(self) -> Tensor:
        """``[S, A, S]``: probability that the episode goes on in the successor."""
        return self.transitions * (1 - self.termination)

    @property
    def expected_rewards(self) -> Tensor:
        """``[S, A]``: mean reward of an action."""
        return (self.transitions * self.rewards).sum(-1)

    def with_limit(self, horizon: int | None, *, is_task: bool) -> MDP:
        """The same process under another time limit."""
        return replace(self, horizon=horizon, limit_is_task=is_task)


class TabularEnv(gym.Env[NDArray[np.float32], np.int64]):
    """An :class:`MDP` to be stepped: one-hot observations ``[S]``, Discrete actions.

    Args:
        mdp: the tables; its horizon ends episodes as ``limit_is_task`` says.
        observe_time: append t / horizon to the observation, ``[S + 1]``.

    Raises:
        ValueError: if time is to be observed and there is no horizon.
    """

    def __init__(self, mdp: MDP, observe_time: bool = False) -> None:
        if observe_time and mdp.horizon is None:
            raise ValueError(f"{mdp.name} has no horizon, so there is no time to observe")
        self.mdp, self.observe_time = mdp, observe_time
        self.observation_space = gym.spaces.Box(0, 1, (mdp.n_states + observe_time,), np.float32)
        self.action_space = gym.spaces.Discrete(mdp.n_actions)
        self._transitions = mdp.transitions.numpy().cumsum(-1)
        self._start = mdp.start.numpy().cumsum()
        self.state, self.steps = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = self._draw(self._start), 0
        return self._observe(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        mdp, before = self.mdp, self.state
        self.state = self._draw(self._transitions[before, action])
        self.steps += 1
        where = (before, int(action), self.state)
        ended = bool(self.np_random.random() < float(mdp.termination[where]))
        limited = mdp.horizon is not None and self.steps >= mdp.horizon
        terminated = ended or (limited and mdp.limit_is_task)
        truncated = limited and not mdp.limit_is_task
        return self._observe(), float(mdp.rewards[where]), terminated, truncated, {}

    def _draw(self, cumulative: NDArray[Any]) -> int:
        u = self.np_random.random()
        return min(int(np.searchsorted(cumulative, u, side="right")), self.mdp.n_states - 1)

    def _observe(self) -> NDArray[np.float32]:
        obs = np.zeros(self.observation_space.shape or (), np.float32)
        obs[self.state] = 1
        if self.observe_time:
            obs[-1] = self.steps / (self.mdp.horizon or 1)
        return obs


def random_mdp(
    n_states: int, n_actions: int, horizon: int | None, seed: int, termination: float = 0.0
) -> MDP:
    """Dirichlet(1) transitions and start, standard normal rewards, one chance of ending a step."""
    rng = np.random.default_rng(seed)
    shape = (n_states, n_actions, n_states)
    return MDP(
        f"random {n_states}x{n_actions} seed {seed}",
        torch.from_numpy(rng.dirichlet(np.ones(n_states), (n_states, n_actions))),
        torch.from_numpy(rng.standard_normal(shape)),
        torch.full(shape, termination, dtype=FLOAT),
        torch.from_numpy(rng.dirichlet(np.ones(n_states))),
        horizon,
    )


def deterministic(
    name: str,
    successors: list[list[int]],
    rewards: list[list[float]],
    ends: list[list[float]],
    horizon: int | None = None,
    start: int = 0,
) -> MDP:
    """An MDP from ``[S][A]`` lists: the successor, the reward and the probability of ending."""
    n_states = len(successors)
    one_hot = torch.eye(n_states, dtype=FLOAT)

    def spread(table: list[list[float]]) -> Tensor:
        return torch.tensor(table, dtype=FLOAT)[..., None].expand(-1, -1, n_states).clone()

    arrivals = one_hot[torch.tensor(successors)]
    return MDP(name, arrivals, spread(rewards), spread(ends), one_hot[start], horizon)


def two_state(horizon: int | None = 5) -> MDP:
    """Stay or switch between a poor and a rich state; switching slips one time in five."""
    stay, switch = [0.9, 0.1], [0.2, 0.8]
    transitions = torch.tensor([[stay, switch], [stay[::-1], switch[::-1]]], dtype=FLOAT)
    rewards = torch.tensor([0.0, 1.0], dtype=FLOAT).expand(2, 2, 2).clone()
    ends = torch.full((2, 2, 2), 0.05, dtype=FLOAT)
    start = torch.tensor([0.8, 0.2], dtype=FLOAT)
    return MDP("two-state", transitions, rewards, ends, start, horizon)


def delayed_reward(length: int = 4) -> MDP:
    """A corridor: action 1 goes on, action 0 leaves for 0.3; only the far end pays, 1."""
    last = length - 1
    successors = [[i, min(i + 1, last)] for i in range(length)]
    rewards = [[0.3, 1.0 if i == last else 0.0] for i in range(length)]
    ends = [[1.0, 1.0 if i == last else 0.0] for i in range(length)]
    return deterministic("delayed reward", successors, rewards, ends, horizon=length)


def sentinel(horizon: int = 4) -> MDP:
    """Three states, exits chosen by the action, limit of 4: where boundary faults show soonest."""
    successors = [[1, 2], [2, 0], [0, 1]]
    rewards = [[1.0, -0.5], [0.3, 2.0], [-1.0, 0.7]]
    ends = [[0.6, 0.0], [0.0, 0.5], [0.3, 0.1]]
    mdp = deterministic("sentinel", successors, rewards, ends)
    return replace(mdp, start=torch.tensor([0.5, 0.3, 0.2], dtype=FLOAT), horizon=horizon)


def gridworld(side: int = 3, wind: float = 0.2, horizon: int | None = 12) -> MDP:
    """Four moves on a square, blown one cell up with probability ``wind``; the far corner pays 1.

    Every step costs 0.05; a move off the square stays where it is.
    """
    n_states, moves = side * side, ((-1, 0), (1, 0), (0, -1), (0, 1))
    transitions = torch.zeros(n_states, 4, n_states, dtype=FLOAT)

    def cell(row: int, column: int) -> int:
        return min(max(row, 0), side - 1) * side + min(max(column, 0), side - 1)

    for state in range(n_states):
        for action, (down, right) in enumerate(moves):
            row, column = divmod(state, side)
            calm = cell(row + down, column + right)
            transitions[state, action, calm] += 1 - wind
            transitions[state, action, cell(calm // side - 1, calm % side)] += wind
    rewards = torch.full((n_states, 4, n_states), -0.05, dtype=FLOAT)
    rewards[:, :, -1] += 1.0
    ends = torch.zeros_like(rewards)
    ends[:, :, -1] = 1.0
    start = torch.eye(n_states, dtype=FLOAT)[0]
    return MDP("windy gridworld", transitions, rewards, ends, start, horizon)


def common_level(level: float) -> MDP:
    """Two steps, gamma 1: pays ``level`` and takes it back, plus 1 for action 1 at the end."""
    rewards = [[level, level], [-level, 1 - level]]
    return deterministic("common level", [[1, 1], [1, 1]], rewards, [[0, 0], [1, 1]], horizon=2)


def bandit(*means: float) -> MDP:
    """One step, one state; the arms pay ``means``."""
    arms = len(means)
    return deterministic("bandit", [[0] * arms], [list(means)], [[1.0] * arms], horizon=1)


def decision_chain(length: int = 4) -> MDP:
    """One decision, then a walk along the branch it chose, ``length`` steps in all; one pays 1."""
    first, second = range(1, length), range(length, 2 * length - 1)
    successors = [[1, length]]
    rewards: list[list[float]] = [[0.0, 0.0]]
    ends = [[0.0, 0.0]]
    for branch, pay in ((first, 1.0), (second, 0.0)):
        for state in branch:
            last = state == branch[-1]
            successors.append([state if last else state + 1] * 2)
            rewards.append([pay if last else 0.0] * 2)
            ends.append([1.0 if last else 0.0] * 2)
    return deterministic("decision chain", successors, rewards, ends, horizon=length)

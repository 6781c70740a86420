"""A process of ``envs/tabular.py`` as one vector environment: thousands of episodes a second."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from upslope.envs.tabular import MDP

Rows = NDArray[np.float32]


class TabularVectorEnv(VectorEnv[Rows, NDArray[np.int64], Any]):
    """``num_envs`` copies of one :class:`~upslope.envs.tabular.MDP`, stepped by table look-up.

    It plays what ``TabularEnv`` plays, from one random stream for all copies. Episodes are started
    by ``reset``, those of some copies by ``options={"reset_mask": ...}``.

    Args:
        mdp: the tables; its horizon ends episodes as ``limit_is_task`` says.
        num_envs: copies.
    """

    def __init__(self, mdp: MDP, num_envs: int) -> None:
        self.mdp, self.num_envs = mdp, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = gym.spaces.Box(0, 1, (mdp.n_states,), np.float32)
        self.single_action_space = gym.spaces.Discrete(mdp.n_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._start = mdp.start.numpy().cumsum()
        self._transitions = mdp.transitions.numpy().cumsum(-1)
        self._rewards, self._ends = mdp.rewards.numpy(), mdp.termination.numpy()
        self._one_hot = np.eye(mdp.n_states, dtype=np.float32)
        self._states = np.zeros(num_envs, dtype=np.int64)
        self._steps = np.zeros(num_envs, dtype=np.int64)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Rows, dict[str, Any]]:
        super().reset(seed=seed)
        where = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        cumulative = np.broadcast_to(self._start, (int(where.sum()), len(self._start)))
        self._states[where], self._steps[where] = self._draw(cumulative), 0
        return self._one_hot[self._states], {}

    def step(self, actions: NDArray[np.int64]) -> Any:
        mdp, before = self.mdp, self._states
        self._states = self._draw(self._transitions[before, actions])
        self._steps = self._steps + 1
        where = (before, actions, self._states)
        ended = self.np_random.random(self.num_envs) < self._ends[where]
        limited = self._steps >= (mdp.horizon or np.iinfo(np.int64).max)
        terminated = ended | (limited & mdp.limit_is_task)
        truncated = limited & (not mdp.limit_is_task)
        return self._one_hot[self._states], self._rewards[where], terminated, truncated, {}

    def _draw(self, cumulative: NDArray[Any]) -> NDArray[np.int64]:
        """One index per row of cumulative probabilities ``[n, S]``."""
        u = self.np_random.random((len(cumulative), 1))
        drawn: NDArray[np.int64] = (u >= cumulative).sum(1)
        return np.minimum(drawn, self.mdp.n_states - 1)

"""Linear dynamics with quadratic rewards: continuous tasks whose values and gradients are known.

An :class:`LQ` is its matrices; :class:`LQEnv` plays it for any policy of this library. What is
exact about it is computed in ``lab/linear_quadratic.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

FLOAT = torch.float64


@dataclass(frozen=True)
class LQ:
    """x' = A x + B u + w with reward -(x'Qx + u'Ru), in float64 matrices.

    The reward is that of the state *before* the step. Each step ends the episode with probability
    ``termination``, in an ordinary state: to the return this is one more discount. ``horizon`` is a
    time limit in steps; where ``limit_is_task`` it belongs to the task and ends an episode for good
    (terminated), otherwise it only ends the sampling (truncated). With a ``bound`` b the
    environment clips every action to [-b, b].
    """

    name: str
    A: Tensor  # [n, n]
    B: Tensor  # [n, m]
    Q: Tensor  # [n, n] symmetric, cost of the state
    R: Tensor  # [m, m] symmetric, cost of the action
    noise: Tensor  # [n, n] covariance of w, which is normal
    start_mean: Tensor  # [n] of the first state, which is normal
    start_covariance: Tensor  # [n, n]
    horizon: int | None = None
    limit_is_task: bool = True
    termination: float = 0.0
    bound: float | None = None

    def __post_init__(self) -> None:
        n, m = self.B.shape
        wanted = {"A": (n, n), "Q": (n, n), "R": (m, m), "noise": (n, n), "start_mean": (n,)}
        for name, shape in {**wanted, "start_covariance": (n, n)}.items():
            matrix = getattr(self, name)
            if matrix.shape != shape or matrix.dtype != FLOAT:
                raise ValueError(
                    f"{name} of {self.name} is {matrix.dtype} of shape {tuple(matrix.shape)}: "
                    f"give float64 of shape {shape}, as B says"
                )
        for name in ("Q", "R", "noise", "start_covariance"):
            matrix = getattr(self, name)
            if not torch.allclose(matrix, matrix.T, rtol=0, atol=1e-12):
                raise ValueError(f"{name} of {self.name} is not symmetric: give (X + X') / 2")
        for name in ("noise", "start_covariance"):
            if torch.linalg.eigvalsh(getattr(self, name)).min() < -1e-12:
                raise ValueError(
                    f"{name} of {self.name} has a negative eigenvalue, and no covariance has: "
                    "correct it"
                )
        if not 0 <= self.termination <= 1:
            raise ValueError(
                f"termination={self.termination} of {self.name} is no probability: give one in "
                "[0, 1]"
            )
        if (self.horizon is not None and self.horizon < 1) or (
            self.bound is not None and not 0 < self.bound < np.inf
        ):
            raise ValueError(
                f"horizon={self.horizon}, bound={self.bound} of {self.name}: give a horizon of at "
                "least 1 and a positive, finite bound, or None"
            )

    @property
    def n_states(self) -> int:
        """n, the numbers of a state."""
        return self.B.shape[0]

    @property
    def n_actions(self) -> int:
        """m, the numbers of an action."""
        return self.B.shape[1]

    @property
    def survival(self) -> float:
        """Probability that an episode goes on after a step, the time limit aside."""
        return 1 - self.termination

    @property
    def start_moment(self) -> Tensor:
        """``[n + 1, n + 1]``: E[zz'] of the first state, read as z = (x, 1)."""
        z = pad(self.start_mean, (0, 1), value=1.0)
        return torch.outer(z, z) + pad(self.start_covariance, (0, 1, 0, 1))

    @property
    def step_matrix(self) -> Tensor:
        """``[n + 1, n + 1 + m]``: (x, 1, u) to the mean of the next (x, 1)."""
        n, m = self.n_states, self.n_actions
        moved = torch.cat([self.A, self.A.new_zeros(n, 1), self.B], 1)
        return torch.cat([moved, torch.eye(n + 1 + m, dtype=FLOAT)[n : n + 1]])

    @property
    def reward_form(self) -> Tensor:
        """``[n + 1 + m, n + 1 + m]``: the reward as y'Fy of y = (x, 1, u), bounds aside."""
        n, m = self.n_states, self.n_actions
        return -pad(self.Q, (0, 1 + m, 0, 1 + m)) - pad(self.R, (n + 1, 0, n + 1, 0))

    @property
    def observation_space(self) -> gym.spaces.Box:
        """All of R^n, in float64: a policy in float64 then reads the very state, not a rounding."""
        return gym.spaces.Box(-np.inf, np.inf, (self.n_states,), np.float64)

    @property
    def action_space(self) -> gym.spaces.Box:
        """All of R^m, or [-bound, bound]^m, in float64."""
        bound = np.inf if self.bound is None else self.bound
        return gym.spaces.Box(-bound, bound, (self.n_actions,), np.float64)


class LQEnv(gym.Env[NDArray[Any], NDArray[Any]]):
    """An :class:`LQ` to be stepped: the state ``[n]`` is the observation, Box actions ``[m]``.

    Args:
        lq: the matrices; its horizon ends episodes as ``limit_is_task`` says.
    """

    def __init__(self, lq: LQ) -> None:
        self.lq = lq
        self.observation_space, self.action_space = lq.observation_space, lq.action_space
        self._a, self._b, self._q, self._r = (x.numpy() for x in (lq.A, lq.B, lq.Q, lq.R))
        self._start_mean = lq.start_mean.numpy()
        self._start_root, self._noise_root = _root(lq.start_covariance), _root(lq.noise)
        self.state, self.steps = np.zeros(lq.n_states), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = self._start_mean + self._draw(self._start_root), 0
        return self.state.copy(), {}

    def step(
        self, action: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        lq, x, u = self.lq, self.state, np.asarray(action, np.float64)
        if lq.bound is not None:
            u = np.minimum(np.maximum(u, -lq.bound), lq.bound)
        reward = -float(x @ self._q @ x + u @ self._r @ u)
        self.state = self._a @ x + self._b @ u + self._draw(self._noise_root)
        self.steps += 1
        ended = bool(self.np_random.random() < lq.termination)
        limited = lq.horizon is not None and self.steps >= lq.horizon
        terminated = ended or (limited and lq.limit_is_task)
        truncated = limited and not lq.limit_is_task
        return self.state.copy(), reward, terminated, truncated, {}

    def _draw(self, root: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn: NDArray[np.float64] = root @ self.np_random.standard_normal(len(root))
        return drawn


def scalar(horizon: int | None = 5, termination: float = 0.0, bound: float | None = None) -> LQ:
    """One number, pushed towards 0 by another: x' = 0.9 x + 0.5 u + w."""
    return LQ(
        "scalar",
        A=_matrix([[0.9]]),
        B=_matrix([[0.5]]),
        Q=_matrix([[1.0]]),
        R=_matrix([[0.3]]),
        noise=_matrix([[0.1]]),
        start_mean=_matrix([1.0]),
        start_covariance=_matrix([[0.25]]),
        horizon=horizon,
        termination=termination,
        bound=bound,
    )


def double_integrator(horizon: int | None = 8, termination: float = 0.0) -> LQ:
    """Position and velocity of a mass under a force, in steps of half a second.

    Left alone it keeps its velocity, rho(A) = 1: without a horizon the return is finite for a
    policy near 0, as an untrained one is, where gamma times the survival is below 1.
    """
    return LQ(
        "double integrator",
        A=_matrix([[1.0, 0.5], [0.0, 1.0]]),
        B=_matrix([[0.125], [0.5]]),
        Q=_matrix([[1.0, 0.0], [0.0, 0.1]]),
        R=_matrix([[0.1]]),
        noise=_matrix([[0.0, 0.0], [0.0, 0.04]]),
        start_mean=_matrix([1.0, 0.0]),
        start_covariance=_matrix([[0.1, 0.02], [0.02, 0.05]]),
        horizon=horizon,
        termination=termination,
    )


def _matrix(rows: list[Any]) -> Tensor:
    return torch.tensor(rows, dtype=FLOAT)


def _root(covariance: Tensor) -> NDArray[np.float64]:
    """A matrix whose product with its transpose is a covariance, which may be singular."""
    squares, axes = torch.linalg.eigh(covariance)
    root: NDArray[np.float64] = (axes * squares.clamp(min=0).sqrt()).numpy()
    return root

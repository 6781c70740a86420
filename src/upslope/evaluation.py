"""Evaluate a policy: numbered episodes on fresh seeds, sampled and deterministic, with intervals.

Everything here is about *this policy*; what an algorithm does needs several seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.envs.episodes import Environments, Episode
from upslope.noise import EpisodeNoise
from upslope.policies.acting import make_actor
from upslope.policies.actor_critic import ActorCritic


@dataclass(frozen=True)
class Sample:
    """Undiscounted returns of finished episodes, and what they say about the policy's mean.

    ``ci95`` is Student's t interval of the mean; of zero width where all returns are equal, which
    shows no more than ``1 - 0.05 ** (1 / n)`` of episodes lying elsewhere.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    success: NDArray[np.float64] | None = None
    threshold: float | None = None

    @property
    def mean(self) -> float:
        """Average return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation of the returns (0 for one episode)."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % t interval of the mean."""
        n = len(self.returns)
        if n < 2:
            return (-np.inf, np.inf)
        if self.std == 0:
            return (self.mean, self.mean)
        from scipy.special import stdtrit  # scipy.stats takes several times as long to import

        half = float(stdtrit(n - 1, 0.975)) * self.std / n**0.5
        return (self.mean - half, self.mean + half)

    @property
    def iqm(self) -> float:
        """Mean of the middle half of the returns."""
        cut = len(self.returns) // 4
        return float(np.sort(self.returns)[cut : len(self.returns) - cut].mean())

    @property
    def min(self) -> float:
        """The worst return."""
        return float(self.returns.min())

    @property
    def failure_share(self) -> float | None:
        """Share of episodes below the environment's registered threshold; None without one."""
        return None if self.threshold is None else float(np.mean(self.returns < self.threshold))

    @property
    def success_rate(self) -> float | None:
        """Share of episodes with ``info["is_success"]``; None where that is not reported."""
        return None if self.success is None else float(self.success.mean())

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of evaluation.json."""
        low, high = self.ci95
        return {
            "mean": self.mean,
            "ci95": [low, high] if len(self.returns) > 1 else None,
            "std": self.std,
            "iqm": self.iqm,
            "min": self.min,
            "failure_share": self.failure_share,
            "success_rate": self.success_rate,
            "episodes": len(self.returns),
            "mean_length": float(self.lengths.mean()),
        }


@dataclass(frozen=True)
class Score:
    """One policy, two ways to act: with sampled actions, as it was trained, and with the mode."""

    sampled: Sample
    deterministic: Sample
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the object of evaluation.json and ``upslope eval --json``."""
        return {
            "sampled": self.sampled.to_json(),
            "deterministic": self.deterministic.to_json(),
            "seed": self.seed,
        }


def evaluate(
    policy: ActorCritic,
    envs: Environments,
    n_episodes: int,
    *,
    deterministic: bool,
    threshold: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sample:
    """Run ``n_episodes`` numbered episodes, each to its end, with frozen normalisation.

    Args:
        policy: nothing of it changes.
        envs: a vector of its own; on our engines the result does not depend on its size.
        n_episodes: at least 1.
        deterministic: the mode of each distribution instead of a sample.
        threshold: return below which an episode counts as a failure.
        progress: told the number of finished episodes after each that ends.
    """
    envs.begin_batch(n_episodes)
    actor, noise = make_actor(policy, envs.n_envs), EpisodeNoise(envs, policy)
    outputs = np.empty((envs.n_envs, policy.actions.n_outputs), noise.dtype)
    std = policy.actions.std()
    episodes: list[Episode] = []
    while envs.batch_is_running():
        actor(envs.obs, outputs, envs.episode_start)
        if deterministic:
            actions = policy.actions.mode(outputs, envs.mask)
        else:
            actions = policy.actions.sample(outputs, noise.row(), std, envs.mask)
        _, finished = envs.step(policy.actions.to_env(actions))
        episodes += finished
        if finished and progress is not None:
            progress(len(episodes))
    episodes.sort(key=lambda episode: episode.number)
    success = [e.info["is_success"] for e in episodes if "is_success" in e.info]
    return Sample(
        np.array([episode.ret for episode in episodes]),
        np.array([episode.length for episode in episodes]),
        np.array(success) if len(success) == len(episodes) else None,
        threshold,
    )

"""Evaluate a policy: numbered episodes on fresh seeds, sampled and deterministic, with intervals.

Everything here is about *this policy*; what an algorithm does needs several seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from upslope.envs.episodes import Environments, Episode
from upslope.envs.make import environment_settings, make_environments
from upslope.envs.masks import sample_allowed
from upslope.noise import EpisodeNoise
from upslope.policies.acting import make_actor
from upslope.policies.actor_critic import ActorCritic
from upslope.seeding import SeedTree
from upslope.statistics.intervals import (
    clopper_pearson,
    elsewhere_at_most,
    mean_interval,
    wilson,
)
from upslope.trees import Tree

if TYPE_CHECKING:
    from upslope.agent import Agent

RANDOM_EPISODES = 20  # of the policy that a trained one is held against
RANDOM_ENVS = 16
ABOUT = "this policy, not the algorithm that trained it"


@dataclass(frozen=True)
class Sample:
    """Undiscounted returns of finished episodes, and what they say about this policy's mean.

    ``ci95`` is Student's t interval of the mean; of zero width where all returns are equal, which
    shows no more than that at most ``elsewhere_at_most`` of its episodes return something else. A
    t interval knows nothing of rare failures that did not occur: that of ``failure_ci95`` does.
    A failure is a return below ``threshold``.
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
        """Sample standard deviation of the returns (0 for one episode, and of equal returns)."""
        if self.returns.min() == self.returns.max():
            return 0.0
        return float(self.returns.std(ddof=1))

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % t interval of the mean."""
        if len(self.returns) < 2:
            return (-np.inf, np.inf)
        found = mean_interval(self.returns.tolist())
        low, high = found.ci or (self.mean, self.mean)
        return (low, high)

    @property
    def elsewhere_at_most(self) -> float | None:
        """Where all returns are equal, the share of others that 95 % confidence leaves possible."""
        is_equal = len(self.returns) > 1 and self.returns.min() == self.returns.max()
        return elsewhere_at_most(len(self.returns)) if is_equal else None

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
    def failures(self) -> int | None:
        """Episodes that returned less than the threshold; None without one."""
        return None if self.threshold is None else int(np.sum(self.returns < self.threshold))

    @property
    def failure_share(self) -> float | None:
        """Share of episodes below the threshold; None without one."""
        return None if self.failures is None else self.failures / len(self.returns)

    @property
    def failure_ci95(self) -> tuple[float, float] | None:
        """Clopper and Pearson's exact 95 % interval of that share."""
        return None if self.failures is None else clopper_pearson(self.failures, len(self.returns))

    @property
    def success_rate(self) -> float | None:
        """Share of episodes with ``info["is_success"]``; None where that is not reported."""
        return None if self.success is None else float(self.success.mean())

    @property
    def success_ci95(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of that share; None where successes are not all 0 or 1."""
        if self.success is None or not np.isin(self.success, (0.0, 1.0)).all():
            return None
        return wilson(int(self.success.sum()), len(self.success))

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
            "failure_ci95": None if self.failure_ci95 is None else list(self.failure_ci95),
            "threshold": self.threshold,
            "success_rate": self.success_rate,
            "success_ci95": None if self.success_ci95 is None else list(self.success_ci95),
            "elsewhere_at_most": self.elsewhere_at_most,
            "episodes": len(self.returns),
            "mean_length": float(self.lengths.mean()),
        }


@dataclass(frozen=True)
class Selection:
    """How a best checkpoint was chosen: the highest of several scores, which is biased upwards."""

    mean: float
    timesteps: int
    candidates: int  # scores of which it is the highest

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, and what is wrong with them."""
        bias = f"the highest of {self.candidates} noisy scores, hence biased upwards"
        return {
            "mean": self.mean,
            "timesteps": self.timesteps,
            "candidates": self.candidates,
            "bias": bias if self.candidates > 1 else "the only score, hence not biased",
        }


@dataclass(frozen=True)
class BestModel:
    """The best checkpoint by its selection score, and its score on episodes selection never saw."""

    selection: Selection
    fresh: Sample

    def to_json(self) -> dict[str, Any]:
        """Return both scores."""
        return {"selection": self.selection.to_json(), "fresh": self.fresh.to_json()}


@dataclass(frozen=True)
class Score:
    """One policy, two ways to act: with sampled actions, as it was trained, and with the mode.

    Beside it, where they were measured: a policy that acts at random, and the best checkpoint.
    """

    sampled: Sample
    deterministic: Sample
    seed: int
    random: Sample | None = None
    best_model: BestModel | None = None

    def with_threshold(self, threshold: float) -> Score:
        """The same score with another return below which an episode counts as a failure."""
        random, best = self.random, self.best_model
        if best is not None:
            best = replace(best, fresh=replace(best.fresh, threshold=threshold))
        return replace(
            self,
            sampled=replace(self.sampled, threshold=threshold),
            deterministic=replace(self.deterministic, threshold=threshold),
            random=None if random is None else replace(random, threshold=threshold),
            best_model=best,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object of evaluation.json and ``upslope eval --json``."""
        beside: dict[str, Sample | BestModel | None] = {
            "random": self.random,
            "best_model": self.best_model,
        }
        return {
            "about": ABOUT,
            "sampled": self.sampled.to_json(),
            "deterministic": self.deterministic.to_json(),
            "seed": self.seed,
            **{name: found.to_json() for name, found in beside.items() if found is not None},
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

    def act() -> Tree:
        actor(envs.obs, outputs, envs.episode_start)
        if deterministic:
            actions = policy.actions.mode(outputs, envs.mask)
        else:
            actions = policy.actions.sample(outputs, noise.row(), std, envs.mask)
        return policy.actions.to_env(actions)

    return _played(envs, act, threshold, progress)


def evaluate_random(
    agent: Agent,
    n_episodes: int = RANDOM_EPISODES,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sample:
    """Score a policy that acts at random, on fresh episodes of an agent's environments.

    Each allowed choice is as probable as any other; a number is uniform between its bounds, or
    standard normal where it has none (Gymnasium's ``Space.sample``).

    Args:
        agent: nothing of it changes; where its environment was given ready made, that one is used
            and training goes on with new episodes.
        n_episodes: at least 1.
        seed: as for :meth:`upslope.agent.Agent.evaluate`; the episodes are others than there.
        progress: told the number of finished episodes after each that ends.

    Raises:
        EnvironmentFaultError: also if a random episode does not end.
    """
    source = agent.source
    assert source is not None
    is_given = source.instance is not None
    envs = make_environments(
        source,
        n_envs=None if is_given else min(RANDOM_ENVS, n_episodes),
        seed=SeedTree(agent.config.seed if seed is None else seed).integer("random policy"),
        vec="auto" if is_given else "sync",
        **environment_settings(agent.config),
    )
    try:
        return _random_sample(envs, n_episodes, source.reward_threshold, progress)
    finally:
        if is_given:
            agent.training.restart_environments()
        else:
            envs.close()


def _random_sample(
    envs: Environments,
    n_episodes: int,
    threshold: float | None,
    progress: Callable[[int], None] | None,
) -> Sample:
    envs.begin_batch(n_episodes)
    space, streams = envs.action_space, {}

    def act() -> Tree:
        masks: Any = [None] * envs.n_envs if envs.mask is None else envs.mask
        each = []
        for mask, number in zip(masks, envs.number.tolist(), strict=True):
            if number not in streams:  # one an episode, so that its slot does not matter
                streams[number] = envs.seeds.generator("random_actions", max(number, 0))
            each.append(sample_allowed(space, mask, streams[number]))
        room: Any = create_empty_array(space, n=envs.n_envs, fn=np.zeros)
        return gym.vector.utils.concatenate(space, each, room)

    return _played(envs, act, threshold, progress)


def _played(
    envs: Environments,
    act: Callable[[], Tree],
    threshold: float | None,
    progress: Callable[[int], None] | None,
) -> Sample:
    """Play the numbered batch that has begun to its end, with what ``act`` says for every slot."""
    episodes: list[Episode] = []
    while envs.batch_is_running():
        _, finished = envs.step(act())
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

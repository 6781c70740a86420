"""The loop: collect -> evaluate -> update -> record, until the steps are spent or a callback stops.

One iteration is read in four files, top to bottom: this one, ``rollout.py``, the algorithm's page,
and ``theory/returns.py`` with ``theory/objectives.py``.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from upslope.algorithms import Learner
from upslope.config import Config
from upslope.envs.episodes import Environments, Episode
from upslope.errors import NonFiniteError
from upslope.gradient_quality import GradientQuality, interval
from upslope.interrupts import Interrupted
from upslope.notices import Notices
from upslope.optim.engines import planned_engine
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.normalizer import is_blank
from upslope.rollout import EvaluatedRollout, Rollout, collect, evaluate_rollout
from upslope.trees import flatten_time, take

WINDOW = 100  # finished episodes that ep_rew_mean averages
ASSUMED_EPISODE = 1000  # steps, where an environment states no limit
THREADED_WORK = 8_000_000  # rows x weights of a gradient step, from which more threads pay
ROWS_PER_RUN = 200  # of progress.csv, where log_interval is not given
COUNTERS = (
    "iteration", "timesteps", "episodes", "checkpoint_every", "log_every", "snr_every",
)  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What a callback is told after each iteration."""

    iteration: int
    timesteps: int
    total_timesteps: int
    metrics: dict[str, float]  # tag -> number, as in progress.csv
    episodes: tuple[Episode, ...]  # those that finished in this iteration
    agent: Any  # the agent that learns: agent.policy, agent.save, agent.evaluate


@dataclass
class Training:
    """A run in progress: its parts, its counters, and the loop that drives them.

    ``checkpoint_every`` is fixed by the first ``run`` and kept when the run is extended; at each
    multiple of it the environments are restarted from their seeds, with or without files. So are
    ``log_every``, rows of progress.csv, and ``snr_every``, iterations whose row holds
    ``train/gradient_snr``.
    """

    config: Config
    policy: ActorCritic
    learner: Learner
    envs: Environments
    episode_limit: int | None = None
    iteration: int = 0
    timesteps: int = 0
    episodes: int = 0
    checkpoint_every: int = 0
    log_every: int = 0
    snr_every: int = 0
    recent: deque[Episode] = field(default_factory=lambda: deque(maxlen=WINDOW))
    seconds: dict[str, float] = field(default_factory=dict)
    notices: Notices = field(default_factory=Notices)
    is_whole: bool = True  # False while an update moves the policy, and after one that failed
    elapsed: float = 0.0  # seconds that it has been trained, in the processes before this one too
    quality: GradientQuality = field(init=False)
    _recent_means: dict[str, float] = field(init=False, default_factory=dict)
    _phases: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.quality = GradientQuality(by_row=self.config.rollout_steps is not None)

    def run(
        self, total_timesteps: int, on_iteration: Callable[[Event], bool], agent: Any = None
    ) -> None:
        """Iterate until ``timesteps`` reach ``total_timesteps`` or ``on_iteration`` returns False.

        Raises:
            EnvironmentFaultError, NonFiniteError: the policy is then that of the last whole
                iteration.
        """
        self.plan(total_timesteps)
        with torch_threads(threads_of(self.config, self.policy)):
            self._iterate(total_timesteps, on_iteration, agent)

    def _iterate(
        self, total_timesteps: int, on_iteration: Callable[[Event], bool], agent: Any
    ) -> None:
        started, before, earlier = time.perf_counter(), self.timesteps, self.elapsed
        if self.iteration == 0:
            self._warm_up()
        goes_on, first = True, self.iteration  # filling a normaliser is no training
        while goes_on and (self.timesteps < total_timesteps or self.iteration == first):
            if self.iteration and self.is_scheduled:
                self.restart_environments()
            progress_remaining = max(0.0, 1 - self.timesteps / total_timesteps)
            with self.phase("acting"):
                rollout = self._collect()
            with self.phase("evaluate"):
                evaluated = evaluate_rollout(self.policy, rollout)
            if self._measures_gradient(self.iteration + 1):
                self._measure_gradient(rollout, evaluated)
            self.is_whole = False
            with self.phase("update"), undone_on_failure(self.policy):
                rng = self.envs.seeds.generator("minibatches", self.iteration)
                update = self.learner.update(rollout, evaluated, progress_remaining, rng)
                update |= self._move_normalizers(rollout)
            self._count(rollout)
            self.is_whole = True
            with self.phase("logging"):
                spent = time.perf_counter() - started
                self.elapsed = earlier + spent
                fps = (self.timesteps - before) / spent
                clocks = {"time_elapsed": self.elapsed, "fps": fps}
                metrics = self._metrics(rollout, update, clocks)
                event = Event(
                    self.iteration,
                    self.timesteps,
                    total_timesteps,
                    metrics,
                    rollout.episodes,
                    agent,
                )
                goes_on = on_iteration(event)

    def _collect(self) -> Rollout:
        """One iteration's data; what a signal cuts off is dropped, and its episodes with it."""
        try:
            return self.learner.collect(self.envs)
        except Interrupted:
            self.restart_environments()
            raise

    def count_anew(self) -> None:
        """Count steps and finished episodes from 0; iterations go on, and with them the streams."""
        self.timesteps = self.episodes = 0
        self.elapsed = 0.0
        self.recent.clear()
        self._recent_means = {}

    def state(self) -> dict[str, Any]:
        """All of a run beside weights and moments, as JSON types, as of the end of an iteration."""
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            "recent": [list(episode) for episode in self.recent],
            "recent_means": self._recent_means,
            "seconds": {**self.phase_seconds(), "elapsed": self.elapsed},
            "environments": self.envs.counters(),
            "notices": self.notices.state(),
            "quality": self.quality.state(),
            "optimizers": {name: x.state() for name, x in self.learner.optimizers.items()},
        }

    def moments(self) -> dict[str, torch.Tensor]:
        """The optimisers' moments, ``[d]`` each, by name."""
        return {
            f"{name}.{i}": moment
            for name, optimizer in self.learner.optimizers.items()
            for i, moment in enumerate(optimizer.moments)
        }

    def load_state(self, state: Mapping[str, Any], moments: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` and :meth:`moments` returned; episodes begin anew."""
        for name in COUNTERS:
            setattr(self, name, int(state[name]))
        self.recent.extend(Episode(*episode) for episode in state["recent"])
        self._recent_means = dict(state["recent_means"])
        self.seconds = dict(state["seconds"])
        self.elapsed = float(self.seconds.pop("elapsed"))
        self.envs.seconds = self.seconds.pop("environment")
        self.seconds["acting"] += self.envs.seconds
        self.envs.set_counters(state["environments"])
        self.notices.load_state(state["notices"])
        self.quality.load_state(state["quality"])
        for name, optimizer in self.learner.optimizers.items():
            own = [moments[f"{name}.{i}"] for i in range(len(optimizer.moments))]
            optimizer.load_state(state["optimizers"][name], own)
        if not self.is_scheduled:  # a scheduled one is restarted by the loop, as in every run
            self.restart_environments()

    @property
    def is_scheduled(self) -> bool:
        """Whether the next iteration begins with the restart that the plan fixed beforehand."""
        return self.iteration % self.checkpoint_every == 0

    def restart_environments(self) -> None:
        """Cut the running episodes and reseed: what a checkpoint does to every run."""
        self.envs.restart()
        if self.policy.reward_normalizer is not None:
            self.policy.reward_normalizer.restart()

    def phase(self, name: str) -> _Phase:
        """Add the seconds a block takes to ``seconds[name]``, and not to the block around it."""
        return _Phase(self.seconds, self._phases, name)

    def phase_seconds(self) -> dict[str, float]:
        """Seconds per phase so far; the environment's are told apart from the acting around it."""
        seconds = dict(self.seconds)
        seconds["environment"] = self.envs.seconds
        seconds["acting"] = seconds.get("acting", 0.0) - self.envs.seconds
        return seconds

    def plan(self, total_timesteps: int) -> None:
        """Fix how often what happens from the first plan alone, never by a clock."""
        if self.checkpoint_every:
            return
        limit = self.config.max_episode_steps or self.episode_limit or ASSUMED_EPISODE
        planned = max(1, -(-total_timesteps // self.config.steps_per_iteration(limit)))
        # Cuts closer than two of the longest episodes would hide those from the statistics.
        closest = 2 * self.config.iterations_per_episode(limit)
        self.checkpoint_every = max(-(-planned // self.config.checkpoints), closest)
        self.log_every = self.config.log_interval or max(1, planned // ROWS_PER_RUN)
        self.snr_every = -(-interval(self.config) // self.log_every) * self.log_every
        engine = planned_engine(self.config, planned)
        for optimizer in self.learner.optimizers.values():
            optimizer.engine = engine

    @property
    def gradient_step_engine(self) -> str:
        """The engines that take the gradient steps, once the first iteration has tried them."""
        return ", ".join(sorted({step.engine for step in self.learner.optimizers.values()}))

    def _warm_up(self) -> None:
        """Fill the normalisers before the first iteration; steps count, episodes are cut."""
        policy, steps = self.policy, self.config.warmup_steps
        normalizers = [
            x for x in (policy.obs_normalizer, policy.reward_normalizer) if x is not None
        ]
        if steps and any(is_blank(normalizer) for normalizer in normalizers):
            with self.phase("acting"):
                rollout = collect(self.envs, policy, n_steps=-(-steps // self.envs.n_envs))
            self.timesteps += rollout.n_valid
            self._move_normalizers(rollout)
            self.restart_environments()

    def _measures_gradient(self, iteration: int) -> bool:
        return iteration % self.snr_every == 0

    def _measure_gradient(self, rollout: Rollout, evaluated: EvaluatedRollout) -> None:
        """Take the gradient that the coming update follows into the running means."""
        with self.phase("gradient_quality"):
            weights = self.learner.weigh(rollout, evaluated).weights
            self.quality.measure(self.policy, rollout, evaluated, weights)

    def _move_normalizers(self, rollout: Rollout) -> dict[str, float]:
        """Take the rollout into the running statistics; measure how far that moves the policy."""
        policy, metrics = self.policy, {}
        if policy.reward_normalizer is not None:
            policy.reward_normalizer.update(rollout.rewards, rollout.boundary, rollout.valid)
        if policy.obs_normalizer is not None:
            obs = take(flatten_time(rollout.obs), rollout.valid.reshape(-1))
            sample = take(obs, slice(512))
            with torch.no_grad():
                before: Any = policy.distribution(sample)
                policy.obs_normalizer.update(obs)
                moved = before.kl(policy.distribution(sample))
            metrics["normalizer_kl"] = float(moved.mean())
        return metrics

    def _count(self, rollout: Rollout) -> None:
        self.iteration += 1
        self.timesteps += rollout.n_valid
        self.episodes += len(rollout.episodes)
        self.recent.extend(rollout.episodes)
        self.notices.look(rollout, self.recent, self.policy.reward_normalizer is not None)

    def _metrics(
        self, rollout: Rollout, update: dict[str, float], clocks: dict[str, float]
    ) -> dict[str, float]:
        """Every number of the iteration under its tag; what was not measured is absent, not NaN."""
        metrics = {
            "time/total_timesteps": float(self.timesteps),
            "time/iterations": float(self.iteration),
            **{f"time/{name}": value for name, value in clocks.items()},
            "rollout/episodes": float(self.episodes),
            "rollout/valid_share": rollout.n_valid / rollout.valid.numel(),
            "rollout/clipped_share": rollout.clipped_share,
        }
        if self.config.allowed_faults:
            metrics["rollout/env_faults"] = float(self.envs.faults)
        if self.recent:
            if rollout.episodes or not self._recent_means:
                self._recent_means = recent_means(self.recent, self.envs.log_info)
            metrics |= self._recent_means
        if self._measures_gradient(self.iteration):
            metrics["train/gradient_snr"] = self.quality.snr(metrics.get("rollout/ep_len_mean"))
        metrics |= {f"train/{name}": value for name, value in update.items()}
        return {tag: value for tag, value in metrics.items() if math.isfinite(value)}


def recent_means(recent: Collection[Episode], log_info: Sequence[str]) -> dict[str, float]:
    """Means over finished episodes, at least one, under their tags."""
    returns = np.array([episode.ret for episode in recent])
    means = {
        "rollout/ep_rew_mean": float(returns.mean()),
        "rollout/ep_rew_std": float(returns.std()),
        "rollout/ep_len_mean": float(np.mean([episode.length for episode in recent])),
    }
    for key in ("is_success", *log_info):
        values = [episode.info[key] for episode in recent if key in episode.info]
        if values:
            name = "success_rate" if key == "is_success" else key
            means[f"rollout/{name}"] = float(np.mean(values))
    return means


def threads_of(config: Config, policy: ActorCritic) -> int:
    """How many torch threads a run's gradient steps take: as asked, else what they are worth."""
    return config.threads or worthwhile_threads(config.rows_per_step, policy)


def worthwhile_threads(rows: int, policy: ActorCritic) -> int:
    """One where a gradient of so many rows is too little work to share, else torch's number."""
    weights = sum(parameter.numel() for parameter in policy.parameters())
    return 1 if rows * weights < THREADED_WORK else torch.get_num_threads()


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def undone_on_failure(policy: ActorCritic) -> Iterator[None]:
    """Put the weights back if the block finds a number that is not finite.

    An update may move the actor before its critic fails.
    """
    parameters = list(policy.held.parameters.values())
    before = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    try:
        yield
    except NonFiniteError:
        at = 0
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(before[at : at + parameter.numel()].view_as(parameter))
                at += parameter.numel()
        raise


class _Phase:
    def __init__(self, seconds: dict[str, float], running: list[str], name: str) -> None:
        self._seconds, self._running, self._name = seconds, running, name

    def __enter__(self) -> None:
        self._running.append(self._name)
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._start
        self._running.pop()
        self._add(self._name, spent)
        if self._running:
            self._add(self._running[-1], -spent)

    def _add(self, name: str, spent: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + spent

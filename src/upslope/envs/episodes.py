"""The episode-end contract: any engine's steps become transitions with their true successors.

Gymnasium's three autoreset modes differ in what a step returns where an episode ended. Here, and
only here, they become one thing: each row says what was received, whether it is a transition at all
(``valid``; an engine's reset row is none), and, for the rows on which an episode ended, the final
observation. Episode statistics are kept here too, never by a wrapper.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from upslope.envs.engines import Engine, allowed_now, shows_mask
from upslope.envs.guard import EPISODE
from upslope.errors import EnvironmentFaultError
from upslope.interrupts import Interrupted
from upslope.seeding import SeedTree
from upslope.spaces import choice_sizes, observation_bytes
from upslope.trees import Tree, map_tree, stack

log = logging.getLogger("upslope")
ENDLESS = 10_000
COUNTERS = ("episodes_started", "rollouts", "restarts", "faults")  # all that a run continues from
_NONE = np.zeros(0, dtype=np.int64)


class Episode(NamedTuple):
    """One finished episode: its number in the run, undiscounted return, length, info at its end."""

    number: int
    ret: float
    length: int
    terminated: bool
    info: dict[str, float]


class Row(NamedTuple):
    """One step of the vector: arrays ``[B]``, and the final observations where episodes ended."""

    rewards: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    ended: NDArray[np.int64]
    final_obs: Tree | None
    lost: tuple[int, ...] = ()  # environments with a fault: their episode is dropped whole


@dataclass
class Environments:
    """A vector of environments in the middle of their episodes: the source of every rollout.

    ``obs [B, ...]`` is what the next action answers, under ``mask [B, n_mask]`` where choices are
    masked; ``episode_step [B]`` and ``number [B]`` say where each environment stands, and ``state``
    what the policy that acts here remembers. Everything random hangs on ``seeds`` and three
    counters, so a run continues from those alone.

    Args:
        engine: what steps the environments.
        seeds: the run's seed tree.
        log_info: info scalars to keep with each finished episode, beside ``is_success``.
        allowed_faults: how often an environment may be made anew after a fault, in the whole run;
            the episode it was in is dropped.
        strict_spaces: an observation outside its space is a fault, not a warning.
        max_buffer: GiB that a rollout may take; by default half of the machine's memory.
    """

    engine: Engine
    seeds: SeedTree
    log_info: tuple[str, ...] = ()
    allowed_faults: int = 0
    strict_spaces: bool = False
    max_buffer: float | None = None
    episodes_started: int = 0
    rollouts: int = 0
    restarts: int = 0
    faults: int = 0
    obs: Tree = field(init=False, default=None)
    mask: NDArray[np.bool_] | None = field(init=False, default=None)
    state: Tree = field(init=False, default=())

    def __post_init__(self) -> None:
        self.n_envs = self.engine.n_envs
        self.observation_space = self.engine.observation_space
        self.action_space = self.engine.action_space
        self.episode_step = np.zeros(self.n_envs, dtype=np.int64)
        self.number = np.full(self.n_envs, -1)
        self._returns = np.zeros(self.n_envs)
        self._every = np.ones(self.n_envs, dtype=bool)
        self._valid = self._every  # where the next step is a transition; else an engine resets
        self._active: NDArray[np.bool_] | None = None
        self._last = 0
        self._restart_is_due = True
        self._choices = np.cumsum([0, *choice_sizes(self.action_space)])[:-1]
        self._shows_mask = shows_mask(self.engine)
        self.observation_bytes = observation_bytes(self.observation_space)
        self._said_outside = False
        self.seconds = 0.0  # spent in the environments
        self.stop: Sequence[int] = ()  # signals that asked to stop, as they come

    @property
    def episode_start(self) -> NDArray[np.bool_]:
        """``[B]``: whether what is seen now is the first observation of an episode."""
        start: NDArray[np.bool_] = self.episode_step == 0
        return start

    def restart(self) -> None:
        """Have the next rollout cut the running episodes, reseed the engine and start afresh.

        Training calls it at every checkpoint, so that nothing of an environment has to be saved;
        episodes cut by it enter no statistic.
        """
        self.restarts += 1
        self._restart_is_due = True

    def counters(self) -> dict[str, int]:
        """The counters that every stream hangs on, as of the end of a rollout."""
        return {name: getattr(self, name) for name in COUNTERS}

    def set_counters(self, counters: Mapping[str, int]) -> None:
        """Go on from what :meth:`counters` returned, with new episodes."""
        for name in COUNTERS:
            setattr(self, name, int(counters[name]))

    def begin_batch(self, n_episodes: int) -> None:
        """Start a batch of ``n_episodes`` numbered episodes: each gets a slot and is finished."""
        self._begin_everywhere(quota=n_episodes)

    def batch_is_running(self) -> bool:
        """Whether an episode of the numbered batch is still unfinished."""
        return self._active is not None and bool(self._active.any())

    def begin_rollout(self) -> int:
        """Start a T x B rollout, which continues the running episodes; return its number."""
        if self._restart_is_due or self._active is not None:
            self._begin_everywhere(quota=None)
        self.rollouts += 1
        return self.rollouts - 1

    def step(self, actions: Tree) -> tuple[Row, list[Episode]]:
        """Step everything with actions in the environments' own units.

        Raises:
            EnvironmentFaultError: if an environment raises, or an episode of a numbered batch does
                not end within ``ENDLESS`` steps.
            Interrupted: before the step, if a signal asked to stop.
        """
        if self.stop:
            raise Interrupted(self.stop[0])
        engine, active = self.engine, self._active
        started = time.perf_counter()
        obs, rewards, terminated, truncated, infos = engine.step(actions, active)
        lost = self._take_faults() if engine.faults else ()
        valid = self._valid if active is None else active & self._valid
        if lost:
            valid = valid.copy()
            valid[list(lost)] = False
        if valid is not self._every:
            rewards = np.where(valid, rewards, 0.0)
        self._returns += rewards
        self.episode_step += valid
        done = terminated | truncated
        self.obs, final_obs, ended, finished = obs, None, _NONE, []
        if lost or np.count_nonzero(done):
            ended = np.flatnonzero(done & valid)
            if len(ended):
                final_obs = self._final_obs(obs, infos, ended)
            finished = [self._finish(int(i), bool(terminated[i]), infos) for i in ended]
            self._begin_next(done, ended, lost)
        elif self._valid is not self._every:
            self._valid = self._every
        row = Row(rewards, terminated, truncated, valid, ended, final_obs, lost)
        if self._shows_mask or engine.mask is not None:
            self._find_mask()
        self.seconds += time.perf_counter() - started
        if active is not None and self.episode_step.max() >= ENDLESS:
            raise EnvironmentFaultError(
                f"environment {int(self.episode_step.argmax())} has not ended its episode after "
                f"{ENDLESS} steps, and this algorithm needs whole episodes: set --max-episode-steps"
            )
        return row, finished

    def report_outside(self, sentence: str) -> None:
        """Say once, or as a fault under ``strict_spaces``, that an observation left its space."""
        if self.strict_spaces:
            raise EnvironmentFaultError(f"{sentence}; correct the space, or the observation")
        if not self._said_outside:
            log.warning("%s; said once, and --strict-spaces stops there", sentence)
        self._said_outside = True

    def close(self) -> None:
        """Release the environments."""
        self.engine.close()

    def _begin_everywhere(self, quota: int | None) -> None:
        """Start an episode in every slot; with a quota only that many, and the rest stay idle."""
        self._returns[:], self.episode_step[:] = 0.0, 0
        self._valid = self._every
        self._last = self.episodes_started + (self.n_envs if quota is None else quota)
        started = min(self.n_envs, self._last - self.episodes_started)
        self.number = np.full(self.n_envs, -1)
        self.number[:started] = self.episodes_started + np.arange(started)
        seeds: list[int] | None = None
        if self.engine.seeds_episodes:
            seeds = [self._episode_seed(number) for number in self.number.tolist()]
        elif self._restart_is_due:
            seeds = [self.seeds.integer("restart", self.restarts, i) for i in range(self.n_envs)]
        self.episodes_started += started
        self._active = None if quota is None else np.arange(self.n_envs) < started
        self._restart_is_due = False
        started_at = time.perf_counter()
        self.obs = self._mended(self.engine.reset(seeds))
        self._find_mask()
        self.seconds += time.perf_counter() - started_at

    def _episode_seed(self, number: int) -> int:
        """Seed of a numbered episode; -1 stands for one that nobody asked for (an idle slot's)."""
        return self.seeds.integer("episode", number) if number >= 0 else 0

    def _final_obs(self, obs: Tree, infos: Any, ended: NDArray[np.int64]) -> Tree:
        """The true successors of the rows that ended, ``[len(ended), ...]``, copied."""
        if self.engine.autoreset is AutoresetMode.SAME_STEP:
            return stack([self.engine.final_obs(infos, int(i)) for i in ended])
        return map_tree(lambda x: x[ended], obs)

    def _finish(self, i: int, terminated: bool, infos: Any) -> Episode:
        """Close the books on the episode that ended in slot ``i``."""
        info = {}
        for key in ("is_success", *self.log_info):
            value = self.engine.info(infos, i, key)
            if value is not None:
                info[key] = float(value)
        episode = Episode(
            int(self.number[i]),
            float(self._returns[i]),
            int(self.episode_step[i]),
            terminated,
            info,
        )
        self._returns[i], self.episode_step[i] = 0.0, 0
        return episode

    def _begin_next(
        self, done: NDArray[np.bool_], ended: NDArray[np.int64], lost: tuple[int, ...]
    ) -> None:
        """Number the episodes that follow and, where the engine does not do it, start them.

        A lost one is followed by one more, so that a numbered batch has as many as it wanted.
        """
        self._last += len(lost)
        for i in lost:
            self._returns[i], self.episode_step[i] = 0.0, 0
        if self.engine.autoreset is AutoresetMode.NEXT_STEP:
            self._valid = ~done
        for i in (*ended, *lost):
            if self._active is None or self.episodes_started < self._last:
                self.number[i] = self.episodes_started
                self.episodes_started += 1
            else:
                self.number[i], self._active[i] = -1, False
        if self.engine.autoreset is AutoresetMode.DISABLED and done.any():
            over = np.flatnonzero(done)
            seeds = [self._episode_seed(int(self.number[i])) for i in over]
            self.obs = self._mended(self.engine.reset_some(over, seeds))

    def _mended(self, obs: Tree) -> Tree:
        """``obs`` of a reset, after further resets where an environment had a fault in it."""
        while self.engine.faults:
            lost = self._take_faults()
            seeds = [self._episode_seed(int(self.number[i])) for i in lost]
            obs = self.engine.reset_some(np.array(lost), seeds)
        return obs

    def _take_faults(self) -> tuple[int, ...]:
        """Count the faults of the last call and return where they were.

        Raises:
            EnvironmentFaultError: beyond the allowed number; the traceback is its cause.
        """
        for fault in self.engine.faults:
            i, number = fault.slot, int(self.number[fault.slot])
            episode = f"episode {number} (seed {self._episode_seed(number)})"
            sentence = f"environment {i} {fault.sentence.replace(EPISODE, episode)}"
            self.faults += 1
            if self.faults > self.allowed_faults:
                raise EnvironmentFaultError(sentence) from RuntimeError(fault.trace)
            log.warning("%s; made anew (%d of %d)", sentence, self.faults, self.allowed_faults)
        return tuple(fault.slot for fault in self.engine.faults)

    def _find_mask(self) -> None:
        """Read which choices are allowed now, and refuse a choice of which nothing is."""
        mask = allowed_now(self.engine, self.obs)
        if mask is None:
            return
        mask = np.array(mask)
        some = np.logical_or.reduceat(mask, self._choices, axis=1).all(1)
        if not some.all():  # which is right where no action is used
            unused = ~self._valid if self._active is None else ~(self._valid & self._active)
            mask[unused & ~some] = True
            some |= unused
        if not some.all():
            i = int(np.argmin(some))
            raise EnvironmentFaultError(
                f"environment {i} allows no action at step {int(self.episode_step[i])} of episode "
                f"{int(self.number[i])}: its action mask is all false; end the episode there, or "
                "allow one"
            )
        self.mask = mask

"""A frozen record of transitions, the loop that collects it, and the pass that evaluates it."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.envs.episodes import Environments, Episode
from upslope.errors import ConfigError, NonFiniteError, StaleRolloutError
from upslope.noise import EpisodeNoise, RolloutNoise
from upslope.policies.acting import make_actor
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Distribution
from upslope.policies.memory import Past
from upslope.spaces import observation_bytes, outside
from upslope.theory.diagnostics import LEAST_ROUNDING, ratio_tolerance
from upslope.trees import Tree, concatenate, flatten_time, leaves, map_tree, take, to_torch

USUAL_INPUT = 10.0  # what normalised observations are clipped to


@dataclass(frozen=True)
class Rollout:
    """Transitions of one policy, time-major, as collected: nothing in it is ever edited.

    Shapes are ``[T, B, ...]`` (steps, environments). ``actions[t]`` was sampled in ``obs[t]``;
    ``rewards[t]``, ``terminated[t]`` and ``truncated[t]`` followed it. Rows where ``valid`` is 0
    are no transitions (an engine's reset rows, idle slots). The true successor of row t is
    ``obs[t + 1]``, except where an episode ended (its ``final_obs``) and at the end (``last_obs``).
    """

    obs: Tree  # [T, B, ...] in the environment's own dtype
    actions: Tree  # [T, B, ...] as sampled, in the policy's units
    rewards: Tensor  # [T, B] float64
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    valid: Tensor  # [T, B] bool
    episode_step: Tensor  # [T, B] int64, 0 on the first row of an episode
    episode: Tensor  # [T, B] int64, number of the episode in the run, -1 where there is none
    last_obs: Tree  # [B, ...] what follows the last row
    final_rows: Tensor  # [K, 2] int64, (t, b) of the rows on which an episode ended
    final_obs: Tree  # [K, ...] their true successors
    log_prob: Tensor  # [T, B] of the sampled actions, as the collector computed it
    episodes: tuple[Episode, ...]  # those that ended inside
    policy_version: int  # of the policy that collected
    clipped_share: float  # share of action components that the bounds clipped
    mask: Tensor | None = None  # [T, B, n_mask] bool, which choices were allowed
    state: Tree = ()  # [B, ...] state of the policy's memory before the first row

    @property
    def done(self) -> Tensor:
        """``[T, B]``: the last row of an episode for any reason."""
        return self.terminated | self.truncated

    @property
    def boundary(self) -> Tensor:
        """``[T, B]``: done, or no transition at all; stops every sum over time."""
        return self.done | ~self.valid

    @property
    def n_valid(self) -> int:
        """Number of transitions."""
        return int(self.valid.sum())

    @property
    def past(self) -> Past | None:
        """Where episodes begin and what was remembered before the rollout; None without memory."""
        begins = self.episode_step == 0
        return Past(begins.reshape(-1), self.state) if leaves(self.state) else None


@dataclass(frozen=True)
class EvaluatedRollout:
    """What the collecting policy says about its own rollout, without gradient: all ``[T, B]``."""

    inputs: Tree  # [T, B, ...] prepared observations
    log_prob: Tensor
    values: Tensor
    next_values: Tensor  # V of the true successor; not yet zeroed where the episode terminated


def collect(
    envs: Environments,
    policy: ActorCritic,
    *,
    n_steps: int | None = None,
    n_episodes: int | None = None,
) -> Rollout:
    """Run the policy and record what happens; it never sees a value function.

    Args:
        envs: from :func:`upslope.make_vec_env`; running episodes are continued.
        policy: acts with noise from the run's streams.
        n_steps: rows to collect in every environment (a T x B rollout), or
        n_episodes: whole episodes to collect, numbered, each run to its end.

    Raises:
        ConfigError: unless exactly one of the two is given.
        EnvironmentFaultError: if an environment raises, or never ends an episode.
    """
    if (n_steps is None) == (n_episodes is None):
        raise ConfigError("collect takes either n_steps or n_episodes: give exactly one of them")
    if (n_steps or n_episodes or 0) < 1:
        raise ConfigError(f"collect was asked for {n_steps or n_episodes or 0}: ask for at least 1")
    noise: RolloutNoise | EpisodeNoise
    if n_episodes is None:
        noise = RolloutNoise(envs, policy, envs.begin_rollout(), n_steps or 0)
        recorder = _Recorder(envs, policy, capacity=n_steps or 0)
    else:
        envs.begin_batch(n_episodes)
        noise = EpisodeNoise(envs, policy)
        recorder = _Recorder(envs, policy, capacity=512)
    actor = make_actor(policy, envs.n_envs, envs.state)
    kind, state, std = policy.actions, actor.state, policy.actions.std()
    t = 0
    while t < n_steps if n_steps is not None else envs.batch_is_running():
        outputs = recorder.begin_row(t)
        actor(envs.obs, outputs, envs.episode_start if policy.has_memory else None)
        actions = kind.sample(outputs, noise.row(), std, envs.mask)
        row, finished = envs.step(kind.to_env(actions))
        recorder.end_row(t, actions, row, finished)
        t += 1
    envs.state = actor.state
    return recorder.freeze(t, state)


def evaluate_rollout(policy: ActorCritic, rollout: Rollout) -> EvaluatedRollout:
    """One pass without gradient: values, values of the true successors, and old log-probabilities.

    Raises:
        StaleRolloutError: if another version of the policy collected the rollout, or if its
            log-probabilities differ from the collector's by more than rounding (Eq. 11.7).
    """
    check_fresh(policy, rollout)
    steps, n_envs = rollout.rewards.shape
    past = rollout.past
    with torch.no_grad():
        inputs = policy.prepare(flatten_time(rollout.obs))
        outputs, _ = policy.outputs(inputs, past)
        mask = None if rollout.mask is None else rollout.mask.flatten(0, 1)
        distribution = policy.actions.distribution(outputs, mask)
        log_prob = distribution.log_prob(flatten_time(rollout.actions)).view(steps, n_envs)
        # What no later row of the rollout shows: what followed its last rows, and final ones.
        last = (steps - 1) * n_envs + torch.arange(n_envs, device=policy.device)
        final = rollout.final_rows[:, 0] * n_envs + rollout.final_rows[:, 1]
        successors = policy.prepare(concatenate([rollout.last_obs, rollout.final_obs]))
        values, beyond = policy.values_along(inputs, past, torch.cat([last, final]), successors)
    _check_ratio(rollout, log_prob, distribution, inputs)
    grid = values.view(steps, n_envs)
    next_values = torch.cat([grid[1:], beyond[None, :n_envs]])
    next_values[rollout.final_rows[:, 0], rollout.final_rows[:, 1]] = beyond[n_envs:]
    inputs = map_tree(lambda x: x.view(steps, n_envs, *x.shape[1:]), inputs)
    return EvaluatedRollout(inputs, log_prob, grid, next_values)


def check_buffer(envs: Environments, n_steps: int) -> None:
    """Raise unless the observations of ``n_steps`` rows fit the memory that a rollout may take.

    Raises:
        ConfigError: with the arithmetic.
    """
    each = observation_bytes(envs.observation_space)
    wanted = n_steps * envs.n_envs * each
    allowed = _memory() / 2 if envs.max_buffer is None else envs.max_buffer * 2**30
    if wanted > allowed:
        raise ConfigError(
            f"a rollout of {n_steps} steps x {envs.n_envs} environments x {each:,} bytes an "
            f"observation takes {wanted / 2**30:.1f} GiB, and {allowed / 2**30:.1f} GiB are "
            "allowed: lower n_steps or n_envs, make observations smaller, or set --max-buffer"
        )


def check_fresh(policy: ActorCritic, rollout: Rollout) -> None:
    """Raise StaleRolloutError unless this very version of the policy collected the rollout."""
    if rollout.policy_version != policy.version:
        raise StaleRolloutError(
            f"this rollout was collected by version {rollout.policy_version} of the policy, which "
            f"is now at version {policy.version}: its weights or its normaliser moved in between, "
            "and a policy gradient needs data of the current policy; collect again before each "
            "update"
        )


def _check_ratio(
    rollout: Rollout, log_prob: Tensor, distribution: Distribution, inputs: Tree
) -> None:
    """Hold the update's log-probabilities to the collector's: the ratio must start at 1.

    Inputs far beyond the usual size round more in the first layer, so they widen the tolerance.
    """
    gap = ((log_prob - rollout.log_prob).abs() * rollout.valid).flatten()
    if gap.max() <= LEAST_ROUNDING * torch.finfo(log_prob.dtype).eps:
        return
    tolerance = ratio_tolerance(*distribution.rounding(flatten_time(rollout.actions)))
    tolerances = tolerance * torch.ones_like(gap)
    for leaf in leaves(inputs):
        if leaf.is_floating_point():
            largest = leaf.reshape(len(leaf), -1).abs().amax(1)
            tolerances = torch.maximum(tolerances, tolerance * largest / USUAL_INPUT)
    if not (gap <= tolerances).all():
        worst = int((gap / tolerances).argmax())
        raise StaleRolloutError(
            f"log-probabilities of the collected actions differ by {float(gap[worst]):.2e} between "
            f"collecting and updating (rounding explains {float(tolerances[worst]):.2e}) though no "
            "weight moved: look for dropout or batch statistics, a normaliser or mask that "
            "changed, or another dtype or device"
        )


class _Recorder:
    """Preallocated rows, filled in place while collecting and handed over once."""

    def __init__(self, envs: Environments, policy: ActorCritic, capacity: int) -> None:
        self._envs, self._policy, self._version = envs, policy, policy.version
        self._arrays: dict[str, Any] = {}
        self._capacity = 0
        self._finals: list[tuple[int, NDArray[np.int64], Tree]] = []
        self._episodes: list[Episode] = []
        self._grow(max(1, capacity))

    def begin_row(self, t: int) -> NDArray[Any]:
        """Store what the next action answers; return the row that the network's outputs go to."""
        if t == self._capacity:
            self._grow(2 * t)
        envs, arrays = self._envs, self._arrays
        _put(arrays["obs"], t, envs.obs)
        if envs.mask is not None:
            arrays["mask"][t] = envs.mask
        arrays["episode_step"][t] = envs.episode_step
        arrays["episode"][t] = envs.number
        return arrays["outputs"][t]  # type: ignore[no-any-return]

    def end_row(self, t: int, actions: Tree, row: Any, finished: list[Episode]) -> None:
        """Store what followed."""
        arrays = self._arrays
        _put(arrays["actions"], t, actions)
        arrays["rewards"][t] = row.rewards
        arrays["terminated"][t] = row.terminated
        arrays["truncated"][t] = row.truncated
        arrays["valid"][t] = row.valid
        if row.final_obs is not None:
            self._finals.append((t, row.ended, row.final_obs))
            self._episodes += finished
        for i in row.lost:  # drop what this rollout has of the episode
            column = arrays["episode"][: t + 1, i]
            arrays["valid"][: t + 1, i] &= column != column[t]

    def freeze(self, steps: int, state: Tree) -> Rollout:
        """Cut the arrays to length and hand them over as tensors on the policy's device.

        ``state [B, ...]`` is what the policy remembered before the first row.
        """
        policy, device = self._policy, self._policy.device
        arrays = {key: map_tree(lambda x: x[:steps], tree) for key, tree in self._arrays.items()}
        valid, happened = arrays["valid"], arrays["actions"]
        if not valid.all():
            arrays["terminated"] &= valid
            arrays["truncated"] &= valid
            arrays["episode"][~valid] = -1
            happened = take(happened, valid)
        last_obs = map_tree(np.array, self._envs.obs)
        limit = float(torch.finfo(policy.dtype).max)
        _check_finite(arrays["rewards"], "reward", limit)
        for leaf in leaves(arrays["obs"]):
            _check_finite(leaf, "observation", limit)
        rows, final_obs = self._final(last_obs)
        said = outside(self._envs.observation_space, arrays["obs"])
        if said is not None:
            self._envs.report_outside(said)
        for leaf in leaves(final_obs):
            _check_finite(leaf, "final observation", limit, rows)
        for leaf in leaves(last_obs):
            _check_finite(leaf, "observation", limit, _each_slot(steps, len(leaf)))
        outputs = to_torch(arrays.pop("outputs"), device)
        share = policy.actions.clipped_share(happened)
        tensors = {key: to_torch(tree, device) for key, tree in arrays.items()}
        with torch.no_grad():
            distribution = policy.actions.distribution(outputs, tensors.get("mask"))
            log_prob = distribution.log_prob(tensors["actions"])
        return Rollout(
            **tensors,
            last_obs=to_torch(last_obs, device),
            final_rows=to_torch(rows, device),
            final_obs=to_torch(final_obs, device),
            log_prob=log_prob,
            episodes=tuple(self._episodes),
            policy_version=self._version,
            clipped_share=share,
            state=state,
        )

    def _final(self, last_obs: Tree) -> tuple[NDArray[np.int64], Tree]:
        if not self._finals:
            return np.zeros((0, 2), dtype=np.int64), map_tree(lambda x: x[:0], last_obs)
        rows = [np.stack([np.full_like(ended, t), ended], 1) for t, ended, _ in self._finals]
        trees = [final_obs for _, _, final_obs in self._finals]
        return np.concatenate(rows), map_tree(lambda *x: np.concatenate(x), *trees)

    def _grow(self, capacity: int) -> None:
        envs, actions = self._envs, self._policy.actions
        check_buffer(envs, capacity)
        if not self._arrays and envs.obs is None:
            raise ConfigError(
                "these environments have not been started: collect begins a rollout first"
            )
        number = np.float32 if self._policy.dtype == torch.float32 else np.float64
        wanted: dict[str, Any] = {
            "obs": envs.obs,
            "outputs": np.zeros((envs.n_envs, actions.n_outputs), number),
            "actions": actions.zeros(envs.n_envs),
            "rewards": np.zeros(envs.n_envs),
            "terminated": np.zeros(envs.n_envs, bool),
            "truncated": np.zeros(envs.n_envs, bool),
            "valid": np.zeros(envs.n_envs, bool),
            "episode_step": np.zeros(envs.n_envs, np.int64),
            "episode": np.zeros(envs.n_envs, np.int64),
        }
        if envs.mask is not None:
            wanted["mask"] = envs.mask

        def enlarge(like: NDArray[Any], held: NDArray[Any] | None = None) -> NDArray[Any]:
            array = np.zeros((capacity, *like.shape), like.dtype)
            if held is not None:
                array[: len(held)] = held
            return array

        for key, like in wanted.items():
            held = self._arrays.get(key)
            self._arrays[key] = map_tree(enlarge, like, *([] if held is None else [held]))
        self._capacity = capacity


@functools.cache
def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _put(held: Tree, t: int, new: Tree) -> None:
    """Copy row ``t`` in, leaf by leaf."""
    if isinstance(held, np.ndarray):
        held[t] = new
    else:
        map_tree(lambda into, row: into.__setitem__(t, row), held, new)


def _check_finite(
    numbers: NDArray[Any], what: str, limit: float, rows: NDArray[np.int64] | None = None
) -> None:
    """Refuse what is not a number up to ``limit`` before anything is learned from it.

    ``limit`` is the largest number of the policy's dtype. ``numbers`` are ``[T, B, ...]``, or
    ``[K, ...]`` with the ``(t, b)`` of each in ``rows [K, 2]``.
    """
    if numbers.dtype.kind != "f":
        return
    largest = min(limit, float(np.finfo(numbers.dtype).max))
    sound = np.abs(numbers) <= largest  # no NaN is, and no infinity
    if sound.all():
        return
    place = np.argwhere(~sound)[0]
    t, b = place[:2] if rows is None else rows[place[0]]
    raise NonFiniteError(
        f"environment {b} gave the {what} {numbers[tuple(place)]} at step {t} of the rollout: "
        "nothing was learned from it; mend the environment"
    )


def _each_slot(step: int, n_envs: int) -> NDArray[np.int64]:
    """``(step, b)`` of every environment: ``[B, 2]``."""
    return np.stack([np.full(n_envs, step), np.arange(n_envs)], 1)

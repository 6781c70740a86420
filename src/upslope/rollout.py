"""A frozen record of transitions, the loop that collects it, and the pass that evaluates it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upslope.envs.episodes import Environments, Episode
from upslope.errors import ConfigError, StaleRolloutError
from upslope.noise import EpisodeNoise, RolloutNoise
from upslope.policies.acting import make_actor
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Distribution
from upslope.policies.memory import Past
from upslope.policies.plain import PlainInputs, plain_policy
from upslope.recorder import Recorder
from upslope.theory.diagnostics import LEAST_ROUNDING, ratio_tolerance
from upslope.trees import Tree, concatenate, flatten_time, leaves, map_tree

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

    @functools.cached_property
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
        recorder = Recorder(envs, policy, capacity=n_steps or 0)
    else:
        envs.begin_batch(n_episodes)
        noise = EpisodeNoise(envs, policy)
        recorder = Recorder(envs, policy, capacity=512)
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
    return Rollout(**recorder.freeze(t, state))


def evaluate_rollout(policy: ActorCritic, rollout: Rollout) -> EvaluatedRollout:
    """One pass without gradient: values, values of the true successors, and old log-probabilities.

    Raises:
        StaleRolloutError: if another version of the policy collected the rollout, or if its
            log-probabilities differ from the collector's by more than rounding (Eq. 11.7).
    """
    check_fresh(policy, rollout)
    with np.errstate(all="ignore"):  # as torch: what is not finite is refused by the update
        evaluated = _evaluate_plainly(policy, rollout)
    return _evaluate_by_module(policy, rollout) if evaluated is None else evaluated


def _evaluate_plainly(policy: ActorCritic, rollout: Rollout) -> EvaluatedRollout | None:
    """Evaluate a rollout by NumPy, where the networks are narrow plain stacks.

    None also where log-probabilities are not the collector's to the last bits: the modules decide.
    """
    plain = plain_policy(policy)
    if plain is None or plain.critic is None:
        return None
    if not (plain.actor.is_narrow and plain.critic.is_narrow):
        return None
    n_rows = rollout.rewards.numel()
    obs = rollout.obs.numpy().reshape(n_rows, -1)
    rows = np.concatenate([obs, rollout.last_obs.numpy(), rollout.final_obs.numpy()])
    inputs = PlainInputs(policy)(rows)
    outputs = np.empty((n_rows, policy.actions.n_outputs), inputs.dtype)
    values = np.empty((len(rows), 1), inputs.dtype)
    plain.actor(inputs[:n_rows], outputs)
    plain.critic(inputs, values)
    said = torch.from_numpy(outputs).view(*rollout.rewards.shape, -1)
    with torch.no_grad():
        log_prob = policy.actions.distribution(said, rollout.mask).log_prob(rollout.actions)
    gaps = np.abs(log_prob.numpy() - rollout.log_prob.numpy()) * rollout.valid.numpy()
    if not gaps.max() <= LEAST_ROUNDING * np.finfo(gaps.dtype).eps:
        return None
    prepared = torch.from_numpy(inputs[:n_rows])
    return _evaluated(rollout, prepared, log_prob, torch.from_numpy(values[:, 0]))


def _evaluate_by_module(policy: ActorCritic, rollout: Rollout) -> EvaluatedRollout:
    """Evaluate a rollout by the policy's modules, and hold its log-probabilities to theirs."""
    steps, n_envs = rollout.rewards.shape
    past = rollout.past
    with torch.no_grad():
        inputs = policy.prepare(flatten_time(rollout.obs))
        outputs, _ = policy.outputs(inputs, past)
        mask = None if rollout.mask is None else rollout.mask.flatten(0, 1)
        distribution = policy.actions.distribution(outputs, mask)
        log_prob = distribution.log_prob(flatten_time(rollout.actions)).view(steps, n_envs)
        last = (steps - 1) * n_envs + torch.arange(n_envs, device=policy.device)
        final = rollout.final_rows[:, 0] * n_envs + rollout.final_rows[:, 1]
        successors = policy.prepare(concatenate([rollout.last_obs, rollout.final_obs]))
        values, beyond = policy.values_along(inputs, past, torch.cat([last, final]), successors)
    _check_ratio(rollout, log_prob, distribution, inputs)
    return _evaluated(rollout, inputs, log_prob, torch.cat([values, beyond]))


def _evaluated(
    rollout: Rollout, inputs: Tree, log_prob: Tensor, values: Tensor
) -> EvaluatedRollout:
    """Put together what was found for ``inputs [N, ...]`` and ``log_prob [T, B]``.

    ``values`` are those of the N rows, then of what none of them shows: what followed the last B
    rows, and the final observations.
    """
    steps, n_envs = rollout.rewards.shape
    n_rows = steps * n_envs
    successor = torch.arange(n_envs, n_rows + n_envs, device=values.device)  # of row t: row t + 1
    if len(rollout.final_rows):
        final = rollout.final_rows[:, 0] * n_envs + rollout.final_rows[:, 1]
        successor[final] = torch.arange(n_rows + n_envs, len(values), device=values.device)
    return EvaluatedRollout(
        map_tree(lambda x: x.view(steps, n_envs, *x.shape[1:]), inputs),
        log_prob,
        values[:n_rows].view(steps, n_envs),
        values[successor].view(steps, n_envs),
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

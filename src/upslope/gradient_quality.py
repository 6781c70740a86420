"""How much of the policy gradient is signal: ``train/gradient_snr``, measured now and then.

The rollout falls into a few units that are roughly independent; each unit's gradient is taken by
itself, with the very weights of the update (:meth:`Learner.weigh`), and |G|^2 and tr S follow
(Eq. 12.1). How often is fixed from counts before a run begins, so that it takes at most 3 % of the
time. Nothing here moves a weight or reads a random number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.config import A2CConfig, Config, PPOConfig, ReinforceConfig, VPGConfig
from upslope.config.trust_region import TrustRegionConfig
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout
from upslope.theory.diagnostics import gradient_moments, gradient_snr
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

# The variance of |G|^2 from M units of a batch goes as M / (M - 1), the time as M where units are
# small: two measurements of four units say more than one of eight.
UNITS = 4
SHARE = 0.03  # of a run's time, at most
MEASUREMENTS = 10  # that the running means look back on


class Units(NamedTuple):
    """How a rollout is split: rows, and what one unit holds."""

    number: Tensor  # [T, B] int64, the unit of each row, -1 for rows of none
    size: float  # episodes of a unit, or rows where it is cut by rows


@dataclass
class GradientQuality:
    """|G|^2 and tr S of one episode's gradient (or one row's), averaged before they are divided.

    The means are plain ones over the first ten measurements and exponential ones of that length
    afterwards. A unit of e independent episodes has e^2 |G|^2 and e tr S. Where it is cut by rows
    the same is done in rows, and an episode is as many as it is long.
    """

    g2: float = 0.0
    trace: float = 0.0
    count: int = 0
    by_row: bool = False

    def measure(
        self, policy: ActorCritic, rollout: Rollout, evaluated: EvaluatedRollout, weights: Tensor
    ) -> None:
        """Take in the rollout's gradient; one that cannot be split or is not finite is left out.

        Args:
            policy: that collected the rollout.
            rollout, evaluated: before the update.
            weights: ``[T, B]``, Psi of every row.
        """
        units = split(rollout, policy.has_memory, self.by_row)
        if units is None:
            return
        losses, columns = {"gradient": pseudo_loss("weights")}, {"weights": weights}
        found = unit_gradients(policy, rollout, evaluated, losses, columns, units.number)
        g2, trace = (float(x) for x in gradient_moments(found["gradient"] / units.size))
        if not math.isfinite(g2 + trace):
            return
        self.count += 1
        newest = max(1 / self.count, 1 / MEASUREMENTS)
        self.g2 += newest * (g2 - self.g2)
        self.trace += newest * (units.size * trace - self.trace)

    def state(self) -> dict[str, Any]:
        """The running means and their count, as JSON types."""
        return {"g2": self.g2, "trace": self.trace, "count": self.count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.g2, self.trace = float(state["g2"]), float(state["trace"])
        self.count = int(state["count"])

    def snr(self, mean_length: float | None) -> float:
        """SNR of the gradient of one episode (Eq. 12.2); may come out negative.

        Args:
            mean_length: of the episodes that finished, in rows; ``None`` before the first has.

        Returns:
            Number without unit; NaN where there is none yet.
        """
        length = mean_length if self.by_row else 1.0
        if self.count == 0 or length is None:
            return math.nan
        of_one = gradient_snr(*torch.tensor([self.g2, self.trace], dtype=torch.float64))
        return length * float(of_one)


def split(rollout: Rollout, has_memory: bool, by_row: bool) -> Units | None:
    """Split a rollout into units of equal size; what is left over belongs to none.

    Whole episodes stay whole. Of T x B rows a unit is some whole environments, or, of fewer
    environments than units, a stretch of one; a policy with memory is never cut in time.

    Returns:
        The units, or ``None`` where there are fewer than two.
    """
    number = _of_rows(rollout, has_memory) if by_row else _of_episodes(rollout)
    count = int(number.max()) + 1
    held = rollout.valid & (number >= 0)
    if count < 2 or not held.any():
        return None
    inside = held.sum() if by_row else rollout.episode[held].unique().numel()  # type: ignore[no-untyped-call]
    return Units(number, float(inside) / count)


def _of_rows(rollout: Rollout, has_memory: bool) -> Tensor:
    n_steps, n_envs = rollout.valid.shape
    columns, stretches = _cut(n_steps, n_envs, has_memory)
    device = rollout.valid.device
    stretch = torch.arange(n_steps, device=device)[:, None] // (n_steps // stretches)
    group = torch.arange(n_envs, device=device) // columns
    left_over = (stretch >= stretches) | (group >= n_envs // columns)
    return torch.where(left_over, -1, group * stretches + stretch)


def _cut(n_steps: int, n_envs: int, has_memory: bool) -> tuple[int, int]:
    """Environments in a unit, and stretches that one environment is cut into."""
    stretches = 1 if has_memory else min(n_steps, -(-UNITS // n_envs))
    return max(1, n_envs // UNITS), stretches


def _of_episodes(rollout: Rollout) -> Tensor:
    number = episode_units(rollout)
    n_episodes = int(number.max()) + 1
    size = _episodes_of_a_unit(n_episodes)
    return torch.where(number < n_episodes // size * size, number, -size) // size


def _episodes_of_a_unit(n_episodes: int) -> int:
    return max(1, n_episodes // UNITS)


class Work(NamedTuple):
    """Work in three currencies, whose prices depend on the machine and on the network."""

    calls: float  # in those of one unit's gradient, whatever its size
    rows: float  # passes over all rows of a rollout, in one network's forward ones
    time: float  # the same over its steps in turn, as a memory takes them (0: there is none)


class Kind(NamedTuple):
    """What one gradient step costs."""

    calls: float
    passes: float  # of a network, a forward one counting 1 and a backward one 2


JOINT, ACTOR, CRITIC, FISHER = Kind(2, 6), Kind(2, 3), Kind(1, 3), Kind(1, 2)
UNIT = Kind(1, 3)
REPLAYED = 0.1  # of a gradient step's calls, where an engine other than the eager one takes it
ACTING = 0.06  # calls that a step of the environments and of the policy in them takes, at least
ONCE = 2.0  # calls of an iteration besides: evaluating, weighing, records


def interval(config: Config) -> int:
    """Iterations from one measurement to the next, so that measuring takes at most ``SHARE``.

    Seconds are a sum over three currencies at prices that no plan knows. But (a + b) / (c + d) is
    never above the larger of a/c and b/d: the dearest ratio of counts bounds the ratio of seconds.
    Counts not known beforehand are taken as small as they can be: episodes of one step, updates
    that a KL limit ends after one epoch. Actor and critic count as networks of one size.

    Args:
        config: resolved, so that ``n_envs`` and ``n_steps`` are known.
    """
    measuring, iteration = _measuring(config), _iterating(config)
    dearest = max(a / b for a, b in zip(measuring, iteration, strict=True))
    return max(1, math.ceil(dearest / SHARE))


def _measuring(config: Config) -> Work:
    n_envs, has_memory = config.n_envs or 1, config.memory != "none"
    passes = 1.0
    if isinstance(config, ReinforceConfig):
        size = _episodes_of_a_unit(config.batch_episodes)
        n_units = config.batch_episodes // size
        if has_memory:  # it runs through all of an environment that an episode lies in
            passes = n_units * min(size, n_envs) / n_envs
    else:
        columns, stretches = _cut(config.rollout_steps or 1, n_envs, has_memory)
        n_units = n_envs // columns * stretches
    along = n_units * UNIT.passes if has_memory else 0.0
    return Work(1.0 + n_units * UNIT.calls, passes * UNIT.passes, along)


def _iterating(config: Config) -> Work:
    networks = 1 if config.shared_network else 2
    n_steps = config.rollout_steps
    if isinstance(config, ReinforceConfig):
        n_steps = -(-config.batch_episodes // (config.n_envs or 1))
    calls = ONCE + ACTING * (n_steps or 1)
    rows = 1.0 + networks  # acted in, and evaluated
    time = 2 * UNIT.passes + networks
    for kind, count, epochs in _gradient_steps(config):
        passes = min(kind.passes, networks * UNIT.passes)
        is_eager = config.compile == "never" or config.memory != "none" or kind is FISHER
        is_eager |= config.rollout_steps is None and kind is ACTOR
        price = 1.0 if is_eager else REPLAYED
        calls, rows, time = (
            calls + count * kind.calls * price,
            rows + epochs * passes,
            time + count * passes,
        )
    return Work(calls, rows, time)


def _gradient_steps(config: Config) -> list[tuple[Kind, int, int]]:
    """Kind of an iteration's gradient steps, how many, and in how many passes over the rollout."""
    match config:
        case PPOConfig():
            epochs = config.n_epochs if config.target_kl is None else 1
            return [(JOINT, epochs * _minibatches(config, config.batch_size), epochs)]
        case A2CConfig():
            return [(JOINT, 1, 1)]
        case ReinforceConfig():
            fits = config.n_critic_updates if config.baseline == "value" else 0
            return [(ACTOR, 1, 1), (CRITIC, fits, fits)]
        case VPGConfig():
            steps = config.n_critic_updates * _minibatches(config, config.batch_size)
            return [(ACTOR, 1, 1), (CRITIC, steps, config.n_critic_updates)]
        case TrustRegionConfig():
            steps = config.n_critic_updates * _minibatches(config, config.batch_size)
            products = config.cg_max_steps
            return [(FISHER, products, products), (CRITIC, steps, config.n_critic_updates)]
    return []


def _minibatches(config: Config, batch_size: int) -> int:
    """Gradient steps of one pass, as :meth:`upslope.optim.Minibatches.shuffled` makes them."""
    n_envs, n_steps = config.n_envs or 1, config.rollout_steps or 1
    length = n_steps if config.memory != "none" else 1
    return -(-n_envs * n_steps // length // max(1, batch_size // length))

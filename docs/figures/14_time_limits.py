"""Page 14: a limit that is the task, and critics that know of it, do not, or look beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, gridworld
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab import exact, moments
from upslope.lab.estimators import Steps, advantage, with_discount, with_values
from upslope.lab.policies import SoftmaxTable
from upslope.lab.problems import Problem
from upslope.lab.statistics import interval
from upslope.rollout import collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

LIMIT, GAMMA = 8, 0.95
GRID = gridworld(horizon=LIMIT)
LOGITS = 0.5 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TABLE = SoftmaxTable(LOGITS)
LAMBDAS = [0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0]
FINE = [i / 50 for i in range(51)]
LIMITS = [5, 6, 7, 8, 10, 12, 15, 18, 21, 25, 30, 36, 43, 52, 64]
EPISODES, BATCH, COPIES = 9600, 48, 64
LEVEL = 0.01  # 1 minus the confidence of an interval


@dataclass(frozen=True)
class Critic:
    """A value function ``[H + 1, S]`` or ``[S]``, and whether it is asked at the limit."""

    name: str
    values: Tensor
    bootstraps: bool
    color: str


def main() -> None:
    """Draw both panels, print what the page quotes."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    for critic in critics(GRID):
        draw_bias(left, critic)
    left.set(xlabel="$\\lambda$", ylabel="|bias| / |G1|", ylim=(-0.12, 1.1))
    left.set_title(f"Limit of {LIMIT} steps (lines exact, points measured, 99 %)")
    left.legend(loc="upper right")
    draw_limits(right)
    drawing.save(figure, "14-time-limits")


def critics(mdp: MDP) -> list[Critic]:
    """The three of the page, for a process whose limit is the task."""
    pi, horizon = exact.state_probabilities(mdp, TABLE), mdp.horizon
    unlimited = exact.state_values(mdp, pi, GAMMA)
    by_time = exact.state_values(mdp, pi, GAMMA, horizon)
    visits = exact.visitation(mdp, pi, 1.0, horizon)
    average = (visits * by_time[:-1]).sum(0) / visits.sum(0).clamp(min=1e-9)
    return [
        Critic("unlimited $V$ at the limit", unlimited, True, drawing.RED),
        Critic("best $V(s)$, blind to time", average, False, drawing.BLUE),
        Critic("$V(s, t)$", by_time, False, drawing.GREEN),
    ]


def exact_bias(mdp: MDP, critic: Critic, lam: float) -> Tensor:
    """Exact bias ``[d]`` of GAE with gamma^t for G1, over |G1|."""
    values, horizon = critic.values, moments.horizon_of(mdp)
    if values.dim() == 1:
        values = values.expand(horizon + 1, -1)
    rho = moments.td_table(mdp, values, GAMMA, ends_at_limit=not critic.bootstraps)
    mean, _ = moments.weighted(mdp, TABLE, rho, GAMMA * lam, GAMMA)
    g1 = exact.policy_gradient(mdp, TABLE, "finite", GAMMA, horizon)
    return (mean - g1) / g1.norm()


def draw_bias(axes: Axes, critic: Critic) -> None:
    """Exact bias over lambda, and the measured one along the direction of the exact one."""
    axes.plot(
        FINE, [float(exact_bias(GRID, critic, lam).norm()) for lam in FINE],
        color=critic.color, label=critic.name,
    )  # fmt: skip
    samples = measure(critic)
    g1 = exact.policy_gradient(GRID, TABLE, "finite", GAMMA, LIMIT)
    points, intervals, known = [], [], []
    for lam in LAMBDAS:
        b = exact_bias(GRID, critic, lam)
        known.append(float(b.norm()))
        way = b if known[-1] > 1e-9 else g1
        along = (samples[f"{lam}"] - g1) @ way / (way.norm() * g1.norm())
        points.append(float(along.mean()))
        intervals.append(interval(along, LEVEL))
    drawing.measured(axes, LAMBDAS, points, intervals, critic.color)
    inside = sum(low <= b <= high for b, (low, high) in zip(known, intervals, strict=True))
    print(f"{critic.name}, {inside} of {len(LAMBDAS)} intervals of 99 % hold the exact bias")
    print("  lambda  ", *[f"{lam:6.2f}" for lam in LAMBDAS])
    print("  exact   ", *[f"{b:6.3f}" for b in known])
    print("  measured", *[f"{b:6.3f}" for b in points])


def measure(critic: Critic) -> dict[str, Tensor]:
    """Batch means ``[batches, d]`` of GAE with gamma^t by lambda, through collect and backward.

    The policy is the table and a bias of each action, which is left out of its gradient.
    """
    mdp = GRID.with_limit(LIMIT, is_task=not critic.bootstraps)
    policy = Problem("grid", mdp, GAMMA, LOGITS).policy()
    envs = make_environments(find_environment(TabularVectorEnv(mdp, COPIES)), seed=0)
    rollout = collect(envs, policy, n_episodes=EPISODES)
    evaluated = evaluate_rollout(policy, rollout)
    steps = with_values(Steps.of(policy, rollout, evaluated, GAMMA), critic.values)
    columns = {f"{lam}": with_discount(advantage(lam))(steps) * rollout.valid for lam in LAMBDAS}
    losses = {name: pseudo_loss(name) for name in columns}
    units = episode_units(rollout, BATCH)
    found = unit_gradients(policy, rollout, evaluated, losses, columns, units)
    shape = policy.actor_head.weight.shape  # [A, S], and the table is [S, A]
    tables = {name: x[:, : shape.numel()].unflatten(1, shape) for name, x in found.items()}
    return {name: table.mT.flatten(1) / BATCH for name, table in tables.items()}


def draw_limits(axes: Axes) -> None:
    """Longer and longer limits: the task's against G1, the sampling's against G2."""
    grids = [gridworld(horizon=limit) for limit in LIMITS]
    g2 = exact.policy_gradient(GRID, TABLE, "discounted", GAMMA)
    unlimited, blind, cut, ended = [], [], [], []
    print("longer limits, the task's over |G1|, the sampling's over |G2|:")
    for grid, limit in zip(grids, LIMITS, strict=True):
        beyond, average, _ = critics(grid)
        unlimited.append(float(exact_bias(grid, beyond, 0.0).norm()))
        blind.append(float(exact_bias(grid, average, 0.0).norm()))
        for found, target in ((cut, "discounted"), (ended, "finite")):
            g = exact.policy_gradient(grid, TABLE, target, GAMMA, limit)
            found.append(float((g - g2).norm() / g2.norm()))
    for name, line, style, color in (
        ("task: unlimited $V$ at the limit", unlimited, "-", drawing.RED),
        ("task: best $V(s)$, $\\lambda = 0$", blind, "-", drawing.BLUE),
        ("sampling: $V$ at the cut", cut, "--", drawing.PURPLE),
        ("sampling: nothing at the cut", ended, "--", drawing.YELLOW),
    ):
        axes.plot(LIMITS, line, style, color=color, label=name)
        shown = ", ".join(f"{line[LIMITS.index(limit)]:.3f} at {limit}" for limit in (8, 30, 64))
        said = f"{name} (Eq. 8.9)" if line is cut else name
        print(f"{said}: {shown}")
    axes.set(yscale="log", xscale="log", ylim=(8e-3, 4), xlabel="limit, steps")
    axes.set_ylabel("|bias| / |G1| (task) or / |G2| (sampling)")
    axes.set_xticks([5, 8, 15, 30, 64], ["5", "8", "15", "30", "64"])
    axes.minorticks_off()
    axes.set_title("Longer limits, exact")
    axes.legend(loc="lower left")


if __name__ == "__main__":
    main()

"""Page 7: where the variance of an estimator comes from, and how far it is from the floor.

Both processes run until they end and gamma is 1, so every estimator here has the same target.
"""

from __future__ import annotations

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import random_mdp, sentinel
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.baselines import optimal
from upslope.lab.estimators import (
    Steps,
    td_error,
    to_go,
    to_go_minus_value,
    whole_return,
    with_values,
)
from upslope.lab.exact import action_values, state_values
from upslope.lab.floor import efficiency
from upslope.lab.moments import Split, Tables, decompose, episode_return, td_table
from upslope.lab.noise import Sample, variance
from upslope.lab.problems import Problem
from upslope.optim import Batch
from upslope.policies.distributions import Categorical, Distribution
from upslope.rollout import collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

GAMMA = 1.0
WHOLE = "episode return"
TO_GO, MINUS_V, MINUS_BEST = "reward-to-go", "reward-to-go - V", "reward-to-go - b*"
TD, ALL_ACTIONS = "TD error, exact V", "all actions, exact Q"
PARTS = {"start": drawing.YELLOW, "action": drawing.BLUE, "transition": drawing.RED}
EPISODES, BATCH = 20_000, 20


def main() -> None:
    """Draw the figure and print the numbers of the page."""
    figure, axes = drawing.panels("AB", height=3.6)
    print(f"multiples of the floor, exact and from {EPISODES:,} episodes")
    for panel, problem in zip(axes, (mixing(), exits()), strict=True):
        variances(panel, problem)
    axes[1].tick_params(labelleft=False)
    axes[1].legend(title="dots: measured, 99 %", alignment="left", loc="lower right")
    drawing.save(figure, "07-actor-critic")


def mixing() -> Problem:
    """A random process, in which what follows an action is mostly chance."""
    rng = torch.Generator().manual_seed(1)
    logits = 0.7 * torch.randn(5, 3, generator=rng, dtype=torch.float64)
    return Problem("random process", random_mdp(5, 3, None, 1, termination=0.25), GAMMA, logits)


def exits() -> Problem:
    """Deterministic moves whose exits the action chooses."""
    logits = torch.tensor([[0.5, -0.2], [0.0, 0.3], [-0.4, 0.4]], dtype=torch.float64)
    return Problem("sentinel", sentinel().with_limit(None, is_task=False), GAMMA, logits)


def variances(axes: Axes, problem: Problem) -> None:
    """A bar an estimator, made of its parts, in multiples of the floor."""
    mdp, tables = problem.limited(), Tables.of(problem.limited(), problem.policy())
    floor = float(efficiency(mdp, tables, GAMMA))
    whole = float(episode_return(mdp, tables, GAMMA)[1]) / floor
    exact = {name: [float(p) / floor for p in parts] for name, parts in splits(problem).items()}
    found = {name: variance(Sample.of(g)) for name, g in sampled(problem).items()}
    rows = [WHOLE, *exact]
    axes.barh(0, whole, 0.62, color=drawing.GREY, label="not split")
    left = [0.0] * len(exact)
    for i, (part, color) in enumerate(PARTS.items()):
        widths = [parts[i] for parts in exact.values()]
        axes.barh(range(1, len(rows)), widths, 0.62, left, color=color, label=part)
        left = [at + width for at, width in zip(left, widths, strict=True)]
    for y, (name, total) in enumerate(zip(rows, (whole, *left), strict=True)):
        middle, low, high = (BATCH * number / floor for number in found[name])
        ends = [[middle - low], [high - middle]]
        axes.errorbar(middle, y, xerr=ends, color=drawing.INK, fmt="o", ms=4.5, capsize=3)
        parts = "" if name == WHOLE else ", of it {:.2f} start, {:.2f} action, {:.2f} transition"
        split = parts.format(*exact.get(name, ()))
        print(f"{problem.name}, {name}: {total:.2f}, measured {low:.2f} to {high:.2f}{split}")
    axes.axvline(1.0, color=drawing.INK, ls="--", lw=1.2, label="floor, Eq. 7.7")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{problem.name}, {EPISODES:,} episodes")
    axes.set(xlabel="variance of one episode / floor")


def splits(problem: Problem) -> dict[str, Split]:
    """Exact parts of the variance (Eq. 7.6).

    TD errors are rewards whose sum ends at once. The all-action gradient is a sum of terms that
    depend on the state alone: scores that all actions share, with weight 1.
    """
    mdp, t = problem.limited(), Tables.of(problem.limited(), problem.policy())
    values = state_values(mdp, t.pi, GAMMA)
    terms = torch.einsum("sa,sad,sa->sd", t.pi, t.score, action_values(mdp, values, GAMMA))
    shared = terms[:, None].expand_as(t.score)
    every = t._replace(score=shared, reward=torch.ones_like(t.reward))
    errors = t._replace(reward=td_table(mdp, values, GAMMA))
    best = optimal(mdp, t, GAMMA, time_dependent=False)
    return {
        TO_GO: decompose(mdp, t, GAMMA, 1.0),
        MINUS_V: decompose(mdp, t, GAMMA, 1.0, values),
        MINUS_BEST: decompose(mdp, t, GAMMA, 1.0, best),
        TD: decompose(mdp, errors, 0.0, 1.0),
        ALL_ACTIONS: decompose(mdp, every, 0.0, 1.0),
    }


def sampled(problem: Problem) -> dict[str, Tensor]:
    """Mean gradients ``[N, d]`` of batches by every estimator, through the code that trains."""
    mdp, policy = problem.limited(), problem.policy()
    t = Tables.of(mdp, policy)
    values, best = state_values(mdp, t.pi, GAMMA), optimal(mdp, t, GAMMA, time_dependent=False)
    q = action_values(mdp, values, GAMMA)
    envs = make_environments(find_environment(TabularVectorEnv(problem.mdp, 500)), seed=0)
    rollout = collect(envs, policy, n_episodes=EPISODES)
    evaluated = evaluate_rollout(policy, rollout)
    steps = Steps.of(policy, rollout, evaluated, GAMMA)
    columns = {
        WHOLE: whole_return(steps),
        TO_GO: to_go(steps),
        MINUS_V: to_go_minus_value(with_values(steps, values)),
        MINUS_BEST: to_go_minus_value(with_values(steps, best)),
        TD: td_error(with_values(steps, values)),
    }

    def all_actions(distribution: Distribution, rows: Batch) -> Tensor:
        assert isinstance(distribution, Categorical)
        weights = q[rows["state"]] * rows["valid"][:, None]
        return -(distribution.log_probs.exp() * weights).sum()

    losses = {name: pseudo_loss(name) for name in columns} | {ALL_ACTIONS: all_actions}
    columns["state"] = steps.values.round().long() * rollout.valid  # what the critic answers
    units = episode_units(rollout, BATCH)
    sums = unit_gradients(policy, rollout, evaluated, losses, columns, units)
    return {name: gradients / BATCH for name, gradients in sums.items()}


if __name__ == "__main__":
    main()

"""Page 5: how often reward-to-go varies less than the episode return, and a task where it does not.

The task is the windy gridworld. Its steps cost and its goal pays: once the goal is often reached,
the past that reward-to-go leaves out has the other sign than the future, and cancelled part of it.
"""

from __future__ import annotations

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, gridworld, random_mdp
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.estimators import Steps, to_go, whole_return, with_discount
from upslope.lab.exact import objective, policy_gradient
from upslope.lab.moments import compare
from upslope.lab.noise import Estimate, Sample, variance_ratio
from upslope.lab.policies import SoftmaxTable
from upslope.lab.problems import Problem
from upslope.rollout import collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

GAMMA, PROCESSES = 0.95, 200
HORIZON, RATE, ASCENTS = 40, 1.0, 120  # of the gridworld, climbed along its exact gradient
EXACT = (*range(11), 12, 14, 17, 20, 25, 30, 40, 60, 80, 100, 120)  # steps of the ascent
MEASURED = (0, 5, 10, 20, 120)
EPISODES, BATCH = 8_000, 20


def main() -> None:
    """Draw the figure and print the numbers of the page."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    in_many_processes(left)
    while_learning(right)
    drawing.save(figure, "05-reward-to-go")


def in_many_processes(axes: Axes) -> None:
    """Exact ratios of the two variances in random processes under random policies."""
    ratios = []
    for seed in range(PROCESSES):
        mdp = random_mdp(5, 2, 10, seed, termination=0.02)
        rng = torch.Generator().manual_seed(seed)
        ratios.append(ratio(mdp, torch.randn(5, 2, generator=rng, dtype=torch.float64)))
    ratios.sort()
    axes.hist(ratios, [0.05 * k for k in range(4, 25)], color=drawing.BLUE, edgecolor="white")
    axes.axvline(1.0, color=drawing.INK, ls="--", lw=1.2)
    axes.set_title(f"{PROCESSES} random processes, exact")
    axes.set(xlabel="variance of reward-to-go / of episode return", ylabel="processes")
    low, middle, high = ratios[0], ratios[PROCESSES // 2], ratios[-1]
    print(f"{PROCESSES} random processes: ratio {low:.2f} to {high:.2f}, median {middle:.2f}")
    print(f"reward-to-go varies more in {sum(r > 1 for r in ratios)} of them")


def while_learning(axes: Axes) -> None:
    """The ratio along an ascent in the gridworld: exact, and of sampled gradients."""
    grid = gridworld(horizon=HORIZON)
    path = ascent(grid)
    values = {k: float(objective(grid, path[k].softmax(-1), GAMMA, HORIZON)) for k in EXACT}
    exact = {k: ratio(grid, path[k]) for k in EXACT}
    axes.plot(list(values.values()), list(exact.values()), color=drawing.RED, label="exact")
    found = {k: sampled(grid, path[k], seed=k) for k in MEASURED}
    print(f"windy gridworld: a step costs {-float(grid.rewards.min()):.2f}")
    for k, estimate in found.items():
        print(
            f"gridworld after {k} steps, J = {values[k]:.2f}: ratio {exact[k]:.2f}, measured "
            f"{estimate.low:.2f} to {estimate.high:.2f}"
        )
    drawing.measured(
        axes, [values[k] for k in MEASURED], [e.value for e in found.values()],
        [(e.low, e.high) for e in found.values()], drawing.RED,
        f"measured, {EPISODES:,} episodes, 99 %",
    )  # fmt: skip
    axes.axhline(1.0, color=drawing.INK, ls="--", lw=1.2)
    axes.set_title("windy gridworld, from the uniform policy on")
    axes.set(xlabel="expected return J of the policy", ylabel="ratio of the variances", ylim=(0, 2))
    axes.legend()


def ratio(mdp: MDP, logits: Tensor) -> float:
    """Exact variance of reward-to-go over that of the episode return (Eq. 5.3)."""
    found = compare(mdp, SoftmaxTable(logits), GAMMA)
    return float(found.reward_to_go / found.episode_return)


def ascent(grid: MDP) -> list[Tensor]:
    """Logits ``[S, A]`` along the exact gradient of J, from 0 on."""
    path = [torch.zeros(grid.n_states, grid.n_actions, dtype=torch.float64)]
    for _ in range(ASCENTS):
        g = policy_gradient(grid, SoftmaxTable(path[-1]), "finite", GAMMA, HORIZON)
        path.append(path[-1] + RATE * g.view_as(path[-1]))
    return path


def sampled(grid: MDP, logits: Tensor, seed: int) -> Estimate:
    """The ratio of the variances of gradients that were sampled through the code that trains."""
    policy = Problem(grid.name, grid, GAMMA, logits).policy()
    envs = make_environments(find_environment(TabularVectorEnv(grid, 400)), seed=seed)
    rollout = collect(envs, policy, n_episodes=EPISODES)
    evaluated = evaluate_rollout(policy, rollout)
    steps = Steps.of(policy, rollout, evaluated, GAMMA)
    weights = {"to go": with_discount(to_go)(steps), "whole": whole_return(steps)}
    sums = unit_gradients(
        policy, rollout, evaluated,
        {name: pseudo_loss(name) for name in weights}, weights, episode_units(rollout, BATCH),
    )  # fmt: skip
    table = {name: g[:, : logits.numel()] for name, g in sums.items()}  # without the layer's bias
    return variance_ratio(Sample.of(table["to go"]), Sample.of(table["whole"]))


if __name__ == "__main__":
    main()

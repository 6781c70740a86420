"""Page 1: how far apart the three vectors lie that are all called "the policy gradient"."""

from __future__ import annotations

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, delayed_reward, random_mdp
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.estimators import Steps, Weigh, to_go, with_discount
from upslope.lab.exact import policy_gradient
from upslope.lab.policies import SoftmaxTable
from upslope.lab.problems import Problem
from upslope.lab.statistics import interval
from upslope.rollout import collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

LIMIT, ENDS = 10, 0.1  # time limit in steps, chance that a step ends the episode
PROCESSES = 40
GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0)
MEASURED = (0.5, 0.7, 0.9, 1.0)
EPISODES, BATCH = 10_000, 100
LEVEL = 0.01  # 1 minus the confidence of an interval
NAMES = {
    "G1": (f"G1, $\\nabla J_H$ with a limit of {LIMIT} steps", drawing.RED),
    "G2": ("G2, $\\nabla J_\\gamma$", drawing.INK),
    "G3": ("G3, without $\\gamma^t$", drawing.BLUE),
}


def main() -> None:
    """Draw the figure and print the numbers of the page."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    angles_of_many(left)
    lengths_of_one(right)
    agreement()
    drawing.save(figure, "01-objective")


def angles_of_many(axes: Axes) -> None:
    """Angles to G2 in many processes: the median, and the middle 80 %."""
    tasks = [task(seed) for seed in range(PROCESSES)]
    found = {gamma: [targets(*task, gamma) for task in tasks] for gamma in GAMMAS}
    print(f"{PROCESSES} random processes, a step ends with a chance of {ENDS}, G1 stops at {LIMIT}")
    for name in ("G3", "G1"):
        label, color = NAMES[name]
        angles = [sorted(angle(g[name], g["G2"]) for g in found[gamma]) for gamma in GAMMAS]
        low, middle, high = (
            [row[int(share * PROCESSES)] for row in angles] for share in (0.1, 0.5, 0.9)
        )
        axes.fill_between(GAMMAS, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(GAMMAS, middle, color=color, label=label)
        for gamma in (0.5, 0.9, 1.0):
            row = angles[GAMMAS.index(gamma)]
            median, most = row[PROCESSES // 2], row[-1]
            print(f"{name} at gamma {gamma}: median {median:.1f} degrees off G2, most {most:.1f}")
    axes.set_title(f"{PROCESSES} random processes, median and middle 80 %")
    axes.set(xlabel="discount $\\gamma$", ylabel="angle to G2, degrees")
    axes.legend()


def lengths_of_one(axes: Axes) -> None:
    """Lengths along G2 in one process: exact ones, and the means of three estimators."""
    mdp, logits = task(0)
    exact = {gamma: targets(mdp, logits, gamma) for gamma in GAMMAS}
    for name, (label, color) in NAMES.items():
        along = [share(exact[gamma][name], exact[gamma]["G2"]) for gamma in GAMMAS]
        axes.plot(GAMMAS, along, color=color, label=label)
    estimators = {
        "G1": (mdp.with_limit(LIMIT, is_task=True), with_discount(to_go)),
        "G2": (mdp, with_discount(to_go)),
        "G3": (mdp, to_go),
    }
    for number, (name, (process, weigh)) in enumerate(estimators.items()):
        color, points = NAMES[name][1], []
        for k, gamma in enumerate(MEASURED):
            g2 = exact[gamma]["G2"]
            problem = Problem(name, process, gamma, logits)
            sampled = batches(problem, weigh, seed=10 * number + k)
            points.append(interval(sampled @ g2 / (g2 @ g2), LEVEL))
            low, high = points[-1]
            wanted = share(exact[gamma][name], g2)
            print(f"{name} at gamma {gamma}: {wanted:.2f} of G2, measured {low:.2f} to {high:.2f}")
        middle = [(low + high) / 2 for low, high in points]
        beside = [gamma + (number - 1) * 0.007 for gamma in MEASURED]
        drawing.measured(axes, beside, middle, points, color)
    axes.set_title("one of them, and three estimators in it")
    axes.set(xlabel="discount $\\gamma$", ylabel="length along G2, as a share of it", ylim=(0, 6.3))
    said = f"lines: exact; points: {EPISODES:,} episodes, 99 %"
    axes.legend(title=said, alignment="left")


def agreement() -> None:
    """With gamma = 1 and every episode over before the limit, the three are one vector."""
    corridor, logits = delayed_reward(4), torch.zeros(4, 2, dtype=torch.float64)
    for gamma in (1.0, 0.9):
        g = targets(corridor, logits, gamma)
        gaps = [float((g[name] - g["G2"]).norm() / g["G2"].norm()) for name in ("G1", "G3")]
        equal = ["equal" if gap < 1e-12 else f"{gap:.2f} of its length off" for gap in gaps]
        print(f"corridor of four cells, gamma {gamma}: G1 and G2 {equal[0]}, G3 and G2 {equal[1]}")


def task(seed: int) -> tuple[MDP, Tensor]:
    """A random process that ends with a chance of 0.1 in each step, and logits ``[S, A]``."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 2, generator=rng, dtype=torch.float64)
    return random_mdp(5, 2, None, seed, termination=ENDS), logits


def targets(mdp: MDP, logits: Tensor, gamma: float) -> dict[str, Tensor]:
    """G1 under the limit, G2 and G3 without one, ``[S * A]`` each."""
    policy = SoftmaxTable(logits)
    return {
        "G1": policy_gradient(mdp, policy, "finite", gamma, LIMIT),
        "G2": policy_gradient(mdp, policy, "discounted", gamma),
        "G3": policy_gradient(mdp, policy, "undiscounted-weights", gamma),
    }


def angle(x: Tensor, y: Tensor) -> float:
    """Angle of two vectors in degrees, by half its sine, which small angles do not round away."""
    half = (x / x.norm() - y / y.norm()).norm() / 2
    return float(2 * torch.rad2deg(half.asin()))


def share(x: Tensor, y: Tensor) -> float:
    """Length of x along y, as a share of that of y."""
    return float(x @ y / (y @ y))


def batches(problem: Problem, weigh: Weigh, seed: int) -> Tensor:
    """Mean gradients ``[N, S * A]`` of batches of episodes, through the code that trains."""
    policy = problem.policy()
    envs = make_environments(find_environment(TabularVectorEnv(problem.mdp, 500)), seed=seed)
    rollout = collect(envs, policy, n_episodes=EPISODES)
    evaluated = evaluate_rollout(policy, rollout)
    weights = {"weight": weigh(Steps.of(policy, rollout, evaluated, problem.gamma))}
    sums = unit_gradients(
        policy, rollout, evaluated, {"weight": pseudo_loss("weight")}, weights,
        episode_units(rollout, BATCH),
    )  # fmt: skip
    return by_state(sums["weight"] / BATCH, problem.logits)


def by_state(gradients: Tensor, logits: Tensor) -> Tensor:
    """Of a linear layer's gradients ``[N, A * S + A]`` the table's ``[N, S * A]``, without bias."""
    n_states, n_actions = logits.shape
    table = gradients[:, : n_states * n_actions].view(-1, n_actions, n_states)
    return table.mT.flatten(1)


if __name__ == "__main__":
    main()

"""Page 6: what four baselines cost against the best one, and the bandit where V hurts most."""

from __future__ import annotations

import drawing
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, bandit, random_mdp
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.baselines import excess_variance, normal_equations, optimal, per_step
from upslope.lab.estimators import Steps, to_go
from upslope.lab.exact import state_probabilities, state_values, visitation
from upslope.lab.moments import reward_table, weighted
from upslope.lab.noise import Sample, variance
from upslope.lab.policies import SoftmaxTable
from upslope.lab.problems import Problem
from upslope.rollout import collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

GAMMA, PROCESSES, HORIZON = 0.9, 200, 5
NAMES = {
    "none": ("none", drawing.GREY),
    "mean": ("mean return from that step on", drawing.PURPLE),
    "V": ("V(s)", drawing.RED),
    "per step": ("per-step b, Eq. 6.3", drawing.GREEN),
}
LIKELY = 0.99  # probability of the bandit's arm that pays 1; so V is that too
EPISODES, BATCH = 20_000, 50


def main() -> None:
    """Draw the figure and print the numbers of the page."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    in_many_processes(left)
    in_the_bandit(right)
    drawing.save(figure, "06-baselines")


def in_many_processes(axes: Axes) -> None:
    """Shares of random processes whose variance lies below a multiple of the least one."""
    found = []
    for seed in range(PROCESSES):
        mdp = random_mdp(2, 2, HORIZON, seed, termination=0.02)
        rng = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 2, generator=rng, dtype=torch.float64)
        found.append(multiples(mdp, SoftmaxTable(logits)))
    shares = [(k + 1) / PROCESSES for k in range(PROCESSES)]
    for name, (label, color) in NAMES.items():
        row = sorted(multiple[name] for multiple in found)
        axes.step([1.0, *row, 25.0], [0.0, *shares, 1.0], color=color, where="post", label=label)
        middle, most = row[PROCESSES // 2], row[-1]
        print(f"{name}: median {middle:.2f} times the least variance, most {most:.1f}")
    worse = sum(multiple["V"] > multiple["none"] for multiple in found)
    print(f"V is worse than none in {worse} of {PROCESSES}")
    axes.set_title(f"{PROCESSES} random processes, exact")
    axes.set(xscale="log", xlim=(0.97, 25), ylim=(0, 1.01))
    axes.set(xlabel="variance / variance with b*", ylabel="share of the processes")
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.legend(title="baseline", alignment="left")


def multiples(mdp: MDP, policy: SoftmaxTable) -> dict[str, float]:
    """Variances under each baseline, over that under b*, by Eq. 6.4."""
    pi = state_probabilities(mdp, policy)
    visits, values = visitation(mdp, pi, 1.0, HORIZON), state_values(mdp, pi, GAMMA, HORIZON)[:-1]
    mean = (visits * values).sum(1, keepdim=True) / visits.sum(1, keepdim=True)
    squares, best = normal_equations(mdp, policy, GAMMA)[0].sum(-1), optimal(mdp, policy, GAMMA)
    least = weighted(mdp, policy, reward_table(mdp), GAMMA, GAMMA, best)[1]
    baselines = {
        "none": torch.zeros_like(best),
        "mean": mean.expand_as(best),
        "V": values,
        "per step": per_step(mdp, policy, GAMMA),
    }
    excess = {name: excess_variance(squares, b, best) for name, b in baselines.items()}
    return {name: float(1 + more / least) for name, more in excess.items()}


def in_the_bandit(axes: Axes) -> None:
    """Variance over the baseline where one arm is nearly always pulled: exact and measured."""
    arms = bandit(1.0, 0.0)
    logits = torch.tensor([[LIKELY, 1 - LIKELY]], dtype=torch.float64).log()
    policy, rewards = SoftmaxTable(logits), reward_table(arms)
    best, value = float(optimal(arms, policy, 1.0)), LIKELY

    def exact(b: float) -> float:
        return float(weighted(arms, policy, rewards, 1.0, 1.0, torch.full((1,), b).double())[1])

    grid = [*np.linspace(-0.1, best - 1e-3, 25), *np.linspace(best + 1e-3, 0.1, 30)]
    grid += np.linspace(0.1, 1.1, 30).tolist()
    axes.plot(grid, [exact(b) for b in grid], color=drawing.INK, label="exact")
    measured = (0.0, 0.1, 0.25, 0.5, 0.75, value)
    gradients = sampled(arms, logits, measured)
    found = [[BATCH * x for x in variance(Sample.of(g))] for g in gradients]
    label = f"measured, {EPISODES:,} episodes, 99 %"
    middle, ends = [row[0] for row in found], [(row[1], row[2]) for row in found]
    drawing.measured(axes, measured, middle, ends, drawing.BLUE, label)
    for b, (low, high) in zip(measured, ends, strict=True):
        print(f"bandit, b = {b:.2f}: variance {exact(b):.2e}, measured {low:.2e} to {high:.2e}")
    print(
        f"b* = {best:.2f}; with V the variance is {exact(value) / exact(0.0):,.0f} times as large"
    )
    thin = {"arrowstyle": "-", "color": drawing.INK}
    axes.annotate("none", (0.0, exact(0.0)), (-0.12, 3e-7), arrowprops=thin)
    axes.annotate("V", (value, exact(value)), (0.95, 1e-3), arrowprops=thin)
    axes.annotate("b*", (best, 6e-8), (0.06, 2e-7), arrowprops=thin)
    axes.set_title(f"a bandit, probabilities {LIKELY} and {1 - LIKELY:.2f}, pay 1 and 0")
    axes.set(yscale="log", ylim=(5e-8, 0.2), xlabel="baseline b", ylabel="variance of one episode")
    axes.legend(loc="lower right")


def sampled(mdp: MDP, logits: Tensor, baselines: tuple[float, ...]) -> list[Tensor]:
    """Mean gradients ``[N, S * A]`` of batches under each baseline, on the same episodes."""
    policy = Problem(mdp.name, mdp, 1.0, logits).policy()
    envs = make_environments(find_environment(TabularVectorEnv(mdp, 32)), seed=0)
    rollout = collect(envs, policy, n_episodes=EPISODES)
    evaluated = evaluate_rollout(policy, rollout)
    returns = to_go(Steps.of(policy, rollout, evaluated, 1.0))
    weights = {str(b): returns - b for b in baselines}
    sums = unit_gradients(
        policy, rollout, evaluated, {name: pseudo_loss(name) for name in weights}, weights,
        episode_units(rollout, BATCH),
    )  # fmt: skip
    return [g[:, : logits.numel()] / BATCH for g in sums.values()]  # without the layer's bias


if __name__ == "__main__":
    main()

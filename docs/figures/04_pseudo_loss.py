"""Page 4: what the value of the pseudo-loss says of a run, and what its divisor does."""

from __future__ import annotations

from collections import deque

import drawing
import torch
from matplotlib.axes import Axes
from scipy import stats

import upslope
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import deterministic
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.bias import ratio_bias
from upslope.lab.estimators import Steps, whole_return
from upslope.lab.problems import Problem
from upslope.lab.statistics import interval
from upslope.rollout import collect, evaluate_rollout
from upslope.theory.objectives import policy_gradient_loss
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

STEPS = 20_000
WEIGHTS = ("advantage + V", "advantage", "advantage, standardised")
SHORT, LONG = 1, 10  # steps of the two kinds of episode
COUNTS = (2, 4, 8, 16, 32, 64, 128)  # episodes of a batch
BATCHES = 600
LEVEL = 0.01  # 1 minus the confidence of an interval


def main() -> None:
    """Draw the figure and print the numbers of the page."""
    figure, (top, bottom, right) = drawing.panels("AC;BC", height=4.6)
    values_of_a_run(top, bottom)
    divisors(right)
    drawing.save(figure, "04-pseudo-loss")


def values_of_a_run(top: Axes, bottom: Axes) -> None:
    """The average return of a run, and the values of three pseudo-losses for the same gradient."""
    steps, returns, losses = trained()
    top.plot(steps, returns, color=drawing.INK)
    top.set_title("VPG on CartPole-v1: average return of 100 episodes")
    top.set(ylim=(0, None), ylabel="return")
    colors = (drawing.RED, drawing.PURPLE, drawing.BLUE)
    for (name, values), color in zip(losses.items(), colors, strict=True):
        bottom.plot(steps, values, color=color, label=name)
        rank = float(stats.spearmanr(values, returns).statistic)
        print(
            f"{name}: pseudo-loss from {values[0]:.2f} to {values[-1]:.2f}, "
            f"rank correlation with the return {rank:+.2f}"
        )
    print(f"average return from {returns[0]:.0f} to {returns[-1]:.0f}")
    bottom.set_title("value of the pseudo-loss, by its weights")
    bottom.set(xlabel="environment steps", ylabel="pseudo-loss", ylim=(-3, 40))
    bottom.legend(loc="upper left", ncols=2)
    for axes in (top, bottom):
        axes.set_xticks(range(0, STEPS + 1, 5_000), [f"{x:,}" for x in range(0, STEPS + 1, 5_000)])


def trained() -> tuple[list[int], list[float], dict[str, list[float]]]:
    """Steps, average returns and pseudo-losses of a run that follows the last of them.

    The three weights differ by V of before the update and by a scale, so their expected gradients
    are parallel (Eq. 4.2, 6.1).
    """
    agent = upslope.VPG(
        "CartPole-v1", n_envs=8, n_steps=64, learning_rate=1e-2, seed=1, dtype="float64"
    )
    learner, envs = agent.training.learner, agent.training.envs
    recent: deque[float] = deque(maxlen=100)
    losses: dict[str, list[float]] = {name: [] for name in WEIGHTS}
    steps, returns = [0], []
    while steps[-1] < STEPS:
        rollout = learner.collect(envs)
        evaluated = evaluate_rollout(agent.policy, rollout)
        found, valid = learner.weigh(rollout, evaluated), rollout.valid
        choices = (found.targets, found.advantages, found.weights)
        for values, weights in zip(losses.values(), choices, strict=True):
            loss = policy_gradient_loss(evaluated.log_prob, weights, valid, rollout.n_valid)
            values.append(float(loss))
        recent.extend(episode.ret for episode in rollout.episodes)
        returns.append(sum(recent) / len(recent))
        rng = envs.seeds.generator("minibatches", len(steps))
        learner.update(rollout, evaluated, 1.0, rng)
        steps.append(steps[-1] + rollout.n_valid)
    return steps[1:], returns, losses


def divisors(axes: Axes) -> None:
    """Batches of whole episodes, divided by their steps and by their number."""
    problem = two_lengths()
    half, x = torch.tensor([0.5, 0.5]), torch.tensor([0.5, -1.0])  # score times return of each
    lengths = torch.tensor([float(SHORT), float(LONG)])
    axis = range(COUNTS[0], COUNTS[-1] + 1)
    exact = [float(ratio_bias(half, x, lengths, n)[0]) for n in axis]
    by_steps, by_episodes = zip(*(sampled(problem, n) for n in COUNTS), strict=True)
    axes.plot(axis, exact, color=drawing.RED, label="divided by steps, times E[L]")
    truth = float(half @ x)
    axes.axhline(truth, color=drawing.BLUE, label="divided by episodes")
    for found, color in ((by_steps, drawing.RED), (by_episodes, drawing.BLUE)):
        middle = [(low + high) / 2 for low, high in found]
        drawing.measured(axes, COUNTS, middle, found, color)
    for n, steps, episodes in zip(COUNTS, by_steps, by_episodes, strict=True):
        print(
            f"N = {n}: by steps {exact[n - COUNTS[0]]:.3f}, "
            f"measured {steps[0]:.3f} to {steps[1]:.3f}; by episodes {truth:.3f}, "
            f"measured {episodes[0]:.3f} to {episodes[1]:.3f}"
        )
    axes.set_title(f"one decision: {SHORT} step that pays 1, or {LONG} that pay 2")
    axes.set(xscale="log", xlabel="episodes N of a batch", ylabel="expected estimate")
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.minorticks_off()
    axes.legend(title="lines: exact; points: measured, 99 %", alignment="left")


def two_lengths() -> Problem:
    """Action 0 ends the episode and pays 1; action 1 leads through nine more steps to 2."""
    last = LONG - 1
    successors = [[0, 1], *([min(i + 1, last)] * 2 for i in range(1, LONG))]
    rewards = [[1.0, 0.0], *([2.0 * (i == last)] * 2 for i in range(1, LONG))]
    ends = [[1.0, 0.0], *([float(i == last)] * 2 for i in range(1, LONG))]
    mdp = deterministic("two lengths", successors, rewards, ends)
    return Problem(mdp.name, mdp, 1.0, torch.zeros(LONG, 2, dtype=torch.float64))


def sampled(problem: Problem, size: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intervals of the mean estimate of batches of ``size`` episodes: by steps, by episodes."""
    policy = problem.policy()
    envs = make_environments(find_environment(TabularVectorEnv(problem.mdp, 512)), seed=size)
    rollout = collect(envs, policy, n_episodes=BATCHES * size)
    evaluated = evaluate_rollout(policy, rollout)
    returns = {"return": whole_return(Steps.of(policy, rollout, evaluated, problem.gamma))}
    units = episode_units(rollout, size)
    loss = {"return": pseudo_loss("return")}
    sums = unit_gradients(policy, rollout, evaluated, loss, returns, units)["return"][:, 0]
    steps = torch.bincount(units[rollout.valid])
    by_steps = sums / steps * (SHORT + LONG) / 2
    return interval(by_steps, LEVEL), interval(sums / size, LEVEL)


if __name__ == "__main__":
    main()

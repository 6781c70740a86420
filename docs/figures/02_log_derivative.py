"""Page 2: score times return, averaged over episodes, is the derivative of the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, two_state
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.estimators import Steps, whole_return
from upslope.lab.exact import objective
from upslope.lab.moments import episode_return
from upslope.lab.policies import SoftmaxTable
from upslope.lab.problems import Problem
from upslope.lab.statistics import interval
from upslope.rollout import collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

HORIZON, GAMMA = 6, 0.95
LOGITS = torch.tensor([[0.0, 0.4], [0.6, 0.0]], dtype=torch.float64)
EPISODES, BATCH, RUNS = 16_384, 16, 5
LEVEL = 0.01  # 1 minus the confidence of an interval
STEP = 1e-5  # of the finite differences

Process = Callable[[Tensor], MDP]  # logits -> the process they act in


def main() -> None:
    """Draw the figure and print the numbers of the page."""
    figure, (left, right) = drawing.panels("AB", height=4.2, widths=(1.15, 1))
    errors(left)
    coordinates(right)
    drawing.save(figure, "02-log-derivative")


def errors(axes: Axes) -> None:
    """Error of the mean over the first N episodes, in five runs, and its law."""
    wanted = differences(plain)
    _, variance = episode_return(plain(LOGITS), SoftmaxTable(LOGITS), GAMMA)
    count = [BATCH * 2**k for k in range(EPISODES // BATCH) if BATCH * 2**k <= EPISODES]
    law = [float((variance / n).sqrt() / wanted.norm()) for n in count]
    runs = []
    for seed in range(RUNS):
        gradients = sampled(plain(LOGITS), seed)
        means = [gradients[: n // BATCH].mean(0) for n in count]
        runs.append([float((mean - wanted).norm() / wanted.norm()) for mean in means])
        label = f"five runs of {EPISODES:,} episodes" if seed == 0 else None
        axes.plot(count, runs[-1], "o-", color=drawing.BLUE, alpha=0.6, lw=1, ms=3.5, label=label)
    label = "exact: $\\sqrt{\\mathrm{tr\\,Cov}/N}\\;/\\;|g|$"
    axes.plot(count, law, color=drawing.INK, label=label)
    axes.axhline(1.0, color=drawing.RED, ls="--", label="gradient of the sampled return itself: 0")
    axes.set_title("error of the mean, two-state process")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="episodes N", ylabel="error / length of the gradient")
    axes.legend(loc="lower left")
    for n, exact, *found in zip(count, law, *runs, strict=True):
        if n in (count[0], count[-1]):
            typical = (sum(x**2 for x in found) / RUNS) ** 0.5
            print(f"N = {n:,}: relative error {typical:.3f} over the runs, by the law {exact:.3f}")


def coordinates(axes: Axes) -> None:
    """Each entry of the gradient, sampled, against the finite difference of the exact objective."""
    kinds: tuple[tuple[str, Process, str, str], ...] = (
        ("two-state process", plain, drawing.BLUE, "o"),
        ("switching slips half the time", slippery, drawing.GREEN, "s"),
        ("it starts in the rich state", rich, drawing.PURPLE, "^"),
        ("the start depends on $\\theta$", following, drawing.RED, "X"),
    )
    for seed, (label, process, color, marker) in enumerate(kinds):
        wanted, gradients = differences(process), sampled(process(LOGITS), 100 + seed)
        found = [interval(column, LEVEL) for column in gradients.T]
        middle = [(low + high) / 2 for low, high in found]
        drawing.measured(
            axes, wanted.tolist(), middle, found, color, label, fmt=marker, markersize=7
        )
        inside = sum(low <= x <= high for x, (low, high) in zip(wanted, found, strict=True))
        off = float((gradients.mean(0) - wanted).norm() / wanted.norm())
        name = process.__name__
        print(
            f"{name}: {inside} of {len(found)} entries in their intervals, "
            f"the whole {off:.2f} of |g| off"
        )
    axes.axline((0, 0), slope=1, color=drawing.INK, lw=1.2, zorder=1)
    axes.set_title("the estimator never reads start or dynamics")
    axes.set(xlabel="finite difference of the exact J", ylabel="mean of score times return, 99 %")
    axes.legend(loc="upper left")


def plain(logits: Tensor) -> MDP:
    """Stay or switch; switching slips one time in five; most episodes start in the poor state."""
    return two_state(HORIZON)


def slippery(logits: Tensor) -> MDP:
    """The same with other dynamics."""
    mdp = two_state(HORIZON)
    transitions = mdp.transitions.clone()
    transitions[:, 1] = 0.5
    return replace(mdp, transitions=transitions)


def rich(logits: Tensor) -> MDP:
    """The same with another start."""
    return replace(two_state(HORIZON), start=torch.tensor([0.0, 1.0], dtype=torch.float64))


def following(logits: Tensor) -> MDP:
    """A start that moves with the policy: the more it switches, the more often it is rich."""
    return replace(two_state(HORIZON), start=(4 * logits[0]).softmax(-1))


def differences(process: Process) -> Tensor:
    """Central differences of the exact objective in every logit ``[S * A]``."""
    found = []
    for i in range(LOGITS.numel()):
        step = torch.zeros(LOGITS.numel(), dtype=torch.float64)
        step[i] = STEP
        up, down = LOGITS + step.view_as(LOGITS), LOGITS - step.view_as(LOGITS)
        rise = _value(process, up) - _value(process, down)
        found.append(rise / (2 * STEP))
    return torch.stack(found)


def _value(process: Process, logits: Tensor) -> Tensor:
    return objective(process(logits), logits.softmax(-1), GAMMA, HORIZON)


def sampled(mdp: MDP, seed: int) -> Tensor:
    """Mean gradients ``[N, S * A]`` of batches of episodes, through the code that trains."""
    policy = Problem(mdp.name, mdp, GAMMA, LOGITS).policy()
    envs = make_environments(find_environment(TabularVectorEnv(mdp, 1024)), seed=seed)
    rollout = collect(envs, policy, n_episodes=EPISODES)
    evaluated = evaluate_rollout(policy, rollout)
    weights = {"return": whole_return(Steps.of(policy, rollout, evaluated, GAMMA))}
    assert not weights["return"].requires_grad  # so its own gradient is 0
    sums = unit_gradients(
        policy, rollout, evaluated, {"return": pseudo_loss("return")}, weights,
        episode_units(rollout, BATCH),
    )  # fmt: skip
    table = (sums["return"] / BATCH)[:, : LOGITS.numel()]  # of the linear layer, not of its bias
    return table.view(-1, *LOGITS.T.shape).mT.flatten(1)


if __name__ == "__main__":
    main()

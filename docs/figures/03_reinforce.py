"""Page 3: the error of a mean over N episodes, and the bias where a step count chooses them."""

from __future__ import annotations

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.episodes import Environments
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, deterministic
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.bias import stopping_rule
from upslope.lab.estimators import Steps, whole_return
from upslope.lab.exact import policy_gradient
from upslope.lab.moments import episode_return
from upslope.lab.problems import Problem, find_problem
from upslope.lab.statistics import interval
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

PROBLEMS = (("two-state", drawing.BLUE), ("random", drawing.GREEN), ("gridworld", drawing.PURPLE))
EPISODES = 8_192
COUNTS = (8, 32, 128, 512)  # episodes of a batch
SHORT, LONG = 1, 10  # steps of the two kinds of episode
STEPS = (12, 25, 50, 100)  # of each environment, where steps are counted
LATER = 29  # steps that fit no more long episodes than 25 do
GRID = (*range(12, 44), *range(44, 101, 2))  # where the exact bias is computed
BATCHES = {1: 1_500, 2: 1_000, 8: 500}  # number of environments -> batches
LEVEL = 0.01  # 1 minus the confidence of an interval


def main() -> None:
    """Draw the figure and print the numbers of the page."""
    figure, (left, right) = drawing.panels("AB", height=4.2)
    squared_errors(left)
    step_counts(right)
    drawing.save(figure, "03-reinforce")


def squared_errors(axes: Axes) -> None:
    """E|ghat - g|^2 of batches of N episodes in three processes, on the line tr Cov / N."""
    for name, color in PROBLEMS:
        problem = find_problem(name)
        policy, mdp = problem.policy(), problem.limited()
        g = policy_gradient(mdp, policy, "finite", problem.gamma, mdp.horizon)
        size = float(g.square().sum())
        noise = float(episode_return(mdp, policy, problem.gamma)[1]) / size
        axes.plot(COUNTS, [noise / n for n in COUNTS], color=color, label=name)
        policy, rollout, evaluated, returns = quota(problem, EPISODES)
        units = episode_units(rollout, COUNTS[0])
        gradients = sums(policy, rollout, evaluated, {"return": returns}, units)["return"]
        found, points = [], []
        for n in COUNTS:
            means = gradients.view(-1, n // COUNTS[0], len(g)).sum(1) / n
            errors = (means - g).square().sum(1) / size
            found.append(float(errors.mean()))
            points.append(interval(errors, LEVEL))
        drawing.measured(axes, COUNTS, found, points, color)
        print(
            f"{name}: noise and signal are equal at {noise:.0f} episodes; with {COUNTS[-1]} the "
            f"squared error is {found[-1]:.3f}, by the law {noise / COUNTS[-1]:.3f}"
        )
    axes.axhline(1.0, color=drawing.GREY, lw=1.2, zorder=1)
    axes.set_title("a number of episodes, fixed beforehand")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="episodes N of a batch", ylabel="E$|\\hat g - g|^2$ / $|g|^2$")
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.minorticks_off()
    axes.legend(title="line: tr Cov / N; points: measured, 99 %", alignment="left")


def step_counts(axes: Axes) -> None:
    """What is estimated from the episodes that a number of steps keeps."""
    problem = two_lengths()
    policy, gradients = problem.policy(), (0.5, -1.0)
    truth = sum(gradients) / 2
    print(f"one decision: {SHORT} step or {LONG} steps")
    for n_envs, color in ((1, drawing.BLUE), (2, drawing.PURPLE), (8, drawing.RED)):
        rule = "keep-finished"
        exact = [stopping_rule((SHORT, LONG), gradients, rule, n_envs, t) for t in GRID]
        label = f"kept after a step count, {n_envs} environment{'s' if n_envs > 1 else ''}"
        axes.plot(GRID, exact, color=color, label=label)
        found = [interval(batch, LEVEL) for batch in kept(problem, policy, n_envs)]
        _points(axes, found, color)
        low, high = found[1]
        at, later = exact[GRID.index(STEPS[1])], exact[GRID.index(LATER)]
        print(
            f"kept after {STEPS[1]} steps of {n_envs}: {at:.3f}, measured {low:.3f} to {high:.3f}, "
            f"right {truth:.3f}; after {LATER} steps {later:.3f}"
        )
    found = [interval(batch, LEVEL) for batch in numbered(problem, policy)]
    axes.axhline(truth, color=drawing.INK, ls="--", label="as many numbered episodes")
    _points(axes, found, drawing.INK, fmt="D")
    print(f"numbered episodes: measured {found[1][0]:.3f} to {found[1][1]:.3f}")
    axes.set_title(f"one decision: {SHORT} step that pays 1, or {LONG} that pay 2")
    axes.set(xlabel="steps of each environment", ylabel="expected estimate", xlim=(8, 104))
    axes.legend(title="lines: exact; points: measured, 99 %", alignment="left")


def _points(axes: Axes, found: list[tuple[float, float]], color: str, **style: str) -> None:
    middle = [(low + high) / 2 for low, high in found]
    drawing.measured(axes, STEPS, middle, found, color, **style)


def two_lengths() -> Problem:
    """Action 0 ends the episode and pays 1; action 1 leads through nine more steps to 2."""
    last = LONG - 1
    successors = [[0, 1], *([min(i + 1, last)] * 2 for i in range(1, LONG))]
    rewards = [[1.0, 0.0], *([2.0 * (i == last)] * 2 for i in range(1, LONG))]
    ends = [[1.0, 0.0], *([float(i == last)] * 2 for i in range(1, LONG))]
    mdp: MDP = deterministic("two lengths", successors, rewards, ends)
    return Problem(mdp.name, mdp, 1.0, torch.zeros(LONG, 2, dtype=torch.float64))


def kept(problem: Problem, policy: ActorCritic, n_envs: int) -> list[Tensor]:
    """For each of ``STEPS`` the estimates of all batches from what their environments finished."""
    n_batches = BATCHES[n_envs]
    rollout = collect(environments(problem, n_envs * n_batches), policy, n_steps=STEPS[-1])
    evaluated = evaluate_rollout(policy, rollout)
    returns = whole_return(Steps.of(policy, rollout, evaluated, problem.gamma))
    batch = torch.arange(n_envs * n_batches) // n_envs
    weights = {}
    for steps in STEPS:
        ends = rollout.done & (torch.arange(STEPS[-1])[:, None] < steps)
        finished = ends.flip(0).cumsum(0).flip(0) > 0  # the row's episode ends in time
        number = ends.sum(0).view(n_batches, n_envs).sum(1)
        weights[str(steps)] = returns * finished / number[batch]
    units = batch.expand(STEPS[-1], -1)
    found = sums(policy, rollout, evaluated, weights, units)
    return [gradients[:, 0] for gradients in found.values()]


def numbered(problem: Problem, policy: ActorCritic) -> list[Tensor]:
    """For each of ``STEPS`` the estimates from as many episodes as 8 environments run in them."""
    found = []
    for steps in STEPS:
        size = round(8 * steps * 2 / (SHORT + LONG))
        _, rollout, evaluated, returns = quota(problem, size * 200)
        units, weights = episode_units(rollout, size), {"mean": returns / size}
        found.append(sums(policy, rollout, evaluated, weights, units)["mean"][:, 0])
    return found


def quota(
    problem: Problem, n_episodes: int
) -> tuple[ActorCritic, Rollout, EvaluatedRollout, Tensor]:
    """Numbered episodes, each run to its end, and the return on each row."""
    policy = problem.policy()
    rollout = collect(environments(problem, 512), policy, n_episodes=n_episodes)
    evaluated = evaluate_rollout(policy, rollout)
    returns = whole_return(Steps.of(policy, rollout, evaluated, problem.gamma))
    return policy, rollout, evaluated, returns


def environments(problem: Problem, n_envs: int) -> Environments:
    """Copies of a problem's process, all at the start of an episode."""
    return make_environments(find_environment(TabularVectorEnv(problem.mdp, n_envs)), seed=0)


def sums(
    policy: ActorCritic,
    rollout: Rollout,
    evaluated: EvaluatedRollout,
    weights: dict[str, Tensor],
    units: Tensor,
) -> dict[str, Tensor]:
    """sum_t score_t weight_t over each unit's rows ``[U, d]``, by the pseudo-loss that trains."""
    losses = {name: pseudo_loss(name) for name in weights}
    return unit_gradients(policy, rollout, evaluated, losses, weights, units)


if __name__ == "__main__":
    main()

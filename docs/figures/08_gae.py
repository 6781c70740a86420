"""Page 8: bias and mean squared error of GAE over lambda, exact and measured through the lab."""

from __future__ import annotations

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.tabular import decision_chain
from upslope.lab import bias, moments
from upslope.lab.estimators import Steps, advantage, with_values
from upslope.lab.problems import Problem, find_problem
from upslope.lab.roster import Contender, Oracle
from upslope.lab.statistics import interval
from upslope.lab.study import EPISODES, LEARNED_FROM, learned_values, sample

BATCHES, SEED = 600, 0
LEVEL = 0.01  # 1 minus the confidence of an interval
LARGER = 10  # batches whose mean is that of a larger batch
GRID = [i / 50 for i in range(51)]
LAMBDAS = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]
LATE = "wrong two steps ahead"


def main() -> None:
    """Measure both processes, draw both panels, print what the page quotes."""
    corridor, chain = with_critics(find_problem("delayed-reward")), late_error()
    of_corridor, of_chain = measure(corridor), measure(chain)
    figure, (left, right) = drawing.panels("AB", height=4.0)
    colors = {"wrong": drawing.RED, "learned": drawing.BLUE, "exact": drawing.GREEN}
    for kind, color in colors.items():
        draw_bias(left, corridor, kind, color, f"corridor, {kind} $V$", of_corridor)
    draw_bias(left, chain, LATE, drawing.PURPLE, f"chain, $V$ {LATE}", of_chain)
    left.set(xlabel="$\\lambda$", ylabel="|bias| / |gradient|", ylim=(-0.05, 0.95))
    left.set_title("Bias (lines exact, points measured, 99 %)")
    left.legend(loc="upper right")
    draw_errors(right, corridor, of_corridor)
    right.set(xlabel="$\\lambda$", ylabel="mean squared error / |gradient|$^2$", yscale="log")
    right.set_title("Error of a batch, learned $V$")
    right.set_ylim(1e-4, 0.2)
    right.legend(loc="lower left", ncols=2)
    drawing.save(figure, "08-gae")


def with_critics(problem: Problem) -> Oracle:
    """A problem with its exact V, one learned from few episodes, and one that is wrong."""
    oracle = Oracle(problem, problem.policy())
    learned = learned_values(problem, SEED)
    oracle.tables.update(exact=oracle.values, learned=learned, wrong=oracle.wrong_values)
    return oracle


def late_error() -> Oracle:
    """The page's chain: one decision, and a V that errs in a state two steps after it."""
    mdp = decision_chain(4).with_limit(None, is_task=False)
    problem = Problem("chain", mdp, 1.0, torch.zeros(mdp.n_states, 2, dtype=torch.float64))
    oracle = Oracle(problem, problem.policy())
    error = torch.zeros(mdp.n_states, dtype=torch.float64)
    error[2] = 1.0
    oracle.tables[LATE] = oracle.values + error
    return oracle


def estimator(oracle: Oracle, kind: str, lam: float) -> Contender:
    """GAE(lambda) with one of the value functions, and its exact mean and variance."""
    table, decay = oracle.tables[kind], oracle.problem.gamma * lam

    def weigh(steps: Steps) -> Tensor:
        return advantage(lam)(with_values(steps, table))

    exact = moments.weighted(oracle.mdp, oracle.policy, oracle.td_table(kind), decay, 1.0)
    return oracle.make(f"{kind} {lam}", oracle.target(False, True), exact, "", weigh)


def measure(oracle: Oracle) -> dict[str, Tensor]:
    """Batch means ``[BATCHES, d]`` of every estimator, through collect, GAE and backward."""
    contenders = [estimator(oracle, kind, lam) for kind in oracle.tables for lam in LAMBDAS]
    return sample(oracle.problem, oracle.policy, contenders, BATCHES, SEED)


def draw_bias(
    axes: Axes, oracle: Oracle, kind: str, color: str, label: str, samples: dict[str, Tensor]
) -> None:
    """The exact curve (Eq. 8.7), and the measured bias along the direction of the exact one."""
    error, gamma = oracle.tables[kind] - oracle.values, oracle.problem.gamma
    c = bias.nstep(oracle.mdp, oracle.policy, error, gamma, 1.0)
    g = oracle.target(False, True)[1]
    axes.plot(
        GRID, [float(bias.gae(c, lam).norm() / g.norm()) for lam in GRID],
        color=color, label=label, linestyle="--" if kind == LATE else "-",
    )  # fmt: skip
    exact, points, intervals = [], [], []
    for lam in LAMBDAS:
        b = bias.gae(c, lam)
        exact.append(float(b.norm() / g.norm()))
        way = b if exact[-1] > 1e-9 else g
        along = (samples[f"{kind} {lam}"] - g) @ way / (way.norm() * g.norm())
        points.append(float(along.mean()))
        intervals.append(interval(along, LEVEL))
    drawing.measured(axes, LAMBDAS, points, intervals, color)
    inside = sum(low <= b <= high for b, (low, high) in zip(exact, intervals, strict=True))
    print(f"{label}, {BATCHES * EPISODES} episodes: {inside} of {len(LAMBDAS)} intervals of 99 % "
          "hold the exact bias (Eq. 8.7)")  # fmt: skip
    print("  lambda  ", *[f"{lam:6.2f}" for lam in LAMBDAS])
    print("  exact   ", *[f"{b:6.3f}" for b in exact])
    print("  measured", *[f"{b:6.3f}" for b in points])
    spread = [estimator(oracle, kind, lam).exact_variance for lam in (0.0, 1.0)]
    shown = [f"{x / float(g.square().sum()):.1f}" for x in spread]
    print(f"  variance of one episode over |g|^2 at lambda 0 and 1: {shown[0]} and {shown[1]}")


def draw_errors(axes: Axes, oracle: Oracle, samples: dict[str, Tensor]) -> None:
    """MSE(lambda, N) (Eq. 8.10) of two batch sizes, and its two parts."""
    g = oracle.target(False, True)[1]
    unit = float(g.square().sum())
    known = [estimator(oracle, "learned", lam) for lam in GRID]
    squared = [float((k.exact_mean - g).square().sum()) / unit for k in known]
    variance = [k.exact_variance / unit for k in known]
    for size, color in ((EPISODES, drawing.BLUE), (EPISODES * LARGER, drawing.INK)):
        total = [b + v / size for b, v in zip(squared, variance, strict=True)]
        best = min(range(len(GRID)), key=total.__getitem__)
        axes.plot(GRID, total, color=color, label=f"{size} episodes (star: least)")
        parts = [v / size for v in variance]
        axes.plot(GRID, parts, color=color, linewidth=1, linestyle=":", label="its variance part")
        axes.plot(GRID[best], total[best], "*", color=color, markersize=14, zorder=5)
        points, intervals = [], []
        for lam in LAMBDAS:
            x = samples[f"learned {lam}"].unflatten(0, (-1, size // EPISODES)).mean(1)
            off = (x - g).square().sum(1) / unit
            points.append(float(off.mean()))
            intervals.append(interval(off, LEVEL))
        drawing.measured(axes, LAMBDAS, points, intervals, color)
        print(f"V learned from {LEARNED_FROM} episodes, batches of {size}: least error at lambda "
              f"{GRID[best]:.2f}")  # fmt: skip
        print(f"  {total[best]:.4f} there, {total[0]:.4f} at 0, {total[-1]:.4f} at 1")
    axes.plot(GRID, squared, color=drawing.GREY, linestyle="--", label="bias part of both")


if __name__ == "__main__":
    main()

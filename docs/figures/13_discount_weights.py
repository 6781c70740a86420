"""Page 13: how far G3 lies from G2, and how far it is from being a gradient, over gamma."""

from __future__ import annotations

import math

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import deterministic, random_mdp
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab import exact
from upslope.lab.estimators import Steps, advantage, with_values
from upslope.lab.problems import Problem, find_problem
from upslope.lab.statistics import interval
from upslope.optim import FlatParameters
from upslope.policies.distributions import Categorical
from upslope.rollout import collect, evaluate_rollout
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

GAMMAS = [i / 40 for i in range(4, 40)] + [0.99, 1.0]
MEASURED = [0.3, 0.5, 0.7, 0.9, 1.0]
EPISODES, BATCH, COPIES = 9600, 48, 64
LEVEL = 0.01  # 1 minus the confidence of an interval
LAMBDA = 0.95
DROPPED, KEPT = "undiscounted-weights", "discounted"

LATE_REWARD = deterministic(
    "late reward", [[1, 2], [1, 1], [3, 3], [3, 3]],
    [[0.0, 1.0], [0.0, -1.5], [0.0, -1.5], [0.9, 0.9]], [[0, 0], [1, 1], [0, 0], [1, 1]],
)  # fmt: skip


class Shared:
    """The same two logits ``theta`` in every state, as on the page."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta

    def parameters(self) -> list[Tensor]:
        """The two logits."""
        return [self.theta]

    def distribution(self, obs: Tensor) -> Categorical:
        """pi(.|s), the same for all rows."""
        return Categorical(self.theta.expand(len(obs), 2))


def main() -> None:
    """Draw both panels, print what the page quotes."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    colors = (drawing.BLUE, drawing.GREEN, drawing.PURPLE)
    for (name, problem), color in zip(problems().items(), colors, strict=True):
        draw_exact(left, right, name, problem, color)
        draw_measured(left, problem, color)
    draw_late_reward(left, right)
    left.set(xlabel="$\\gamma$", ylabel="angle between G3 and G2, degrees", ylim=(-5, 187))
    left.set_yticks(range(0, 181, 30))
    left.set_title("Direction (lines exact, points measured, 99 %)")
    left.legend(loc="center left")
    right.set(xlabel="$\\gamma$", ylabel="$|J - J^T| / |J + J^T|$")
    right.set_title("Asymmetry of the Jacobian $J$ of G3")
    drawing.save(figure, "13-discount-weights")


def problems() -> dict[str, Problem]:
    """A corridor, a grid, and the page's random process, none of them with a limit."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    mdp = random_mdp(4, 3, horizon=None, seed=5, termination=0.05)
    return {
        "corridor": find_problem("delayed-reward"),
        "grid": find_problem("gridworld"),
        "random": Problem("random", mdp, 1.0, logits),
    }


def draw_exact(left: Axes, right: Axes, name: str, problem: Problem, color: str) -> None:
    """Angle between G3 and G2, and the asymmetry of the field of each."""
    policy, mdp = problem.policy(), problem.mdp
    flat = FlatParameters(policy, policy.part_names("actor"))
    theta = flat.vector.clone()

    def asymmetry(target: str, gamma: float) -> float:
        def field(at: Tensor) -> Tensor:
            with flat.replaced_by(at):
                return exact.policy_gradient(mdp, policy, target, gamma, differentiable=True)

        return float(exact.field_asymmetry(field, theta))

    angles = [
        angle(*(exact.policy_gradient(mdp, policy, target, gamma) for target in (KEPT, DROPPED)))
        for gamma in GAMMAS
    ]
    curls = [asymmetry(DROPPED, gamma) for gamma in GAMMAS]
    left.plot(GAMMAS, angles, color=color, label=name)
    right.plot(GAMMAS, curls, color=color)
    for gamma in (0.5, 0.9, 0.99, 1.0):
        at = GAMMAS.index(gamma)
        print(f"{name}, gamma {gamma}: {angles[at]:.1f} degrees, asymmetry {curls[at]:.3f}")
    print(f"  asymmetry of G2 at gamma 0.5 below 1e-12: {asymmetry(KEPT, 0.5) < 1e-12}")


def draw_measured(axes: Axes, problem: Problem, color: str) -> None:
    """The mean of GAE without gamma^t, by its angle to G2 in the plane of G2 and G3."""
    policy, mdp = problem.policy(), problem.mdp
    vector = TabularVectorEnv(mdp, COPIES)
    rollout = collect(
        make_environments(find_environment(vector), seed=0), policy, n_episodes=EPISODES
    )
    evaluated, pi = evaluate_rollout(policy, rollout), exact.state_probabilities(mdp, policy)
    columns = {}
    for gamma in MEASURED:
        steps = Steps.of(policy, rollout, evaluated, gamma)
        values = exact.state_values(mdp, pi, gamma)
        columns[f"{gamma}"] = advantage(LAMBDA)(with_values(steps, values)) * rollout.valid
    losses = {name: pseudo_loss(name) for name in columns}
    units = episode_units(rollout, BATCH)
    found = unit_gradients(policy, rollout, evaluated, losses, columns, units)
    angles, intervals, inside = [], [], 0
    for gamma in MEASURED:
        g2, g3 = (exact.policy_gradient(mdp, policy, t, gamma) for t in (KEPT, DROPPED))
        other = exact.policy_gradient(mdp, policy, DROPPED, 0.5) if gamma == 1 else g3
        along, across = found[f"{gamma}"] @ g2 / g2.norm(), found[f"{gamma}"] @ aside(other, g2)
        x, y = float(along.mean()), float(across.mean())
        turns = (across * x - along * y) / (x * x + y * y)  # d atan2(y, x) of each batch
        low, high = (math.degrees(end) for end in interval(turns, LEVEL))
        angles.append(math.degrees(math.atan2(y, x)))
        intervals.append((angles[-1] + low, angles[-1] + high))
        inside += intervals[-1][0] <= angle(g2, g3) <= intervals[-1][1]
    drawing.measured(axes, MEASURED, angles, intervals, color)
    print(f"  measured angles {', '.join(f'{x:.1f}' for x in angles)} at gamma {MEASURED}: "
          f"{inside} of {len(MEASURED)} intervals of 99 % hold it")  # fmt: skip


def draw_late_reward(left: Axes, right: Axes) -> None:
    """The page's process, on which G3 climbs down while its field is a gradient's."""
    theta = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    angles, curls = [], []
    for gamma in GAMMAS:

        def field(at: Tensor, target: str = DROPPED, gamma: float = gamma) -> Tensor:
            return exact.policy_gradient(
                LATE_REWARD, Shared(at), target, gamma, differentiable=True
            )

        angles.append(angle(field(theta, KEPT).detach(), field(theta).detach()))
        curls.append(float(exact.field_asymmetry(field, theta)))
    left.plot(GAMMAS, angles, "--", color=drawing.RED, label="late reward")
    right.plot(GAMMAS, curls, "--", color=drawing.RED, label="late reward")
    turned = max(gamma for gamma, degrees in zip(GAMMAS, angles, strict=True) if degrees > 90)
    print(f"late reward: {max(angles):.0f} degrees up to gamma {turned:.3f}, then {angles[-1]:.0f}")
    print(f"  largest asymmetry of G3 below 1e-12: {max(curls) < 1e-12}")


def aside(x: Tensor, y: Tensor) -> Tensor:
    """The direction of what is left of x without its part along y."""
    left = x - (x @ y) / (y @ y) * y
    return left / left.norm()


def angle(x: Tensor, y: Tensor) -> float:
    """Angle in degrees, exact for small ones too."""
    x, y = x / x.norm(), y / y.norm()
    return math.degrees(2 * math.atan2(float((x - y).norm()), float((x + y).norm())))


if __name__ == "__main__":
    main()

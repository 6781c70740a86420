"""Page 9: what damping, few iterations and the state weights do to the natural direction."""

from __future__ import annotations

import math

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.envs.tabular import random_mdp
from upslope.lab import exact
from upslope.lab.policies import SoftmaxTable
from upslope.lab.problems import Problem
from upslope.optim import FlatParameters
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Categorical
from upslope.seeding import SeedTree
from upslope.theory.trust_region import Matvec, conjugate_gradient, fisher_matvec, mean_kl

MDP = random_mdp(10, 3, None, seed=2, termination=0.05)
GAMMA, HIDDEN, FEATURES = 0.95, 8, 3
PEAKS = {"mild": 1.0, "peaked": 3.0}  # factor of the network's logits
DAMPINGS = {0.1: drawing.RED, 1e-3: drawing.BLUE, 1e-5: drawing.GREEN}
ITERATIONS = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200]
USUAL = 15  # iterations that NPG and TRPO take
GAMMAS = [i / 20 for i in range(21)]


class FewFeatures:
    """pi(a|s) = softmax(W phi(s))_a: states share the parameters ``W [A, FEATURES]``."""

    def __init__(self) -> None:
        rng = SeedTree(0).torch_generator("features")
        self.phi, self.w = (
            torch.randn(n, FEATURES, generator=rng, dtype=torch.float64)
            for n in (MDP.n_states, MDP.n_actions)
        )
        self.w.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """The one matrix."""
        return [self.w]

    def distribution(self, obs: Tensor) -> Categorical:
        """pi(.|s) for one-hot states ``[N, S]``."""
        return Categorical(obs.to(self.w.dtype) @ self.phi @ self.w.T)


def main() -> None:
    """Draw both panels, print what the page quotes."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    for name, peak in PEAKS.items():
        draw_iterations(left, name, network(peak))
    left.axvline(USUAL, color=drawing.GREY, linewidth=1, zorder=0)
    left.set(xscale="log", ylim=(0.2, 1.02))
    left.set(xlabel="iterations of conjugate gradient", ylabel="cosine with $F^+g$")
    left.set_xticks([1, 5, 15, 50, 200], ["1", "5", "15", "50", "200"])
    left.minorticks_off()
    left.set_title("Damping $c$; solid: mild policy, dashed: peaked")
    left.legend(loc="lower right")
    draw_weights(right, "table", SoftmaxTable(table_logits()), drawing.BLUE)
    draw_weights(right, f"{FEATURES} features", FewFeatures(), drawing.RED)
    right.set(xlabel="$\\gamma$ of the visits", ylabel="turn of $F^+g$, degrees")
    right.set_title("Discounted visits $d_\\gamma$ replaced by $d_1$")
    right.legend(loc="upper right")
    drawing.save(figure, "09-natural-gradient")


def network(peak: float) -> ActorCritic:
    """A network over one-hot states; a larger ``peak`` makes its policy more certain."""
    policy = Problem("network", MDP, GAMMA, table_logits(), HIDDEN).policy()
    with torch.no_grad():
        for parameter in policy.actor_head.parameters():
            parameter.mul_(peak)
    return policy


def table_logits() -> Tensor:
    """Logits ``[S, A]``."""
    rng = SeedTree(0).torch_generator("logits")
    return torch.randn(MDP.n_states, MDP.n_actions, generator=rng, dtype=torch.float64)


def draw_iterations(axes: Axes, name: str, policy: ActorCritic) -> None:
    """Cosine of the solver's direction with the undamped one, and its distance from the exact."""
    pi = exact.state_probabilities(MDP, policy)
    weights = normalised(exact.visitation(MDP, pi, 1.0, None))
    g = exact.policy_gradient(MDP, policy, "undiscounted-weights", GAMMA)
    fisher = exact.fisher(policy, weights)
    undamped = torch.linalg.pinv(fisher, rtol=1e-10) @ g
    certainty = float(weights @ pi.max(1).values)
    print(f"{name}: {len(g)} parameters, mean probability of the likeliest action {certainty:.2f}")
    print(f"  cosine of g itself with F^+ g: {cosine(g, undamped):.2f}")
    for damping, color in DAMPINGS.items():
        product = kl_products(policy, weights, damping)
        found = [conjugate_gradient(product, g, n, 1e-14) for n in ITERATIONS]
        cosines = [cosine(x, undamped) for x in found]
        mild = name == "mild"
        axes.plot(
            ITERATIONS, cosines, "o-" if mild else "o--", color=color, markersize=4,
            label=f"c = {damping:g}" if mild else None,
        )  # fmt: skip
        solved = torch.linalg.solve(fisher + damping * torch.eye(len(g), dtype=g.dtype), g)
        gap = float((found[-1] - solved).norm() / solved.norm())
        print(
            f"  c = {damping:g}: cosine {cosines[ITERATIONS.index(USUAL)]:.2f} after {USUAL} "
            f"iterations, {cosines[-1]:.2f} after {ITERATIONS[-1]}; there within 1e-8 of "
            f"(F + cI)^-1 g: {gap < 1e-8}"
        )


def kl_products(policy: ActorCritic, weights: Tensor, damping: float) -> Matvec:
    """v -> (F + cI) v from the KL divergence alone, as the algorithms take it."""
    flat, states = FlatParameters(policy, policy.part_names("actor")), torch.eye(MDP.n_states)
    with torch.no_grad():
        old = policy.distribution(states)

    def kl(theta: Tensor) -> Tensor:
        with flat.replaced_by(theta):
            return mean_kl(old, policy.distribution(states), weights)

    return fisher_matvec(kl, flat.vector.clone(), damping)


def draw_weights(axes: Axes, name: str, policy: SoftmaxTable | FewFeatures, color: str) -> None:
    """F_w^+ g_w of discounted visits against undiscounted ones: in both, or in F alone."""
    pi = exact.state_probabilities(MDP, policy)
    values = exact.state_values(MDP, pi, GAMMA)
    advantages = exact.action_values(MDP, values, GAMMA) - values[:, None]
    obs = torch.eye(MDP.n_states, dtype=torch.float64)

    def direction(of_fisher: Tensor, of_gradient: Tensor) -> Tensor:
        weighed = of_gradient[:, None] * advantages * MDP.n_states  # a mean over states, as a sum
        g = exact.expected_gradient(policy, obs, weighed)
        return torch.linalg.pinv(exact.fisher(policy, of_fisher), rtol=1e-10) @ g

    undiscounted = normalised(exact.visitation(MDP, pi, 1.0, None))
    both, fisher_only = [], []
    for gamma in GAMMAS:
        visits = normalised(exact.visitation(MDP, pi, gamma, None))
        right = direction(visits, visits)
        both.append(angle(right, direction(undiscounted, undiscounted)))
        fisher_only.append(angle(right, direction(undiscounted, visits)))
    axes.plot(GAMMAS, both, color=color, label=f"in $F$ and $g$, {name}")
    axes.plot(GAMMAS, fisher_only, "--", color=color, label=f"in $F$ alone, {name}")
    at = GAMMAS.index(0.8)
    print(
        f"{name}, visits discounted by {GAMMAS[at]}: undiscounted ones in both turn the direction "
        f"by {both[at]:.1f} degrees, in F alone by {fisher_only[at]:.1f}"
    )


def normalised(weights: Tensor) -> Tensor:
    """Weights that sum to 1."""
    return weights / weights.sum()


def cosine(x: Tensor, y: Tensor) -> float:
    """Cosine of two vectors ``[d]``."""
    return float(torch.cosine_similarity(x, y, dim=0))


def angle(x: Tensor, y: Tensor) -> float:
    """Angle in degrees, exact for small ones too."""
    x, y = x / x.norm(), y / y.norm()
    return math.degrees(2 * math.atan2(float((x - y).norm()), float((x + y).norm())))


if __name__ == "__main__":
    main()

"""The trust region and its solver: explicit matrices, hand-worked systems, and every refusal."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.envs.tabular import random_mdp
from upslope.lab import exact
from upslope.lab.policies import SoftmaxTable
from upslope.optim import ActorFunctions
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Categorical, DiagonalGaussian
from upslope.theory import trust_region
from upslope.theory.objectives import policy_gradient_loss
from upslope.theory.trust_region import (
    conjugate_gradient,
    fisher_matvec,
    fisher_vector_product,
    line_search,
    mean_kl,
    step_size,
    surrogate,
)

F64 = torch.float64
Pair = tuple[Tensor, Tensor]
EXAMPLES = settings(max_examples=30, deadline=None)
N_STATES, N_FEATURES, N_ACTIONS = 5, 3, 4
GAMMA = 0.8
PROBLEM = random_mdp(N_STATES, N_ACTIONS, None, seed=4, termination=0.2)
SPACES = {
    "discrete": gym.spaces.Discrete(N_ACTIONS),
    "box": gym.spaces.Box(-1.0, 1.0, (2,), np.float64),
}
every_space = pytest.mark.parametrize("space", SPACES)


def make_policy(
    space: str, seed: int = 0, net_arch: tuple[int, ...] = (6,), n_features: int = N_FEATURES
) -> ActorCritic:
    """A float64 policy whose states share the features of a hidden layer."""
    observations = gym.spaces.Box(-np.inf, np.inf, (n_features,), np.float64)
    policy = ActorCritic(
        observations,
        SPACES[space],
        seed=seed,
        net_arch=net_arch,
        ortho_init=False,
        log_std_init=-0.3,
        dtype="float64",
    )
    with torch.no_grad():
        for weights in policy.parameters():
            weights.mul_(2)  # away from the uniform policy
    return policy


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Batch:
    """A batch of one policy, and its mean KL and surrogate as functions of the flat actor."""

    def __init__(self, policy: ActorCritic, states: Tensor, valid: Tensor, seed: int = 2) -> None:
        self.policy, self.states, self.valid = policy, states, valid
        with torch.no_grad():
            self.old = policy.distribution_of(states)
        self.actions = draw(self.old, seed)
        self.old_log_prob = self.old.log_prob(self.actions)
        self.weights = random(len(states), seed=seed + 1)
        self.actor = ActorFunctions(policy, self._objective, {})
        self.theta = self.actor.theta

    def _objective(self, policy: ActorCritic, _: object) -> tuple[Tensor, Tensor]:
        new = policy.distribution_of(self.states)
        log_prob = new.log_prob(self.actions)
        gain = surrogate(log_prob, self.old_log_prob, self.weights, self.valid)
        return gain, mean_kl(self.old, new, self.valid)


def draw(distribution: Categorical | DiagonalGaussian, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    if isinstance(distribution, Categorical):
        return torch.multinomial(distribution.log_probs.exp(), 1, generator=rng).squeeze(-1)
    noise = torch.randn(distribution.mean.shape, generator=rng, dtype=F64)
    return distribution.mean + distribution.log_std.exp() * noise


def batch_of(space: str, seed: int = 0, rows: int = 40) -> Batch:
    states = random(rows, N_FEATURES, seed=seed + 10)
    valid = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.7
    valid[:2] = True
    return Batch(make_policy(space, seed), states, valid, seed + 20)


def positive_definite(size: int, seed: int, spread: float = 1.0) -> Tensor:
    root = random(size, size, seed=seed)
    return root @ root.T / size + spread * torch.eye(size, dtype=F64)


def test_surrogate_by_hand() -> None:
    ratio = torch.tensor([[2.0, 0.5], [1.0, 3.0]], dtype=F64)
    weight = torch.tensor([[3.0, -4.0], [5.0, 900.0]], dtype=F64)
    old = torch.tensor([[-1.0, -2.0], [-0.5, -7.0]], dtype=F64)
    valid = torch.tensor([[True, True], [True, False]])
    close(surrogate(old + ratio.log(), old, weight, valid), (6 - 2 + 5) / 3)


@every_space
def test_surrogate_has_the_policy_gradient_at_the_old_policy(space: str) -> None:
    """Same weights, rows and divisor: the gradients of Eq. 10.1 and Eq. 4.1 are one vector."""
    batch = batch_of(space)

    def pseudo(policy: ActorCritic, _: object) -> tuple[Tensor, Tensor]:
        log_prob = policy.distribution_of(batch.states).log_prob(batch.actions)
        n_valid = batch.valid.sum()
        return -policy_gradient_loss(log_prob, batch.weights, batch.valid, n_valid), n_valid

    expected = ActorFunctions(batch.policy, pseudo, {}).gradient()
    assert expected.norm() > 0.01
    close(batch.actor.gradient(), expected)


def test_surrogate_is_the_expected_advantage_of_the_new_policy() -> None:
    """One row per action, weighed by n pi_old: E_old[ratio A] = E_new[A], nothing sampled."""
    old, new, advantage = (random(5, seed=seed) for seed in (1, 2, 3))
    old, new = old.log_softmax(-1), new.log_softmax(-1)
    rows = 5 * old.exp() * advantage  # the mean over five equal rows takes the place of E_old
    close(surrogate(new, old, rows, torch.ones(5)), (new.exp() * advantage).sum())


def test_surrogate_of_an_absurd_ratio_is_finite() -> None:
    one = torch.ones(1)
    assert surrogate(one * 300, one * -300, one, one).isfinite()


def test_nothing_flows_into_weights_or_old_log_probabilities() -> None:
    log_prob, old, weight = (random(6, seed=seed).requires_grad_() for seed in range(3))
    value = surrogate(log_prob, old, weight, torch.ones(6))
    reached = torch.autograd.grad(value, (log_prob, old, weight), allow_unused=True)
    assert reached[0] is not None
    assert reached[1] is None
    assert reached[2] is None


def test_mean_kl_of_categoricals_is_that_of_torch() -> None:
    p, q = random(7, 4, seed=1) * 2, random(7, 4, seed=2) * 2
    valid = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    torchs = [torch.distributions.Categorical(logits=x) for x in (p, q)]
    rows = torch.distributions.kl_divergence(*torchs)
    reverse = torch.distributions.kl_divergence(*torchs[::-1])
    result = mean_kl(Categorical(p), Categorical(q), valid)
    close(result, rows[valid].mean())
    assert abs(result - reverse[valid].mean()) > 0.01


def test_mean_kl_of_gaussians_is_that_of_torch() -> None:
    means, log_stds = (random(7, 3, seed=1), random(7, 3, seed=2)), random(2, 3, seed=3)
    valid = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    torchs = [
        torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        for mean, log_std in zip(means, log_stds, strict=True)
    ]
    rows = torch.distributions.kl_divergence(*torchs)
    reverse = torch.distributions.kl_divergence(*torchs[::-1])
    ours = [DiagonalGaussian(mean, log_std) for mean, log_std in zip(means, log_stds, strict=True)]
    result = mean_kl(*ours, valid)
    close(result, rows[valid].mean())
    assert abs(result - reverse[valid].mean()) > 0.01


def test_mean_kl_by_hand() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = log 2 - log 3 / 2; the other row has not moved."""
    old = Categorical(torch.zeros(3, 2, dtype=F64))
    new = Categorical(torch.tensor([[0.0, math.log(3)], [0, 0], [99, 0]], dtype=F64))
    valid = torch.tensor([True, True, False])
    close(mean_kl(old, new, valid), (math.log(2) - math.log(3) / 2) / 2)


@every_space
def test_invalid_rows_never_matter(space: str) -> None:
    outcomes = []
    for junk in (0.0, 3.0, -50.0):
        batch = batch_of(space)
        states = torch.where(batch.valid[:, None], batch.states, batch.states + junk)
        moved = Batch(batch.policy, states, batch.valid, 20)
        moved.actions = torch.where(  # as drawn in the untouched states
            batch.valid.view(-1, *[1] * (batch.actions.dim() - 1)), batch.actions, moved.actions
        )
        with torch.no_grad():
            moved.old_log_prob = moved.old.log_prob(moved.actions)
        moved.weights = torch.where(batch.valid, batch.weights, batch.weights + junk)
        v = random(len(moved.theta), seed=4)
        product = fisher_vector_product(moved.actor.kl, moved.theta, v, 0.1)
        outcomes.append((moved.actor.gradient(), product, *moved.actor.evaluate(moved.theta + v)))
    for other in outcomes[1:]:
        for first, second in zip(outcomes[0], other, strict=True):
            close(second, first, 1e-13)


@every_space
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_fisher_vector_product_is_that_of_the_explicit_hessian(space: str, damping: float) -> None:
    batch = batch_of(space)
    hessian = torch.autograd.functional.hessian(batch.actor.kl, batch.theta)
    assert hessian.norm() > 0.1
    matvec = fisher_matvec(batch.actor.kl, batch.theta, damping)
    for seed in range(3):
        v = random(len(batch.theta), seed=seed)
        expected = hessian @ v + damping * v
        product = fisher_vector_product(batch.actor.kl, batch.theta, v, damping)
        close(product, expected, 1e-10)
        close(matvec(v), expected, 1e-10)


@every_space
def test_fisher_is_symmetric_and_positive_semidefinite(space: str) -> None:
    batch = batch_of(space)
    matvec = fisher_matvec(batch.actor.kl, batch.theta, 0.0)
    matrix = torch.stack([matvec(e) for e in torch.eye(len(batch.theta), dtype=F64)])
    close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


def test_fisher_of_one_bernoulli_and_of_one_gaussian_by_hand() -> None:
    """p (1 - p) for a logit; 1 / sigma^2 for a mean, 2 for a log standard deviation."""
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)

    def bernoulli(theta: Tensor) -> Tensor:
        return mean_kl(
            Categorical(torch.tensor([[0.0, 0.4]], dtype=F64)),
            Categorical(torch.cat([zero, theta])[None]),
            one,
        )

    logit = torch.tensor([0.4], dtype=F64)
    p = float(logit.sigmoid())
    product = fisher_vector_product(bernoulli, logit, one, 0.25)
    close(product, torch.tensor([p * (1 - p) + 0.25], dtype=F64))

    def gaussian(theta: Tensor) -> Tensor:
        old = DiagonalGaussian(torch.tensor([[2.0]], dtype=F64), torch.tensor([-0.5], dtype=F64))
        return mean_kl(old, DiagonalGaussian(theta[:1, None], theta[1:]), one)

    at = torch.tensor([2.0, -0.5], dtype=F64)
    product = fisher_vector_product(gaussian, at, torch.tensor([3.0, 5.0], dtype=F64), 0.0)
    close(product, torch.tensor([3 * math.exp(1.0), 10.0], dtype=F64))


@every_space
def test_kl_is_half_the_quadratic_form_up_to_third_order(space: str) -> None:
    """log |KL - h^2 d'Fd / 2| against log h has slope 3 (Eq. 9.4)."""
    for seed in range(3):
        batch = batch_of(space, seed)
        d = random(len(batch.theta), seed=seed + 30)
        d = d / d.norm()
        form = d.dot(fisher_vector_product(batch.actor.kl, batch.theta, d, 0.0)) / 2
        assert form > 1e-3
        lengths = torch.logspace(-3, -2, 8, dtype=F64)
        gaps = [batch.actor.evaluate(batch.theta + h * d)[1] - h**2 * form for h in lengths]
        x, y = lengths.log(), torch.stack(gaps).abs().log()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        assert slope == pytest.approx(3, abs=0.1)


def test_conjugate_gradient_by_hand() -> None:
    """A = [[2, 1], [1, 3]], g = (1, 2): first (5/18, 5/9), then the solution (1/5, 3/5)."""
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=F64)
    g = torch.tensor([1.0, 2.0], dtype=F64)
    first = conjugate_gradient(matrix.mv, g, 1)
    close(first, torch.tensor([5 / 18, 5 / 9], dtype=F64))
    close(conjugate_gradient(matrix.mv, g, 2), torch.tensor([0.2, 0.6], dtype=F64))


@EXAMPLES
@given(st.integers(1, 12), st.integers(0, 999))
def test_conjugate_gradient_is_solve(size: int, seed: int) -> None:
    matrix, g = positive_definite(size, seed), random(size, seed=seed + 1)
    x = conjugate_gradient(matrix.mv, g, 4 * size, 1e-14)
    close(x, torch.linalg.solve(matrix, g), 1e-10)


@EXAMPLES
@given(st.integers(2, 12), st.integers(0, 999))
def test_conjugate_gradient_lowers_the_quadratic_with_every_iteration(size: int, seed: int) -> None:
    """The error in the norm of the matrix never grows, and d iterations suffice."""
    matrix, g = positive_definite(size, seed), random(size, seed=seed + 1)
    solution = torch.linalg.solve(matrix, g)
    errors = []
    for iterations in range(size + 1):
        gap = conjugate_gradient(matrix.mv, g, iterations, 0.0) - solution
        errors.append(float(gap @ matrix @ gap))
    assert all(after <= before + 1e-14 for before, after in pairwise(errors))
    assert errors[-1] < 1e-12 * errors[0]


def counting(matrix: Tensor) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    calls: list[int] = []

    def matvec(v: Tensor) -> Tensor:
        calls.append(1)
        return matrix @ v

    return matvec, calls


def test_conjugate_gradient_stops_at_its_tolerance() -> None:
    matrix, g = positive_definite(30, 5, 0.1), random(30, seed=6)
    counts = []
    for tolerance in (0.5, 1e-2, 1e-6):
        matvec, calls = counting(matrix)
        x = conjugate_gradient(matvec, g, 1000, tolerance)
        assert (matrix @ x - g).norm() <= tolerance * g.norm()
        counts.append(len(calls))
        one_less = conjugate_gradient(matrix.mv, g, len(calls) - 1, tolerance)
        assert (matrix @ one_less - g).norm() > tolerance * g.norm()
    assert counts == sorted(set(counts))
    matvec, calls = counting(matrix)
    conjugate_gradient(matvec, g, 3, 0.0)
    assert len(calls) == 3


def test_conjugate_gradient_of_a_multiple_of_the_identity_takes_one_product() -> None:
    matvec, calls = counting(4 * torch.eye(6, dtype=F64))
    g = random(6, seed=7)
    close(conjugate_gradient(matvec, g, 10), g / 4)
    assert len(calls) == 1


def test_conjugate_gradient_of_zero_is_zero_without_a_product() -> None:
    matvec, calls = counting(torch.eye(3))
    assert torch.equal(conjugate_gradient(matvec, torch.zeros(3), 10), torch.zeros(3))
    assert not calls


def shared_features() -> ActorCritic:
    """A policy over one-hot states whose three hidden units all states share."""
    return make_policy("discrete", seed=1, net_arch=(3,), n_features=N_STATES)


def state_weights(policy: ActorCritic) -> dict[str, Tensor]:
    """Shares of a batch's rows, visits without discount (d_1) and with it (d_gamma)."""
    pi = exact.state_probabilities(PROBLEM, policy)
    return {
        "batch": torch.tensor([7.0, 1.0, 4.0, 2.0, 6.0], dtype=F64) / 20,
        "undiscounted-weights": exact.visitation(PROBLEM, pi, 1.0, None),
        "discounted": exact.visitation(PROBLEM, pi, GAMMA, None),
    }


def exact_gradient(policy: ActorCritic, target: str) -> Tensor:
    """The gradient that belongs to the weights of that name."""
    if target != "batch":
        return exact.policy_gradient(PROBLEM, policy, target, GAMMA)
    values = exact.state_values(PROBLEM, exact.state_probabilities(PROBLEM, policy), GAMMA)
    w = state_weights(policy)["batch"]
    q = exact.action_values(PROBLEM, values, GAMMA)
    return exact.expected_gradient(
        policy, torch.eye(N_STATES, dtype=F64), N_STATES * w[:, None] * q
    )


def natural_direction(policy: ActorCritic, w: Tensor, g: Tensor, damping: float) -> Tensor:
    """Conjugate gradient to convergence on products with the KL divergence under w."""
    states = torch.eye(N_STATES, dtype=F64)
    with torch.no_grad():
        old = policy.distribution_of(states)

    def objective(p: ActorCritic, _: object) -> Pair:
        kl = (w * old.kl(p.distribution_of(states))).sum()
        return kl, kl

    actor = ActorFunctions(policy, objective, {})
    matvec = fisher_matvec(actor.kl, actor.theta, damping)
    return conjugate_gradient(matvec, g, 20 * len(g), 1e-13)


def solved(policy: ActorCritic, w: Tensor, g: Tensor, damping: float) -> Tensor:
    """(F_w + cI)^-1 g with the lab's exact matrix."""
    damp = damping * torch.eye(len(g), dtype=F64)
    return torch.linalg.solve(exact.fisher(policy, w) + damp, g)


def relative_error(x: Tensor, expected: Tensor) -> float:
    return float((x - expected).norm() / x.norm())


@pytest.mark.parametrize("damping", [0.1, 1e-3])
@pytest.mark.parametrize("target", ["batch", "undiscounted-weights", "discounted"])
def test_natural_direction_is_that_of_the_exact_fisher_matrix(target: str, damping: float) -> None:
    """|x - (F_w + cI)^-1 g_w| <= 1e-8 |x| for shared features, and no other weights do."""
    policy = shared_features()
    weights, g = state_weights(policy), exact_gradient(policy, target)
    x = natural_direction(policy, weights[target], g, damping)
    errors = {name: relative_error(x, solved(policy, w, g, damping)) for name, w in weights.items()}
    assert errors.pop(target) <= 1e-8
    assert min(errors.values()) > 1e-3


def test_a_forgotten_or_other_damping_is_seen() -> None:
    policy = shared_features()
    w, g = state_weights(policy)["discounted"], exact_gradient(policy, "discounted")
    x = natural_direction(policy, w, g, 0.1)
    assert relative_error(x, solved(policy, w, g, 0.1)) <= 1e-8
    assert relative_error(x, solved(policy, w, g, 0.11)) > 1e-3


def test_a_batch_weighs_each_state_by_its_share_of_the_valid_rows() -> None:
    """Rows 7, 1, 4, 2, 6 times, and rows that are not valid: F of the batch is F_w."""
    policy = shared_features()
    w = state_weights(policy)["batch"]
    rows = torch.arange(N_STATES).repeat_interleave((20 * w).round().long())
    rows = torch.cat([rows, torch.tensor([1, 1, 3])])
    batch = Batch(policy, torch.eye(N_STATES, dtype=F64)[rows], torch.arange(len(rows)) < 20)
    gradient = batch.actor.gradient()
    matvec = fisher_matvec(batch.actor.kl, batch.theta, 1e-3)
    x = conjugate_gradient(matvec, gradient, 20 * len(gradient), 1e-13)
    assert relative_error(x, solved(policy, w, gradient, 1e-3)) <= 1e-8
    uniform = torch.full_like(w, 1 / N_STATES)
    assert relative_error(x, solved(policy, uniform, gradient, 1e-3)) > 1e-3


def test_a_tabular_policy_cannot_see_the_state_weights() -> None:
    """F_w^+ g_w is the centred advantage whatever w the two share (Eq. 9.6)."""
    table = SoftmaxTable(random(N_STATES, N_ACTIONS, seed=5))
    pi = exact.state_probabilities(PROBLEM, table)
    values = exact.state_values(PROBLEM, pi, GAMMA)
    advantages = exact.action_values(PROBLEM, values, GAMMA) - values[:, None]
    centred = (advantages - advantages.mean(1, keepdim=True)).flatten()
    for name, w in state_weights(shared_features()).items():
        found = exact.compatible_fit(table, w, advantages)
        close(found, centred, 1e-9)
        g = exact.expected_gradient(
            table, torch.eye(N_STATES, dtype=F64), N_STATES * w[:, None] * advantages
        )
        close(torch.linalg.pinv(exact.fisher(table, w), rtol=1e-10) @ g, found, 1e-9)
        assert relative_error(g, centred * (g.norm() / centred.norm())) > 0.1, name


@EXAMPLES
@given(st.integers(1, 9), st.floats(1e-6, 1.0), st.integers(0, 999))
def test_step_size_makes_the_model_of_the_kl_the_target(
    size: int, target: float, seed: int
) -> None:
    matrix, x = positive_definite(size, seed), random(size, seed=seed + 1)
    step = step_size(x, matrix @ x, target) * x
    assert float(step @ matrix @ step) / 2 == pytest.approx(target, rel=1e-12)


def test_step_size_by_hand() -> None:
    x, fx = torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([3.0, 2.0], dtype=F64)
    close(step_size(x, fx, 0.01), math.sqrt(0.02 / 8))


@pytest.mark.parametrize("curvature", [0.0, -1.0])
def test_step_size_where_there_is_no_direction_is_zero(curvature: float) -> None:
    x = torch.tensor([1.0, 2.0])
    assert step_size(x, torch.tensor([curvature, 0.0]), 0.01) == 0


THETA, STEP = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([2.0, 0.0], dtype=F64)
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def along(gain: Callable[[float], float], kl: Callable[[float], float]) -> Evaluate:
    """Surrogate and KL as functions of the share of STEP that was taken."""

    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
        share = float((theta - THETA)[0] / STEP[0])
        return torch.tensor(gain(share), dtype=F64), torch.tensor(kl(share), dtype=F64)

    return evaluate


def test_line_search_takes_the_first_candidate_when_it_may() -> None:
    evaluate = along(lambda x: 5 + x, lambda x: 0.01 * x**2)
    found = line_search(evaluate, THETA, STEP, 0.01)
    assert found.accepted
    assert found.scale == 1
    assert torch.equal(found.theta, THETA + STEP)
    assert (found.surrogate, found.kl) == (6, 0.01)  # the target itself is inside


def test_line_search_shrinks_until_the_kl_holds() -> None:
    """KL .09 x^2 against .01 asks for x <= 1/3: of 1, .5, .25 the third."""
    tried: list[float] = []
    evaluate = along(lambda x: x, lambda x: tried.append(x) or 0.09 * x**2)  # type: ignore[func-returns-value]
    found = line_search(evaluate, THETA, STEP, 0.01, shrink=0.5)
    assert found.accepted
    assert found.scale == 0.25
    assert torch.equal(found.theta, THETA + 0.25 * STEP)
    assert found.kl == pytest.approx(0.09 / 16)
    assert tried == [0, 1, 0.5, 0.25]


def test_line_search_shrinks_until_the_surrogate_improves() -> None:
    """x (1/3 - x) is positive below 1/3 only."""
    evaluate = along(lambda x: 7 + x * (1 / 3 - x), lambda x: 0.0)
    assert line_search(evaluate, THETA, STEP, 0.01, shrink=0.5).scale == 0.25


def test_an_equal_surrogate_is_no_improvement() -> None:
    evaluate = along(lambda x: 7.0, lambda x: 0.0)
    assert not line_search(evaluate, THETA, STEP, 0.01).accepted


NAN = math.nan
REFUSED: dict[str, Evaluate] = {
    "kl too large": along(lambda x: x, lambda x: 1.0),
    "no improvement": along(lambda x: -x, lambda x: 0.0),
    "nan surrogate": along(lambda x: NAN if x else 0.0, lambda x: 0.0),
    "nan kl": along(lambda x: x, lambda x: NAN if x else 0.0),
    "nan from the start": along(lambda x: NAN, lambda x: NAN),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_failed_line_search_moves_nothing(reason: str) -> None:
    before = THETA.clone()
    found = line_search(REFUSED[reason], THETA, STEP, 0.01)
    assert found.theta is THETA
    assert torch.equal(THETA, before)
    assert not found.accepted
    assert (found.scale, found.kl) == (0, 0)


@pytest.mark.parametrize("reason", ["kl too large", "nan surrogate", "nan kl"])
def test_without_improvement_kl_and_nan_are_refused_all_the_same(reason: str) -> None:
    found = line_search(REFUSED[reason], THETA, STEP, 0.01, must_improve=False)
    assert found.theta is THETA
    assert not found.accepted


def test_line_search_of_a_natural_gradient_ignores_the_surrogate() -> None:
    evaluate = along(lambda x: -x, lambda x: 0.09 * x**2)
    found = line_search(evaluate, THETA, STEP, 0.01, shrink=0.5, must_improve=False)
    assert found.accepted
    assert found.scale == 0.25


def test_line_search_passes_a_nan_by_on_its_way_to_a_good_step() -> None:
    evaluate = along(lambda x: NAN if x > 0.6 else x, lambda x: 0.0)
    assert line_search(evaluate, THETA, STEP, 0.01, shrink=0.5).scale == 0.5


def test_line_search_tries_as_many_candidates_as_it_is_told() -> None:
    tried: list[float] = []
    evaluate = along(lambda x: x, lambda x: tried.append(x) or 1.0)  # type: ignore[func-returns-value]
    line_search(evaluate, THETA, STEP, 0.01, shrink=0.5, max_iter=4)
    assert tried == [0, 1, 0.5, 0.25, 0.125]


@every_space
@pytest.mark.parametrize("must_improve", [False, True])
@pytest.mark.parametrize("target", [1e-3, 0.01, 0.3])
def test_measured_kl_of_every_accepted_step_is_at_most_the_target(
    space: str, must_improve: bool, target: float
) -> None:
    """The whole solver on networks: the KL measured again, and a surrogate that rose."""
    scales = []
    for seed in range(6):
        batch = batch_of(space, seed)
        g = batch.actor.gradient()
        matvec = fisher_matvec(batch.actor.kl, batch.theta, 1e-4)
        x = conjugate_gradient(matvec, g, 15)
        step = step_size(x, matvec(x), target) * x
        found = line_search(
            batch.actor.evaluate, batch.theta, step, target, must_improve=must_improve
        )
        assert found.accepted
        gain, kl = batch.actor.evaluate(found.theta)
        assert 0.1 * target < kl <= target
        assert (found.surrogate, found.kl) == (float(gain), float(kl))
        if must_improve:
            assert gain > batch.actor.evaluate(batch.theta)[0]
        scales.append(found.scale)
    if target == 0.3:
        assert min(scales) < 1  # the quadratic model alone would have left the region


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    x, y, w = (random(6, seed=seed).to(dtype) for seed in range(3))
    valid = torch.tensor([1, 1, 0, 1, 1, 0]).bool()
    kl = mean_kl(Categorical(x.view(3, 2)), Categorical(y.view(3, 2)), valid[:3])

    def square(theta: Tensor) -> Tensor:
        return theta.square().sum()

    results = [
        surrogate(x, y, w, valid),
        kl,
        fisher_vector_product(square, x, y, 0.1),
        conjugate_gradient(lambda v: 2 * v, y, 3),
        step_size(x, x, 0.01),
        line_search(lambda t: (t.sum(), t.sum() * 0), x, x.abs(), 0.01).theta,
    ]
    assert {result.dtype for result in results} == {dtype}
    for kind in (torch.int64, dtype):
        assert torch.equal(surrogate(x, y, w, valid.to(kind)), results[0])


def test_inputs_are_not_modified() -> None:
    batch = batch_of("box")
    g, v = batch.actor.gradient(), random(len(batch.theta), seed=1)
    held = (batch.theta, g, v, batch.weights, batch.old_log_prob, *batch.policy.parameters())
    before = [x.detach().clone() for x in held]
    matvec = fisher_matvec(batch.actor.kl, batch.theta, 0.1)
    x = conjugate_gradient(matvec, g, 5)
    step_size(x, matvec(v), 0.01)
    line_search(batch.actor.evaluate, batch.theta, v, 0.01)
    assert all(torch.equal(x, y) for x, y in zip(held, before, strict=True))


def test_every_public_function_is_named_here() -> None:
    public = {
        name
        for name, function in inspect.getmembers(trust_region, inspect.isfunction)
        if function.__module__ == trust_region.__name__ and not name.startswith("_")
    }
    assert public <= set(globals()), "a formula of theory/trust_region.py has no test"

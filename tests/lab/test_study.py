"""The study: what theory predicts agrees with exact means, and what is measured with both."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import bandit, common_level
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.errors import ConfigError
from upslope.lab import baselines, moments
from upslope.lab.exact import enumerate_trajectories, fisher, state_probabilities, visitation
from upslope.lab.natural import inverse_fisher
from upslope.lab.policies import SoftmaxTable
from upslope.lab.problems import PROBLEMS, Problem, find_problem
from upslope.lab.roster import Contender, Oracle, roster
from upslope.lab.statistics import trace_interval
from upslope.lab.study import EPISODES, Row, learned_values, sample, study, study_all
from upslope.lab.study_table import COLUMNS, figure, sentences, table
from upslope.rollout import collect, evaluate_rollout

F64 = torch.float64
NAMES = [*PROBLEMS, "random-4x2-s3"]


def contenders_of(problem: Problem) -> dict[str, Contender]:
    known = roster(problem, problem.policy(), learned_values(problem, 0))
    return {contender.name: contender for contender in known}


@pytest.fixture(scope="module", params=NAMES)
def known(request: pytest.FixtureRequest) -> dict[str, Contender]:
    return contenders_of(find_problem(request.param))


class TestRoster:
    def test_what_theory_predicts_is_what_the_exact_mean_says(
        self, known: dict[str, Contender]
    ) -> None:
        for contender in known.values():
            gap = (contender.exact_mean - contender.target).norm() / contender.target.norm()
            assert contender.predicted_unbiased == (contender.reason == ""), contender.name
            assert gap < 1e-9 if contender.reason == "" else gap > 1e-6, contender.name

    def test_there_are_enough_and_each_has_its_name(self, known: dict[str, Contender]) -> None:
        assert len(known) >= 14 + 10
        predictions = [contender.predicted_unbiased for contender in known.values()]
        assert any(predictions)
        assert not all(predictions)

    def test_directions_hold_every_gradient(self, known: dict[str, Contender]) -> None:
        for contender in known.values():
            basis = contender.basis
            torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=F64))
            inside = basis @ (basis.T @ contender.exact_mean)
            torch.testing.assert_close(inside, contender.exact_mean, rtol=0, atol=1e-6)


def test_critic_names_the_state_and_its_true_successor() -> None:
    problem = find_problem("sentinel")
    vector = TabularVectorEnv(problem.mdp, 8)
    envs, policy = make_environments(find_environment(vector), seed=1), problem.policy()
    rollout = collect(envs, policy, n_episodes=64)
    evaluated = evaluate_rollout(policy, rollout)
    here = rollout.obs.argmax(-1)[rollout.valid]
    torch.testing.assert_close(evaluated.values[rollout.valid], here.double())
    reached = problem.mdp.transitions[here, rollout.actions[rollout.valid]]
    there = evaluated.next_values[rollout.valid].round().long()
    assert (reached.gather(1, there[:, None]) == 1).all()  # moves are certain


def test_learned_values_are_means_of_returns() -> None:
    problem = find_problem("delayed-reward")
    learned = learned_values(problem, 0)
    truth = Oracle(problem, problem.policy()).values
    assert (learned - truth).abs().max() < 0.3
    assert not torch.allclose(learned, truth)


@pytest.mark.parametrize("leave_out", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_moments_of_batch_means_by_enumeration(size: int, leave_out: bool) -> None:
    """Every batch of N episodes, each times its probability."""
    mdp = common_level(2.0)
    policy = SoftmaxTable(torch.tensor([[0.3, -0.2], [0.1, 0.5]], dtype=F64))
    pi = state_probabilities(mdp, policy)
    batch, prob = enumerate_trajectories(mdp, pi, 2)
    score = moments.Tables.of(mdp, policy).score
    z = (score[batch.states, batch.actions] * batch.valid[..., None]).sum(0)
    r = (0.9 ** torch.arange(2, dtype=F64)[:, None] * batch.rewards * batch.valid).sum(0)
    grid = torch.cartesian_prod(*[torch.arange(len(prob))] * size)
    weight, returns = prob[grid].prod(1), r[grid]
    others = returns.sum(1, keepdim=True) - returns
    mean = others / (size - 1) if leave_out else returns.mean(1, keepdim=True)
    x = (z[grid] * (returns - mean)[..., None]).mean(1)
    expected = weight @ x
    spread = weight @ (x - expected).square().sum(1)
    found, variance = moments.batch_mean(mdp, policy, 0.9, size, leave_out)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(variance, size * spread)


@pytest.mark.parametrize("kappa", [1.0, 0.8])
def test_moments_of_a_sum_over_states_by_enumeration(kappa: float) -> None:
    problem = find_problem("sentinel")
    mdp = problem.mdp.with_limit(3, is_task=False)
    policy = problem.policy()
    batch, prob = enumerate_trajectories(mdp, state_probabilities(mdp, policy), 3)
    terms = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    time = torch.arange(3)[:, None]
    x = kappa ** time[..., None].double() * terms[time, batch.states] * batch.valid[..., None]
    expected = prob @ x.sum(0)
    spread = prob @ (x.sum(0) - expected).square().sum(1)
    found, variance = moments.state_sum(mdp, policy, terms, kappa)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(variance, spread)


@pytest.mark.parametrize("damping", [0.1, 1e-3])
def test_inverse_of_the_damped_fisher_matrix(damping: float) -> None:
    """By conjugate gradient on Fisher-vector products, to 1e-8 of the explicit inverse."""
    for name in ("sentinel", "random"):
        problem = find_problem(name)
        policy, mdp = problem.policy(), problem.mdp
        visits = visitation(mdp, state_probabilities(mdp, policy), 1.0, mdp.horizon).sum(0)
        w = visits / visits.sum()
        matrix = fisher(policy, w)
        wanted = (matrix + damping * torch.eye(len(matrix), dtype=F64)).inverse()
        found = inverse_fisher(policy, w, damping)
        assert (found - wanted).norm() <= 1e-8 * wanted.norm()


def test_without_a_limit_the_recursions_look_far_enough() -> None:
    problem = find_problem("gridworld")
    assert problem.limit == "none"
    mdp, policy = problem.limited(), problem.policy()
    late = mdp.with_limit(2 * moments.horizon_of(mdp), is_task=False)
    rho = moments.reward_table(mdp)
    for kappa in (1.0, problem.gamma):
        short = moments.weighted(mdp, policy, rho, problem.gamma, kappa)
        long = moments.weighted(late, policy, rho, problem.gamma, kappa)
        torch.testing.assert_close(short[0], long[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(short[1], long[1], rtol=1e-9, atol=0)


def agree(rows: list[Row]) -> None:
    """Nothing that is decided contradicts theory, and exact figures lie inside their intervals."""
    for row in rows:
        found = row.findings
        assert row.agrees or found.verdict == "undecided", row
        low, high = found.relative_bias_ci
        assert low <= found.exact_relative_bias <= high, row
        low, high = found.variance_ci
        assert low <= found.exact_variance <= high, row


@pytest.fixture(scope="module")
def sentinel_rows() -> list[Row]:
    return study(find_problem("sentinel"), batches=60, seed=0)


class TestStudy:
    def test_measured_and_exact_agree(self, sentinel_rows: list[Row]) -> None:
        agree(sentinel_rows)
        verdicts = {row.name: row.findings.verdict for row in sentinel_rows}
        assert verdicts["episode return - mean"] == "biased"
        assert verdicts["TD residual, wrong V"] == "biased"
        assert verdicts["reward-to-go"] == verdicts["TD residual, exact V"] == "unbiased"

    def test_one_seed_one_table(self) -> None:
        one, again, other = (
            study(find_problem("two-state"), batches=12, seed=seed) for seed in (1, 1, 2)
        )
        assert one == again
        assert one != other

    def test_processes_do_not_matter(self) -> None:
        told: list[Any] = []
        names = ["two-state", "sentinel"]
        together = study_all(names, 12, 0, 2, told.append)
        apart = study_all(names, 12, 0, 1, lambda _: None)
        assert together == apart
        assert sorted(set(told)) == sorted(names)

    def test_surrogate_has_the_very_gradient_of_its_weights(self, sentinel_rows: list[Row]) -> None:
        found = {row.name: row.findings for row in sentinel_rows}
        plain, surrogate = found["GAE(0.95), exact V"], found["PPO surrogate, GAE(0.95), exact V"]
        assert surrogate.variance == pytest.approx(plain.variance, rel=1e-10)
        assert surrogate.relative_bias == pytest.approx(plain.relative_bias, abs=1e-10)

    def test_words_table_and_figure(self, sentinel_rows: list[Row], tmp_path: Any) -> None:
        lines = table(sentinel_rows)
        assert {len(line) for line in lines} == {len(COLUMNS)}
        said = " ".join(sentences(sentinel_rows))
        decided = [row for row in sentinel_rows if row.findings.verdict != "undecided"]
        assert f"{len(decided)} of the {len(decided)} decided" in said
        figure(sentinel_rows, tmp_path / "x.png", "title")
        assert (tmp_path / "x.png").stat().st_size > 10_000


def faulty(contender: Contender) -> Contender:
    """The same estimator with every reward of the batch counted a tenth too much."""
    return dataclasses.replace(contender, transform=lambda gradients: 1.1 * gradients)


def test_a_faulty_estimator_is_called_biased() -> None:
    from upslope.lab.statistics import examine

    problem = find_problem("sentinel")
    policy = problem.policy()
    known = contenders_of(problem)["TD residual, exact V"]
    for contender, verdict in ((known, "unbiased"), (faulty(known), "biased")):
        first = sample(problem, policy, [contender], 200, 1)[known.name]
        second = sample(problem, policy, [contender], 800, 2)[known.name]
        assert examine(contender, first, second, 1e-4, EPISODES).verdict == verdict


def spread_of(problem: Problem, *names: str) -> list[tuple[float, float]]:
    """Intervals of the measured variances, which hold the exact ones."""
    every, policy = contenders_of(problem), problem.policy()
    chosen = [every[name] for name in names]
    gradients = sample(problem, policy, chosen, 200, 1)
    found = []
    for known in chosen:
        low, high = trace_interval(gradients[known.name], EPISODES, 1e-3)
        assert low <= known.exact_variance <= high
        found.append((low, high))
    return found


class TestVariancesInBothDirections:
    """Where the usual saying holds, and where it does not; the measured ones say the same."""

    def test_reward_to_go_varies_less_at_the_corner_and_more_under_a_level(self) -> None:
        names = ["episode return", "reward-to-go"]
        whole, to_go = spread_of(find_problem("two-state"), *names)
        assert to_go[1] < whole[0]
        level = Problem("level", common_level(5.0), 1.0, torch.zeros(2, 2))
        whole, to_go = spread_of(level, *names)
        assert whole[1] < to_go[0]

    def test_v_as_a_baseline_helps_and_hurts(self) -> None:
        names = ["reward-to-go", "reward-to-go - V"]
        plain, based = spread_of(find_problem("two-state"), *names)
        assert based[1] < plain[0]
        peaked = Problem("peaked", bandit(1.0, 0.0), 1.0, torch.tensor([[0.9, 0.1]]).log())
        plain, based = spread_of(peaked, *names)
        assert plain[1] < based[0]

    def test_no_baseline_of_the_state_varies_less_than_the_optimal_one(self) -> None:
        for name in ("two-state", "sentinel"):
            known = contenders_of(find_problem(name))
            best = known["reward-to-go - b*"].exact_variance
            problem = find_problem(name)
            mdp, policy, gamma = problem.limited(), problem.policy(), problem.gamma
            star = baselines.optimal(mdp, policy, gamma, time_dependent=False)
            rho = moments.reward_table(mdp)
            for shift in (0.2, -0.2):
                other = moments.weighted(mdp, policy, rho, gamma, gamma, star + shift)[1]
                assert other > best


@pytest.mark.parametrize("seed", range(2))
def test_random_processes(seed: int) -> None:
    agree(study(find_problem(f"random-3x2-s{seed}"), batches=60, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_random_processes(seed: int) -> None:
    """The two stages reject nothing that theory calls unbiased, and GAE's bias is the exact one."""
    n_states, n_actions = ((2, 2), (4, 3), (6, 2))[seed % 3]
    rows = study(find_problem(f"random-{n_states}x{n_actions}-s{seed}"), batches=150, seed=seed)
    agree(rows)
    for row in rows:
        if row.predicted_unbiased:
            assert row.findings.verdict != "biased", row


@pytest.mark.parametrize("name", ["sentinal", "random-0x2", "random-99x2", "random-3x1"])
def test_unknown_processes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"sentinel|30 states"):
        find_problem(name)

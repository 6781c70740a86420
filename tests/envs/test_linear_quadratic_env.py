"""Linear-quadratic tasks as environments: what is played is what the matrices say."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy import stats

from upslope.envs.linear_quadratic import LQ, LQEnv, double_integrator, scalar

FLOAT = torch.float64
NAMED = [scalar(), scalar(1, bound=1.0), double_integrator(), double_integrator(None, 0.2)]


@pytest.mark.parametrize("lq", NAMED, ids=lambda lq: f"{lq.name} {lq.horizon} {lq.bound}")
def test_is_a_proper_environment(lq: LQ) -> None:
    with warnings.catch_warnings():  # advice against spaces without bounds
        warnings.filterwarnings("ignore", message=".*(infinity|symmetric and normalized)")
        check_env(LQEnv(lq), skip_render_check=True)


def wide() -> LQ:
    """Three numbers moved by two, every matrix full."""
    rng = np.random.default_rng(4)

    def square(n: int) -> torch.Tensor:
        root = rng.normal(size=(n, n))
        return torch.from_numpy(root @ root.T + 0.1 * np.eye(n))

    a, b = (torch.from_numpy(0.4 * rng.normal(size=(3, k))) for k in (3, 2))
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=FLOAT)
    return LQ("wide", a, b, square(3), square(2), square(3), mean, square(3), termination=0.3)


def test_plays_its_matrices() -> None:
    """Rewards exactly; first states, noise and ends by tests of their laws."""
    lq = wide()
    env, rng = LQEnv(lq), np.random.default_rng(0)
    a, b, q, r = (x.numpy() for x in (lq.A, lq.B, lq.Q, lq.R))
    x, _ = env.reset(seed=5)
    starts, noise, ends = [x], [], 0
    for _ in range(20_000):
        u = rng.normal(size=2)
        after, reward, terminated, truncated, _ = env.step(u)
        assert reward == pytest.approx(-(x @ q @ x + u @ r @ u), rel=1e-12)
        assert not truncated
        noise.append(after - a @ x - b @ u)
        ends += terminated
        x = after
        if terminated:
            x, _ = env.reset()
            starts.append(x)
    assert stats.binomtest(ends, 20_000, 0.3).pvalue > 1e-4
    are_normal(np.array(starts), lq.start_mean.numpy(), lq.start_covariance.numpy())
    are_normal(np.array(noise), np.zeros(3), lq.noise.numpy())


def are_normal(rows: Any, mean: Any, covariance: Any) -> None:
    """Whitened, the numbers of a row and of the next are independent standard normals."""
    white = np.linalg.solve(np.linalg.cholesky(covariance), (rows - mean).T)
    p_values = [stats.kstest(row, "norm").pvalue for row in white]
    pairs = itertools.combinations([*white[:, 1:], *white[:, :-1]], 2)
    p_values += [stats.pearsonr(*pair)[1] for pair in pairs]
    assert min(p_values) > 1e-4


def test_noise_may_be_singular() -> None:
    """The position of the double integrator is moved by nothing but its velocity and the force."""
    lq = double_integrator()
    env = LQEnv(lq)
    x, _ = env.reset(seed=1)
    after, *_ = env.step(np.array([2.0]))
    assert after[0] == pytest.approx(x[0] + 0.5 * x[1] + 0.125 * 2.0, abs=1e-12)
    assert after[1] != pytest.approx(x[1] + 0.5 * 2.0, abs=1e-6)


@pytest.mark.parametrize("is_task", [True, False])
def test_the_limit_terminates_or_truncates(is_task: bool) -> None:
    env = LQEnv(replace(scalar(3), limit_is_task=is_task))
    env.reset(seed=0)
    for t in (1, 2, 3):
        _, _, terminated, truncated, _ = env.step(np.zeros(1))
        assert truncated == (t == 3 and not is_task)
        assert terminated == (t == 3 and is_task)


def test_both_ends_at_once() -> None:
    env = LQEnv(replace(scalar(1, termination=1.0), limit_is_task=False))
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(np.zeros(1))
    assert terminated
    assert truncated


def test_the_clip_belongs_to_the_environment() -> None:
    """An action beyond the bound costs and moves as much as the bound."""
    free, bounded = LQEnv(scalar()), LQEnv(scalar(bound=1.0))

    def after(env: LQEnv, action: float) -> tuple[float, float]:
        env.reset(seed=3)
        x, reward, *_ = env.step(np.array([action]))
        return float(x[0]), reward

    assert after(bounded, 2.0) == after(free, 1.0) == after(bounded, 1.0)
    assert after(bounded, -7.0) == after(free, -1.0)
    assert after(bounded, 0.4) == after(free, 0.4)
    assert bounded.action_space.high.tolist() == [1.0]


def test_states_handed_out_are_copies() -> None:
    env = LQEnv(scalar())
    first, _ = env.reset(seed=0)
    kept = float(first[0])
    first[0] = 100.0
    assert float(env.state[0]) == kept
    second, *_ = env.step(np.zeros(1))
    second[0] = 100.0
    assert float(env.state[0]) != 100.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"A": torch.ones(1, 2, dtype=FLOAT)}, r"A of scalar .* give float64 of shape \(1, 1\)"),
        ({"Q": torch.ones(1, 1)}, "Q of scalar is torch.float32"),
        ({"noise": -torch.ones(1, 1, dtype=FLOAT)}, "noise of scalar has a negative eigenvalue"),
        ({"termination": 1.5}, "termination=1.5"),
        ({"horizon": 0}, "horizon=0"),
        ({"bound": 0.0}, "bound=0.0"),
        ({"bound": float("inf")}, "bound=inf"),
    ],
)
def test_matrices_that_make_no_task_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(scalar(), **change)


def test_costs_are_symmetric() -> None:
    with pytest.raises(ValueError, match="Q of double integrator is not symmetric"):
        replace(double_integrator(), Q=torch.tensor([[1.0, 0.2], [0.0, 1.0]], dtype=FLOAT))

"""Running statistics: numpy's moments however split, and the forward return written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.policies.normalizer import (
    EPSILON,
    ObservationNormalizer,
    RewardNormalizer,
    RunningMoments,
)

F64 = torch.float64
EXAMPLES = settings(max_examples=30, deadline=None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def moments_of(*batches: Tensor, shape: tuple[int, ...]) -> RunningMoments:
    moments = RunningMoments(shape)
    for batch in batches:
        moments.update(batch)
    return moments


def test_running_moments_by_hand() -> None:
    moments = RunningMoments((2,))
    moments.update(torch.tensor([[1.0, 10.0], [3.0, 10.0]]))
    assert moments.mean.tolist() == [2, 10]
    assert moments.var.tolist() == [1, 0]
    moments.update(torch.tensor([[8.0, 40.0]]))
    assert moments.count == 3
    assert moments.mean.tolist() == pytest.approx([4, 20])
    assert moments.var.tolist() == pytest.approx([26 / 3, 200])


@EXAMPLES
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
    st.sampled_from(((), (3,), (2, 2))),
    st.sampled_from((0.0, 1e3)),
    st.integers(0, 999),
)
def test_running_moments_are_those_of_all_rows_however_split(
    sizes: list[int], shape: tuple[int, ...], offset: float, seed: int
) -> None:
    sizes = [*sizes, 1]
    rows = offset + normal(sum(sizes), *shape, seed=seed)
    moments = moments_of(*rows.split(sizes), shape=shape)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean.numpy(), rows.numpy().mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.var.numpy(), rows.numpy().var(0), rtol=1e-9, atol=1e-9)


def test_running_moments_survive_a_large_mean() -> None:
    """Mean 1e6, deviation 1e-2: the difference of E[x^2] and E[x]^2 would lose every digit."""
    rows = 1e6 + 1e-2 * normal(4000, 1)
    moments = moments_of(*rows.split(37), shape=(1,))
    np.testing.assert_allclose(moments.var.numpy(), rows.numpy().var(0), rtol=1e-5)


def test_running_moments_read_any_dtype_and_keep_float64() -> None:
    for dtype in (torch.uint8, torch.int64, torch.float32):
        moments = moments_of(torch.tensor([[1], [2], [6]], dtype=dtype), shape=(1,))
        assert moments.mean.dtype == moments.var.dtype == F64
        assert moments.mean.item() == 3
        assert moments.var.item() == pytest.approx(14 / 3)


def test_running_moments_of_nothing_are_those_of_the_unit_normal() -> None:
    moments = moments_of(torch.zeros(0, 3), shape=(3,))
    assert moments.count == 0
    assert moments.mean.tolist() == [0, 0, 0]
    assert moments.std().tolist() == pytest.approx([1, 1, 1])


def test_the_deviation_is_never_zero() -> None:
    moments = moments_of(torch.full((5, 1), 3.0), shape=(1,))
    assert moments.std().item() == pytest.approx(math.sqrt(EPSILON))


def test_updating_leaves_the_rows_alone_and_no_graph_behind() -> None:
    rows = normal(5, 2).requires_grad_()
    before = rows.detach().clone()
    moments = moments_of(rows.detach(), shape=(2,))
    assert torch.equal(rows.detach(), before)
    assert not moments.mean.requires_grad


def test_observation_normalizer_is_centred_scaled_and_clipped() -> None:
    normalizer = ObservationNormalizer((2,), clip=1.5)
    normalizer.update(torch.tensor([[0.0, 10.0], [4.0, 10.0], [2.0, 40.0]]))
    mean, std = torch.tensor([2.0, 20.0], dtype=F64), torch.tensor([8 / 3, 200.0], dtype=F64).sqrt()
    obs = torch.tensor([[[3.0, 25.0], [900.0, -900.0]]])
    result = normalizer(obs)
    assert result.dtype == F64
    assert result.shape == obs.shape
    expected = (torch.tensor([3.0, 25.0], dtype=F64) - mean) / std
    torch.testing.assert_close(result[0, 0], expected, rtol=1e-7, atol=1e-7)
    assert result[0, 1].tolist() == [1.5, -1.5]


def test_normalizing_moves_no_statistic() -> None:
    observations, rewards = ObservationNormalizer((2,), 10.0), RewardNormalizer(0.9, 10.0)
    observations.update(normal(20, 2))
    done = torch.zeros(20, 2, dtype=torch.bool)
    rewards.update(normal(20, 2), done, ~done)
    before = [x.clone() for x in (*observations.buffers(), *rewards.buffers())]
    observations.train()(normal(5, 2, seed=1))
    rewards.train()(normal(5, 2, seed=1))
    after = (*observations.buffers(), *rewards.buffers())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def slow_forward_returns(
    rewards: Tensor, done: Tensor, gamma: float, carry: list[float]
) -> list[list[float]]:
    """R_t = sum over the episode so far of gamma^(t-k) r_k, plus what was carried in."""
    n_rows, n_columns = rewards.shape
    returns = []
    for t in range(n_rows):
        row = []
        for b in range(n_columns):
            first = t
            while first > 0 and not done[first - 1, b]:
                first -= 1
            total = sum(gamma ** (t - k) * float(rewards[k, b]) for k in range(first, t + 1))
            began_before = not bool(done[:t, b].any())
            row.append(total + gamma ** (t + 1) * carry[b] * began_before)
        returns.append(row)
    return returns


@EXAMPLES
@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from((0.0, 0.9, 1.0)), st.integers(0, 999))
def test_reward_normalizer_follows_the_running_return(
    n_rows: int, n_columns: int, gamma: float, seed: int
) -> None:
    """Two rollouts with ends inside and reset rows; the second goes on where the first stood."""
    rng = torch.Generator().manual_seed(seed)
    normalizer = RewardNormalizer(gamma, clip=10.0)
    carry, seen = [0.0] * n_columns, []
    for _ in range(2):
        rewards = torch.randn(n_rows, n_columns, generator=rng, dtype=F64)
        done = torch.rand(n_rows, n_columns, generator=rng) < 0.3
        valid = torch.rand(n_rows, n_columns, generator=rng) < 0.8
        returns = slow_forward_returns(rewards, done, gamma, carry)
        seen += [returns[t][b] for t, b in valid.nonzero().tolist()]
        carry = [0.0 if done[-1, b] else returns[-1][b] for b in range(n_columns)]
        normalizer.update(rewards, done, valid)
    assert normalizer.moments.count == len(seen)
    assert normalizer.carry.tolist() == pytest.approx(carry, abs=1e-12)
    if seen:
        assert normalizer.moments.mean.item() == pytest.approx(np.mean(seen), abs=1e-12)
        assert normalizer.moments.var.item() == pytest.approx(np.var(seen), abs=1e-12)


def test_reward_normalizer_by_hand() -> None:
    """gamma 1/2; the first environment ends on row 1: returns 1, 3, 4 and 2, 5, 8.5."""
    normalizer = RewardNormalizer(0.5, clip=3.0)
    rewards = torch.tensor([[1.0, 2.0], [2.5, 4.0], [4.0, 6.0]])
    done = torch.tensor([[False, False], [True, False], [False, False]])
    normalizer.update(rewards, done, torch.ones(3, 2, dtype=torch.bool))
    returns = [1, 2, 3, 5, 4, 8.5]
    assert normalizer.carry.tolist() == [4, 8.5]
    assert normalizer.moments.var.item() == pytest.approx(np.var(returns))
    result = normalizer(torch.tensor([[1.0, -0.5], [0.0, 900.0]]))
    std = math.sqrt(np.var(returns) + EPSILON)
    assert result.flatten().tolist() == pytest.approx([1 / std, -0.5 / std, 0, 3.0])


def test_splitting_a_rollout_changes_no_reward_statistic() -> None:
    rewards = normal(12, 3)
    done = normal(12, 3, seed=1) > 1
    valid = normal(12, 3, seed=2) > -1.5
    whole, split = RewardNormalizer(0.95, 10.0), RewardNormalizer(0.95, 10.0)
    whole.update(rewards, done, valid)
    for part in (slice(0, 1), slice(1, 6), slice(6, 12)):
        split.update(rewards[part], done[part], valid[part])
    for name in ("count", "mean", "var"):
        expected = getattr(whole.moments, name)
        torch.testing.assert_close(getattr(split.moments, name), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(split.carry, whole.carry)


@pytest.mark.parametrize("forget", ["restart", "other environments"])
def test_running_returns_start_anew(forget: str) -> None:
    normalizer = RewardNormalizer(1.0, 10.0)
    never, always = torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    normalizer.update(torch.tensor([[5.0, 7.0]]), never, always)
    if forget == "restart":
        normalizer.restart()
        normalizer.update(torch.tensor([[1.0, 2.0]]), never, always)
        assert normalizer.carry.tolist() == [1, 2]
    else:
        normalizer.update(torch.ones(1, 3), never[:, :1].expand(1, 3), always[:, :1].expand(1, 3))
        assert normalizer.carry.tolist() == [1, 1, 1]
    assert normalizer.moments.count > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalized_rewards_keep_dtype_shape_and_sign(dtype: torch.dtype) -> None:
    normalizer = RewardNormalizer(0.99, 10.0)
    rewards = (5 + normal(30, 4)).to(dtype)
    done = torch.zeros(30, 4, dtype=torch.bool)
    before = rewards.clone()
    normalizer.update(rewards, done, ~done)
    result = normalizer(rewards)
    assert result.dtype == dtype
    assert result.shape == rewards.shape
    assert torch.equal(result.sign(), rewards.sign())
    assert torch.equal(rewards, before)


def test_statistics_are_in_the_state_and_where_the_returns_stood_is_not() -> None:
    normalizer = RewardNormalizer(0.9, 10.0)
    done = torch.zeros(4, 2, dtype=torch.bool)
    normalizer.update(normal(4, 2), done, ~done)
    state = normalizer.state_dict()
    assert set(state) == {"moments.count", "moments.mean", "moments.var"}
    other = RewardNormalizer(0.9, 10.0)
    other.load_state_dict(state)
    rewards = normal(5, 2, seed=1)
    assert torch.equal(other(rewards), normalizer(rewards))


def test_truths_are_normalised_as_the_numbers_that_they_are() -> None:
    truths = torch.tensor([[True, False], [True, True], [False, True]])
    of_truths, of_numbers = (ObservationNormalizer((2,), 10.0) for _ in range(2))
    of_truths.update(truths)
    of_numbers.update(truths.double())
    assert torch.equal(of_truths(truths), of_numbers(truths.double()))

"""Rewards to weights: hand-worked rows, the papers' sums written out, identities and sampling."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.theory import returns
from upslope.theory.returns import (
    batch_baseline,
    discount_weights,
    episode_return,
    gae,
    lambda_returns,
    leave_one_out,
    reward_to_go,
    standardize,
    td_errors,
)

F64 = torch.float64
GAMMAS = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Rows:
    """A T x B stream of transitions with true successors, as the return functions see it."""

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    truncated: Tensor

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated

    @property
    def bootstrap(self) -> Tensor:
        return self.next_values * ~self.terminated

    def gae_arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.rewards, self.values, self.next_values, self.terminated, self.done


def random_rows(
    n_rows: int, n_columns: int, p_terminated: float = 0.2, p_truncated: float = 0.2, seed: int = 0
) -> Rows:
    """Rows whose successor is the next row's state, or an unrelated one where an episode ends."""
    rng = torch.Generator().manual_seed(seed)
    shape = (n_rows, n_columns)
    values = torch.randn(shape, generator=rng, dtype=F64)
    unrelated = torch.randn(shape, generator=rng, dtype=F64)
    terminated = torch.rand(shape, generator=rng) < p_terminated
    truncated = torch.rand(shape, generator=rng) < p_truncated
    following = torch.cat([values[1:], unrelated[-1:]])
    next_values = torch.where(terminated | truncated, unrelated, following)
    rewards = torch.randn(shape, generator=rng, dtype=F64)
    return Rows(rewards, values, next_values, terminated, truncated)


SHARES = st.sampled_from((0.0, 0.15, 0.5, 1.0))
ROWS = st.builds(
    random_rows, st.integers(1, 20), st.integers(1, 4), SHARES, SHARES, st.integers(0, 999)
)
EXAMPLES = settings(max_examples=40, deadline=None)


@dataclass(frozen=True)
class Episodes:
    """Whole episodes in a T x B grid, one after the other in a column, then idle rows."""

    weights: Tensor
    episode: Tensor
    episode_step: Tensor
    valid: Tensor

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.weights, self.episode, self.episode_step, self.valid

    def rows_of(self, number: int) -> list[float]:
        """Weights of one episode in the order of its steps."""
        mine = self.episode == number
        return self.weights[mine][self.episode_step[mine].argsort()].tolist()


def random_episodes(n_columns: int, each: int, longest: int, seed: int = 0) -> Episodes:
    """``each`` episodes of 1 to ``longest`` steps in every column, numbered across from 30 on."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (each, n_columns), generator=rng)
    shape = (int(lengths.sum(0).max()), n_columns)
    weights = torch.randn(shape, generator=rng, dtype=F64)
    episode, step = torch.full(shape, -1), torch.zeros(shape, dtype=torch.int64)
    for column in range(n_columns):
        start = 0
        for k, length in enumerate(lengths[:, column].tolist()):
            episode[start : start + length, column] = 30 + k * n_columns + column
            step[start : start + length, column] = torch.arange(length)
            start += length
    return Episodes(weights, episode, step, episode >= 0)


EPISODES = st.builds(
    random_episodes, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 999)
)


def columns(*lists: list[float]) -> Tensor:
    """Columns of one environment each, as ``[T, B]``."""
    return torch.tensor(lists, dtype=F64).T.contiguous()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Two environments, gamma 1/2, lambda 1/2. The first is truncated on row 1 (the state reached there
# is worth 100) and ends on the last row terminated and truncated at once; the second terminates on
# row 2 and is cut by the end of the batch in a state worth 6. 1000 and 77 must never be seen.
HAND = Rows(
    rewards=columns([1, 2, 4, 8, 16], [3, 5, 7, 11, 13]),
    values=columns([10, 20, 30, 40, 50], [1, 2, 3, 4, 5]),
    next_values=columns([20, 100, 40, 50, 1000], [2, 3, 77, 5, 6]),
    terminated=columns([0, 0, 0, 0, 1], [0, 0, 1, 0, 0]).bool(),
    truncated=columns([0, 1, 0, 0, 1], [0, 0, 0, 0, 0]).bool(),
)


def test_reward_to_go_by_hand() -> None:
    close(
        reward_to_go(HAND.rewards, HAND.done, 0.5),
        columns([2, 2, 12, 16, 16], [7.25, 8.5, 7, 17.5, 13]),
    )


def test_reward_to_go_with_bootstrap_by_hand() -> None:
    unread = 999.0
    bootstrap = columns([unread, 100, unread, unread, 0], [unread, unread, 0, unread, 6])
    close(
        reward_to_go(HAND.rewards, HAND.done, 0.5, bootstrap),
        columns([27, 52, 12, 16, 16], [7.25, 8.5, 7, 19, 16]),
    )


def test_episode_return_by_hand() -> None:
    close(
        episode_return(HAND.rewards, HAND.done, 0.5),
        columns([2, 2, 12, 12, 12], [7.25, 7.25, 7.25, 17.5, 17.5]),
    )


def test_discount_weights_by_hand() -> None:
    steps = torch.tensor([[0, 0], [1, 1], [0, 2], [1, 0], [2, 1]])
    expected = columns([1, 0.5, 1, 0.5, 0.25], [1, 0.5, 0.25, 1, 0.5])
    close(discount_weights(steps, 0.5), expected, 0)
    close(discount_weights(steps, 1.0), torch.ones(5, 2, dtype=F64), 0)
    close(discount_weights(steps, 0.0), (steps == 0).to(F64), 0)


def test_td_errors_by_hand() -> None:
    close(
        td_errors(HAND.rewards, HAND.values, HAND.next_values, HAND.terminated, 0.5),
        columns([1, 32, -6, -7, -34], [3, 4.5, 4, 9.5, 11]),
    )


def test_gae_by_hand() -> None:
    close(
        gae(*HAND.gae_arguments(), 0.5, 0.5),
        columns([9, 32, -9.875, -15.5, -34], [4.375, 5.5, 4, 12.25, 11]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gae_by_numpy_is_gae_by_torch_to_the_bit(dtype: torch.dtype) -> None:
    """NumPy serves tensors that need no gradient; those that do are torch's throughout."""
    generator = torch.Generator().manual_seed(3)
    rewards, values, after = (torch.randn(37, 5, generator=generator).to(dtype) for _ in range(3))
    ended = torch.rand(37, 5, generator=generator) < 0.1
    found = gae(rewards, values, after, ended, ended, 0.99, 0.95)
    by_torch = gae(rewards, values.clone().requires_grad_(), after, ended, ended, 0.99, 0.95)
    assert by_torch.requires_grad
    assert not found.requires_grad
    assert torch.equal(found, by_torch.detach())


def test_gae_takes_what_numpy_cannot_read() -> None:
    generator = torch.Generator().manual_seed(3)
    rewards, values, after = torch.randn(3, 4, 7, 2, generator=generator)
    ended = torch.rand(4, 7, 2, generator=generator) < 0.2
    each = [
        gae(*rows, 0.99, 0.95) for rows in zip(rewards, values, after, ended, ended, strict=True)
    ]
    mapped = torch.vmap(lambda *rows: gae(*rows, 0.99, 0.95))(rewards, values, after, ended, ended)
    assert torch.allclose(mapped, torch.stack(each), rtol=0, atol=1e-6)
    rough = (x[0].bfloat16() for x in (rewards, values, after))
    assert gae(*rough, ended[0], ended[0], 0.99, 0.95).dtype == torch.bfloat16


def test_lambda_returns_by_hand() -> None:
    close(
        lambda_returns(*HAND.gae_arguments(), 0.5, 0.5),
        columns([19, 52, 20.125, 24.5, 16], [5.375, 7.5, 7, 16.25, 16]),
    )


def test_leave_one_out_by_hand() -> None:
    weights = torch.tensor([[1, 2, 6], [10, 20, 30]], dtype=F64)
    expected = torch.tensor([[4, 3.5, 1.5], [25, 20, 15]], dtype=F64)
    close(leave_one_out(weights), expected)


def test_leave_one_out_refuses_one_episode() -> None:
    with pytest.raises(ValueError, match="at least two episodes"):
        leave_one_out(torch.ones(5, 1))


# Episode 7 ends inside its column and 9 on the last row; 8 is the longest, and an idle row follows
# it whose 1000 must never be seen.
BATCH = Episodes(
    weights=columns([1, 2, 4, 8], [16, 32, 64, 1000]),
    episode=columns([7, 7, 9, 9], [8, 8, 8, -1]).long(),
    episode_step=columns([0, 1, 0, 1], [0, 1, 2, 0]).long(),
    valid=columns([1, 1, 1, 1], [1, 1, 1, 0]).bool(),
)


@pytest.mark.parametrize(
    ("leave_out", "per_step", "expected"),
    [
        (False, True, ([7, 14, 7, 14], [7, 14, 64 / 3, 0])),
        (True, True, ([10, 20, 8.5, 17], [2.5, 5, 0, 0])),
        (False, False, ([7, 7, 7, 7], [7, 7, 7, 0])),
        (True, False, ([10, 10, 8.5, 8.5], [2.5, 2.5, 2.5, 0])),
    ],
)
def test_batch_baseline_by_hand(leave_out: bool, per_step: bool, expected: object) -> None:
    close(batch_baseline(*BATCH.arguments(), leave_out, per_step), columns(*expected))  # type: ignore[misc]


def test_batch_baseline_refuses_what_has_no_mean() -> None:
    with pytest.raises(ValueError, match="3 episodes do not fill batches of 2"):
        batch_baseline(*BATCH.arguments(), False, True, 2)
    with pytest.raises(ValueError, match="at least two episodes"):
        batch_baseline(*BATCH.arguments(), True, True, 1)


def test_standardize_by_hand() -> None:
    x = torch.tensor([[1, 1000], [2, 3], [-70, 6]], dtype=F64)
    valid = torch.tensor([[1, 0], [1, 1], [0, 1]], dtype=torch.bool)
    result = standardize(x, valid)[valid]
    close(result, torch.tensor([-2, -1, 0, 3], dtype=F64) / math.sqrt(14 / 3), 1e-8)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS))
def test_reward_to_go_is_the_sum_of_later_rewards(rows: Rows, gamma: float) -> None:
    """G_t = sum_{k=t}^{K} gamma^(k-t) r_k + gamma^(K-t+1) V(s_{K+1}), K the episode's last row."""
    bootstrapped = torch.empty_like(rows.rewards)
    plain = torch.empty_like(rows.rewards)
    for t, b in cells(rows):
        last = last_row(rows, t, b)
        plain[t, b] = sum(gamma ** (k - t) * rows.rewards[k, b] for k in range(t, last + 1))
        bootstrapped[t, b] = plain[t, b] + gamma ** (last - t + 1) * rows.bootstrap[last, b]
    close(reward_to_go(rows.rewards, rows.done, gamma), plain)
    close(reward_to_go(rows.rewards, rows.done, gamma, rows.bootstrap), bootstrapped)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS))
def test_episode_return_is_the_sum_from_the_first_row(rows: Rows, gamma: float) -> None:
    """R(tau) = sum_k gamma^k r_k with k counted from the first row of the episode."""
    expected = torch.empty_like(rows.rewards)
    for t, b in cells(rows):
        first, last = first_row(rows, t, b), last_row(rows, t, b)
        expected[t, b] = sum(
            gamma ** (k - first) * rows.rewards[k, b] for k in range(first, last + 1)
        )
    close(episode_return(rows.rewards, rows.done, gamma), expected)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS))
def test_episode_return_is_the_reward_to_go_of_the_first_row(rows: Rows, gamma: float) -> None:
    to_go = reward_to_go(rows.rewards, rows.done, gamma)
    expected = torch.empty_like(to_go)
    for t, b in cells(rows):
        expected[t, b] = to_go[first_row(rows, t, b), b]
    assert torch.equal(episode_return(rows.rewards, rows.done, gamma), expected)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS))
def test_td_errors_stop_the_bootstrap_at_termination_only(rows: Rows, gamma: float) -> None:
    close(
        td_errors(rows.rewards, rows.values, rows.next_values, rows.terminated, gamma),
        slow_td_errors(rows, gamma),
    )


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS), st.sampled_from((0.0, 0.3, 0.95, 1.0)))
def test_gae_is_the_sum_of_discounted_td_errors(rows: Rows, gamma: float, lam: float) -> None:
    """A_t = sum_l (gamma lambda)^l delta_{t+l} to the episode's end (Schulman 2016, eq. 16)."""
    delta = slow_td_errors(rows, gamma)
    expected = torch.empty_like(delta)
    for t, b in cells(rows):
        left = range(last_row(rows, t, b) - t + 1)
        expected[t, b] = sum((gamma * lam) ** n * delta[t + n, b] for n in left)
    close(gae(*rows.gae_arguments(), gamma, lam), expected)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS), st.sampled_from((0.0, 0.3, 0.95, 1.0)))
def test_lambda_returns_are_the_mixture_of_n_step_returns(
    rows: Rows, gamma: float, lam: float
) -> None:
    """(1-l) sum_n l^(n-1) G_{t:t+n} + l^(N-1) G_{t:t+N} (Sutton & Barto 2018, eq. 12.3)."""
    expected = torch.empty_like(rows.rewards)
    for t, b in cells(rows):
        left = last_row(rows, t, b) - t + 1
        n_step = []
        for n in range(1, left + 1):
            reward = sum(gamma**k * rows.rewards[t + k, b] for k in range(n))
            n_step.append(reward + gamma**n * rows.bootstrap[t + n - 1, b])
        mixture = sum((1 - lam) * lam ** (n - 1) * n_step[n - 1] for n in range(1, left))
        expected[t, b] = mixture + lam ** (left - 1) * n_step[-1]
    close(lambda_returns(*rows.gae_arguments(), gamma, lam), expected)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS))
def test_lambda_one_is_the_bootstrapped_return_minus_v(rows: Rows, gamma: float) -> None:
    to_go = reward_to_go(rows.rewards, rows.done, gamma, rows.bootstrap)
    close(gae(*rows.gae_arguments(), gamma, 1.0), to_go - rows.values)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS))
def test_lambda_zero_is_the_td_error(rows: Rows, gamma: float) -> None:
    delta = td_errors(rows.rewards, rows.values, rows.next_values, rows.terminated, gamma)
    close(gae(*rows.gae_arguments(), gamma, 0.0), delta, 0)


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS), st.sampled_from((0.0, 0.3, 1.0)))
def test_lambda_returns_are_gae_plus_v(rows: Rows, gamma: float, lam: float) -> None:
    arguments = (*rows.gae_arguments(), gamma, lam)
    close(lambda_returns(*arguments) - rows.values, gae(*arguments))


@EXAMPLES
@given(ROWS, st.sampled_from(GAMMAS))
def test_gamma_to_the_step_times_reward_to_go_telescopes_to_the_episode_return(
    rows: Rows, gamma: float
) -> None:
    """R(tau) = past discounted reward + gamma^t G_t, with t from the start of the episode."""
    step = torch.empty(rows.rewards.shape, dtype=torch.int64)
    past = torch.empty_like(rows.rewards)
    for t, b in cells(rows):
        first = first_row(rows, t, b)
        step[t, b] = t - first
        past[t, b] = sum(gamma ** (k - first) * rows.rewards[k, b] for k in range(first, t))
    rest = discount_weights(step, gamma) * reward_to_go(rows.rewards, rows.done, gamma)
    close(past + rest, episode_return(rows.rewards, rows.done, gamma))


@EXAMPLES
@given(ROWS, st.sampled_from((0.5, 0.99, 1.0)))
def test_an_episode_knows_nothing_of_the_others(rows: Rows, gamma: float) -> None:
    """Whatever happens after an end, or in another column, leaves the rows before it alone."""
    for column in range(rows.rewards.shape[1]):
        for end in rows.done[:, column].nonzero().flatten().tolist():
            changed = rows.rewards + 100.0
            changed[: end + 1, column] = rows.rewards[: end + 1, column]
            values = rows.values - 50.0
            values[: end + 1, column] = rows.values[: end + 1, column]
            other = replace(rows, rewards=changed, values=values)
            pairs = zip(all_returns(rows, gamma), all_returns(other, gamma), strict=True)
            for before, after in pairs:
                assert torch.equal(before[: end + 1, column], after[: end + 1, column])


def test_a_reset_row_is_a_one_row_episode_that_changes_no_other() -> None:
    rows = random_rows(9, 3, p_terminated=0.0, p_truncated=0.0, seed=4)
    rows.truncated[3], rows.terminated[3] = True, torch.tensor([True, False, True])
    junk = torch.full((1, 3), 55.0, dtype=F64)
    no, yes = torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)

    def insert(x: Tensor, row: Tensor) -> Tensor:
        return torch.cat([x[:4], row, x[4:]])

    with_reset = Rows(
        insert(rows.rewards, junk),
        insert(rows.values, junk),
        insert(rows.next_values, junk),
        insert(rows.terminated, no),
        insert(rows.truncated, yes),
    )
    kept = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    for short, long in zip(all_returns(rows, 0.9), all_returns(with_reset, 0.9), strict=True):
        close(long[kept], short)


@EXAMPLES
@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 999))
def test_leave_one_out_is_the_mean_of_the_others(n_rows: int, count: int, seed: int) -> None:
    weights = torch.randn(n_rows, count, generator=torch.Generator().manual_seed(seed), dtype=F64)
    expected = torch.empty_like(weights)
    for row, i in product(range(n_rows), range(count)):
        expected[row, i] = sum(weights[row, j] for j in range(count) if j != i) / (count - 1)
    close(leave_one_out(weights), expected)
    centred = (weights - weights.mean(-1, keepdim=True)) * count / (count - 1)
    close(weights - leave_one_out(weights), centred)


@EXAMPLES
@given(EPISODES, st.booleans(), st.booleans(), st.booleans())
def test_batch_baseline_is_the_mean_over_the_batch(
    rows: Episodes, leave_out: bool, per_step: bool, in_pairs: bool
) -> None:
    """Each row's b as a plain sum over the (other) episodes of its batch, by number."""
    numbers = sorted(set(rows.episode[rows.valid].tolist()))
    size = 2 if in_pairs else len(numbers)
    if len(numbers) % size or (leave_out and size < 2):
        return
    expected = torch.zeros_like(rows.weights)
    for t, b in product(*map(range, rows.weights.shape)):
        if not rows.valid[t, b]:
            continue
        own, step = int(rows.episode[t, b]), int(rows.episode_step[t, b])
        first = numbers.index(own) // size * size
        batch = [n for n in numbers[first : first + size] if not (leave_out and n == own)]
        at = step if per_step else 0
        expected[t, b] = sum((rows.rows_of(n)[at:] or [0.0])[0] for n in batch) / len(batch)
    close(batch_baseline(*rows.arguments(), leave_out, per_step, size), expected)


@EXAMPLES
@given(EPISODES, st.booleans())
def test_leaving_out_only_stretches_the_difference_to_the_mean(
    rows: Episodes, per_step: bool
) -> None:
    """w - b_loo = N / (N - 1) (w - b_mean), where w is what the mean is taken of (Eq. 6.6)."""
    count = len(rows.episode[rows.valid].unique())
    if count < 2:
        return
    weights = rows.weights
    if not per_step:  # one weight for all steps of an episode
        weights = torch.zeros_like(weights)
        for number in rows.episode[rows.valid].unique().tolist():
            weights[rows.episode == number] = rows.rows_of(number)[0]
    rows = replace(rows, weights=weights)
    mean = batch_baseline(*rows.arguments(), False, per_step)
    others = batch_baseline(*rows.arguments(), True, per_step)
    stretched = (weights - mean) * count / (count - 1)
    close((weights - others)[rows.valid], stretched[rows.valid])


@EXAMPLES
@given(EPISODES, st.booleans())
def test_an_episode_left_out_does_not_move_its_own_baseline(rows: Episodes, per_step: bool) -> None:
    """d b / d w is 0 for the episode's own weights and 1 / (N - 1) for those of the others."""
    numbers = rows.episode[rows.valid].unique().tolist()
    if len(numbers) < 2:
        return
    weights = rows.weights.clone().requires_grad_()
    baseline = batch_baseline(weights, *rows.arguments()[1:], True, per_step)
    for number in numbers:
        start = (rows.episode == number) & (rows.episode_step == 0)
        (slope,) = torch.autograd.grad(baseline[start].sum(), weights, retain_graph=True)
        others = (rows.episode != number) & rows.valid & (rows.episode_step == 0)
        close(slope, others.to(F64) / (len(numbers) - 1))


@EXAMPLES
@given(st.integers(1, 9), st.integers(1, 4), st.floats(0.2, 1.0), st.integers(0, 999))
def test_standardize_uses_the_sample_moments_of_valid_rows(
    n_rows: int, n_columns: int, share: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(n_rows, n_columns, generator=rng, dtype=F64)
    valid = torch.rand(n_rows, n_columns, generator=rng) < share
    valid[0, 0] = True
    rows = x[valid].tolist()
    mean = sum(rows) / len(rows)
    deviation = math.sqrt(sum((row - mean) ** 2 for row in rows) / max(1, len(rows) - 1))
    expected = torch.tensor([(row - mean) / (deviation + 1e-8) for row in rows], dtype=F64)
    close(standardize(x, valid)[valid], expected, 1e-11)


def test_standardize_has_mean_zero_and_deviation_one_over_valid_rows() -> None:
    x = 7 + 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    valid = torch.ones(50, 4, dtype=torch.bool)
    valid[::3, 1] = False
    result = standardize(x, valid)
    assert abs(result[valid].mean()) < 1e-12
    assert abs(result[valid].std() - 1) < 1e-7
    assert abs(result[valid].std(unbiased=False) - 1) > 1e-3


def test_standardize_ignores_invalid_rows() -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    valid = torch.ones(6, 2, dtype=torch.bool)
    valid[2, 1] = valid[5, 0] = False
    moved = torch.where(valid, x, x + 1e6)
    assert torch.equal(standardize(moved, valid)[valid], standardize(x, valid)[valid])
    assert standardize(moved, valid).isfinite().all()
    assert torch.equal(standardize(x, valid), standardize(x, valid.to(F64)))


def test_standardize_of_one_row_or_a_constant_is_zero() -> None:
    one = torch.tensor([[5.0, 7.0]])
    assert standardize(one, torch.tensor([[True, False]]))[0, 0] == 0
    constant = torch.full((8, 4), 2.5)
    assert (standardize(constant, torch.ones(8, 4, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e4 / 3])
def test_standardize_of_a_constant_that_rounds_is_zero(constant: float) -> None:
    x = torch.full((2048,), constant)
    assert standardize(x, torch.ones(2048, dtype=torch.bool)).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [torch.bool, torch.int64, torch.float32, torch.float64])
def test_dtype_of_the_rewards_is_kept_whatever_marks_the_ends(
    dtype: torch.dtype, ends: torch.dtype
) -> None:
    rows = random_rows(6, 3)
    rows = cast(rows, dtype)
    terminated, done = rows.terminated.to(ends), rows.done.to(ends)
    traced = (rows.rewards, rows.values, rows.next_values, terminated, done, 0.9, 0.8)
    results = (
        episode_return(rows.rewards, done, 0.9),
        reward_to_go(rows.rewards, done, 0.9),
        reward_to_go(rows.rewards, done, 0.9, rows.bootstrap),
        td_errors(*traced[:4], 0.9),
        gae(*traced),
        lambda_returns(*traced),
        leave_one_out(rows.rewards),
        standardize(rows.rewards, done),
        batch_baseline(BATCH.weights.to(dtype), *BATCH.arguments()[1:], True, True),
    )
    assert {result.dtype for result in results} == {dtype}
    for result, expected in zip(results[:6], all_returns(rows, 0.9, 0.8), strict=True):
        assert torch.equal(result, expected)


def test_inputs_are_not_modified() -> None:
    rows, step = random_rows(7, 3), torch.arange(7)[:, None].expand(7, 3).clone()
    held = (*rows.gae_arguments(), rows.bootstrap, step, *BATCH.arguments())
    before = [x.clone() for x in held]
    all_returns(rows, 0.9)
    reward_to_go(rows.rewards, held[4], 0.9, held[5])
    discount_weights(step, 0.9)
    leave_one_out(rows.rewards)
    batch_baseline(*BATCH.arguments(), True, True)
    standardize(rows.rewards, held[4])
    assert all(torch.equal(x, y) for x, y in zip(held, before, strict=True))


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("truncated", [False, True])
def test_one_row(terminated: bool, truncated: bool) -> None:
    end = [torch.tensor([[flag]]) for flag in (terminated, truncated)]
    one = Rows(*(torch.tensor([[x]], dtype=F64) for x in (2.0, 3.0, 10.0)), *end)
    follows = 0.0 if terminated else 5.0
    to_go, whole, bootstrapped, delta, advantage, target = all_returns(one, 0.5, 0.7)
    assert to_go.item() == whole.item() == 2.0
    assert bootstrapped.item() == target.item() == 2.0 + follows
    assert delta.item() == advantage.item() == follows - 1.0


def test_float32_agrees_with_float64_over_2048_rows() -> None:
    """To rounding: a few dozen units in the last place of the sum of absolute terms."""
    rows = random_rows(2048, 3, p_terminated=0.002, p_truncated=0.002, seed=8)
    single = cast(rows, torch.float32)
    double = cast(single, torch.float64)
    size = double.rewards.abs() + double.values.abs() + double.next_values.abs()
    bound = 64 * torch.finfo(torch.float32).eps * reward_to_go(size, double.done, 0.999)
    whole = 64 * torch.finfo(torch.float32).eps * episode_return(size, double.done, 0.999)
    results = zip(all_returns(single, 0.999, 0.99), all_returns(double, 0.999, 0.99), strict=True)
    for narrow, wide in results:
        assert narrow.dtype == torch.float32
        assert ((narrow - wide).abs() <= torch.maximum(bound, whole)).all()


def test_columns_are_independent_of_their_neighbours() -> None:
    rows = random_rows(11, 4, seed=3)
    for b in range(4):
        alone = Rows(*(getattr(rows, name)[:, b : b + 1] for name in Rows.__dataclass_fields__))
        for joint, single in zip(all_returns(rows, 0.9), all_returns(alone, 0.9), strict=True):
            assert torch.equal(joint[:, b : b + 1], single)


def test_lambda_returns_with_the_exact_v_are_unbiased_for_every_lambda() -> None:
    """E[lambda-return | s] = V(s), time limits bootstrapped, on a random walk of known value."""
    gamma, n_states, limit, n_rows, n_columns = 0.9, 5, 4, 9, 20_000
    transitions = torch.zeros(n_states + 2, n_states + 2, dtype=F64)
    for state in range(1, n_states + 1):
        transitions[state, state - 1], transitions[state, state + 1] = 0.4, 0.6
    reward = torch.zeros(n_states + 2, dtype=F64)
    reward[1:-1] = 0.4 * -1.0 + 0.6 * 2.0  # a step left costs 1, a step right earns 2
    identity = torch.eye(n_states + 2, dtype=F64)
    exact = torch.linalg.solve(identity - gamma * transitions, reward)

    rng = torch.Generator().manual_seed(11)
    state = torch.full((n_columns,), 3)
    age = torch.zeros(n_columns, dtype=torch.int64)
    record: list[tuple[Tensor, ...]] = []
    for _ in range(n_rows):
        right = torch.rand(n_columns, generator=rng) < 0.6
        successor = torch.where(right, state + 1, state - 1)
        terminated = (successor == 0) | (successor == n_states + 1)
        truncated = age + 1 == limit
        # A terminal state gets a value that nothing may use.
        following = torch.where(terminated, 40.0, exact[successor])
        earned = torch.where(right, 2.0, -1.0)
        record.append((earned, exact[state], following, terminated, truncated))
        over = terminated | truncated
        state, age = torch.where(over, 3, successor), torch.where(over, 0, age + 1)
    rows = Rows(*(torch.stack([row[i] for row in record]) for i in range(5)))
    for lam in (0.0, 0.5, 0.95, 1.0):
        per_column = (lambda_returns(*rows.gae_arguments(), gamma, lam) - rows.values).mean(0)
        assert abs(z_score(per_column)) < 4


def test_past_rewards_are_noise_and_reward_to_go_keeps_the_mean() -> None:
    """E[score_t r_k] = 0 for k < t, so both weights have the same expected gradient (Eq. 5.2)."""
    rng = torch.Generator().manual_seed(5)
    p, n_rows, n_columns = 0.3, 4, 40_000
    actions = (torch.rand(n_rows, n_columns, generator=rng) < p).to(F64)
    score = actions - p  # of the logit of a Bernoulli policy
    rewards = 2 * actions + torch.arange(n_rows, dtype=F64)[:, None]
    done = torch.zeros(n_rows, n_columns, dtype=torch.bool)
    done[-1] = True
    whole, to_go = episode_return(rewards, done, 1.0), reward_to_go(rewards, done, 1.0)
    assert abs(z_score((score * (whole - to_go)).sum(0))) < 4
    exact = 2 * p * (1 - p) * n_rows
    assert abs(z_score((score * to_go).sum(0) - exact)) < 4


def test_leave_one_out_is_unbiased_and_the_batch_mean_shrinks_the_gradient() -> None:
    """Every batch of N bandit episodes times its probability: g and (1 - 1/N) g (Eq. 6.5, 6.6)."""
    p, rewards, count = 0.3, torch.tensor([1.0, 4.0], dtype=F64), 4
    exact = p * (1 - p) * (rewards[1] - rewards[0])
    expected = {"mean": 0.0, "leave one out": 0.0}
    for batch in product((0, 1), repeat=count):
        actions = torch.tensor(batch)
        probability = math.prod(p if a else 1 - p for a in batch)
        weights = rewards[actions]
        baselines = {"mean": weights.mean(), "leave one out": leave_one_out(weights)}
        for name, baseline in baselines.items():
            gradient = ((actions - p) * (weights - baseline)).mean()
            expected[name] += probability * float(gradient)
    assert expected["leave one out"] == pytest.approx(float(exact), abs=1e-12)
    assert expected["mean"] == pytest.approx(float(exact) * (1 - 1 / count), abs=1e-12)


@pytest.mark.parametrize("per_step", [True, False])
def test_batch_baseline_leaves_the_mean_or_shrinks_it_as_sampled(per_step: bool) -> None:
    """Batches of N two-step episodes: loo keeps E[score w], the mean keeps (1 - 1/N) of it."""
    p, count, batches = 0.3, 3, 20_000
    rng = torch.Generator().manual_seed(17)
    actions = (torch.rand(2, count * batches, generator=rng) < p).to(F64)
    goes_on = actions[0] == 1  # action 0 ends the episode at once
    valid = torch.stack([torch.ones_like(goes_on), goes_on])
    rewards = (1 + 3 * actions + torch.tensor([[0.0], [5.0]], dtype=F64)) * valid
    done = torch.stack([~goes_on, torch.ones_like(goes_on)])
    returns_of = reward_to_go if per_step else episode_return
    weights = returns_of(rewards, done | ~valid, 1.0)
    episode = torch.where(valid, torch.arange(count * batches), -1)
    step = torch.arange(2)[:, None].expand(2, count * batches)
    score = (actions - p) * valid  # of the logit of a Bernoulli policy
    second = 6 + 3 * p  # expected reward of the second step
    exact = p * (1 - p) * ((4 + second) - 1) + p * (p * (1 - p) * 3)
    for leave_out, share in ((True, 1.0), (False, 1 - 1 / count)):
        b = batch_baseline(weights, episode, step, valid, leave_out, per_step, count)
        gradient = (score * (weights - b)).sum(0).view(batches, count).mean(1)
        assert abs(z_score(gradient - share * exact)) < 3


def test_every_public_function_is_named_here() -> None:
    public = {
        name
        for name, function in inspect.getmembers(returns, inspect.isfunction)
        if function.__module__ == returns.__name__ and not name.startswith("_")
    }
    assert public <= set(globals()), "a formula of theory/returns.py has no test"


def cells(rows: Rows) -> list[tuple[int, int]]:
    n_rows, n_columns = rows.rewards.shape
    return list(product(range(n_rows), range(n_columns)))


def cast(rows: Rows, dtype: torch.dtype) -> Rows:
    numbers = (x.to(dtype) for x in (rows.rewards, rows.values, rows.next_values))
    return Rows(*numbers, rows.terminated, rows.truncated)


def last_row(rows: Rows, t: int, b: int) -> int:
    """Last row of the episode that row t belongs to, or of the batch."""
    while t < len(rows.rewards) - 1 and not (rows.terminated[t, b] or rows.truncated[t, b]):
        t += 1
    return t


def first_row(rows: Rows, t: int, b: int) -> int:
    while t > 0 and not (rows.terminated[t - 1, b] or rows.truncated[t - 1, b]):
        t -= 1
    return t


def slow_td_errors(rows: Rows, gamma: float) -> Tensor:
    delta = torch.empty_like(rows.rewards)
    for t, b in cells(rows):
        follows = 0.0 if rows.terminated[t, b] else gamma * rows.next_values[t, b]
        delta[t, b] = rows.rewards[t, b] + follows - rows.values[t, b]
    return delta


def all_returns(rows: Rows, gamma: float, lam: float = 0.8) -> tuple[Tensor, ...]:
    """Every weight of a stream, in one order, so that a law can be stated for all of them."""
    return (
        episode_return(rows.rewards, rows.done, gamma),
        reward_to_go(rows.rewards, rows.done, gamma),
        reward_to_go(rows.rewards, rows.done, gamma, rows.bootstrap),
        td_errors(rows.rewards, rows.values, rows.next_values, rows.terminated, gamma),
        gae(*rows.gae_arguments(), gamma, lam),
        lambda_returns(*rows.gae_arguments(), gamma, lam),
    )


def z_score(sample: Tensor) -> float:
    return float(sample.mean() / sample.std() * math.sqrt(len(sample)))

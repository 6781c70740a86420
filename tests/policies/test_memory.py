"""Memory: torch's own cells agree, episodes start blank, and every row is where it should be."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import upslope
from helpers.ledger import KINDS, make_ledgers
from upslope.optim import Minibatches
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Memory, Past
from upslope.rollout import collect, evaluate_rollout
from upslope.trees import leaves, map_tree, take

F64 = torch.float64
STEPS, COLUMNS, INPUTS, SIZE = 23, 5, 4, 3
CELLS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def memory_of(kind: str) -> Memory:
    made = Memory(kind, INPUTS, SIZE, True, generator(), F64)
    with torch.no_grad():
        for bias in (made.bias_ih, made.bias_hh):
            bias.normal_(generator=generator(1))
    return made


def noise(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def state_of(memory: Memory, n: int) -> Any:
    return map_tree(lambda zeros: noise(*zeros.shape, seed=3), memory.blank(n))


def forgotten(state: Any, start: Tensor) -> Any:
    return map_tree(lambda s: torch.where(start[:, None], torch.zeros_like(s), s), state)


def by_cells(memory: Memory, x: Tensor, begins: Tensor, state: Any) -> tuple[Tensor, list[Any]]:
    """One torch cell stepped through the rows; the states after each."""
    cell = CELLS[memory.kind](INPUTS, SIZE, dtype=F64)
    cell.load_state_dict(memory.state_dict())
    outputs, states = [], []
    for row, start in zip(x, begins, strict=True):
        state = cell(row, forgotten(state, start))
        outputs.append(leaves(state)[0])
        states.append(state)
    return torch.stack(outputs), states


@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("kind", CELLS)
class TestAgainstTorch:
    def test_sequences_equal_cells_one_by_one(self, kind: str, share: float) -> None:
        memory, x = memory_of(kind), noise(STEPS, COLUMNS, INPUTS)
        begins = torch.rand(STEPS, COLUMNS, generator=generator(4)) < share
        past = Past(begins.reshape(-1), state_of(memory, COLUMNS))
        outputs, after = memory(x.flatten(0, 1), past.segments, past.state)
        expected, states = by_cells(memory, x, begins, past.state)
        torch.testing.assert_close(outputs, expected.flatten(0, 1), rtol=0, atol=1e-13)
        final = take(after, past.segments.last)
        for one, other in zip(leaves(final), leaves(states[-1]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-13)

    def test_the_state_at_the_end_of_each_episode(self, kind: str, share: float) -> None:
        memory, x = memory_of(kind), noise(STEPS, COLUMNS, INPUTS)
        begins = torch.rand(STEPS, COLUMNS, generator=generator(4)) < share
        past = Past(begins.reshape(-1), state_of(memory, COLUMNS))
        _, after = memory(x.flatten(0, 1), past.segments, past.state)
        _, states = by_cells(memory, x, begins, past.state)
        for t, b in (begins[1:]).nonzero().tolist():  # row t ends an episode in column b
            ended = take(after, past.segments.of_row[t * COLUMNS + b])
            for one, other in zip(leaves(ended), leaves(take(states[t], b)), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-13)

    def test_gradients_too(self, kind: str, share: float) -> None:
        memory, x = memory_of(kind), noise(STEPS, COLUMNS, INPUTS)
        begins = torch.rand(STEPS, COLUMNS, generator=generator(4)) < share
        past = Past(begins.reshape(-1), state_of(memory, COLUMNS))
        outputs, _ = memory(x.flatten(0, 1), past.segments, past.state)
        cell = CELLS[kind](INPUTS, SIZE, dtype=F64)
        cell.load_state_dict(memory.state_dict())
        total, state = torch.zeros((), dtype=F64), past.state
        for row, start in zip(x, begins, strict=True):
            state = cell(row, forgotten(state, start))
            total = total + leaves(state)[0].square().sum()
        ours = torch.autograd.grad(outputs.square().sum(), list(memory.parameters()))
        theirs = torch.autograd.grad(total, list(cell.parameters()))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class Sum(nn.Module):
    """A memory that adds up what it is shown: its output says which rows it has seen."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def blank(self, n: int) -> Tensor:
        return torch.zeros(n, self.size, dtype=F64)

    def forward(self, x: Tensor, segments: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        running = torch.zeros_like(x)
        after = state[segments.columns] * segments.goes_on[:, None]
        first = 0
        for width in segments.batch_sizes.tolist():
            rows = segments.rows[first : first + width]
            after[:width] += x[rows]
            running[rows] = after[:width]
            first += width
        return running, after


def summing_policy(envs: Any) -> ActorCritic:
    """A policy whose critic is the sum of what it saw in the episode."""
    policy = ActorCritic(
        envs.observation_space, envs.action_space, memory="gru", net_arch=(), dtype="float64"
    )
    size = envs.observation_space.shape[0]
    policy.critic_memory = Sum(size)
    policy.critic_head = nn.Linear(size, 1, dtype=F64)
    with torch.no_grad():
        policy.critic_head.weight.fill_(1.0)
        policy.critic_head.bias.zero_()
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_that_sums_its_inputs_says_what_the_episode_showed(kind: str) -> None:
    """Over three rollouts: V(s_t) = sum of the episode's observations up to t, its successor too.

    An episode runs over the edge of rollouts, and reset rows lie between episodes.
    """
    envs = make_ledgers(kind)
    policy = summing_policy(envs)
    shown: dict[int, list[float]] = {}
    checked = ended = crossed = 0
    for _ in range(3):
        rollout = collect(envs, policy, n_steps=9)
        evaluated = evaluate_rollout(policy, rollout)
        final = {tuple(place): i for i, place in enumerate(rollout.final_rows.tolist())}
        crossed += int((rollout.valid[0] & (rollout.episode_step[0] > 0)).sum())
        for t in range(9):
            for b in range(envs.n_envs):
                if not rollout.valid[t, b]:
                    continue
                seen = shown.setdefault(int(rollout.episode[t, b]), [])
                assert len(seen) == int(rollout.episode_step[t, b])
                seen.append(float(rollout.obs[t, b].sum()))
                assert float(evaluated.values[t, b]) == pytest.approx(sum(seen), abs=1e-12)
                if (t, b) in final:
                    follows = rollout.final_obs[final[t, b]]
                    ended += 1
                elif t + 1 < 9:
                    follows = rollout.obs[t + 1, b]
                else:
                    follows = rollout.last_obs[b]
                expected = sum(seen) + float(follows.sum())
                assert float(evaluated.next_values[t, b]) == pytest.approx(expected, abs=1e-12)
                checked += 1
    assert checked > 40
    assert ended > 5
    assert crossed > 2
    envs.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", CELLS)
@pytest.mark.parametrize("shared", [False, True])
def test_ratio_starts_at_one_over_rollouts(kind: str, memory: str, shared: bool) -> None:
    envs = make_ledgers(kind)
    policy = ActorCritic(
        envs.observation_space,
        envs.action_space,
        memory=memory,
        shared_network=shared,
        dtype="float64",
    )
    for _ in range(3):
        rollout = collect(envs, policy, n_steps=9)
        evaluated = evaluate_rollout(policy, rollout)  # refuses another ratio
        gap = (evaluated.log_prob - rollout.log_prob).abs() * rollout.valid
        assert float(gap.max()) < 1e-12
    envs.close()


def test_without_its_past_the_ratio_is_refused() -> None:
    """The same rollout read as if nothing was remembered: the guard of section 11 sees it."""
    import dataclasses

    envs = make_ledgers("plain")
    policy = ActorCritic(envs.observation_space, envs.action_space, memory="gru", dtype="float64")
    with torch.no_grad():
        policy.actor_head.weight.normal_(generator=generator(5))
    collect(envs, policy, n_steps=5)
    rollout = collect(envs, policy, n_steps=9)
    assert bool((rollout.episode_step[0] > 0).any())
    blank = dataclasses.replace(rollout, state=policy.blank_state(envs.n_envs))
    with pytest.raises(upslope.errors.StaleRolloutError):
        evaluate_rollout(policy, blank)


class TestMinibatches:
    def test_whole_columns_in_order_once_an_epoch(self) -> None:
        steps, n_envs = 4, 5
        batches = Minibatches.shuffled(
            np.random.default_rng(0), (steps, n_envs), 8, 3, by_sequence=True
        )
        assert batches.rows.shape == (3, 3, 8)  # two columns a step, the last one padded
        for epoch in range(3):
            seen = batches.rows[epoch][batches.present]
            assert sorted(seen.tolist()) == list(range(steps * n_envs))
            for step in range(3):
                rows = batches.rows[epoch, step].view(steps, 2)
                assert torch.equal(rows % n_envs, batches.columns[epoch, step].expand(steps, 2))
                assert torch.equal(rows[:, 0] // n_envs, torch.arange(steps))
        assert not torch.equal(batches.columns[0], batches.columns[1])

    def test_a_minibatch_smaller_than_a_sequence_still_has_one(self) -> None:
        batches = Minibatches.shuffled(np.random.default_rng(0), (9, 4), 2, 1, by_sequence=True)
        assert batches.rows.shape == (1, 4, 9)

    def test_a_part_of_the_past_is_that_of_its_columns(self) -> None:
        begins = torch.rand(6, 4, generator=generator()) < 0.3
        past = Past(begins.reshape(-1), noise(4, 2))
        columns = torch.tensor([2, 0])
        rows = (torch.arange(6)[:, None] * 4 + columns).reshape(-1)
        part = past.take(rows, columns)
        assert torch.equal(part.begins.view(6, 2), begins[:, [2, 0]])
        assert torch.equal(part.state, past.state[[2, 0]])


@pytest.fixture(scope="module")
def agent() -> upslope.PPO:
    agent = upslope.PPO("CartPole-v1", memory="lstm", n_steps=16, batch_size=64, n_envs=4)
    return agent.learn(128)


class TestPredict:
    def test_the_state_carries_what_was_seen(self, agent: upslope.PPO) -> None:
        obs = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
        policy, state = agent.policy, None
        for t in range(6):
            _, state = agent.predict(obs[t], state, deterministic=True)
        begins = torch.tensor([True] + [False] * 5)
        past = Past(begins, policy.blank_state(1))
        _, after = policy.outputs(policy.prepare(torch.as_tensor(obs)), past)
        for one, other in zip(leaves(state["actor"]), leaves(after), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

    def test_an_episode_start_forgets(self, agent: upslope.PPO) -> None:
        obs = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
        _, fresh = agent.predict(obs, deterministic=True)
        _, state = agent.predict(obs + 1, deterministic=True)
        _, mixed = agent.predict(obs, state, np.array([True, False]), deterministic=True)
        for one, other in zip(leaves(mixed), leaves(fresh), strict=True):
            torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-7)
            assert not torch.allclose(one[1], other[1], rtol=0, atol=1e-4)

    def test_policies_without_memory_hand_the_state_back(self) -> None:
        agent = upslope.PPO("CartPole-v1", n_envs=1)
        assert agent.predict(np.zeros(4, np.float32))[1] is None


def test_recurrent_evaluation_equals_predicting_step_by_step() -> None:
    agent = upslope.PPO("CartPole-v1", memory="gru", n_steps=16, batch_size=64, n_envs=4, seed=1)
    agent.learn(256)
    lengths = agent.evaluate_one_way(3, seed=7, deterministic=True).lengths.tolist()
    seeds = upslope.seeding.SeedTree(upslope.seeding.SeedTree(7).integer("evaluation"))
    env = gym.make("CartPole-v1")
    for number, length in enumerate(lengths):
        obs, _ = env.reset(seed=seeds.integer("episode", number))
        state, steps, over = None, 0, False
        while not over:
            action, state = agent.predict(obs, state, deterministic=True)
            obs, _, terminated, truncated, _ = env.step(action)
            steps, over = steps + 1, terminated or truncated
        assert steps == length

"""The episode-end contract on every engine: rows, statistics, numbered episodes, restarts."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import gymnasium as gym
import ledger
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ledger import KINDS, act_by_observation, make_ledgers, make_policy
from transcript import advantages_by_hand, advantages_of_ppo, transitions

from upslope.envs import episodes
from upslope.envs.engines import SyncEngine, VectorEngine
from upslope.envs.episodes import Environments
from upslope.errors import EnvironmentFaultError
from upslope.rollout import collect, evaluate_rollout
from upslope.seeding import SeedTree

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
GAMMA, LAMBDA = 0.93, 0.8


def record(kind: str, rollouts: int, n_steps: int, n_envs: int = 3, **env: Any) -> tuple[Any, Any]:
    """Rollouts of a fixed policy on scripted ledgers, each with its evaluation."""
    envs = make_ledgers(kind, n_envs, scripted=True, **env)
    policy = make_policy(envs)
    if not env.get("box"):
        act_by_observation(policy)
    pairs = []
    for _ in range(rollouts):
        rollout = collect(envs, policy, n_steps=n_steps)
        pairs.append((rollout, evaluate_rollout(policy, rollout)))
    envs.close()
    return policy, pairs


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """Three rollouts of 40 rows on each engine, so that episodes span rollouts."""
    return {kind: record(kind, rollouts=3, n_steps=40) for kind in KINDS}


def test_world_has_every_ending_and_length_one(recorded: Any) -> None:
    _, pairs = recorded["plain"]
    rows = [row for rollout, _ in pairs for row in transitions(rollout)]
    endings = {(row.terminated, row.truncated) for row in rows}
    assert endings == {(False, False), (True, False), (False, True), (True, True)}
    assert {episode.length for rollout, _ in pairs for episode in rollout.episodes} >= {1, 2, 13}
    assert len({int(row.action) for row in rows}) > 1
    assert any(rollout.done[-1].any() for rollout, _ in pairs), "an end on a last row is wanted too"
    assert any(not rollout.done[-1].all() for rollout, _ in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_valid_rows_are_the_transitions_that_happened(kind: str, recorded: Any) -> None:
    _, pairs = recorded[kind]
    for rollout, _ in pairs:
        for row in transitions(rollout):
            e, t = ledger.read(row.obs)
            assert ledger.read(row.successor) == (e, t + 1)
            assert row.reward == ledger.reward(e, t, row.action)
            assert (row.terminated, row.truncated) == ledger.ends(e, t)
            assert e // 1000 == row.b
            assert int(rollout.episode_step[row.t, row.b]) == t


@pytest.mark.parametrize("kind", KINDS)
def test_no_transition_is_lost_or_seen_twice(kind: str, recorded: Any) -> None:
    _, pairs = recorded[kind]
    for b in range(3):
        seen = [
            ledger.read(row.obs)
            for rollout, _ in pairs
            for row in transitions(rollout)
            if row.b == b
        ]
        stream = ((e, t) for e in itertools.count(1000 * b) for t in range(ledger.length(e)))
        assert seen == list(itertools.islice(stream, len(seen)))


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_rows_are_the_reset_rows_of_next_step_and_nothing_else(
    kind: str, recorded: Any
) -> None:
    _, pairs = recorded[kind]
    valid = torch.cat([rollout.valid for rollout, _ in pairs])
    done = torch.cat([rollout.done for rollout, _ in pairs])
    expected = torch.ones_like(valid)
    if kind == "next":
        expected[1:] = ~done[:-1]
    assert torch.equal(valid, expected)
    assert not (done & ~valid).any()
    for rollout, _ in pairs:
        assert torch.equal(rollout.boundary, rollout.done | ~rollout.valid)
        assert rollout.n_valid == int(rollout.valid.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_episode_statistics_are_exact(kind: str, recorded: Any) -> None:
    _, pairs = recorded[kind]
    totals: dict[tuple[int, int], list[float]] = {}
    ended: list[tuple[float, int, bool, dict[str, float]]] = []
    for rollout, _ in pairs:
        mine = []
        for row in transitions(rollout):
            e, t = ledger.read(row.obs)
            totals.setdefault((row.b, e), []).append(row.reward)
            if row.terminated or row.truncated:
                assert t + 1 == len(totals[row.b, e])
                info = {"is_success": float(e % 2), "score": float(e % 7)}
                total = sum(totals[row.b, e])
                mine.append((row.t, row.b, total, t + 1, row.terminated, info))
        ended += [facts[2:] for facts in sorted(mine, key=lambda facts: facts[:2])]
    episodes = [episode for rollout, _ in pairs for episode in rollout.episodes]
    assert len(episodes) == len(ended)
    for episode, (ret, length, terminated, info) in zip(episodes, ended, strict=True):
        assert episode.ret == pytest.approx(ret, abs=1e-12)
        assert (episode.length, episode.terminated, episode.info) == (length, terminated, info)
    numbers = [episode.number for episode in episodes]
    assert len(set(numbers)) == len(numbers)
    for rollout, _ in pairs:
        for episode in rollout.episodes:
            rows = (rollout.episode == episode.number) & rollout.valid
            assert 1 <= int(rows.sum()) <= episode.length
            assert int(rollout.episode_step[rows].max()) == episode.length - 1


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_true_successors(kind: str, recorded: Any) -> None:
    policy, pairs = recorded[kind]
    for rollout, evaluated in pairs:
        for row in transitions(rollout):
            e, t = ledger.read(row.obs)
            both = np.stack([ledger.observation(e, t), ledger.observation(e, t + 1)])
            here, after = policy.value(both).tolist()
            assert float(evaluated.values[row.t, row.b]) == pytest.approx(here, abs=1e-12)
            assert float(evaluated.next_values[row.t, row.b]) == pytest.approx(after, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_equal_the_sum_written_out(kind: str, recorded: Any) -> None:
    policy, pairs = recorded[kind]
    for rollout, evaluated in pairs:
        shipped = advantages_of_ppo(policy, rollout, evaluated, GAMMA, LAMBDA)
        by_hand = advantages_by_hand(policy, rollout, GAMMA, LAMBDA)
        assert shipped.keys() == by_hand.keys()
        for key, value in by_hand.items():
            assert shipped[key] == pytest.approx(value, abs=1e-12)


def weighed(kind: str, n_envs: int = 3, slots: int = 3) -> dict[tuple[int, int], Any]:
    """(episode, t) -> (transition, advantage) for the episodes that lie wholly in one rollout."""
    result = {}
    policy, [(rollout, evaluated)] = record(kind, rollouts=1, n_steps=120, n_envs=n_envs)
    shipped = advantages_of_ppo(policy, rollout, evaluated, GAMMA, LAMBDA)
    whole = {episode.number for episode in rollout.episodes}
    for row in transitions(rollout):
        if int(rollout.episode[row.t, row.b]) in whole and row.b < slots:
            result[ledger.read(row.obs)] = row[2:], shipped[row.t, row.b]
    return result


def test_engines_give_equal_transitions_and_advantages() -> None:
    reference = weighed("plain")
    assert len(reference) > 300
    single = weighed("plain", n_envs=1)
    others = {kind: weighed(kind) for kind in KINDS[1:]} | {"a single Env": single}
    for name, other in others.items():
        common = reference.keys() & other.keys()
        assert len(common) > (80 if name == "a single Env" else 200)
        for key in common:
            for mine, theirs in zip(reference[key][0], other[key][0], strict=True):
                assert np.array_equal(mine, theirs), (name, key)
            assert other[key][1] == pytest.approx(reference[key][1], abs=1e-12), (name, key)


@pytest.mark.parametrize("kind", ["plain", "next"])
def test_box_actions_reach_the_environment_in_its_units_and_bounds(kind: str) -> None:
    _, [(rollout, _)] = record(kind, rollouts=1, n_steps=60, box=True)
    clipped = 0
    for row in transitions(rollout):
        e, t = ledger.read(row.obs)
        sent = (row.action * 2.5 + 0.5).clip(-2, 3).astype(np.float32)
        clipped += int(((row.action * 2.5 + 0.5 < -2) | (row.action * 2.5 + 0.5 > 3)).sum())
        assert row.reward == pytest.approx(ledger.reward(e, t, sent), abs=1e-6)
    assert clipped > 0
    assert rollout.clipped_share == pytest.approx(clipped / (2 * rollout.n_valid))


@pytest.mark.parametrize("kind", ["plain", "next", "disabled"])
def test_an_environment_may_reuse_its_observation_buffer(kind: str, recorded: Any) -> None:
    _, pairs = record(kind, rollouts=3, n_steps=40, alias=True)
    for (mine, _), (reference, _) in zip(pairs, recorded[kind][1], strict=True):
        for field in ("obs", "last_obs", "final_obs", "rewards", "valid"):
            assert torch.equal(getattr(mine, field), getattr(reference, field))


def test_info_of_an_episode_is_that_of_its_last_row() -> None:
    class SuccessAtReset(gym.Wrapper):
        def reset(self, **kwargs: Any) -> Any:
            return self.env.reset(**kwargs)[0], {"is_success": 1.0}

        def step(self, action: Any) -> Any:
            return *self.env.step(action)[:4], {}

    for kind in ("plain", "next", "same", "disabled"):
        makers = [lambda: SuccessAtReset(ledger.Ledger())] * 2
        envs = Environments(ledger.make_engine(kind, makers), SeedTree(0))
        rollout = collect(envs, make_policy(envs), n_steps=30)
        assert len(rollout.episodes) > 3
        assert all(episode.info == {} for episode in rollout.episodes), kind


class NaNWhileResetting(SyncVectorEnv):
    """Puts no number where there is nothing to say."""

    def step(self, actions: Any) -> Any:
        resetting = self._autoreset_envs.copy()
        obs, rewards, *rest = super().step(actions)
        return obs, np.where(resetting, np.nan, rewards), *rest


def test_a_nan_in_a_reset_row_reaches_nothing() -> None:
    def run(kind: type[SyncVectorEnv]) -> Any:
        makers = [partial(ledger.Ledger, slot=i) for i in range(2)]
        vector = kind(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
        engine = VectorEngine(lambda _: vector, name="vector", seeds_episodes=True)
        envs = Environments(engine, SeedTree(0))
        policy = make_policy(envs)
        rollout = collect(envs, policy, n_steps=30)
        evaluated = evaluate_rollout(policy, rollout)
        return rollout.episodes, advantages_of_ppo(policy, rollout, evaluated, GAMMA, LAMBDA)

    assert run(NaNWhileResetting) == run(SyncVectorEnv)


# Numbered whole episodes


def numbered(kind: str, n_envs: int, n_episodes: int, seed: int = 0, batches: int = 1) -> Any:
    envs = make_ledgers(kind, n_envs, seed)
    policy = make_policy(envs)
    rollouts = [collect(envs, policy, n_episodes=n_episodes) for _ in range(batches)]
    envs.close()
    return rollouts


def facts(rollouts: Any) -> set[tuple[int, float, int]]:
    return {(e.number, e.ret, e.length) for rollout in rollouts for e in rollout.episodes}


def test_numbered_episodes_do_not_depend_on_slots_or_processes() -> None:
    reference = facts(numbered("plain", n_envs=1, n_episodes=25, batches=2))
    assert {number for number, _, _ in reference} == set(range(50))
    for kind, n_envs in (("plain", 3), ("plain", 8), ("async", 3), ("disabled", 8)):
        assert facts(numbered(kind, n_envs, n_episodes=25, batches=2)) == reference, (kind, n_envs)
    assert facts(numbered("plain", 3, n_episodes=25, seed=1, batches=2)) != reference


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_envs", "n_episodes"), [(3, 11), (3, 3), (8, 3), (2, 1)])
def test_a_batch_holds_exactly_its_episodes_each_whole(
    kind: str, n_envs: int, n_episodes: int
) -> None:
    for batch, rollout in enumerate(numbered(kind, n_envs, n_episodes, batches=2)):
        numbers = sorted(episode.number for episode in rollout.episodes)
        assert numbers == list(range(batch * n_episodes, (batch + 1) * n_episodes))
        by_number = {episode.number: episode for episode in rollout.episodes}
        assert {int(n) for n in rollout.episode[rollout.valid]} == set(numbers)
        assert rollout.n_valid == sum(episode.length for episode in rollout.episodes)
        starts, ended = set(), set()
        for row in transitions(rollout):
            number = int(rollout.episode[row.t, row.b])
            e, t = ledger.read(row.obs)
            assert ledger.read(row.successor) == (e, t + 1)
            assert by_number[number].length == ledger.length(e)
            if t == 0:
                starts.add(number)
            if row.terminated or row.truncated:
                ended.add(number)
        assert starts == ended == set(numbers)


@pytest.mark.parametrize("kind", ["plain", "async", "disabled"])
def test_seed_of_an_episode_depends_on_the_run_seed_and_its_number_alone(kind: str) -> None:
    for seed in (0, 7):
        for rollout in numbered(kind, n_envs=3, n_episodes=9, seed=seed, batches=2):
            for row in transitions(rollout):
                number = int(rollout.episode[row.t, row.b])
                assert ledger.read(row.obs)[0] == SeedTree(seed).integer("episode", number)


def test_seeds_of_episodes_within_a_rollout_follow_their_numbers_too() -> None:
    envs = make_ledgers("plain", seed=3)
    policy = make_policy(envs)
    for _ in range(2):
        rollout = collect(envs, policy, n_steps=30)
        for row in transitions(rollout):
            number = int(rollout.episode[row.t, row.b])
            assert ledger.read(row.obs)[0] == SeedTree(3).integer("episode", number)


def test_noise_of_an_episode_does_not_depend_on_its_slot() -> None:
    def actions(n_envs: int) -> dict[int, list[float]]:
        envs = make_ledgers("plain", n_envs, box=True)
        rollout = collect(envs, make_policy(envs), n_episodes=12)
        taken: dict[int, list[float]] = {}
        for row in transitions(rollout):
            number = int(rollout.episode[row.t, row.b])
            taken.setdefault(number, []).extend(row.action.tolist())
        return taken

    alone, beside = actions(1), actions(5)
    assert alone.keys() == beside.keys()
    for number, taken in alone.items():
        assert beside[number] == pytest.approx(taken, abs=1e-12)
        assert len(set(taken)) == len(taken)
    assert len({actions[0] for actions in alone.values()}) == 12


class Rare(gym.Env):
    """One episode in ten lasts 40 steps, the others 1."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left = 40 if seed is not None and ledger.mix(seed) < 0.1 else 1
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.zeros(1), 1.0, self.left == 0, False, {}


def test_a_quota_keeps_the_long_episodes_that_a_step_count_loses() -> None:
    def run(**amount: int) -> Any:
        envs = Environments(SyncEngine([Rare() for _ in range(8)]), SeedTree(0))
        return collect(envs, make_policy(envs), **amount)

    seeds = [SeedTree(0).integer("episode", number) for number in range(100)]
    expected = [40 if ledger.mix(seed) < 0.1 else 1 for seed in seeds]
    quota = run(n_episodes=100).episodes
    by_number = [e.length for e in sorted(quota, key=lambda e: e.number)]
    assert by_number == expected
    assert expected.count(40) >= 5
    kept = [episode.length for episode in run(n_steps=25).episodes]
    assert np.mean(kept) == 1.0, "a step count would have lost every long episode"


def test_an_episode_longer_than_the_first_buffer_is_kept_whole() -> None:
    class Long(Rare):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.left = 1100
            return np.full(1, 1.0), {}

        def step(self, action: Any) -> Any:
            self.left -= 1
            return np.full(1, self.left / 1100), float(self.left), self.left == 0, False, {}

    envs = Environments(SyncEngine([Long(), Long()]), SeedTree(0))
    rollout = collect(envs, make_policy(envs), n_episodes=2)
    assert rollout.rewards[:, 0].tolist() == list(range(1099, -1, -1))
    assert torch.equal(rollout.obs[:, 1, 0], torch.arange(1100, 0, -1, dtype=torch.float64) / 1100)
    assert [e.length for e in rollout.episodes] == [1100, 1100]
    assert len({tuple(a.tolist()) for a in rollout.actions.T}) == 2


def test_an_endless_episode_is_a_fault_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(episodes, "ENDLESS", 40)

    class Endless(Rare):
        def step(self, action: Any) -> Any:
            return np.zeros(1), 1.0, False, False, {}

    envs = Environments(SyncEngine([Rare(), Endless(), Rare()]), SeedTree(0))
    with pytest.raises(EnvironmentFaultError, match=r"environment 1 .*--max-episode-steps"):
        collect(envs, make_policy(envs), n_episodes=30)
    assert collect(envs, make_policy(envs), n_steps=100).n_valid == 300


def test_an_episode_of_exactly_the_limit_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "ENDLESS", 40)
    envs = Environments(SyncEngine([Rare() for _ in range(4)]), SeedTree(0))
    assert max(e.length for e in collect(envs, make_policy(envs), n_episodes=60).episodes) == 40


# Restarts


def same_bits(one: Any, other: Any) -> bool:
    names = ("obs", "actions", "rewards", "terminated", "truncated", "valid", "episode_step")
    names += ("episode", "last_obs", "final_rows", "final_obs", "log_prob")
    return one.episodes == other.episodes and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in names
    )


@pytest.mark.parametrize("amount", [{"n_steps": 23}, {"n_episodes": 7}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_run_with_the_same_counters_goes_on_alike(kind: str, amount: Any) -> None:
    envs = make_ledgers(kind)
    policy = make_policy(envs)
    for _ in range(2):
        collect(envs, policy, **amount)
    envs.restart()
    fresh = make_ledgers(kind)
    fresh.episodes_started, fresh.rollouts = envs.episodes_started, envs.rollouts
    fresh.restarts = envs.restarts
    for _ in range(3):
        assert same_bits(collect(envs, policy, **amount), collect(fresh, policy, **amount))
    envs.close()
    fresh.close()


def test_cut_episodes_enter_no_statistic() -> None:
    envs = make_ledgers("plain")
    policy = make_policy(envs)
    before = collect(envs, policy, n_steps=20)
    cut = {int(number) for number in envs.number}
    assert (envs.episode_step > 0).any(), "the cut must fall inside an episode"
    envs.restart()
    after = collect(envs, policy, n_steps=60)
    reported = {episode.number for episode in (*before.episodes, *after.episodes)}
    assert not cut & reported
    assert (after.episode_step[0] == 0).all()
    rewards: dict[int, float] = {}
    for row in transitions(after):
        number = int(after.episode[row.t, row.b])
        assert number > max(cut)
        rewards[number] = rewards.get(number, 0.0) + row.reward
    for episode in after.episodes:
        assert episode.ret == pytest.approx(rewards[episode.number], abs=1e-12)
        assert episode.length == ledger.length(SeedTree(0).integer("episode", episode.number))


def test_a_rollout_after_whole_episodes_starts_afresh() -> None:
    envs = make_ledgers("plain")
    policy = make_policy(envs)
    collect(envs, policy, n_episodes=5)
    rollout = collect(envs, policy, n_steps=10)
    assert bool(rollout.valid.all())
    assert (rollout.episode_step[0] == 0).all()
    assert rollout.episode[0].tolist() == [5, 6, 7]


def test_collecting_twice_gives_the_same_bits_and_another_seed_does_not() -> None:
    for kind in KINDS:
        first, second, other = (
            [collect(envs, policy, n_steps=20) for _ in range(2)]
            for envs, policy in (
                (envs, make_policy(envs))
                for envs in (make_ledgers(kind, seed=s) for s in (4, 4, 5))
            )
        )
        assert all(map(same_bits, first, second)), kind
        assert not any(map(same_bits, first, other)), kind
        assert not torch.equal(first[0].actions, first[1].actions)

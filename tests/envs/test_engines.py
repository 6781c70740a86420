"""What each kind of engine guarantees: native and EnvPool streams, the contract probe, faults."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import ledger
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from ledger import make_policy
from transcript import advantages_by_hand, advantages_of_ppo, transitions

from upslope.envs.engines import SyncEngine, VectorEngine, autoreset_mode
from upslope.envs.episodes import Environments
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.errors import ConfigError, EnvironmentFaultError
from upslope.rollout import collect, evaluate_rollout
from upslope.seeding import SeedTree

NEXT_STEP, SAME_STEP, DISABLED = (
    AutoresetMode.NEXT_STEP,
    AutoresetMode.SAME_STEP,
    AutoresetMode.DISABLED,
)
needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="envpool is not installed"
)
VECTORS = ["native", pytest.param("envpool", marks=[pytest.mark.envpool, needs_envpool])]
LIMIT = 12


def cartpoles(vec: str, n_envs: int = 4, seed: int = 0, limit: int = LIMIT) -> Environments:
    source = find_environment("CartPole-v1")
    return make_environments(source, n_envs=n_envs, seed=seed, vec=vec, max_episode_steps=limit)


# Vectors with an autoreset of their own


def swing(state: np.ndarray, action: int) -> np.ndarray:
    """One Euler step of the cart and pole (Barto, Sutton & Anderson 1983)."""
    x, v, angle, spin = state.astype(float)
    force = 10.0 if action == 1 else -10.0
    push = (force + 0.05 * spin**2 * np.sin(angle)) / 1.1
    turn = (9.8 * np.sin(angle) - np.cos(angle) * push) / (
        0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1)
    )
    drift = push - 0.05 * turn * np.cos(angle) / 1.1
    return np.array([x + 0.02 * v, v + 0.02 * drift, angle + 0.02 * spin, spin + 0.02 * turn])


@pytest.fixture(scope="module", params=VECTORS)
def stream(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Three rollouts of a vector of CartPoles that is limited to 12 steps."""
    envs = cartpoles(request.param)
    policy = make_policy(envs)
    pairs = []
    for _ in range(3):
        rollout = collect(envs, policy, n_steps=41)
        pairs.append((rollout, evaluate_rollout(policy, rollout)))
    envs.close()
    return policy, pairs


def test_a_valid_row_is_a_step_of_cartpole(stream: Any) -> None:
    _, pairs = stream
    endings = set()
    for rollout, _ in pairs:
        for row in transitions(rollout):
            assert np.allclose(row.successor, swing(row.obs, int(row.action)), atol=1e-5)
            assert row.reward == 1.0
            fell = abs(row.successor[2]) > 12 * np.pi / 180
            at_limit = int(rollout.episode_step[row.t, row.b]) == LIMIT - 1
            if not (fell and at_limit):
                assert (row.terminated, row.truncated) == (fell, at_limit)
            assert fell <= (row.terminated or row.truncated)
            endings.add((row.terminated, row.truncated))
    assert {(True, False), (False, True)} <= endings


def test_the_row_after_an_end_is_no_transition(stream: Any) -> None:
    _, pairs = stream
    done = torch.cat([rollout.done for rollout, _ in pairs])
    valid = torch.cat([rollout.valid for rollout, _ in pairs])
    expected = torch.ones_like(valid)
    expected[1:] = ~done[:-1]
    assert torch.equal(valid, expected)
    step = torch.cat([rollout.episode_step for rollout, _ in pairs])
    fresh = torch.ones_like(valid)
    fresh[1:] = ~valid[:-1]
    assert (step[valid & fresh] == 0).all()
    assert torch.equal(step[1:][valid[1:] & valid[:-1]], step[:-1][valid[1:] & valid[:-1]] + 1)


def test_advantages_of_a_recorded_stream_equal_the_sum_written_out(stream: Any) -> None:
    policy, pairs = stream
    for rollout, evaluated in pairs:
        shipped = advantages_of_ppo(policy, rollout, evaluated, 0.97, 0.9)
        by_hand = advantages_by_hand(policy, rollout, 0.97, 0.9)
        assert shipped.keys() == by_hand.keys()
        for key, value in by_hand.items():
            assert shipped[key] == pytest.approx(value, abs=1e-12)


def test_statistics_of_a_recorded_stream_are_exact(stream: Any) -> None:
    _, pairs = stream
    lengths: dict[int, int] = {}
    for rollout, _ in pairs:
        for row in transitions(rollout):
            number = int(rollout.episode[row.t, row.b])
            lengths[number] = lengths.get(number, 0) + 1
    finished = [episode for rollout, _ in pairs for episode in rollout.episodes]
    assert len(finished) > 20
    assert len({episode.number for episode in finished}) == len(finished)
    for episode in finished:
        assert episode.length == episode.ret == lengths[episode.number] <= LIMIT


@pytest.mark.parametrize("vec", VECTORS)
@pytest.mark.parametrize("amount", [{"n_steps": 30}, {"n_episodes": 9}])
def test_restarted_vector_goes_on_like_a_fresh_one(vec: str, amount: Any) -> None:
    envs = cartpoles(vec)
    policy = make_policy(envs)
    for _ in range(2):
        collect(envs, policy, **amount)
    envs.restart()
    fresh = cartpoles(vec)
    fresh.episodes_started, fresh.rollouts = envs.episodes_started, envs.rollouts
    fresh.restarts = envs.restarts
    for _ in range(3):
        mine, theirs = collect(envs, policy, **amount), collect(fresh, policy, **amount)
        assert mine.episodes == theirs.episodes
        for name in ("obs", "actions", "rewards", "valid", "done", "last_obs", "log_prob"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    envs.close()
    fresh.close()


@pytest.mark.parametrize("vec", VECTORS)
def test_equal_seeds_give_equal_bits_and_other_seeds_other_ones(vec: str) -> None:
    def obs(seed: int) -> list[torch.Tensor]:
        envs = cartpoles(vec, seed=seed)
        policy = make_policy(envs)
        tensors = [collect(envs, policy, n_steps=25).obs for _ in range(2)]
        envs.restart()
        tensors.append(collect(envs, policy, n_steps=25).obs)
        envs.close()
        return tensors

    first, second, other = obs(3), obs(3), obs(4)
    assert all(map(torch.equal, first, second))
    assert not any(map(torch.equal, first, other))
    starts = torch.cat([first[0][0], first[2][0], other[0][0]])
    assert len(torch.unique(starts, dim=0)) == len(starts), "no two environments start alike"


@pytest.mark.parametrize("vec", VECTORS)
def test_numbered_episodes_of_a_vector_are_whole(vec: str) -> None:
    envs = cartpoles(vec)
    policy = make_policy(envs)
    for batch in range(3):
        rollout = collect(envs, policy, n_episodes=10)
        numbers = sorted(episode.number for episode in rollout.episodes)
        assert numbers == list(range(10 * batch, 10 * batch + 10))
        assert rollout.n_valid == sum(episode.length for episode in rollout.episodes)
        for row in transitions(rollout):
            assert np.allclose(row.successor, swing(row.obs, int(row.action)), atol=1e-5)
    envs.close()


@pytest.mark.envpool
@needs_envpool
def test_envpool_reports_only_truncated_where_both_ends_coincide() -> None:
    """A documented departure: whoever fixes it upstream should see this test fail."""
    envs = cartpoles("envpool", n_envs=8)
    policy = make_policy(envs)
    policy.actions.sample = lambda outputs, noise, std, mask=None: np.zeros(len(outputs), np.int64)
    falls = [episode.length for episode in collect(envs, policy, n_steps=60).episodes]
    envs.close()
    limit = min(falls)
    assert limit < LIMIT
    envs = cartpoles("envpool", n_envs=8, limit=limit)
    rollout = collect(envs, policy, n_steps=60)
    envs.close()
    both = [
        (row.terminated, row.truncated)
        for row in transitions(rollout)
        if abs(row.successor[2]) > 12 * np.pi / 180
    ]
    assert both
    assert set(both) == {(False, True)}


# What metadata says


class Clock(VectorEnv):
    """Three slots whose episodes last 3, 4 and 5 steps, whatever one does: a foreign vector.

    ``mode`` is what it does, ``honours_mask`` whether ``reset_mask`` leaves the others alone.
    """

    num_envs = 3
    single_observation_space = gym.spaces.Box(-9.0, 9.0, (2,), np.float32)
    single_action_space = gym.spaces.Discrete(2)

    def __init__(
        self, mode: AutoresetMode, claim: Any, honours_mask: bool = True, gain: float = 1.0
    ) -> None:
        self.mode, self.honours_mask, self.gain = mode, honours_mask, gain
        self.metadata = {"autoreset_mode": claim}
        batch = gym.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, 3)
        self.action_space = batch(self.single_action_space, 3)
        self.clock, self.over = np.zeros(3), np.zeros(3, dtype=bool)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        mask = np.ones(3, dtype=bool)
        if options and self.honours_mask:
            mask = options["reset_mask"]
        self.clock, self.over = np.where(mask, 0, self.clock), self.over & ~mask
        return self._obs(), {}

    def step(self, actions: Any) -> Any:
        resetting = self.over if self.mode is NEXT_STEP else np.zeros(3, dtype=bool)
        self.clock = np.where(resetting, 0, self.clock + 1)
        self.over = (self.clock >= [3, 4, 5]) & ~resetting
        over, infos = self.over, {}
        if self.mode is SAME_STEP and over.any():
            finals = np.full(3, None, dtype=object)
            for i in np.flatnonzero(over):
                finals[i] = self._obs()[i]
            infos = {"final_obs": finals, "_final_obs": over}
            self.clock = np.where(over, 0, self.clock)
        return (
            self._obs(),
            np.where(resetting, 0.0, self.gain),
            over,
            np.zeros(3, dtype=bool),
            infos,
        )

    def _obs(self) -> np.ndarray:
        return np.stack([self.clock, np.arange(3)], axis=1).astype(np.float32)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_foreign_vector_that_keeps_its_word_is_run_as_it_is(
    mode: AutoresetMode, as_text: bool
) -> None:
    envs = make_environments(find_environment(Clock(mode, mode.value if as_text else mode)))
    assert mode.name in envs.engine.established  # type: ignore[attr-defined]
    policy = make_policy(envs)
    for _ in range(2):
        rollout = collect(envs, policy, n_steps=13)
        for row in transitions(rollout):
            assert row.successor.tolist() == [row.obs[0] + 1, row.b]
            assert row.terminated == (row.successor[0] == row.b + 3)
        assert all(e.length == e.ret in (3, 4, 5) for e in rollout.episodes)
    assert rollout.n_valid < 39 if mode is NEXT_STEP else rollout.n_valid == 39
    rollout = collect(envs, policy, n_episodes=7)
    assert len(rollout.episodes) == 7


@pytest.mark.parametrize("claim", [None, "next", "NEXT_STEP", 3, "missing", "no metadata"])
def test_metadata_that_says_nothing_known_is_refused(claim: Any) -> None:
    vector = Clock(NEXT_STEP, claim)
    if claim == "missing":
        vector.metadata = {}
    if claim == "no metadata":
        vector.metadata = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"Clock\.metadata\['autoreset_mode'\].*NEXT_STEP"):
        make_environments(find_environment(vector))
    with pytest.raises(ConfigError):
        autoreset_mode(vector)


LIES = [
    (NEXT_STEP, SAME_STEP),
    (DISABLED, SAME_STEP),
    (SAME_STEP, NEXT_STEP),
    (DISABLED, NEXT_STEP),
    (SAME_STEP, DISABLED),
]


@pytest.mark.parametrize(("mode", "claim"), LIES)
def test_wrong_metadata_is_caught_on_a_foreign_vector(
    mode: AutoresetMode, claim: AutoresetMode
) -> None:
    with pytest.raises(EnvironmentFaultError, match="autoreset_mode"):
        make_environments(find_environment(Clock(mode, claim)))


@pytest.mark.parametrize(("mode", "claim"), LIES)
def test_wrong_metadata_is_caught_on_gymnasiums_own(
    mode: AutoresetMode, claim: AutoresetMode
) -> None:
    vector = SyncVectorEnv([ledger.Ledger] * 3, autoreset_mode=mode)
    vector.metadata = dict(vector.metadata, autoreset_mode=claim)
    refusal = "stepped after the end|_autoreset_envs" if mode is DISABLED else "autoreset_mode"
    with pytest.raises(EnvironmentFaultError, match=f"{refusal}|autoreset_mode"):
        make_environments(find_environment(vector))


def test_same_step_that_claims_next_step_is_caught_without_rewards_too() -> None:
    with pytest.raises(EnvironmentFaultError, match="autoreset_mode"):
        make_environments(find_environment(Clock(SAME_STEP, NEXT_STEP, gain=0.0)))


def test_a_vector_that_ignores_reset_mask_is_caught() -> None:
    with pytest.raises(EnvironmentFaultError, match="outside the mask"):
        make_environments(find_environment(Clock(DISABLED, DISABLED, honours_mask=False)))
    native = gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    native.metadata = dict(native.metadata, autoreset_mode=DISABLED)
    with pytest.raises(EnvironmentFaultError, match="outside the mask"):
        make_environments(find_environment(native))


@pytest.mark.parametrize("mode", AutoresetMode)
def test_gymnasiums_own_vectors_pass_the_probe(mode: AutoresetMode) -> None:
    vector = SyncVectorEnv([ledger.Ledger] * 3, autoreset_mode=mode)
    envs = make_environments(find_environment(vector))
    assert mode.name in envs.engine.established  # type: ignore[attr-defined]
    rollout = collect(envs, make_policy(envs), n_steps=30)
    for row in transitions(rollout):
        e, t = ledger.read(row.obs)
        assert ledger.read(row.successor) == (e, t + 1)


def test_what_the_probe_could_not_see_is_said() -> None:
    class Endless(Clock):
        def step(self, actions: Any) -> Any:
            return self._obs(), np.ones(3), np.zeros(3, bool), np.zeros(3, bool), {}

    envs = make_environments(find_environment(Endless(NEXT_STEP, NEXT_STEP)))
    assert "no episode ended" in envs.engine.established  # type: ignore[attr-defined]


# Faults


class Faulty(ledger.Ledger):
    """Raises in its step or reset of the given count."""

    def __init__(self, step_at: int = 0, reset_at: int = 0, error: Exception | None = None) -> None:
        super().__init__()
        self.step_at, self.reset_at, self.steps, self.resets = step_at, reset_at, 0, 0
        self.error = error or RuntimeError("the gearbox\nis on fire")

    def reset(self, **kwargs: Any) -> Any:
        self.resets += 1
        if self.resets == self.reset_at:
            raise self.error
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.step_at:
            raise self.error
        return super().step(action)


@pytest.mark.parametrize("amount", [{"n_steps": 20}, {"n_episodes": 20}])
@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("at", [1, 7])
def test_an_exception_in_step_names_environment_and_cause(amount: Any, index: int, at: int) -> None:
    members = [ledger.Ledger() for _ in range(3)]
    members[index] = Faulty(step_at=at)
    envs = Environments(SyncEngine(members), SeedTree(0))
    message = (
        rf"^environment {index} raised RuntimeError in step \d+ of episode \d+ \(seed \d+\): is on"
    )
    with pytest.raises(EnvironmentFaultError, match=message) as caught:
        collect(envs, make_policy(envs), **amount)
    assert caught.value.exit_code == 3
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("at", [1, 3])
def test_an_exception_in_reset_names_environment_and_seed(index: int, at: int) -> None:
    members = [ledger.Ledger() for _ in range(3)]
    members[index] = Faulty(reset_at=at)
    envs = Environments(SyncEngine(members), SeedTree(0))
    message = rf"^environment {index} raised RuntimeError in reset of episode \d+ \(seed \d+\): is"
    with pytest.raises(EnvironmentFaultError, match=message):
        collect(envs, make_policy(envs), n_steps=60)


def test_an_action_outside_the_space_is_never_sent() -> None:
    envs = ledger.make_ledgers("plain")
    policy = make_policy(envs)
    policy.actions._start = 0
    with pytest.raises(EnvironmentFaultError, match=r"environment 0 raised AssertionError in step"):
        collect(envs, policy, n_steps=5)


@pytest.fixture
def fork_quietly() -> Iterator[None]:
    """Gymnasium reports a worker's error by warnings before it raises."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("fork_quietly")
@pytest.mark.parametrize("call", ["step_at", "reset_at"])
def test_an_exception_in_a_worker_names_its_environment(call: str) -> None:
    makers = [ledger.Ledger, partial(Faulty, **{call: 3}), ledger.Ledger]
    vector = AsyncVectorEnv(makers, copy=False, autoreset_mode=DISABLED)
    envs = Environments(
        VectorEngine(lambda _: vector, name="async", seeds_episodes=True), SeedTree(0)
    )
    try:
        with pytest.raises(
            EnvironmentFaultError, match=r"environment 1\b.*RuntimeError.*is on fire"
        ):
            collect(envs, make_policy(envs), n_steps=60)
    finally:
        envs.close()


def test_one_environment_cannot_fill_two_slots() -> None:
    """A factory that returns the same object again would let two slots step one episode."""
    single = ledger.Ledger()
    with pytest.raises(ConfigError):
        make_environments(find_environment(lambda: single), n_envs=2, vec="sync")


def test_a_plain_env_is_a_vector_of_one() -> None:
    envs = make_environments(find_environment(ledger.Ledger()))
    assert envs.n_envs == 1
    for row in transitions(collect(envs, make_policy(envs), n_steps=30)):
        e, t = ledger.read(row.obs)
        assert ledger.read(row.successor) == (e, t + 1)
    with pytest.raises(ConfigError, match="n_envs"):
        make_environments(find_environment(ledger.Ledger()), n_envs=2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_made_sync_and_async_are_the_same_run() -> None:
    def run(vec: str) -> Any:
        envs = make_environments(find_environment(ledger.Ledger), n_envs=3, seed=6, vec=vec)
        rollout = collect(envs, make_policy(envs), n_steps=40)
        envs.close()
        return rollout

    one, other = run("sync"), run("async")
    assert one.episodes == other.episodes
    assert torch.equal(one.obs, other.obs)
    assert torch.equal(one.final_obs, other.final_obs)

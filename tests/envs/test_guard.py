"""The boundary: every way an environment can break its contract is one sentence with exit 3."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import upslope
from upslope.envs.engines import SyncEngine
from upslope.envs.guard import FAULT, TRACE, GuardedEnv
from upslope.errors import ConfigError, EnvironmentFaultError, NonFiniteError

SPACE = Box(-10, 10, (2,))
VECS = ("sync", "async")


class LocalError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Steps(gym.Env[Any, Any]):
    """Ten steps an episode; ``change`` may do anything to the ``at``-th return of reset or step.

    Counting goes on over episodes; reset is call 0 of the life of the environment.
    """

    observation_space: gym.Space[Any] = SPACE
    action_space: gym.Space[Any] = Discrete(2)

    def __init__(
        self,
        change: Callable[[Any], Any] = lambda result: result,
        at: int = 5,
        space: gym.Space[Any] = SPACE,
    ) -> None:
        self.change, self.at, self.observation_space = change, at, space
        self.calls = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 10
        return self.changed((self.observe(), {}))

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.changed((self.observe(), 1.0, self.left == 0, False, {}))

    def observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def changed(self, result: Any) -> Any:
        self.calls += 1
        return self.change(result) if self.calls == self.at else result


def agent_of(*envs: Steps, vec: str = "sync", **settings: Any) -> upslope.PPO:
    given = iter(envs)
    first = envs[0]

    def make() -> Steps:  # one more than n_envs is made where workers start
        return next(given, first)

    more = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "n_envs": len(envs), "vec": vec}
    return upslope.PPO(make if vec == "sync" else (lambda: first), **(more | settings))


def fails(change: Callable[[Any], Any], at: int = 5, vec: str = "sync", **more: Any) -> str:
    agent = agent_of(Steps(change, at, **more), vec=vec)
    before = [p.detach().clone() for p in agent.policy.parameters()]
    with pytest.raises(EnvironmentFaultError) as caught:
        agent.learn(64)
    assert caught.value.exit_code == 3
    after = list(agent.policy.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    if at < 8:
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    agent.close()
    said = str(caught.value)
    assert said.startswith("environment 0 ")
    assert "\n" not in said
    return said


def raising(error: Callable[[], Exception]) -> Callable[[Any], Any]:
    def change(_: Any) -> Any:
        raise error()

    return change


def replaced(i: int, value: Any) -> Callable[[Any], Any]:
    return lambda result: (*result[:i], value, *result[i + 1 :])


class TestExceptions:
    @pytest.mark.parametrize("vec", VECS)
    @pytest.mark.parametrize(
        ("error", "name"),
        [
            (lambda: RuntimeError("it broke"), "RuntimeError"),
            (lambda: LocalError("this", "that"), "LocalError"),
            (lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "UnicodeDecodeError"),
            (lambda: type("Inside", (Exception,), {})("gone"), "Inside"),
            (lambda: StopIteration(3), "StopIteration"),
        ],
        ids=["plain", "two arguments", "unicode", "local class", "stop"],
    )
    def test_whatever_its_class_it_is_named(self, error: Any, name: str, vec: str) -> None:
        said = fails(raising(error), vec=vec)
        assert f"raised {name} in step 5 of episode 0 (seed " in said
        assert "--debug" in said

    @pytest.mark.parametrize("vec", VECS)
    def test_in_reset(self, vec: str) -> None:
        said = fails(raising(lambda: OSError("no simulator")), at=0, vec=vec)
        assert "raised OSError in reset of episode 0 (seed " in said
        assert "no simulator" in said

    @pytest.mark.parametrize("vec", VECS)
    def test_the_traceback_is_its_cause(self, vec: str) -> None:
        agent = agent_of(Steps(raising(lambda: RuntimeError("deep"))), vec=vec)
        with pytest.raises(EnvironmentFaultError) as caught:
            agent.learn(64)
        assert "in changed" in str(caught.value.__cause__)
        agent.close()

    @pytest.mark.parametrize("k", [1, 2, 9, 17, 30])
    @pytest.mark.parametrize("j", [0, 1, 2])
    def test_at_any_step_of_any_environment(self, k: int, j: int) -> None:
        envs = [Steps(), Steps(), Steps()]
        envs[j] = Steps(raising(lambda: ValueError("grid")), at=k)
        agent = agent_of(*envs)
        weights: list[Any] = []

        def keep(event: Any) -> None:
            weights[:] = [p.detach().clone() for p in event.agent.policy.parameters()]

        with pytest.raises(EnvironmentFaultError, match=f"^environment {j} raised ValueError"):
            agent.learn(1000, callback=keep)
        if weights:  # the policy is that of the last whole iteration
            for one, other in zip(weights, agent.policy.parameters(), strict=True):
                assert torch.equal(one, other)


class TestRestarts:
    def faulty(self, times: int) -> Callable[[], Steps]:
        left = [times]

        def change(result: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise RuntimeError("now and then")
            return result

        made: list[Steps] = []

        def make() -> Steps:
            made.append(Steps(change, at=5))
            return made[-1]

        make.made = made  # type: ignore[attr-defined]
        return make

    def test_the_episode_is_dropped_and_counted(self, caplog: Any) -> None:
        make = self.faulty(2)
        agent = upslope.PPO(
            make, n_envs=2, n_steps=16, batch_size=8, n_epochs=1, on_env_error="restart:2"
        )
        seen: list[Any] = []
        with caplog.at_level(logging.WARNING, "upslope"):
            agent.learn(64, callback=lambda event: seen.append(event))
        assert len(make.made) == 4  # type: ignore[attr-defined]
        assert seen[-1].metrics["rollout/env_faults"] == 2
        assert "made anew (1 of 2)" in caplog.text
        assert "now and then" in caplog.text
        lengths = [e.length for event in seen for e in event.episodes]
        assert lengths
        assert set(lengths) == {10}
        # Both slots lost the first five rows of their first episode: 4 seen and the one that broke.
        assert seen[0].metrics["rollout/valid_share"] == pytest.approx((32 - 10) / 32)

    def test_one_too_many_stops(self) -> None:
        agent = upslope.PPO(
            self.faulty(3), n_envs=2, n_steps=16, batch_size=8, on_env_error="restart:2"
        )
        with pytest.raises(EnvironmentFaultError, match="now and then"):
            agent.learn(64)

    def test_a_reset_that_fails_is_tried_again(self) -> None:
        tries = [0]

        def change(result: Any) -> Any:
            tries[0] += 1
            if tries[0] < 3:
                raise OSError("starting")
            return result

        agent = upslope.PPO(
            lambda: Steps(change, at=0), n_envs=1, n_steps=8, batch_size=8, on_env_error="restart:5"
        )
        agent.learn(16)
        assert tries[0] == 3

    def test_whole_batches_stay_whole(self) -> None:
        agent = upslope.REINFORCE(
            self.faulty(2), n_envs=3, batch_episodes=4, on_env_error="restart:3"
        )
        counts: list[int] = []
        agent.learn(60, callback=lambda event: counts.append(len(event.episodes)))
        assert set(counts) == {4}

    @pytest.mark.parametrize("text", ["restart", "restart:0", "restart:x", "go on", "stop:3", ""])
    def test_other_words_are_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="on_env_error"):
            upslope.PPO(Steps, on_env_error=text)

    def test_what_cannot_be_made_anew_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="ready made"):
            upslope.PPO(Steps(), on_env_error="restart:2")


@pytest.mark.parametrize("at", [0, 1, 12])
@pytest.mark.parametrize(
    ("value", "space"),
    [
        (np.zeros(2, np.float64), SPACE),
        (np.zeros(2, np.int64), SPACE),
        (np.zeros(3, np.float32), SPACE),
        (np.zeros((1, 2), np.float32), SPACE),
        ([0.0, 0.0], SPACE),
        (0.0, SPACE),
        (None, SPACE),
        ({"a": np.zeros(2, np.float32)}, SPACE),
        (np.zeros(3, np.float32), Box(0, 1, ())),
        (1.5, Discrete(3)),
        (3, Discrete(3)),
        (0, Discrete(3, start=1)),
        (np.array([1, 2]), Discrete(3)),
        (np.array([0, 3]), MultiDiscrete([2, 3])),
        (np.array([0.0, 1.0]), MultiDiscrete([2, 3])),
        (np.array([0, 2], np.int8), MultiBinary(2)),
        ({"a": 1}, Dict(a=Discrete(2), b=Discrete(2))),
        ({"a": 1, "b": 5}, Dict(a=Discrete(2), b=Discrete(2))),
        ((1,), Tuple((Discrete(2), Discrete(2)))),
        (np.zeros((7, 7, 3), np.float32), Box(0, 255, (7, 7, 3), np.uint8)),
    ],
    ids=lambda x: str(x)[:40].replace("\n", ""),
)
def test_an_observation_of_another_structure(value: Any, space: Any, at: int) -> None:
    said = fails(replaced(0, value), at, space=space)
    assert "broke its contract in " in said
    assert "the observation" in said
    assert "its space" in said


@pytest.mark.parametrize(
    ("value", "space"),
    [
        (np.zeros(2, np.float32), Box(-1, 1, (2,), np.float64)),  # nothing is lost
        (np.zeros(2, np.int32), Box(-5, 5, (2,), np.int64)),
        (0.5, Box(0, 1, ())),
        (np.float32(0.5), Box(0, 1, ())),
        (True, Discrete(2)),
        (np.int8(1), Discrete(2)),
        (np.array(1), Discrete(2)),
        ([1, True], Tuple((Discrete(2), Discrete(2)))),
        ({"a": 1, "b": 0, "c": "extra"}, Dict(a=Discrete(2), b=Discrete(2))),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_loses_nothing_is_taken(value: Any, space: Any) -> None:
    agent_of(Steps(replaced(0, value), 5, space)).learn(16)


@pytest.mark.parametrize("vec", VECS)
@pytest.mark.parametrize(
    "reward", [None, np.ones(1), np.array(1.0), True, np.True_, "1", [1.0], 1j], ids=repr
)
def test_a_reward_that_is_no_number(reward: Any, vec: str) -> None:
    said = fails(replaced(1, reward), vec=vec)
    assert "the reward is " in said
    assert "float(reward)" in said


@pytest.mark.parametrize("reward", [1, np.float32(1), np.int64(1), np.float16(1), np.uint8(1)])
def test_numbers_of_every_kind_are_rewards(reward: Any) -> None:
    agent_of(Steps(replaced(1, reward))).learn(16)


class TestOldApi:
    def test_four_values(self) -> None:
        said = fails(lambda r: (r[0], r[1], r[2], r[4]))
        assert "step returned a tuple of 4: it speaks Gym's old API" in said

    @pytest.mark.parametrize("result", [np.zeros(2, np.float32), (np.zeros(2), 1), None], ids=str)
    def test_reset_without_info(self, result: Any) -> None:
        said = fails(lambda _: result, at=0)
        assert "reset returned " in said
        assert "(obs, info) from reset" in said

    @pytest.mark.parametrize(("i", "value"), [(2, 0), (2, None), (3, 1), (3, "no")])
    def test_ends_that_are_no_truths(self, i: int, value: Any) -> None:
        assert "both must be True or False" in fails(replaced(i, value))

    def test_behind_gymnasiums_own_wrappers(self) -> None:
        env = Steps(lambda r: (r[0], r[1], r[2], r[4]))
        agent = upslope.PPO(gym.wrappers.TimeLimit(env, 50), n_steps=8, batch_size=8)
        with pytest.raises(EnvironmentFaultError, match="old API"):
            agent.learn(16)


class TestNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_rewards(self, value: float) -> None:
        agent = agent_of(Steps(), Steps(replaced(1, value), at=3))
        before = [p.detach().clone() for p in agent.policy.parameters()]
        with pytest.raises(NonFiniteError, match=r"environment 1 gave the reward .* at step 2"):
            agent.learn(64)
        for one, other in zip(before, agent.policy.parameters(), strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("at", [3, 10])  # 10: the last of an episode, a final observation
    def test_observations(self, at: int) -> None:
        bad = np.array([0, np.nan], np.float32)
        with pytest.raises(
            NonFiniteError, match=r"environment 0 gave the (final )?observation nan"
        ):
            agent_of(Steps(replaced(0, bad), at)).learn(64)

    def test_a_number_too_large_for_the_policy(self) -> None:
        """1e300 is finite in the environment's float64 and infinite in the policy's float32."""
        space = Box(-np.inf, np.inf, (2,), np.float64)
        agent = agent_of(Steps(replaced(0, np.array([0, 1e300])), 3, space))
        before = [p.detach().clone() for p in agent.policy.parameters()]
        with pytest.raises(NonFiniteError, match="environment 0 gave the observation 1e"):
            agent.learn(64)
        for one, other in zip(before, agent.policy.parameters(), strict=True):
            assert torch.equal(one, other)


class TestOutside:
    FAR = np.array([0, 1e6], np.float32)

    def test_is_said_once_with_the_worst(self, caplog: Any) -> None:
        envs = [Steps(replaced(0, self.FAR), at) for at in (3, 9)]
        with caplog.at_level(logging.WARNING, "upslope"):
            agent_of(*envs).learn(64)
        said = [r.message for r in caplog.records if "outside" in r.message]
        assert len(said) == 1
        assert "observation[1] was 1e+06, outside its space's [-10, 10]" in said[0]

    def test_is_a_fault_where_it_is_to_be(self) -> None:
        agent = agent_of(Steps(replaced(0, self.FAR), 3), strict_spaces=True)
        with pytest.raises(EnvironmentFaultError, match=r"observation\[1\] was 1e\+06"):
            agent.learn(64)

    def test_what_rounding_explains_is_inside(self) -> None:
        near = np.array([0, 10.00001], np.float32)
        agent_of(Steps(replaced(0, near), 3), strict_spaces=True).learn(64)

    def test_nothing_is_clipped(self) -> None:
        seen: list[float] = []
        agent = agent_of(Steps(replaced(0, self.FAR), 3))
        collect = agent.training.learner.collect
        agent.training.learner.collect = lambda envs: (  # type: ignore[method-assign]
            seen.append(float((rollout := collect(envs)).obs.max())) or rollout
        )
        agent.learn(8)
        assert seen == [1e6]


def test_a_rollout_too_large_for_the_memory_is_refused_with_the_arithmetic() -> None:
    class Huge(Steps):
        def __init__(self) -> None:
            super().__init__(space=Box(0, 255, (4000, 4000), np.uint8))

    with pytest.raises(ConfigError) as caught:
        upslope.PPO(Huge, n_envs=8, n_steps=2048)
    said = str(caught.value)
    assert caught.value.exit_code == 2
    assert "2048 steps x 8 environments x 16,000,000 bytes" in said
    assert "--max-buffer" in said
    with pytest.raises(ConfigError, match=r"and 0\.1 GiB are allowed"):
        upslope.PPO(Huge, n_envs=2, n_steps=8, batch_size=8, max_buffer=0.1)


def test_an_observation_buffer_that_is_reused_is_copied() -> None:
    class Reuses(Steps):
        buffer = np.zeros(2, np.float32)

        def observe(self) -> Any:
            self.buffer[:] = self.left
            return self.buffer

    engine = SyncEngine([Reuses()])
    envs = upslope.envs.episodes.Environments(engine, upslope.seeding.SeedTree(0))
    policy = upslope.ActorCritic(envs.observation_space, envs.action_space)
    rollout = upslope.collect(envs, policy, n_steps=12)
    assert rollout.obs[:, 0, 0].tolist() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 9]
    assert rollout.final_obs[:, 0].tolist() == [0]


def test_the_guard_passes_on_what_is_sound() -> None:
    env = GuardedEnv(Steps)
    obs, info = env.reset(seed=1)
    assert SPACE.contains(obs)
    assert info == {}
    assert env.step(0)[1:] == (1.0, False, False, {})
    broken = GuardedEnv(lambda: Steps(raising(lambda: RuntimeError("x")), at=1))
    broken.reset(seed=1)
    obs, reward, terminated, truncated, info = broken.step(0)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert set(info) == {FAULT, TRACE}


def test_ignored_parts_never_reach_the_policy(tmp_path: Path) -> None:
    class Told(Steps):
        def __init__(self) -> None:
            parts = {"seen": SPACE, "words": gym.spaces.Text(9), "deep": Dict(a=SPACE, words=SPACE)}
            super().__init__(space=Dict(parts))

    for vec in VECS:
        agent = upslope.PPO(
            Told, ignore_obs=["words"], n_envs=2, n_steps=8, batch_size=8, vec=vec
        ).learn(16)
        space = agent.policy.observation_space
        assert isinstance(space, Dict)
        assert list(space) == ["deep", "seen"]
        assert list(space["deep"]) == ["a"]
        obs, _ = Told().reset(seed=0)
        agent.predict(obs)  # with the part that is ignored
        agent.save(tmp_path / "m.safetensors")
        upslope.load(tmp_path / "m.safetensors", env=Told).learn(16)
        agent.close()
    with pytest.raises(ConfigError, match="did you mean 'words'"):
        upslope.PPO(Told, ignore_obs=["word"])

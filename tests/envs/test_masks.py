"""Action masks in three conventions are one: honoured everywhere, refused where nothing is left."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope
from helpers.chamber import ACTIONS, Chamber
from upslope.envs.engines import SyncEngine, VectorEngine
from upslope.envs.episodes import Environments
from upslope.envs.masks import current_mask, flat_mask, sample_allowed
from upslope.envs.probe import check_contract
from upslope.errors import ConfigError, EnvironmentFaultError
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout
from upslope.seeding import SeedTree
from upslope.spaces import choice_sizes, mask_size
from upslope.trees import leaves

CONVENTIONS = ("method", "info", "observation")
ENGINES = ("sync", "async", "next_step", "same_step", "disabled")


def environments(convention: str, engine: str, actions: str = "choices", n: int = 3) -> Any:
    make = functools.partial(Chamber, "vector", actions, convention)
    if engine == "sync":
        return Environments(SyncEngine([make() for _ in range(n)]), SeedTree(4))
    if engine == "async":
        return upslope.make_vec_env(make, n, 4, "async")
    vector = SyncVectorEnv([make] * n, autoreset_mode=AutoresetMode[engine.upper()])
    return Environments(
        VectorEngine(lambda _: vector, name="vector", seeds_episodes=True), SeedTree(4)
    )


def policy_of(envs: Environments) -> ActorCritic:
    policy = ActorCritic(envs.observation_space, envs.action_space, dtype="float64", net_arch=(4,))
    with torch.no_grad():
        policy.actor_head.bias.normal_(generator=torch.Generator().manual_seed(0))
    return policy


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_only_what_is_allowed_is_done_in_rollouts(convention: str, engine: str) -> None:
    """The chamber raises at an action that its mask forbids; the rollout holds those masks."""
    envs = environments(convention, engine)
    policy = policy_of(envs)
    for amount in ({"n_steps": 12}, {"n_episodes": 5}):
        rollout = collect(envs, policy, **amount)
        assert rollout.mask is not None
        assert rollout.mask.dtype == torch.bool
        assert 0.4 < float(rollout.mask.float().mean()) < 0.9
        evaluate_rollout(policy, rollout)  # the ratio starts at 1 under the same masks
        distribution = policy.actions.distribution(torch.zeros(*rollout.mask.shape), rollout.mask)
        assert (distribution.log_prob(rollout.actions)[rollout.valid] > -10).all()
    envs.close()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conventions_are_one(convention: str) -> None:
    given, info = environments(convention, "sync"), environments("info", "sync")
    rollouts = []
    for envs in (given, info):
        policy = policy_of(envs)
        torch.nn.init.zeros_(policy.actor_head.weight)
        rollouts.append(collect(envs, policy, n_steps=10))
    assert torch.equal(rollouts[0].mask, rollouts[1].mask)  # type: ignore[arg-type]
    assert torch.equal(rollouts[0].actions, rollouts[1].actions)


def test_without_its_mask_a_rollout_is_refused() -> None:
    import dataclasses

    envs = environments("info", "sync")
    policy = policy_of(envs)
    rollout = dataclasses.replace(collect(envs, policy, n_steps=8), mask=None)
    with pytest.raises(upslope.errors.StaleRolloutError, match="mask"):
        evaluate_rollout(policy, rollout)


class TestNothingAllowed:
    class Stuck(Chamber):
        """Allows nothing at one step of each episode; at its end that is right."""

        at = 2

        def observe(self) -> tuple[Any, dict[str, Any]]:
            obs, info = super().observe()
            if self.t in (self.at, self.length):
                self.allowed[:2] = False
            if self.mask == "observation":
                obs["action_mask"] = self.allowed.astype(np.int8)
            if self.mask == "info":
                info["action_mask"] = self.allowed.copy()
            return obs, info

    def run(self, kind: type[Chamber], convention: str, engine: str) -> None:
        make = functools.partial(kind, "vector", "choices", convention)
        if engine == "sync":
            env: Any = make
        else:
            env = SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode[engine.upper()])
        upslope.A2C(env, n_steps=9).learn(60)

    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_is_an_error_that_names_environment_and_step(self, convention: str) -> None:
        said = r"environment \d allows no action at step 2 of episode \d+"
        with pytest.raises(EnvironmentFaultError, match=said):
            self.run(self.Stuck, convention, "sync")

    @pytest.mark.parametrize("engine", ["sync", "next_step", "same_step", "disabled"])
    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_at_the_end_of_an_episode_it_is_right(self, convention: str, engine: str) -> None:
        class Ends(self.Stuck):  # type: ignore[name-defined,misc]
            at = -1

        self.run(Ends, convention, engine)

    def test_exit_code(self) -> None:
        assert EnvironmentFaultError.exit_code == 3


class TestPredict:
    def agent(self, convention: str) -> upslope.PPO:
        make = functools.partial(Chamber, "vector", "choice", convention)
        return upslope.PPO(make, n_envs=2, n_steps=8, batch_size=8)

    def test_a_mask_is_obeyed_single_and_in_batches(self) -> None:
        agent = self.agent("info")
        obs = np.zeros((50, 3), np.float32)
        masks = np.tile([False, True, True], (50, 1))
        masks[:25] = [True, False, False]
        for deterministic in (False, True):
            actions, _ = agent.predict(obs, deterministic=deterministic, action_masks=masks)
            assert set(actions[:25]) == {-1}  # the space starts there
            assert set(actions[25:]) <= {0, 1}
            one, _ = agent.predict(obs[0], deterministic=deterministic, action_masks=[0, 0, 1])
            assert one == 1

    def test_the_key_of_an_observation_is_read(self) -> None:
        agent = self.agent("observation")
        obs = {"seen": np.zeros(3, np.float32), "action_mask": np.array([0, 1, 0], np.int8)}
        assert {int(agent.predict(obs)[0]) for _ in range(20)} == {0}

    @pytest.mark.parametrize("masks", [[1, 1], [[1, 1, 1]] * 2, []])
    def test_another_number_is_refused(self, masks: Any) -> None:
        with pytest.raises(ConfigError, match="action_masks has the shape"):
            self.agent("info").predict(np.zeros(3, np.float32), action_masks=masks)

    def test_nothing_allowed_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="allows no action"):
            self.agent("info").predict(np.zeros(3, np.float32), action_masks=[0, 0, 0])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_evaluation_obeys(convention: str, deterministic: bool) -> None:
    make = functools.partial(Chamber, "vector", "tuple", convention)
    agent = upslope.PPO(make, n_envs=2, n_steps=8, batch_size=8)
    assert len(agent.evaluate_one_way(20, deterministic=deterministic).returns) == 20


@pytest.mark.parametrize("name", ACTIONS)
def test_random_actions_are_allowed_and_reach_everything(name: str) -> None:
    env, rng = Chamber("vector", name, "info"), np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(200):
        mask = current_mask(env, {"action_mask": env.allowed})
        over = any(env.step(sample_allowed(env.action_space, mask, rng))[2:4])
        if over:
            env.reset()
    free = [sample_allowed(env.action_space, None, rng) for _ in range(200)]
    assert all(env.action_space.contains(action) for action in free)
    if choice_sizes(env.action_space):
        seen = {tuple(map(int, np.concatenate([np.ravel(x) for x in leaves(a)]))) for a in free}
        assert len(seen) > 2


def test_the_probe_of_a_foreign_vector_obeys() -> None:
    make = functools.partial(Chamber, "vector", "choices", "info")
    vector = SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    engine = VectorEngine(lambda _: vector, name="vector")
    assert "NEXT_STEP" in check_contract(engine, np.random.default_rng(0))


class TestForms:
    SPACE = Dict(a=MultiDiscrete([2, 3]), b=Tuple((Discrete(2), Box(0, 1), MultiBinary(1))))

    def test_gymnasiums_tuples_and_dicts_are_laid_end_to_end(self) -> None:
        mask = {
            "a": (np.array([1, 0]), np.array([0, 1, 1])),
            "b": (np.array([0, 1]), None, np.array([1, 1])),
        }
        assert mask_size(self.SPACE) == 9
        expected = [True, False, False, True, True, False, True, True, True]
        assert flat_mask(mask, self.SPACE).tolist() == expected
        assert flat_mask(np.array(expected), self.SPACE).tolist() == expected
        assert flat_mask([int(x) for x in expected], self.SPACE).tolist() == expected

    def test_another_length_is_refused(self) -> None:
        with pytest.raises(EnvironmentFaultError, match="3 entries, and the action space"):
            flat_mask([1, 0, 1], Discrete(2))

    def test_a_mask_of_another_length_is_a_fault_of_its_environment(self) -> None:
        class Wrong(Chamber):
            def observe(self) -> tuple[Any, dict[str, Any]]:
                return super().observe()[0], {"action_mask": np.ones(7)}

        with pytest.raises(EnvironmentFaultError, match=r"environment 0 broke its contract"):
            upslope.A2C(functools.partial(Wrong, "vector", "choice", "info"), n_envs=1).learn(10)


def test_taxis_own_mask_is_used() -> None:
    """Gymnasium's Taxi tells its mask in info: a policy never drives into a wall."""
    agent = upslope.PPO("Taxi-v4", n_envs=4, n_steps=32, batch_size=64)
    rollout = agent.training.learner.collect(agent.get_env())
    assert rollout.mask is not None
    env = gym.make("Taxi-v4").unwrapped
    for obs, mask in zip(rollout.obs.flatten(), rollout.mask.flatten(0, 1), strict=True):
        assert mask.tolist() == env.action_mask(int(obs)).astype(bool).tolist()
    taken = rollout.mask.gather(-1, rollout.actions.unsqueeze(-1))
    assert taken.all()

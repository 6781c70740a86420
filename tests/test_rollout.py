"""collect, evaluate_rollout and the guard that keeps data on-policy."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import gymnasium as gym
import ledger
import numpy as np
import pytest
import torch
from ledger import TERMINATED, TRUNCATED, make_ledgers, make_policy
from torch import nn
from transcript import advantages_of_ppo

from upslope.algorithms import make_learner
from upslope.config import PPOConfig
from upslope.envs.engines import SyncEngine
from upslope.envs.episodes import Environments
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.errors import ConfigError, StaleRolloutError
from upslope.optim import GradientStep, Minibatches
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import Rollout, collect, evaluate_rollout
from upslope.seeding import SeedTree

BOTH = ledger.BOTH


# Successor values, by hand


class Script(gym.Env):
    """Episode k shows 10 k + t, ends as the list says, and pays 100 k + t + 1."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, script: list[tuple[int, int]]) -> None:
        self.script, self.k = script, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.k, self.t = self.k + 1, 0
        return np.array([10.0 * self.k]), {}

    def step(self, action: Any) -> Any:
        length, end = self.script[self.k]
        self.t += 1
        last = self.t == length
        obs = np.array([10.0 * self.k + self.t])
        return (
            obs,
            100.0 * self.k + self.t,
            last and end != TRUNCATED,
            last and end != TERMINATED,
            {},
        )


def identity_value(envs: Environments) -> ActorCritic:
    """A policy with V(s) = s."""
    policy = make_policy(envs, net_arch=())
    with torch.no_grad():
        policy.critic_head.weight.fill_(1.0)
        policy.critic_head.bias.zero_()
    return policy


def scripted() -> tuple[ActorCritic, list[Rollout]]:
    left = Script([(2, TERMINATED), (2, TRUNCATED), (1, BOTH), (4, TRUNCATED), (9, TERMINATED)])
    right = Script([(6, BOTH), (2, TERMINATED), (9, TERMINATED)])
    envs = Environments(SyncEngine([left, right]), SeedTree(0))
    policy = identity_value(envs)
    return policy, [collect(envs, policy, n_steps=6), collect(envs, policy, n_steps=3)]


def test_successor_values_by_hand() -> None:
    policy, (first, second) = scripted()
    evaluated = evaluate_rollout(policy, first)
    assert evaluated.values.T.tolist() == [[0, 1, 10, 11, 20, 30], [0, 1, 2, 3, 4, 5]]
    assert evaluated.next_values.T.tolist() == [[1, 2, 11, 12, 21, 31], [1, 2, 3, 4, 5, 6]]
    assert first.terminated.T.tolist() == [
        [False, True, False, False, True, False],
        [False, False, False, False, False, True],
    ]
    assert first.truncated.T.tolist() == [
        [False, False, False, True, True, False],
        [False, False, False, False, False, True],
    ]
    assert first.last_obs.tolist() == [[31], [10]]
    assert first.final_rows.tolist() == [[1, 0], [3, 0], [4, 0], [5, 1]]
    evaluated = evaluate_rollout(policy, second)
    assert evaluated.values.T.tolist() == [[31, 32, 33], [10, 11, 20]]
    assert evaluated.next_values.T.tolist() == [[32, 33, 34], [11, 12, 21]]
    assert second.last_obs.tolist() == [[40], [21]]
    assert second.episode_step.T.tolist() == [[1, 2, 3], [0, 1, 0]]


def test_advantages_by_hand() -> None:
    """gamma = 1/2, lambda = 1/2: every number below is exact."""
    policy, (first, second) = scripted()
    shipped = advantages_of_ppo(policy, first, evaluate_rollout(policy, first), 0.5, 0.5)
    # TD errors of the left column:  1+.5*1-0, 2-1 | 101+5.5-10, 102+6-11 | 201-20 | 301+15.5-30
    delta = [1.5, 1.0, 96.5, 97.0, 181.0, 286.5]
    expected = [1.5 + 0.25 * 1.0, 1.0, 96.5 + 0.25 * 97.0, 97.0, 181.0, 286.5]
    assert [shipped[t, 0] for t in range(6)] == expected != delta
    # Right column, one episode: r = 1..6, V = 0..5, and nothing after its last row.
    delta = [1.5, 2.0, 2.5, 3.0, 3.5, 6.0 - 5.0]
    for t in range(4, -1, -1):
        delta[t] += 0.25 * delta[t + 1]
    assert [shipped[t, 1] for t in range(6)] == delta
    shipped = advantages_of_ppo(policy, second, evaluate_rollout(policy, second), 0.5, 0.5)
    # 302+16-31, 303+16.5-32, 304+17-33: the limit is bootstrapped
    assert shipped[2, 0] == 288.0
    assert shipped[1, 0] == 287.5 + 0.25 * 288.0
    assert shipped[0, 0] == 287.0 + 0.25 * shipped[1, 0]


def test_episode_that_spans_rollouts_is_reported_once_with_its_whole_length() -> None:
    _, (first, second) = scripted()
    assert [(e.ret, e.length, e.terminated) for e in first.episodes] == [
        (3.0, 2, True),
        (203.0, 2, False),
        (201.0, 1, True),
        (21.0, 6, True),
    ]
    assert [(e.ret, e.length, e.terminated) for e in second.episodes] == [
        (203.0, 2, True),
        (301.0 + 302 + 303 + 304, 4, False),
    ]


def test_a_rollout_stays_as_collected() -> None:
    envs = make_ledgers("plain", alias=True)
    policy = make_policy(envs)
    rollout = collect(envs, policy, n_steps=20)
    names = ("obs", "actions", "rewards", "done", "valid", "last_obs", "final_obs", "episode_step")
    before = {name: getattr(rollout, name).clone() for name in names}
    collect(envs, policy, n_steps=20)
    envs.restart()
    collect(envs, policy, n_steps=20)
    for name in names:
        assert torch.equal(getattr(rollout, name), before[name])
    with pytest.raises(dataclasses.FrozenInstanceError):
        rollout.rewards = before["rewards"]  # type: ignore[misc]


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_dtypes(box: bool, dtype: str) -> None:
    envs = make_ledgers("plain", box=box)
    policy = make_policy(envs, dtype=dtype)
    rollout = collect(envs, policy, n_steps=7)
    evaluated = evaluate_rollout(policy, rollout)
    wanted = torch.float32 if dtype == "float32" else torch.float64
    assert rollout.obs.shape == (7, 3, 4)
    assert rollout.obs.dtype == torch.float64
    assert rollout.rewards.dtype == torch.float64
    assert rollout.actions.shape == ((7, 3, 2) if box else (7, 3))
    assert rollout.actions.dtype == (wanted if box else torch.int64)
    assert rollout.last_obs.shape == (3, 4)
    for tensor in (rollout.log_prob, evaluated.log_prob, evaluated.values, evaluated.next_values):
        assert tensor.shape == (7, 3)
        assert tensor.dtype == wanted
        assert not tensor.requires_grad
    assert evaluated.inputs.shape == (7, 3, 4)
    assert evaluated.inputs.dtype == wanted


def test_actions_follow_the_policy() -> None:
    """Counts of sampled choices against the stated probabilities, by the G-test at 1e-4."""
    from scipy.stats import chi2

    here = ledger.observation(0, 0)

    class Still(ledger.Ledger):
        def step(self, action: Any) -> Any:
            return here, 0.0, False, False, {}

    envs = Environments(SyncEngine([Still() for _ in range(4)]), SeedTree(0))
    policy = make_policy(envs)
    with torch.no_grad():
        policy.actor_head.bias.copy_(torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64))
    rollout = collect(envs, policy, n_steps=801)
    counts = np.bincount(rollout.actions[1:].reshape(-1).numpy(), minlength=3)
    logits = policy.distribution(here).log_probs.detach()  # type: ignore[union-attr]
    expected = logits.exp().numpy() * counts.sum()
    statistic = 2 * (counts * np.log(counts / expected)).sum()
    assert chi2.sf(statistic, 2) > 1e-4
    slots = [np.bincount(column.numpy(), minlength=3) for column in rollout.actions.T]
    assert len({tuple(slot) for slot in slots}) > 1, "slots have noise of their own"


@pytest.mark.parametrize(
    "amount",
    [{}, {"n_steps": 3, "n_episodes": 3}, {"n_steps": 0}, {"n_steps": -1}, {"n_episodes": 0}],
)
def test_an_amount_that_makes_no_sense_is_refused(amount: Any) -> None:
    envs = make_ledgers("plain")
    with pytest.raises(ConfigError):
        collect(envs, make_policy(envs), **amount)


@pytest.mark.parametrize("box", [False, True])
def test_a_rollout_without_any_transition_is_no_error(box: bool) -> None:
    """One slot, one row, and that row is a reset: possible wherever resets take a row."""
    envs = make_ledgers("next", n_envs=1, box=box)
    policy = make_policy(envs)
    rollouts = [collect(envs, policy, n_steps=1) for _ in range(30)]
    assert 0 in {rollout.n_valid for rollout in rollouts}
    for rollout in rollouts:
        assert 0.0 <= rollout.clipped_share <= 1.0
        evaluate_rollout(policy, rollout)


# Global random state, determinism


@pytest.mark.parametrize(
    "features", [None, lambda space: nn.Sequential(nn.Linear(4, 8), nn.Tanh())]
)
@pytest.mark.parametrize("amount", [{"n_steps": 30}, {"n_episodes": 6}])
def test_no_global_random_state_is_read_or_written(features: Any, amount: Any) -> None:
    def run() -> Rollout:
        envs = make_ledgers("plain", box=True)
        policy = make_policy(envs, features=features, dtype="float32")
        rollout = collect(envs, policy, **amount)
        evaluate_rollout(policy, rollout)
        return rollout

    rollouts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        rollouts.append(run())
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert torch.equal(rollouts[0].actions, rollouts[1].actions)
    assert torch.equal(rollouts[0].log_prob, rollouts[1].log_prob)


# Data of another policy


def collected(box: bool = False, **settings: Any) -> tuple[Environments, ActorCritic, Rollout]:
    envs = make_ledgers("plain", box=box)
    policy = make_policy(envs, **settings)
    return envs, policy, collect(envs, policy, n_steps=20)


def nudge(policy: ActorCritic, part: str = "all") -> GradientStep:
    """One gradient step of ours on part of the policy."""

    def loss(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        value = policy.value(batch["obs"]).square().mean()
        return value + policy.distribution(batch["obs"]).entropy().mean(), {"value": value}

    step = GradientStep(policy, loss, part=part)
    batch = {"obs": torch.rand(4, 4, generator=torch.Generator()), "valid": torch.ones(4)}
    step.run(batch, Minibatches.whole((4, 1)), {"learning_rate": 1e-3})
    return step


def by_torch_optimiser(policy: ActorCritic) -> None:
    optimiser = torch.optim.SGD(policy.parameters(), lr=1e-3)
    policy.value(np.ones((2, 4))).sum().backward()
    optimiser.step()


def by_shared_torch_optimiser(policy: ActorCritic) -> None:
    """The same once the parameters are views of one vector."""
    GradientStep(policy, lambda *_: (torch.zeros(()), {}))
    by_torch_optimiser(policy)


def by_normaliser(policy: ActorCritic) -> None:
    assert policy.obs_normalizer is not None
    policy.obs_normalizer.update(torch.rand(5, 4, generator=torch.Generator()))


MOVES = {
    "our step": nudge,
    "our step on the actor": lambda policy: nudge(policy, "actor"),
    "our step on the critic": lambda policy: nudge(policy, "critic"),
    "a torch optimiser": by_torch_optimiser,
    "a torch optimiser on shared storage": by_shared_torch_optimiser,
    "the normaliser": by_normaliser,
    "load_state_dict": lambda policy: policy.load_state_dict(
        {key: value + 0 for key, value in policy.state_dict().items()}
    ),
}


@pytest.mark.parametrize("move", MOVES)
def test_data_of_an_older_version_is_refused_and_both_are_named(move: str) -> None:
    _, policy, rollout = collected(norm_obs=True)
    evaluate_rollout(policy, rollout)
    before = policy.version
    assert rollout.policy_version == before
    MOVES[move](policy)
    assert policy.version > before
    message = f"version {before} of the policy, which is now at version {policy.version}:"
    with pytest.raises(StaleRolloutError, match=message):
        evaluate_rollout(policy, rollout)


def test_the_version_stands_still_while_nothing_moves() -> None:
    envs, policy, _ = collected(norm_obs=True, norm_reward=True)
    version = policy.version
    policy.state_dict()
    policy.value(np.ones((2, 4))).sum().backward()
    policy.zero_grad()
    rollout = collect(envs, policy, n_steps=5)
    evaluate_rollout(policy, rollout)
    evaluate_rollout(policy, rollout)
    assert policy.version == version


def test_a_rollout_of_another_policy_of_the_same_version_is_refused() -> None:
    _, _, rollout = collected()
    _, other, _ = collected(seed=2)
    assert other.version == rollout.policy_version
    with pytest.raises(StaleRolloutError, match="log-probabilities"):
        evaluate_rollout(other, rollout)


def move_normaliser(policy: ActorCritic, rollout: Rollout) -> Rollout:
    assert policy.obs_normalizer is not None
    policy.obs_normalizer.moments.mean.data += 0.01
    return rollout


def forbid(policy: ActorCritic, rollout: Rollout) -> Rollout:
    mask = torch.ones(20, 3, 3, dtype=torch.bool)
    mask[4, 1, (rollout.actions[4, 1] + 1) % 3] = False
    return dataclasses.replace(rollout, mask=mask)


def drop_out(policy: ActorCritic, rollout: Rollout) -> Rollout:
    policy.actor.append(nn.Dropout(0.1))
    return rollout


def move_weights(policy: ActorCritic, rollout: Rollout) -> Rollout:
    policy.actor_head.weight.data *= 1.01
    return rollout


def swap_actions(policy: ActorCritic, rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, actions=rollout.actions.roll(1, 0))


def edit_one(policy: ActorCritic, rollout: Rollout) -> Rollout:
    log_prob = rollout.log_prob.clone()
    log_prob[7, 2] += 1e-4
    return dataclasses.replace(rollout, log_prob=log_prob)


def lose_one(policy: ActorCritic, rollout: Rollout) -> Rollout:
    log_prob = rollout.log_prob.clone()
    log_prob[7, 2] = torch.nan
    return dataclasses.replace(rollout, log_prob=log_prob)


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "tamper", [move_normaliser, forbid, drop_out, move_weights, swap_actions, edit_one, lose_one]
)
def test_another_log_probability_is_refused(tamper: Any, box: bool, dtype: str) -> None:
    if tamper is forbid and box:
        pytest.skip("continuous actions have no mask")
    _, policy, rollout = collected(box, norm_obs=True, dtype=dtype)
    with torch.no_grad():
        evaluate_rollout(policy, rollout)
    version = policy.version
    rollout = tamper(policy, rollout)
    assert policy.version == version, "what the version sees is tested elsewhere"
    with pytest.raises(
        StaleRolloutError, match="log-probabilities of the collected actions differ"
    ):
        evaluate_rollout(policy, rollout)


def test_what_an_invalid_row_holds_alarms_nobody() -> None:
    envs = make_ledgers("next")
    policy = make_policy(envs)
    rollout = collect(envs, policy, n_steps=30)
    assert not rollout.valid.all()
    log_prob = torch.where(rollout.valid, rollout.log_prob, torch.full((), 5.0).double())
    evaluate_rollout(policy, dataclasses.replace(rollout, log_prob=log_prob))


RUNS = {
    "discrete": ("CartPole-v1", {}),
    "discrete, float64, normalised": ("CartPole-v1", {"dtype": "float64", "norm_obs": True}),
    "discrete, relu, long steps": (
        "CartPole-v1",
        {"activation_fn": "relu", "learning_rate": 0.02, "norm_reward": True},
    ),
    "narrow": ("Pendulum-v1", {"log_std_init": -5.0, "learning_rate": 3e-3}),
    "narrow, normalised": (
        "Pendulum-v1",
        {"log_std_init": -5.0, "norm_obs": True, "norm_reward": True, "activation_fn": "elu"},
    ),
    "float64, narrow": ("Pendulum-v1", {"dtype": "float64", "log_std_init": -5.0}),
    "long steps": ("Pendulum-v1", {"learning_rate": 0.02, "shared_network": True}),
}


@pytest.mark.parametrize("name", RUNS)
def test_thirty_updates_raise_no_false_alarm(name: str) -> None:
    env_id, settings = RUNS[name]
    envs = make_environments(find_environment(env_id), n_envs=4, vec="sync")
    config = PPOConfig(n_steps=32, n_epochs=2, **settings).resolve(4)
    keys = ("dtype", "norm_obs", "norm_reward", "log_std_init", "activation_fn", "shared_network")
    network = {key: settings[key] for key in keys if key in settings}
    policy = ActorCritic(envs.observation_space, envs.action_space, seed=3, **network)
    learner = make_learner(config, policy)
    for iteration in range(30):
        rollout = learner.collect(envs)
        evaluated = evaluate_rollout(policy, rollout)
        learner.update(rollout, evaluated, 1.0, np.random.default_rng(iteration))
        if policy.reward_normalizer is not None:
            policy.reward_normalizer.update(rollout.rewards, rollout.boundary, rollout.valid)
        if policy.obs_normalizer is not None:
            policy.obs_normalizer.update(rollout.obs.flatten(0, 1))
        with pytest.raises(StaleRolloutError):
            evaluate_rollout(policy, rollout)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("n_envs", [1, 8])
def test_large_observations_raise_no_false_alarm(scale: float, n_envs: int) -> None:
    class Large(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (8,), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (3,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return self._obs(), {}

        def step(self, action: Any) -> Any:
            return self._obs(), 1.0, False, False, {}

        def _obs(self) -> np.ndarray:
            return (scale * self.np_random.normal(size=8)).astype(np.float32)

    for seed in range(6):
        envs = Environments(SyncEngine([Large() for _ in range(n_envs)]), SeedTree(seed))
        policy = ActorCritic(envs.observation_space, envs.action_space, seed=seed)
        with torch.no_grad():
            policy.actor_head.weight.mul_(100)  # orthogonal with gain 1, as a trained head has
        evaluate_rollout(policy, collect(envs, policy, n_steps=200))

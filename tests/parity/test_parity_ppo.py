"""PPO against Stable-Baselines3: one rollout and equal weights through its `train` and our page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("stable_baselines3")

from peer import (
    SETTINGS,
    TASKS,
    B,
    Capture,
    FixedOrder,
    T,
    fill,
    gather,
    gradients,
    largest_gap,
    make_peer,
    make_policy,
    move,
    peer_parameters,
    plain_envs,
    record_gradients,
)
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from upslope.algorithms import ppo, reinforce
from upslope.config import PPOConfig, ReinforceConfig
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.rollout import evaluate_rollout
from upslope.seeding import SeedTree

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning"),
]


def assert_same_loss_and_gradient(
    task: str, dtype: str, moved: bool, tolerance: float, **settings: Any
) -> None:
    policy, rollout, evaluated = gather(task, dtype)
    settings = SETTINGS | settings | {"n_epochs": 1, "batch_size": T * B}
    learner = ppo.Learner(PPOConfig(**settings, max_grad_norm=None), policy)
    learner.optimizers["all"] = capture = Capture()  # type: ignore[assignment]
    update = learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
    if moved:
        move(policy, seed=5, scale=0.2)
    loss, metrics = learner.loss(policy, capture.first_minibatch(), capture.hyper)
    ours = gradients(loss, policy)

    envs = plain_envs(task)
    peer = make_peer(PPO, envs, policy, n_steps=T, max_grad_norm=float("inf"), **settings)
    fill(peer, rollout, evaluated.values, evaluated.next_values[-1])
    steps = record_gradients(peer, policy)
    peer.train()
    logged = peer.logger.name_to_value

    assert len(steps) == 1
    assert max(float(g.abs().max()) for g in ours.values()) > 0.05
    assert largest_gap(ours, steps[0]) < tolerance
    numbers = {"loss": loss.item(), "explained_variance": update["explained_variance"]}
    numbers |= {name: value.item() for name, value in metrics.items()}
    for name, number in numbers.items():
        single = name == "clip_fraction"  # which the peer always takes in float32
        allowed = max(tolerance, 1e-7 if single else 0.0) * max(1.0, abs(number))
        assert abs(number - logged[f"train/{name}"]) < allowed, name
    if moved:
        assert 0.05 < numbers["clip_fraction"] < 0.95


@pytest.mark.parametrize("moved", [False, True], ids=["ratio 1", "ratio moved"])
@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_loss_gradient_and_metrics_of_one_batch(
    task: str, normalize_advantage: bool, clip_range_vf: float | None, moved: bool
) -> None:
    assert_same_loss_and_gradient(
        task,
        "float64",
        moved,
        1e-12,
        normalize_advantage=normalize_advantage,
        clip_range_vf=clip_range_vf,
    )


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradient_against_the_peer_as_it_comes(task: str) -> None:
    assert_same_loss_and_gradient(task, "float32", True, 1e-5, clip_range_vf=0.2)


class Updated(NamedTuple):
    """What one update left behind in our page and in the peer."""

    ours: dict[str, Tensor]
    theirs: dict[str, Tensor]
    n_steps: int
    followed: list[dict[str, Tensor]]  # the peer's gradients, after their clip
    metrics: dict[str, float]
    logged: dict[str, float]


def update_both(
    task: str, rate: float, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Updated:
    """Run both whole updates in one order of minibatches."""
    policy, rollout, evaluated = gather(task)
    settings |= SETTINGS
    learner = ppo.Learner(PPOConfig(**settings, learning_rate=f"lin_{rate}"), policy)
    settings["learning_rate"] = lambda remaining: rate * remaining
    peer = make_peer(PPO, plain_envs(task), policy, n_steps=T, **settings)
    fill(peer, rollout, evaluated.values, evaluated.next_values[-1])
    peer._current_progress_remaining = 0.6
    followed = record_gradients(peer, policy)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}

    rng = np.random.default_rng(4)
    orders = [rng.permutation(T * B) for _ in range(settings["n_epochs"])]
    by_env = FixedOrder([order % B * T + order // B for order in orders])
    monkeypatch.setattr(np.random, "permutation", by_env.permutation)
    peer.train()
    metrics = learner.update(rollout, evaluated, 0.6, FixedOrder(orders))  # type: ignore[arg-type]

    after = {name: p.detach() for name, p in policy.named_parameters()}
    assert largest_gap(after, before) > 1e-3
    theirs = {name: p.detach() for name, p in peer_parameters(peer, policy).items()}
    n_steps = learner.optimizers["all"].steps
    return Updated(after, theirs, n_steps, followed, metrics, peer.logger.name_to_value)


@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
@pytest.mark.parametrize("max_grad_norm", [0.05, 0.5])
@pytest.mark.parametrize("task", TASKS)
def test_weights_after_three_epochs_of_uneven_minibatches(
    task: str, max_grad_norm: float, clip_range_vf: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = update_both(
        task,
        0.01,
        monkeypatch,
        n_epochs=3,
        batch_size=50,
        max_grad_norm=max_grad_norm,
        clip_range_vf=clip_range_vf,
    )
    assert both.n_steps == len(both.followed) == 9
    norms = [sum(float(g.square().sum()) for g in step.values()) ** 0.5 for step in both.followed]
    assert max(norms) == pytest.approx(max_grad_norm, rel=1e-4)  # the clip was active
    assert largest_gap(both.ours, both.theirs) < 1e-13
    for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "learning_rate"):
        theirs = both.logged[f"train/{name}"]
        assert both.metrics[name] == pytest.approx(theirs, rel=1e-12, abs=1e-12), name
    theirs = both.logged["train/clip_fraction"]
    assert both.metrics["clip_fraction"] == pytest.approx(theirs, abs=1e-7)


@pytest.mark.parametrize("task", TASKS)
def test_target_kl_stops_before_the_same_step(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = update_both(task, 0.002, monkeypatch, n_epochs=4, batch_size=32, target_kl=0.01)
    assert 1 < both.n_steps < 16
    assert both.n_steps == len(both.followed)
    assert largest_gap(both.ours, both.theirs) < 1e-13


@pytest.mark.parametrize("baseline", ["none", "value"])
def test_reinforce_follows_the_gradient_of_a2c_times_steps_per_episode(baseline: str) -> None:
    envs = make_environments(find_environment("CartPole-v1"), n_envs=1, seed=3, vec="sync")
    policy = make_policy(envs)
    config = ReinforceConfig(gamma=0.97, baseline=baseline, batch_episodes=5)
    learner = reinforce.Learner(config, policy)
    rollout = learner.collect(envs)
    evaluated = evaluate_rollout(policy, rollout)
    learner.optimizers = captures = {name: Capture() for name in learner.optimizers}  # type: ignore
    learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
    batch, hyper = captures["actor"].batch, captures["actor"].hyper
    loss, _ = learner.loss(policy, batch, hyper)
    critic_loss, _ = learner.critic_loss(policy, batch, hyper)
    steps_per_episode = rollout.n_valid / 5
    ours = gradients(loss / steps_per_episode + critic_loss, policy)

    n_steps = len(rollout.rewards)
    assert rollout.valid.all()
    assert rollout.terminated.sum() == 5
    peer = make_peer(
        A2C,
        DummyVecEnv([lambda: gym.make("CartPole-v1")]),
        policy,
        n_steps=n_steps,
        gamma=0.97,
        gae_lambda=1.0,
        vf_coef=1.0,
        max_grad_norm=float("inf"),
    )
    values = evaluated.values if baseline == "value" else torch.zeros_like(evaluated.values)
    fill(peer, rollout, values, torch.zeros(1))
    followed = record_gradients(peer, policy)
    peer.train()
    assert float(ours["actor_head.weight"].abs().max()) > 0.05
    assert largest_gap(ours, followed[0]) < 1e-12


class Falls(gym.Wrapper):
    """Every third episode terminates on step 20, at the very step of the time limit."""

    episodes = 0

    def reset(self, **kwargs: Any) -> Any:
        self.episodes, self._steps = self.episodes + 1, 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._steps += 1
        obs, reward, terminated, truncated, info = super().step(action)
        falls = self.episodes % 3 == 0 and self._steps == 20
        return obs, reward, terminated or falls, truncated, info


class NumberedSeeds(gym.Wrapper):
    """Each reset takes the seed that our collector gives the episode of that number."""

    def __init__(self, env: gym.Env[Any, Any], seeds: SeedTree) -> None:
        super().__init__(env)
        self._seeds = (seeds.integer("episode", number) for number in range(10_000))

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs | {"seed": next(self._seeds)})


def make_limited() -> gym.Env[Any, Any]:
    """CartPole cut after 20 steps: some episodes fall before, some are cut, some do both."""
    env = gym.make("CartPole-v1", max_episode_steps=1_000)
    return gym.wrappers.TimeLimit(Falls(env), 20)


@pytest.mark.parametrize("n_steps", [20, 150])
def test_collected_data_and_advantages_with_a_time_limit(n_steps: int) -> None:
    """The peer adds gamma V(final obs) to a truncated row's reward: our split weighs the same."""
    envs = make_environments(find_environment(make_limited), n_envs=1, seed=6)
    policy = make_policy(envs)
    config = PPOConfig(**SETTINGS, n_steps=n_steps, batch_size=n_steps, normalize_advantage=False)
    learner = ppo.Learner(config, policy)
    learner.optimizers["all"] = capture = Capture()  # type: ignore[assignment]

    theirs = DummyVecEnv([lambda: NumberedSeeds(make_limited(), SeedTree(6))])
    theirs.buf_rews = np.zeros(1, dtype=np.float64)
    peer = make_peer(PPO, theirs, policy, n_steps=n_steps, batch_size=n_steps, **SETTINGS)
    _, callback = peer._setup_learn(10 * n_steps)
    ends: list[tuple[bool, bool]] = []
    for _ in range(3):  # the second and third continue an episode that the one before left running
        rollout = learner.collect(envs)
        evaluated = evaluate_rollout(policy, rollout)
        learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
        played: Iterator[Tensor] = iter(rollout.actions)
        peer.policy.action_dist.get_actions = lambda deterministic=False, played=played: next(
            played
        )
        buffer = peer.rollout_buffer
        peer.collect_rollouts(theirs, callback, buffer, n_steps)

        np.testing.assert_array_equal(rollout.obs.numpy(), buffer.observations)
        np.testing.assert_array_equal(rollout.actions.numpy()[..., None], buffer.actions)
        for ours, peers in [
            (rollout.log_prob, buffer.log_probs),
            (evaluated.log_prob, buffer.log_probs),
            (evaluated.values, buffer.values),
            (capture.batch["weights"].view(n_steps, 1), buffer.advantages),
            (capture.batch["targets"].view(n_steps, 1), buffer.returns),
        ]:
            np.testing.assert_allclose(ours.numpy(), peers, rtol=0, atol=1e-12)
        rewards = rollout.rewards + config.gamma * evaluated.next_values * (
            rollout.truncated & ~rollout.terminated
        )
        np.testing.assert_allclose(rewards.numpy(), buffer.rewards, rtol=0, atol=1e-12)
        ends += zip(
            rollout.terminated.flatten().tolist(), rollout.truncated.flatten().tolist(), strict=True
        )
    assert {(False, False), (False, True), (True, True)} <= set(ends)
    cut_by_limit = [ends[last] for last in range(n_steps - 1, len(ends), n_steps)]
    assert ((False, True) in cut_by_limit) == (n_steps == 20)  # a rollout's last row truncated

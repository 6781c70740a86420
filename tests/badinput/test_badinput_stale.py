"""Data of an older policy: refused, with both versions and the likely cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import upslope
from upslope.algorithms import make_learner
from upslope.errors import StaleRolloutError

AGENTS: dict[str, Callable[..., upslope.Agent]] = {
    "ppo": lambda **more: upslope.PPO(
        "CartPole-v1", n_envs=2, n_steps=16, batch_size=32, n_epochs=1, **more
    ),
    "reinforce": lambda **more: upslope.REINFORCE(
        "CartPole-v1", n_envs=2, batch_episodes=3, **more
    ),
}


def by_our_own_step(agent: upslope.Agent) -> None:
    agent.learn(1)


def by_an_optimiser_of_torch(agent: upslope.Agent) -> None:
    optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.1)
    agent.policy.value(np.zeros((3, 4))).sum().backward()
    optimizer.step()


def by_hand(agent: upslope.Agent) -> None:
    with torch.no_grad():
        agent.policy.actor_head.bias += 0.5


def by_loading_weights(agent: upslope.Agent) -> None:
    agent.policy.load_state_dict(agent.policy.state_dict())


@pytest.mark.parametrize("algorithm", AGENTS)
@pytest.mark.parametrize(
    "move", [by_our_own_step, by_an_optimiser_of_torch, by_hand, by_loading_weights]
)
def test_refused_after_a_move(algorithm: str, move: Callable[[Any], None]) -> None:
    agent = AGENTS[algorithm]()
    learner = make_learner(agent.config, agent.policy)
    envs = upslope.make_vec_env("CartPole-v1", n_envs=2)
    rollout = learner.collect(envs)
    evaluated = upslope.evaluate_rollout(agent.policy, rollout)
    before = agent.policy.version
    move(agent)
    with pytest.raises(StaleRolloutError, match=r"on-policy|current policy") as caught:
        upslope.evaluate_rollout(agent.policy, rollout)
    versions = [int(number) for number in re.findall(r"version (\d+)", str(caught.value))]
    assert versions == [before, agent.policy.version]
    assert before != agent.policy.version
    with pytest.raises(StaleRolloutError):
        learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))


@pytest.mark.parametrize("algorithm", AGENTS)
def test_refused_after_the_normaliser_moved(algorithm: str) -> None:
    agent = AGENTS[algorithm](norm_obs=True)
    learner = make_learner(agent.config, agent.policy)
    rollout = learner.collect(upslope.make_vec_env("CartPole-v1", n_envs=2))
    agent.policy.obs_normalizer.update(rollout.obs.flatten(0, 1))
    with pytest.raises(StaleRolloutError, match="normaliser"):
        upslope.evaluate_rollout(agent.policy, rollout)


@pytest.mark.parametrize("algorithm", AGENTS)
def test_a_rollout_serves_one_update(algorithm: str) -> None:
    agent = AGENTS[algorithm]()
    learner = make_learner(agent.config, agent.policy)
    rollout = learner.collect(upslope.make_vec_env("CartPole-v1", n_envs=2))
    evaluated = upslope.evaluate_rollout(agent.policy, rollout)
    learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
    with pytest.raises(StaleRolloutError):
        learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))


@pytest.mark.parametrize("algorithm", AGENTS)
def test_looking_is_no_move(algorithm: str) -> None:
    agent = AGENTS[algorithm]()
    learner = make_learner(agent.config, agent.policy)
    rollout = learner.collect(upslope.make_vec_env("CartPole-v1", n_envs=2))
    agent.predict(np.zeros(4))
    agent.evaluate(2)
    agent.policy.distribution(np.zeros(4)).entropy()
    evaluated = upslope.evaluate_rollout(agent.policy, rollout)
    learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))


def test_a_log_probability_of_somebody_else() -> None:
    agent = AGENTS["ppo"]()
    learner = make_learner(agent.config, agent.policy)
    rollout = learner.collect(upslope.make_vec_env("CartPole-v1", n_envs=2))
    rollout.log_prob[3, 1] += 1e-3
    with pytest.raises(StaleRolloutError, match=r"1.00e-03"):
        upslope.evaluate_rollout(agent.policy, rollout)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_first_minibatch_has_ratio_one(dtype: str) -> None:
    seen = []
    agent = AGENTS["ppo"](dtype=dtype)
    agent.learn(160, callback=lambda event: seen.append(event.metrics) or True)
    assert len(seen) == 5
    for metrics in seen:  # one minibatch of one epoch: measured before the weights moved
        assert metrics["train/approx_kl"] == pytest.approx(
            0, abs=1e-12 if dtype == "float64" else 1e-7
        )
        assert metrics["train/clip_fraction"] == 0

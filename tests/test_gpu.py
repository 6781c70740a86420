"""On a GPU: the same run as on the processor, and no waiting inside a gradient step.

Skipped where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upslope
from upslope.optim import Minibatches
from upslope.optim.step import _Step
from upslope.rollout import evaluate_rollout

DEVICE = "cuda"
SETTINGS: dict[str, dict[str, Any]] = {
    "REINFORCE": {"batch_episodes": 4},
    "VPG": {"n_steps": 64, "n_critic_updates": 4},
    "A2C": {},
    "NPG": {"n_steps": 64},
    "TRPO": {"n_steps": 64},
    "PPO": {"n_steps": 64, "batch_size": 48, "n_epochs": 3},
}
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def agent_on(device: str, algorithm: str, **more: Any) -> Any:
    settings = SETTINGS[algorithm] | {"n_envs": 4, "seed": 3, "dtype": "float64"} | more
    return getattr(upslope, algorithm)("CartPole-v1", device=device, **settings)


def weights_of(agent: Any) -> torch.Tensor:
    return torch.cat([p.detach().cpu().reshape(-1) for p in agent.policy.parameters()])


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_three_updates_agree_with_the_processor(algorithm: str) -> None:
    """Of one rollout, as actions that rounding decides would part the runs; float64, 1e-8."""
    ends = []
    for device in ("cpu", DEVICE):
        agent = agent_on(device, algorithm, compile="never")
        training = agent.training
        for number in range(3):
            rollout = training.learner.collect(training.envs)
            evaluated = evaluate_rollout(agent.policy, rollout)
            rng = np.random.default_rng(number)
            training.learner.update(rollout, evaluated, 1.0, rng)
        ends.append(weights_of(agent))
        agent.close()
    assert float((ends[0] - ends[1]).abs().max()) < 1e-8


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_one_seed_gives_one_run(algorithm: str) -> None:
    ends = []
    for _ in range(2):
        agent = agent_on(DEVICE, algorithm).learn(1000)
        assert agent.policy.device.type == DEVICE
        ends.append(weights_of(agent))
        agent.close()
    assert torch.equal(*ends)


def test_a_model_goes_from_one_device_to_the_other(tmp_path: Path) -> None:
    agent = agent_on(DEVICE, "PPO").learn(1000)
    agent.save(tmp_path / "model.safetensors")
    other = upslope.load(tmp_path / "model.safetensors", device="cpu")
    assert torch.equal(weights_of(agent), weights_of(other))


def test_a_gradient_step_does_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read back inside a step: the processor runs ahead, and an update waits once."""
    agent = agent_on(DEVICE, "PPO", compile="never").learn(1000)
    take, taken = _Step.__call__, []

    def watched(self: _Step, *tensors: torch.Tensor) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken.append(take(self, *tensors))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return taken[-1]

    monkeypatch.setattr(_Step, "__call__", watched)
    agent.learn(256)
    assert len(taken) == len(Minibatches.shuffled(np.random.default_rng(0), (64, 4), 48, 3))

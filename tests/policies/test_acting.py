"""Acting: NumPy on views of the parameters, held to the module they belong to."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ledger import Ledger, make_ledgers, make_policy
from torch import nn

from upslope.envs.engines import SyncEngine
from upslope.envs.episodes import Environments
from upslope.optim import GradientStep, Minibatches
from upslope.policies.acting import _ModuleActor, _NumpyActor, make_actor
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout
from upslope.seeding import SeedTree

OBS = gym.spaces.Box(-np.inf, np.inf, (5,), np.float64)
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def policy_of(**settings: Any) -> ActorCritic:
    policy = ActorCritic(OBS, gym.spaces.Box(-1.0, 1.0, (3,)), **({"seed": 4} | settings))
    with torch.no_grad():  # a trained head is neither tiny nor without bias
        policy.actor_head.weight.mul_(50)
        policy.actor_head.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
        for layer in policy.actor:
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias.add_(torch.linspace(-0.5, 0.5, len(layer.bias)))
    return policy


def observations(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 5))


def act(policy: ActorCritic, obs: np.ndarray) -> np.ndarray:
    out = np.full((len(obs), 3), np.nan, np.float32 if policy.dtype == torch.float32 else float)
    make_actor(policy, len(obs))(obs, out)
    return out


def by_module(policy: ActorCritic, obs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return policy.outputs(policy.prepare(torch.from_numpy(obs)))[0].numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("net_arch", [(16, 16), (7,), ()])
@pytest.mark.parametrize("norm_obs", [False, True])
@pytest.mark.parametrize("n_envs", [1, 8])
def test_numpy_and_module_give_the_same_numbers(
    dtype: str, activation: str, net_arch: Any, norm_obs: bool, n_envs: int
) -> None:
    policy = policy_of(
        dtype=dtype, activation_fn=activation, net_arch=net_arch, norm_obs=norm_obs, clip_obs=1.5
    )
    if policy.obs_normalizer is not None:
        policy.obs_normalizer.update(torch.from_numpy(3 * observations(50, 1) + 2))
    actor = make_actor(policy, n_envs)
    assert isinstance(actor, _NumpyActor)
    out = np.empty((n_envs, 3), np.float32 if dtype == "float32" else float)
    for k in range(3):  # buffers are used again
        obs = 4 * observations(n_envs, k)
        kept = obs.copy()
        actor(obs, out)
        expected = by_module(policy, obs)
        assert np.abs(out - expected).max() <= TOLERANCE[dtype] * max(1, np.abs(expected).max())
        assert np.array_equal(obs, kept), "the environment's observations are not ours to write"


def test_observations_of_other_dtypes_are_cast_as_the_module_casts_them() -> None:
    for norm_obs in (False, True):
        policy = policy_of(norm_obs=norm_obs)
        for dtype in (np.float32, np.int64, np.uint8):
            obs = (10 * np.abs(observations(6))).astype(dtype)
            assert np.allclose(act(policy, obs), by_module(policy, obs), atol=1e-5)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.inner(x))


class LinearOfAKind(nn.Linear):
    """What a subclass computes is its own business."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


MODULES = {
    "a module": lambda space: Odd(),
    "a stack": lambda space: nn.Sequential(nn.Linear(5, 6), nn.Tanh()),
    "a subclass": lambda space: LinearOfAKind(5, 6),
    "identity": lambda space: nn.Identity(),
    "flatten": lambda space: nn.Flatten(),
    "a lone activation": lambda space: nn.Tanh(),
    "a lone rectifier": lambda space: nn.ReLU(),
    "a layer": lambda space: nn.Linear(5, 6),
    "a layer without bias": lambda space: nn.Linear(5, 6, bias=False),
    "a weight-normalised layer": lambda space: nn.utils.parametrizations.weight_norm(
        nn.Linear(5, 6)
    ),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_module_of_a_user_acts_as_it_is(name: str, dtype: str) -> None:
    policy = policy_of(features=MODULES[name], dtype=dtype)
    obs = observations(6)
    expected = by_module(policy, obs)
    scale = max(1, np.abs(expected).max())
    assert np.abs(act(policy, obs) - expected).max() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("activation", ["elu", "gelu", "silu"])
def test_other_activations_run_as_the_module(activation: str) -> None:
    policy = policy_of(activation_fn=activation, dtype="float64")
    assert isinstance(make_actor(policy, 4), _ModuleActor)
    obs = observations(4)
    assert np.abs(act(policy, obs) - by_module(policy, obs)).max() <= 1e-12


def test_a_subclass_of_a_layer_is_no_plain_layer() -> None:
    assert isinstance(make_actor(policy_of(features=MODULES["a subclass"]), 4), _ModuleActor)


def test_an_actor_sees_weights_that_moved() -> None:
    policy = policy_of(dtype="float64")

    def loss(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        value = policy.outputs(policy.prepare(batch["obs"]))[0].square().mean()
        return value, {"value": value}

    step = GradientStep(policy, loss, part="actor")
    obs = observations(4)
    actor, out = make_actor(policy, 4), np.empty((4, 3))
    actor(obs, out)
    before = out.copy()
    batch = {"obs": torch.from_numpy(obs), "valid": torch.ones(4)}
    step.run(batch, Minibatches.whole((4, 1)), {"learning_rate": 0.1})
    actor(obs, out)
    assert np.abs(out - before).max() > 0.01
    assert np.abs(out - by_module(policy, obs)).max() <= 1e-12, "views, not copies"
    assert np.abs(act(policy, obs) - out).max() == 0


def test_an_actor_made_after_the_statistics_moved_sees_them() -> None:
    policy = policy_of(dtype="float64", norm_obs=True)
    obs = observations(4)
    before = act(policy, obs)
    assert policy.obs_normalizer is not None
    policy.obs_normalizer.update(torch.from_numpy(3 * observations(50, 1) + 2))
    after = act(policy, obs)
    assert np.abs(after - before).max() > 0.01
    assert np.abs(after - by_module(policy, obs)).max() <= 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODULES)
def test_a_user_module_collects_and_is_evaluated(name: str, dtype: str) -> None:
    make = {
        "a module": lambda space: nn.Sequential(nn.Linear(4, 5), Odd()),
        "a subclass": lambda space: LinearOfAKind(4, 6),
        "a stack": lambda space: nn.Sequential(nn.Linear(4, 6), nn.Tanh()),
        "a layer": lambda space: nn.Linear(4, 6),
        "a layer without bias": lambda space: nn.Linear(4, 6, bias=False),
        "a weight-normalised layer": lambda space: nn.utils.parametrizations.weight_norm(
            nn.Linear(4, 6)
        ),
    }.get(name, MODULES[name])
    envs = Environments(SyncEngine([Ledger() for _ in range(3)]), SeedTree(0))
    policy = make_policy(envs, features=make, dtype=dtype)
    evaluate_rollout(policy, collect(envs, policy, n_steps=20))


def test_collecting_by_numpy_and_by_module_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Any:
        envs = make_ledgers("plain", box=True)
        return collect(envs, make_policy(envs, norm_obs=True), n_steps=40)

    fast = run()
    monkeypatch.setattr("upslope.rollout.make_actor", _ModuleActor)
    plain = run()
    assert torch.allclose(fast.actions, plain.actions, rtol=0, atol=1e-12)
    assert torch.allclose(fast.log_prob, plain.log_prob, rtol=0, atol=1e-12)
    assert torch.equal(fast.obs, plain.obs)

"""The policy as a whole: initial weights, parts, versions, dtypes, user modules, refusals."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from upslope.errors import ConfigError, UnsupportedSpaceError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Categorical, DiagonalGaussian

OBS = gym.spaces.Box(-1.0, 1.0, (4,), np.float64)
BOX, DISCRETE = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(3)


def policy_of(actions: gym.Space[Any] = BOX, **settings: Any) -> ActorCritic:
    return ActorCritic(OBS, actions, **({"dtype": "float64", "net_arch": (8, 8)} | settings))


def obs(n: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 4))


def weights(policy: ActorCritic) -> dict[str, torch.Tensor]:
    return dict(policy.state_dict())


# Initial weights


def test_one_seed_one_policy() -> None:
    one, same, other = policy_of(seed=3), policy_of(seed=3), policy_of(seed=4)
    assert all(torch.equal(weights(one)[name], weights(same)[name]) for name in weights(one))
    assert not torch.equal(one.actor[0].weight, other.actor[0].weight)
    assert not torch.equal(one.actor[0].weight, one.critic[0].weight)
    assert not torch.equal(one.actor[0].weight, one.actor[2].weight)


def test_building_one_touches_no_global_random_state() -> None:
    def factory(space: gym.Space[Any]) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh())

    built = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        for features in (None, factory):
            for ortho_init in (True, False):
                built.append(policy_of(features=features, ortho_init=ortho_init))
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    for one, other in zip(built[:4], built[4:], strict=True):
        assert all(torch.equal(weights(one)[name], weights(other)[name]) for name in weights(one))


def test_orthogonal_gains() -> None:
    policy = policy_of(DISCRETE, net_arch=(4, 4))
    gains = [(policy.actor[0], 2**0.5), (policy.critic[2], 2**0.5)]
    gains += [(policy.actor_head, 0.01), (policy.critic_head, 1.0)]
    for layer, gain in gains:
        gram = layer.weight @ layer.weight.T
        assert torch.allclose(gram, gain**2 * torch.eye(len(gram), dtype=gram.dtype), atol=1e-12)
        assert not layer.bias.any()


def test_the_network_is_as_described() -> None:
    policy = policy_of(net_arch={"pi": (5, 6), "vf": (7,)}, activation_fn="relu")
    assert [layer.out_features for layer in policy.actor if isinstance(layer, nn.Linear)] == [5, 6]
    assert [layer.out_features for layer in policy.critic if isinstance(layer, nn.Linear)] == [7]
    assert sum(isinstance(layer, nn.ReLU) for layer in policy.modules()) == 3
    assert policy.actor_head.out_features == 2
    assert policy_of(DISCRETE).actor_head.out_features == 3
    assert policy_of(log_std_init=-1.5).actions.log_std.tolist() == [-1.5, -1.5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_is_in_the_dtype(dtype: str) -> None:
    policy = policy_of(dtype=dtype, features=lambda space: nn.Linear(4, 4), norm_obs=True)
    wanted = torch.float32 if dtype == "float32" else torch.float64
    assert {p.dtype for p in policy.parameters()} == {wanted}
    assert policy.value(obs()).dtype == wanted
    assert policy.distribution(obs()).entropy().dtype == wanted
    actions, _ = policy.act(obs())
    assert actions.dtype == np.dtype(dtype)


# What it says


def test_evaluate_actions_says_what_its_parts_say() -> None:
    for actions, shared in ((BOX, False), (BOX, True), (DISCRETE, False), (DISCRETE, True)):
        policy = policy_of(actions, shared_network=shared, norm_obs=True)
        sampled, _ = policy.act(
            obs(), noise=policy.actions.draw_noise(np.random.default_rng(1), (6,))
        )
        inputs = policy.prepare(torch.from_numpy(obs()))
        said = policy.evaluate_actions(inputs, torch.as_tensor(sampled))
        distribution = policy.distribution(obs())
        assert torch.equal(said.log_prob, distribution.log_prob(torch.as_tensor(sampled)))
        assert torch.equal(said.entropy, distribution.entropy())
        assert torch.equal(said.value, policy.value(obs()))
        assert isinstance(distribution, DiagonalGaussian if actions is BOX else Categorical)


def test_a_shared_trunk_is_the_same_layers() -> None:
    policy = policy_of(shared_network=True)
    assert not hasattr(policy, "critic")
    value = policy.value(obs()).sum()
    gradient = torch.autograd.grad(value, policy.actor[0].weight)[0]
    assert gradient.abs().max() > 0
    apart = policy_of()
    value = apart.value(obs()).sum()
    assert torch.autograd.grad(value, apart.actor[0].weight, allow_unused=True)[0] is None


def test_a_mask_removes_choices() -> None:
    policy = policy_of(DISCRETE)
    mask = np.array([[True, False, True]] * 6)
    noise = policy.actions.draw_noise(np.random.default_rng(1), (200, 6))
    taken = {int(a) for row in noise for a in policy.act(obs(), mask=mask, noise=row)[0]}
    assert taken == {0, 2}
    distribution = policy.distribution(obs(), mask=torch.from_numpy(mask))
    assert distribution.log_prob(torch.zeros(6, dtype=torch.int64)).exp().max() < 1
    assert not distribution.log_prob(torch.ones(6, dtype=torch.int64)).exp().any()


def test_observations_are_normalised_once() -> None:
    policy = policy_of(norm_obs=True, clip_obs=2.0)
    assert policy.obs_normalizer is not None
    data = torch.from_numpy(5 + 3 * obs(500))
    policy.obs_normalizer.update(data)
    prepared = policy.prepare(data)
    expected = ((data - data.mean(0)) / data.std(0, unbiased=False)).clamp(-2, 2)
    assert torch.allclose(prepared, expected, atol=1e-6)
    assert {"obs_normalizer.moments.mean", "obs_normalizer.moments.count"} <= set(weights(policy))


# Versions


def test_versions_grow_with_every_kind_of_move() -> None:
    policy = policy_of(norm_obs=True)
    seen = [policy.version]

    def check() -> None:
        seen.append(policy.version)
        assert seen[-1] > seen[-2]

    with torch.no_grad():
        policy.actor_head.bias.add_(1.0)
    check()
    with torch.no_grad():
        policy.critic_head.weight.copy_(policy.critic_head.weight)
    check()
    policy.load_state_dict(policy_of(norm_obs=True).state_dict())
    check()
    policy.obs_normalizer.update(torch.ones(3, 4))  # type: ignore[union-attr]
    check()
    policy.count_update()
    check()


# Users' modules


def test_features_stand_in_front_of_the_hidden_layers() -> None:
    policy = policy_of(features=lambda space: nn.Linear(4, 11), net_arch={"pi": (8,), "vf": ()})
    assert policy.actor[1].in_features == 11
    assert policy.critic_head.in_features == 11
    assert policy.actor[0] is not policy.critic[0]
    assert not torch.equal(policy.actor[0].weight, policy.critic[0].weight)


class Flicker(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.training else x


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda space: nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5)), "dropout"),
        (lambda space: nn.BatchNorm1d(4), "batch"),
        (lambda space: Flicker(), "train mode"),
        (lambda space: "a string", "not a torch.nn.Module"),
        (lambda space: nn.Unflatten(1, (2, 2)), "flatten"),
    ],
)
def test_features_that_cannot_be_used_are_refused(factory: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_of(features=factory)


# Spaces


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Text(4),
        gym.spaces.Box(0.0, 1.0, (0,)),
        gym.spaces.Dict(x=OBS, y=gym.spaces.Text(4)),
        gym.spaces.Tuple([OBS, gym.spaces.Sequence(OBS)]),
    ],
)
def test_an_observation_space_it_cannot_read_is_named(space: Any) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"observation space .* is not supported"):
        ActorCritic(space, DISCRETE)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 5, (2,), np.int64),
        gym.spaces.Dict(x=BOX, y=gym.spaces.Text(4)),
    ],
)
def test_an_action_space_it_cannot_write_is_named(space: Any) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"action space .* is not supported"):
        ActorCritic(OBS, space)

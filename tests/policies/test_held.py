"""What a policy holds, remembered: every exchange is seen, and a copy remembers its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from upslope.policies.actor_critic import ActorCritic
from upslope.policies.held import Held

SPACES = gym.spaces.Box(-1.0, 1.0, (4,), np.float32), gym.spaces.Box(-1.0, 1.0, (2,))


def policy_of(**settings: Any) -> ActorCritic:
    return ActorCritic(*SPACES, **({"net_arch": (8,)} | settings))


def network() -> nn.Sequential:
    """A leaf without parameters, one without a bias, a module in a module."""
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))


def fresh(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.ones_like(parameter))


def exchange_bias(net: nn.Sequential) -> None:
    net[2][0].bias = fresh(net[2][0].bias)


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "a parameter exchanged": exchange_bias,
    "the first parameter exchanged": lambda net: setattr(net[0], "weight", fresh(net[0].weight)),
    "a parameter where there was None": lambda net: setattr(
        net[0], "bias", nn.Parameter(torch.zeros(4))
    ),
    "a parameter removed": lambda net: setattr(net[2][0], "bias", None),
    "a parameter deleted": lambda net: delattr(net[2][0], "bias"),
    "a parameter added": lambda net: net[2][0].register_parameter("new", fresh(net[0].weight)),
    "a parameter added to a module without": lambda net: net[1].register_parameter(
        "new", fresh(net[0].weight)
    ),
    "a module exchanged": lambda net: net.__setitem__(2, nn.Linear(4, 2)),
    "a module without parameters exchanged": lambda net: net.__setitem__(1, nn.ReLU()),
    "an inner module exchanged": lambda net: net[2].__setitem__(0, nn.Linear(4, 2)),
    "a module added": lambda net: net.append(nn.Tanh()),
    "a module added to a leaf": lambda net: net[1].add_module("new", nn.Tanh()),
    "a module removed": lambda net: net.__delitem__(1),
    "two modules swapped": lambda net: net._modules.update({"0": net[1], "1": net[0]}),
    "weights assigned": lambda net: net.load_state_dict(
        {name: x.clone() for name, x in net.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    net = network()
    held = Held(net)
    assert held.is_current()
    CHANGES[change](net)
    assert not held.is_current()
    assert Held(net).is_current()


MOVES: dict[str, Callable[[nn.Sequential], Any]] = {
    "weights moved": lambda net: [p.data.add_(1) for p in net.parameters()],
    "weights loaded": lambda net: net.load_state_dict(network().state_dict()),
    "frozen": lambda net: net.requires_grad_(False),
    "another dtype": lambda net: net.double(),
    "another mode": lambda net: net.eval(),
    "other storage": lambda net: setattr(net[0].weight, "data", torch.zeros(4, 3)),
    "the same set again": lambda net: net.__setitem__(1, net[1]),
}


@pytest.mark.parametrize("move", MOVES)
def test_what_is_held_stays_where_only_numbers_move(move: str) -> None:
    """Whose numbers, dtypes and storage they are is for the flat vector to see."""
    net = network()
    held = Held(net)
    MOVES[move](net)
    assert held.is_current()
    assert all(p is held.parameters[name] for name, p in net.named_parameters())


def test_an_exchange_is_seen_where_memory_is_used_again() -> None:
    """What was held lives on, so that a new object cannot have an old one's address."""
    net = network()
    held = Held(net)
    for _ in range(100):
        exchange_bias(net)
        assert not held.is_current()


def test_slots_say_where_parameters_are_looked_up() -> None:
    net = network()
    net[2].append(nn.Linear(4, 2))
    net[2][1].weight = net[2][0].weight  # tied
    held = Held(net)
    assert held.parameters == dict(net.named_parameters())
    assert len(held.parameters) == 4
    assert len(held.slots) == 5
    for owner, key, parameter in held.slots:
        assert owner[key] is parameter
    assert sum(parameter is net[2][0].weight for *_, parameter in held.slots) == 2
    assert held.modules == list(net.modules())


@pytest.mark.parametrize("settings", [{}, {"shared_network": True}, {"memory": "gru"}], ids=str)
def test_a_policy_holds_the_same_until_something_is_exchanged(settings: dict[str, Any]) -> None:
    policy = policy_of(**settings)
    held = policy.held
    assert policy.held is held
    assert list(held.parameters) == [name for name, _ in policy.named_parameters()]
    policy.actor_head.weight = fresh(policy.actor_head.weight)
    assert policy.held is not held
    assert policy.held.parameters["actor_head.weight"] is policy.actor_head.weight
    assert policy.held is policy.held


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))],
    ids=["deepcopy", "pickle"],
)  # fmt: skip
def test_a_copy_holds_its_own(copied: Callable[[ActorCritic], ActorCritic]) -> None:
    policy = policy_of()
    held = policy.held
    twin = copied(policy)
    assert twin.held is not held
    assert {id(p) for p in twin.held.parameters.values()} == {id(p) for p in twin.parameters()}
    assert {id(m) for m in twin.held.modules} == {id(m) for m in twin.modules()}
    mine = {id(p) for p in policy.parameters()}
    assert not mine & {id(p) for p in twin.held.parameters.values()}
    assert not mine & {id(p) for *_, p in twin.held.slots}
    assert policy.held is held
    version, of_twin = policy.version, twin.version
    with torch.no_grad():
        twin.actor_head.weight.add_(1)
    assert (policy.version, twin.version) == (version, of_twin + 1)


def test_what_is_held_is_no_module_and_in_no_file() -> None:
    policy = policy_of()
    names = list(policy.state_dict())
    modules = [name for name, _ in policy.named_modules()]
    assert policy.held.is_current()
    assert list(policy.state_dict()) == names
    assert [name for name, _ in policy.named_modules()] == modules


def written(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.add_(1)


def exchanged(policy: ActorCritic) -> None:
    policy.actor_head.bias = fresh(policy.actor_head.bias)


def one_more(policy: ActorCritic) -> None:
    policy.more = nn.Parameter(torch.ones(1))


WRITES: dict[str, Callable[[ActorCritic], Any]] = {
    "a parameter": lambda policy: written(policy.actor_head.weight),
    "a load": lambda policy: policy.load_state_dict(policy_of(norm_obs=True).state_dict()),
    "a statistic": lambda policy: policy.obs_normalizer.update(torch.ones(3, 4)),
    "an update": lambda policy: policy.count_update(),
    "an exchanged parameter": lambda policy: written(policy.actor_head.bias),
    "a new parameter": lambda policy: written(policy.more),
}


@pytest.mark.parametrize("write", WRITES)
def test_versions_count_every_write_to_what_is_held_now(write: str) -> None:
    policy = policy_of(norm_obs=True)
    assert policy.held.is_current(), "remembered before the exchange"
    {"an exchanged parameter": exchanged, "a new parameter": one_more}.get(write, id)(policy)
    version = policy.version
    WRITES[write](policy)
    assert policy.version > version
    tensors = [*policy.parameters(), *policy.obs_normalizer.buffers()]  # type: ignore[union-attr]
    updates = 1 if write == "an update" else 0
    assert policy.version == updates + sum(tensor._version for tensor in tensors)

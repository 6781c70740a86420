"""Plain stacks by NumPy: acting's layers for many rows, and rollouts evaluated by them."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ledger import make_ledgers, make_policy

from upslope import rollout as rollouts
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.plain import ONE_THREAD, PlainInputs, plain_policy
from upslope.rollout import collect, evaluate_rollout

OBS = gym.spaces.Box(-np.inf, np.inf, (5,), np.float64)
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


def policy_of(**settings: Any) -> ActorCritic:
    return ActorCritic(OBS, gym.spaces.Box(-1.0, 1.0, (3,)), **({"seed": 4} | settings))


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("net_arch", [(64, 64), (16,), (), (200, 100)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_rows_is_what_the_modules_say(n_rows: int, net_arch: Any, dtype: str) -> None:
    """Blocks of rows, whole and broken, one after the other through the same buffers."""
    policy = policy_of(net_arch=net_arch, dtype=dtype)
    plain = plain_policy(policy)
    assert plain is not None
    assert plain.critic is not None
    for n in (n_rows, 7, n_rows):
        obs = np.random.default_rng(n).normal(size=(n, 5))
        inputs = PlainInputs(policy)(obs)
        outputs, values = np.empty((n, 3), inputs.dtype), np.empty((n, 1), inputs.dtype)
        plain.actor(inputs, outputs)
        plain.critic(inputs, values)
        with torch.no_grad():
            prepared = policy.prepare(torch.from_numpy(obs))
            assert np.abs(outputs - policy.outputs(prepared)[0].numpy()).max() < TOLERANCE[dtype]
            assert np.abs(values[:, 0] - policy.values(prepared).numpy()).max() < TOLERANCE[dtype]


def test_no_product_of_a_narrow_stack_calls_up_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    dot = np.dot

    def watched(x: Any, weight: Any, out: Any) -> Any:
        sizes.append(len(x) * weight.size)
        return dot(x, weight, out)

    policy = policy_of(net_arch=(64, 64))
    plain = plain_policy(policy)
    assert plain is not None
    assert plain.actor.is_narrow
    monkeypatch.setattr(np, "dot", watched)
    plain.actor(np.zeros((1000, 5), np.float32), np.empty((1000, 3), np.float32))
    assert max(sizes) == ONE_THREAD


def test_wide_stacks_are_told() -> None:
    plain = plain_policy(policy_of(net_arch=(256, 256)))
    assert plain is not None
    assert not plain.actor.is_narrow


def test_views_are_made_once_and_again_where_parameters_moved() -> None:
    policy = policy_of()
    plain = plain_policy(policy)
    assert plain_policy(policy) is plain
    policy.actor_head.weight.data = policy.actor_head.weight.data.clone()
    again = plain_policy(policy)
    assert again is not plain
    policy.critic_head.weight = torch.nn.Parameter(torch.ones_like(policy.critic_head.weight))
    assert plain_policy(policy) is not again


def test_threads_share_no_buffers() -> None:
    policy = policy_of()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(plain_policy, policy).result()
    assert other is not plain_policy(policy)


def test_nothing_keeps_a_policy_alive() -> None:
    policy = policy_of()
    plain_policy(policy)
    gone = weakref.ref(policy)
    del policy
    gc.collect()
    assert gone() is None


def by_module(*_: Any) -> Any:
    raise AssertionError("the modules were asked")


@pytest.mark.parametrize("kind", ["plain", "next", "same"])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", [{}, {"norm_obs": True}, {"shared_network": True}])
def test_a_rollout_by_numpy_is_the_rollout_by_modules(
    kind: str, box: bool, dtype: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = make_ledgers(kind, box=box)
    policy = make_policy(envs, dtype=dtype, **settings)
    rollout = collect(envs, policy, n_steps=40)
    assert len(rollout.final_rows) > 2
    expected = rollouts._evaluate_by_module(policy, rollout)
    monkeypatch.setattr(rollouts, "_evaluate_by_module", by_module)
    found = evaluate_rollout(policy, rollout)
    for name in ("inputs", "log_prob", "values", "next_values"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        scale = max(1.0, float(theirs.abs().max()))
        assert (mine - theirs).abs().max() <= 4 * TOLERANCE[dtype] * scale


@pytest.mark.parametrize("settings", [{"activation_fn": "elu"}, {"net_arch": (256, 256)}])
def test_what_numpy_cannot_or_should_not_do_is_left_to_the_modules(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = make_ledgers("plain")
    policy = make_policy(envs, **settings)
    rollout = collect(envs, policy, n_steps=10)
    monkeypatch.setattr(rollouts, "_evaluate_by_module", by_module)
    with pytest.raises(AssertionError, match="the modules were asked"):
        evaluate_rollout(policy, rollout)

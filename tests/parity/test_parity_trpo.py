"""TRPO and NPG against sb3-contrib's TRPO: one whole step in float64 from one rollout.

The peer starts its conjugate gradient at small random numbers and ends it at a residual of 1e-5,
whatever the size of the gradient; ours starts at 0 and runs on. So the peer's own error shows (3e-4
of the step, below) unless its solver, otherwise untouched, is told to run on too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("sb3_contrib")

import sb3_contrib.trpo.trpo
from peer import (
    TASKS,
    B,
    FixedOrder,
    T,
    fill,
    gather,
    make_peer,
    peer_parameters,
    plain_envs,
)
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver

from upslope.algorithms import npg, trpo
from upslope.config import NPGConfig, TRPOConfig

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning"),
]

DISCOUNTS = {"gamma": 0.97, "gae_lambda": 0.9}


def step_both(
    page: Any,
    config: Any,
    task: str,
    monkeypatch: pytest.MonkeyPatch,
    residual_tol: float = 1e-24,
    **settings: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float], dict[str, float]]:
    """Steps of every weight that our page and the peer take from one rollout, and their metrics."""
    policy, rollout, evaluated = gather(task)
    settings = DISCOUNTS | settings
    learner = page.Learner(config(**settings), policy)
    torch.manual_seed(0)  # of the peer's random start
    solver = functools.partial(conjugate_gradient_solver, residual_tol=residual_tol)
    monkeypatch.setattr(sb3_contrib.trpo.trpo, "conjugate_gradient_solver", solver)
    peer = make_peer(TRPO, plain_envs(task), policy, n_steps=T, **settings)
    fill(peer, rollout, evaluated.values, evaluated.next_values[-1])
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    rng = np.random.default_rng(4)
    n_orders = settings["n_critic_updates"]
    orders = [rng.permutation(T * B) for _ in range(n_orders)]
    by_env = [np.arange(T * B), *(order % B * T + order // B for order in orders)]
    monkeypatch.setattr(np.random, "permutation", FixedOrder(by_env).permutation)
    peer.train()
    metrics = learner.update(rollout, evaluated, 1.0, FixedOrder(orders))
    ours = {name: p.detach() - before[name] for name, p in policy.named_parameters()}
    theirs = {name: p.detach() - before[name] for name, p in peer_parameters(peer, policy).items()}
    return ours, theirs, metrics, peer.logger.name_to_value


def relative_gap(ours: dict[str, Tensor], theirs: dict[str, Tensor], part: str) -> float:
    """|our step - their step| / |their step| over the weights of actor or critic."""
    names = [name for name in ours if name.startswith("critic") == (part == "critic")]
    gap = torch.cat([(ours[name] - theirs[name]).flatten() for name in names])
    return float(gap.norm() / torch.cat([theirs[name].flatten() for name in names]).norm())


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("cg_max_steps", [10, 15, 100])
@pytest.mark.parametrize("task", TASKS)
def test_step_of_trpo(
    task: str, cg_max_steps: int, normalize_advantage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, metrics, logged = step_both(
        trpo,
        TRPOConfig,
        task,
        monkeypatch,
        cg_max_steps=cg_max_steps,
        normalize_advantage=normalize_advantage,
        n_critic_updates=3,
        batch_size=50,
    )
    assert logged["train/is_line_search_success"] == metrics["is_line_search_success"] == 1.0
    assert relative_gap(ours, theirs, "actor") < 1e-4
    assert relative_gap(ours, theirs, "critic") < 1e-10
    assert metrics["value_loss"] == pytest.approx(logged["train/value_loss"], rel=1e-10)
    # theirs is KL(new || old), ours the KL(old || new) of the paper: alike for short steps
    assert metrics["approx_kl"] == pytest.approx(logged["train/kl_divergence_loss"], rel=0.2)


@pytest.mark.parametrize("task", TASKS)
def test_natural_gradient_takes_the_same_full_step(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, metrics, _ = step_both(
        npg, NPGConfig, task, monkeypatch, cg_max_steps=30, n_critic_updates=1, batch_size=128
    )
    assert metrics["line_search_scale"] == 1.0
    assert relative_gap(ours, theirs, "actor") < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_damping_is_the_peers(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step hangs on the damping, so equal steps say that it is applied alike."""
    one = {"cg_max_steps": 50, "n_critic_updates": 1, "batch_size": 128}
    ours, theirs, *_ = step_both(trpo, TRPOConfig, task, monkeypatch, cg_damping=1.0, **one)
    assert relative_gap(ours, theirs, "actor") < 1e-4
    weaker, *_ = step_both(trpo, TRPOConfig, task, monkeypatch, cg_damping=0.1, **one)
    assert relative_gap(weaker, theirs, "actor") > 0.01


@pytest.mark.parametrize("task", TASKS)
def test_step_of_the_peer_as_it_comes(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"n_critic_updates": 10, "batch_size": 128, "residual_tol": 1e-10}
    ours, theirs, *_ = step_both(trpo, TRPOConfig, task, monkeypatch, **plain)
    assert relative_gap(ours, theirs, "actor") < 1e-3
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


@pytest.mark.parametrize(
    ("target_kl", "damping", "tries"), [(0.03, 0.001, 4), (0.1, 0.01, 2), (0.3, 0.01, 4)]
)
def test_backtracked_step_is_the_peers(
    target_kl: float, damping: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large target makes the quadratic model wrong: both take the same shortened candidate."""
    ours, theirs, metrics, _ = step_both(
        trpo,
        TRPOConfig,
        "Pendulum-v1",
        monkeypatch,
        target_kl=target_kl,
        cg_damping=damping,
        cg_max_steps=100,
        n_critic_updates=1,
        batch_size=128,
    )
    assert metrics["line_search_scale"] == pytest.approx(0.8 ** (tries - 1))
    assert metrics["approx_kl"] <= target_kl
    assert relative_gap(ours, theirs, "actor") < 1e-4

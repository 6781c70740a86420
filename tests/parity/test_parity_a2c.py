"""A2C against Stable-Baselines3: loss, gradient, and the weights after several RMSprop steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from peer import (
    SETTINGS,
    TASKS,
    Capture,
    T,
    fill,
    gather,
    gradients,
    largest_gap,
    make_peer,
    peer_parameters,
    plain_envs,
    record_gradients,
)
from stable_baselines3 import A2C

from upslope.algorithms import a2c
from upslope.config import A2CConfig

pytestmark = pytest.mark.parity


def assert_same_loss_and_gradient(task: str, dtype: str, tolerance: float, **settings: Any) -> None:
    policy, rollout, evaluated = gather(task, dtype)
    learner = a2c.Learner(A2CConfig(**SETTINGS, **settings, max_grad_norm=None), policy)
    learner.optimizers["all"] = capture = Capture()  # type: ignore[assignment]
    update = learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
    loss, metrics = learner.loss(policy, capture.batch, capture.hyper)
    ours = gradients(loss, policy)

    peer = make_peer(
        A2C, plain_envs(task), policy, n_steps=T, max_grad_norm=float("inf"), **SETTINGS, **settings
    )
    fill(peer, rollout, evaluated.values, evaluated.next_values[-1])
    steps = record_gradients(peer, policy)
    peer.train()
    logged = peer.logger.name_to_value

    assert len(steps) == 1
    assert max(float(g.abs().max()) for g in ours.values()) > 0.05
    scale = max(float(g.abs().max()) for g in steps[0].values())
    assert largest_gap(ours, steps[0]) < tolerance * scale
    numbers = {name: value.item() for name, value in metrics.items()}
    numbers["policy_loss"] = numbers.pop("policy_gradient_loss")  # the peer's name of it
    numbers["explained_variance"] = update["explained_variance"]
    for name, number in numbers.items():
        assert abs(number - logged[f"train/{name}"]) < tolerance * max(1.0, abs(number)), name
    in_all = (
        logged["train/policy_loss"]
        + SETTINGS["ent_coef"] * logged["train/entropy_loss"]
        + SETTINGS["vf_coef"] * logged["train/value_loss"]
    )
    assert loss.item() == pytest.approx(in_all, rel=tolerance)


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradient(task: str, normalize_advantage: bool) -> None:
    assert_same_loss_and_gradient(task, "float64", 1e-11, normalize_advantage=normalize_advantage)


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradient_against_the_peer_as_it_comes(task: str) -> None:
    assert_same_loss_and_gradient(task, "float32", 1e-5)


@pytest.mark.parametrize("use_rms_prop", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_weights_after_three_steps(task: str, use_rms_prop: bool) -> None:
    """The same batch three times: RMSprop's (or Adam's) moments carry over, and the clip bites."""
    policy, rollout, evaluated = gather(task)
    settings = SETTINGS | {"max_grad_norm": 0.05, "use_rms_prop": use_rms_prop}
    learner = a2c.Learner(A2CConfig(**settings, learning_rate="lin_0.01"), policy)
    settings["learning_rate"] = lambda remaining: 0.01 * remaining
    peer = make_peer(A2C, plain_envs(task), policy, n_steps=T, **settings)
    peer._current_progress_remaining = 0.6
    step = learner.optimizers["all"]
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    batch = Capture()
    learner.optimizers["all"] = batch  # type: ignore[assignment]
    metrics = learner.update(rollout, evaluated, 0.6, np.random.default_rng(0))
    assert metrics["learning_rate"] == pytest.approx(0.006)
    for _ in range(3):
        fill(peer, rollout, evaluated.values, evaluated.next_values[-1])
        peer.train()
        step.run(batch.batch, batch.minibatches, batch.hyper)
    after = {name: p.detach() for name, p in policy.named_parameters()}
    assert largest_gap(after, before) > 1e-3
    theirs = {name: p.detach() for name, p in peer_parameters(peer, policy).items()}
    assert largest_gap(after, theirs) < 1e-12
    assert step.steps == 3
    assert len(step.moments) == (1 if use_rms_prop else 2)
    assert all(torch.isfinite(moment).all() for moment in step.moments)

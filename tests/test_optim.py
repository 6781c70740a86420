"""The flat vector, minibatches, and the gradient step that every page shares."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ledger import make_ledgers, make_policy
from torch import Tensor, nn

from upslope.algorithms import make_learner
from upslope.algorithms.ppo import Learner
from upslope.config import PPOConfig
from upslope.errors import ConfigError, NonFiniteError
from upslope.optim import FlatParameters, GradientStep, Minibatches, PerStep, adam, rmsprop
from upslope.optim.rules import adam_numbers, rmsprop_numbers
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout

OBS = gym.spaces.Box(-1.0, 1.0, (4,), np.float64)
BOX, DISCRETE = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(3)


def policy_of(actions: gym.Space[Any] = BOX, **settings: Any) -> ActorCritic:
    settings = {"dtype": "float64", "net_arch": (8,)} | settings
    return ActorCritic(OBS, actions, **settings)


def rows(n: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "obs": torch.from_numpy(rng.normal(size=(n, 4))),
        "target": torch.from_numpy(rng.normal(size=n)),
        "valid": torch.ones(n, dtype=torch.float64),
    }


def regression(policy: ActorCritic, batch: Any, hyper: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A mean over valid rows that depends on every parameter."""
    outputs, _ = policy.outputs(policy.prepare(batch["obs"]))
    error = (policy.value(batch["obs"]) - batch["target"]).square() + outputs.square().sum(-1)
    loss = (error * batch["valid"]).sum() / batch["valid"].sum()
    if policy.actions.n_outputs == 2:
        loss = loss + (policy.actions.log_std - 1).square().sum()
    return loss, {"loss": loss}


def snapshot(policy: ActorCritic) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def moved(policy: ActorCritic, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}


def assert_shared(policy: ActorCritic) -> None:
    """Every parameter is a view of one vector, in order, without gaps."""
    parameters = dict(policy.named_parameters())
    vector = FlatParameters(policy, policy.part_names("all")).vector
    offset = 0
    for name in policy.part_names("all"):
        piece = vector[offset : offset + parameters[name].numel()]
        assert piece.data_ptr() == parameters[name].data_ptr()
        assert torch.equal(piece, parameters[name].reshape(-1))
        offset += parameters[name].numel()
    assert offset == len(vector) == sum(p.numel() for p in parameters.values())


# The flat vector


@pytest.mark.parametrize("shared", [False, True])
def test_parameters_are_views_before_and_after_an_update(shared: bool) -> None:
    policy = policy_of(shared_network=shared)
    reference = snapshot(policy)
    step = GradientStep(policy, regression)
    assert not moved(policy, reference), "sharing storage changes no weight"
    assert_shared(policy)
    objects = {id(p) for p in policy.parameters()}
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    assert_shared(policy)
    assert objects == {id(p) for p in policy.parameters()}
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in policy.parameters())
    assert moved(policy, reference) == set(reference)


def test_sharing_again_moves_no_storage() -> None:
    policy = policy_of()
    GradientStep(policy, regression)
    places = [p.data_ptr() for p in policy.parameters()]
    GradientStep(policy, regression, part="critic")
    assert places == [p.data_ptr() for p in policy.parameters()]


def test_a_policy_turned_to_another_dtype_is_shared_anew() -> None:
    policy = policy_of(dtype="float32")
    GradientStep(policy, regression)
    policy.double()
    assert_shared(policy)
    assert {p.dtype for p in policy.parameters()} == {torch.float64}


def test_a_deep_copy_has_storage_of_its_own() -> None:
    policy = policy_of()
    step = GradientStep(policy, regression)
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    twin = copy.deepcopy(policy)
    assert not moved(twin, snapshot(policy))
    before = snapshot(twin)
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    assert not moved(twin, before)
    before = snapshot(policy)
    twin_step = GradientStep(twin, regression)
    twin_step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    assert not moved(policy, before)
    assert_shared(policy)
    assert_shared(twin)


def test_weights_loaded_between_updates_are_those_that_move() -> None:
    policy, other = policy_of(), policy_of(seed=5)
    step = GradientStep(policy, regression)
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    policy.load_state_dict(other.state_dict())
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.0})
    assert not moved(policy, snapshot(other))
    assert_shared(policy)


def test_gradient_through_the_flat_vector_is_that_of_the_parameters() -> None:
    policy = policy_of()
    flat = FlatParameters(policy, policy.part_names("all"))
    leaf = flat.vector.detach().clone().requires_grad_()
    with flat.replaced_by(leaf):
        loss, _ = regression(policy, rows(10), {})
    (gradient,) = torch.autograd.grad(loss, leaf)
    loss, _ = regression(policy, rows(10), {})
    parameters = dict(policy.named_parameters())
    pieces = torch.autograd.grad(loss, [parameters[name] for name in policy.part_names("all")])
    assert torch.equal(gradient, torch.cat([piece.reshape(-1) for piece in pieces]))


def test_parameters_come_back_when_the_loss_raises() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("in the loss")

    policy = policy_of()
    step = GradientStep(policy, broken, part="actor")
    before, objects = snapshot(policy), [id(p) for p in policy.parameters()]
    with pytest.raises(RuntimeError, match="in the loss"):
        step.run(rows(4), Minibatches.whole((4, 1)), {"learning_rate": 0.01})
    assert objects == [id(p) for p in policy.parameters()]
    assert all(p.requires_grad for p in policy.parameters())
    assert not moved(policy, before)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_tied_weights_get_the_gradient_of_both_uses() -> None:
    policy = policy_of(features=lambda space: Tied())
    flat = FlatParameters(policy, policy.part_names("all"))
    leaf = flat.vector.detach().clone().requires_grad_()
    with flat.replaced_by(leaf):
        loss, _ = regression(policy, rows(10), {})
    (gradient,) = torch.autograd.grad(loss, leaf)
    loss, _ = regression(policy, rows(10), {})
    parameters = dict(policy.named_parameters())
    pieces = torch.autograd.grad(loss, [parameters[name] for name in policy.part_names("all")])
    assert torch.allclose(gradient, torch.cat([piece.reshape(-1) for piece in pieces]), atol=1e-12)


def frozen_features(space: gym.Space[Any]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Tanh())


@pytest.mark.parametrize("part", ["all", "actor"])
def test_parameters_that_a_user_froze_do_not_move(part: str) -> None:
    policy = policy_of(features=frozen_features)
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert len(frozen) == 4
    before = snapshot(policy)
    step = GradientStep(policy, regression, part=part)
    step.run(rows(10), Minibatches.whole((10, 1), 3), {"learning_rate": 0.01})
    assert moved(policy, before) == set(policy.part_names(part)) - frozen
    assert {name for name, p in policy.named_parameters() if not p.requires_grad} == frozen


@pytest.mark.parametrize("thawed", [False, True], ids=["frozen later", "thawed later"])
@pytest.mark.parametrize("what", ["actor", "actor.0", "actor_head", "critic"])
@pytest.mark.parametrize("actions", [BOX, DISCRETE], ids=["box", "discrete"])
def test_freezing_between_updates_is_honoured_or_refused(
    thawed: bool, what: str, actions: Any
) -> None:
    policy = policy_of(actions)
    policy.get_submodule(what).requires_grad_(not thawed)
    step = GradientStep(policy, regression)
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    policy.get_submodule(what).requires_grad_(thawed)
    before = snapshot(policy)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    try:
        step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    except ConfigError:
        assert not moved(policy, before)
    else:
        assert moved(policy, before) == trainable


# Parts


@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
@pytest.mark.parametrize("actions", [BOX, DISCRETE], ids=["box", "discrete"])
@pytest.mark.parametrize(("part", "other"), [("actor", "critic"), ("critic", "actor")])
def test_a_part_moves_alone(rule: str, actions: Any, part: str, other: str) -> None:
    policy = policy_of(actions)
    before = snapshot(policy)
    step = GradientStep(policy, regression, part=part, rule=rule)
    step.run(rows(10), Minibatches.whole((10, 1), 3), {"learning_rate": 0.01})
    assert moved(policy, before) == set(policy.part_names(part))
    assert set(policy.part_names(part)) | set(policy.part_names(other)) == set(before)
    assert not set(policy.part_names(part)) & set(policy.part_names(other))
    if actions is BOX:
        assert ("actions.log_std" in moved(policy, before)) == (part == "actor")


def test_parts_in_turn_move_what_each_should() -> None:
    policy = policy_of()
    actor = GradientStep(policy, regression, part="actor")
    critic = GradientStep(policy, regression, part="critic")
    twin = policy_of()
    both = GradientStep(twin, regression)
    for _ in range(3):
        for step in (actor, critic, both):
            step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    for one, other in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert len(actor.moments[0]) + len(critic.moments[0]) == len(both.moments[0])


def test_a_shared_network_has_no_parts() -> None:
    policy = policy_of(shared_network=True)
    for part in ("actor", "critic"):
        with pytest.raises(ConfigError, match="shared_network"):
            GradientStep(policy, regression, part=part)
    before = snapshot(policy)
    step = GradientStep(policy, regression)
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    assert moved(policy, before) == set(before)


# The step


@pytest.mark.parametrize(
    ("rule", "theirs"), [("adam", "Adam"), ("rmsprop", "RMSprop")], ids=["adam", "rmsprop"]
)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_steps_equal_those_of_torch(rule: str, theirs: str, clip: float | None) -> None:
    policy, twin = policy_of(), policy_of()
    step = GradientStep(policy, regression, rule=rule, max_grad_norm=clip, eps=1e-5)
    optimiser = getattr(torch.optim, theirs)(twin.parameters(), lr=0.01, eps=1e-5)
    norms = []
    for k in range(5):
        result = step.run(rows(10, k), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
        optimiser.zero_grad()
        regression(twin, rows(10, k), {})[0].backward()
        limit = math.inf if clip is None else clip
        norms.append(float(nn.utils.clip_grad_norm_(twin.parameters(), limit)))
        optimiser.step()
        assert result["grad_norm"] == pytest.approx(norms[-1], rel=1e-12)
    assert min(norms) > 0.05, "the clip must bite"
    for one, other in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_columns_are_gathered_as_steps_read_them() -> None:
    order = Minibatches.shuffled(np.random.default_rng(0), (5, 2), 4, 3)
    numbers = torch.arange(10.0)
    gathered, valid = order.gather(numbers, torch.ones(10))
    assert gathered.shape == valid.shape == (9, 4)
    for epoch in range(3):
        mine = slice(3 * epoch, 3 * epoch + 3)
        assert sorted(gathered[mine][valid[mine] > 0].tolist()) == numbers.tolist()
        assert valid[mine].sum(1).tolist() == [4, 4, 2]
    assert not Minibatches.shuffled(np.random.default_rng(0), (5, 2), 5, 3).is_padded


@pytest.mark.parametrize("gathered", [1, 1000, 2**20])  # bytes: 1, several and all steps
@pytest.mark.parametrize("engine", ["eager", "tape"])
def test_a_column_of_its_own_for_each_step(
    engine: str, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of step k is values[k], however many steps are gathered at once."""
    monkeypatch.setattr("upslope.optim.minibatches.GATHERED", gathered)
    policy = policy_of()
    start = torch.cat([p.detach().reshape(-1).clone() for p in policy.parameters()]).sum()
    seen = torch.randn(30, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        weight = (batch["own"] * torch.arange(4.0, dtype=torch.float64)).sum()
        total = sum(p.sum() for p in policy.parameters())
        return weight * total, {"own": weight}

    step = GradientStep(policy, loss, rule="rmsprop", eps=1e6)  # nearly: gradient / eps
    step.engine = engine
    order = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 5, 15)
    batch = rows(10) | {"own": PerStep(seen)}
    result = step.run(batch, order, {"learning_rate": 1e5})
    weights = (seen * torch.arange(4.0)).sum(1)
    assert result["own"] == pytest.approx(float(weights.mean()))
    end = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
    assert float(end.sum() - start) == pytest.approx(
        -0.1 * len(end) * float(weights.sum()), rel=1e-4
    )


def test_rules_by_hand() -> None:
    gradient = torch.tensor([3.0, -0.5], dtype=torch.float64)
    zeros = torch.zeros(2, dtype=torch.float64)
    above, below, (first, second) = adam(gradient, (zeros, zeros), *adam_numbers(1, 0.0))
    assert torch.allclose(above / below, gradient.sign())
    assert torch.allclose(first, 0.1 * gradient)
    assert torch.allclose(second, 0.001 * gradient**2)
    above, below, (second,) = rmsprop(gradient, (zeros,), *rmsprop_numbers(1, 0.0))
    assert torch.allclose(above / below, 10 * gradient.sign())


def test_moments_go_on_from_one_run_to_the_next() -> None:
    policy, twin = policy_of(), policy_of()
    in_parts, at_once = GradientStep(policy, regression), GradientStep(twin, regression)
    for _ in range(3):
        in_parts.run(rows(10), Minibatches.whole((10, 1), 2), {"learning_rate": 0.01})
    at_once.run(rows(10), Minibatches.whole((10, 1), 6), {"learning_rate": 0.01})
    assert in_parts.steps == at_once.steps == 6
    assert not moved(policy, snapshot(twin))
    assert in_parts.state()["steps"] == 6
    assert torch.equal(in_parts.moments[1], at_once.moments[1])


def test_metrics_are_means_over_the_steps() -> None:
    policy = policy_of()
    seen = []

    def loss(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        value, metrics = regression(policy, batch, hyper)
        seen.append(float(value.detach()))
        return value, metrics

    result = GradientStep(policy, loss).run(
        rows(12),
        Minibatches.shuffled(np.random.default_rng(0), (12, 1), 4, 2),
        {"learning_rate": 0.01},
    )
    assert len(seen) == 6
    assert result["loss"] == pytest.approx(np.mean(seen), rel=1e-12)


# Minibatches


def test_every_row_is_read_once_an_epoch() -> None:
    minibatches = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 3)
    assert minibatches.rows.shape == (3, 3, 4)
    assert minibatches.present.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    orders = [epoch[minibatches.present].tolist() for epoch in minibatches.rows]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    again = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 3)
    assert torch.equal(again.rows, minibatches.rows)
    whole = Minibatches.whole((10, 1), 2)
    assert whole.rows.shape == (2, 1, 10)
    assert whole.present.all()


@pytest.mark.parametrize("size", [3, 4, 5, 10, 16])
def test_padding_changes_nothing(size: int) -> None:
    """Padded minibatches against slices taken by hand, some of their rows invalid."""
    batch = rows(10)
    batch["valid"][[2, 7]] = 0.0
    policy, twin = policy_of(), policy_of()
    minibatches = Minibatches.shuffled(np.random.default_rng(1), (10, 1), size, 2)
    step, by_hand = GradientStep(policy, regression), GradientStep(twin, regression)
    result = step.run(batch, minibatches, {"learning_rate": 0.01})
    losses = []
    for epoch in minibatches.rows:
        order = epoch[minibatches.present]
        for some in order.split(size):
            part = {name: column[some] for name, column in batch.items()}
            hyper = {"learning_rate": 0.01}
            losses.append(by_hand.run(part, Minibatches.whole((len(some), 1)), hyper)["loss"])
    assert len(losses) == 2 * math.ceil(10 / size) == step.steps
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    for one, other in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_what_stands_in_invalid_rows_changes_nothing() -> None:
    """PPO's own loss: other actions, weights and targets in reset rows, the same bits after."""
    envs = make_ledgers("next")
    policy = make_policy(envs)
    rollout = collect(envs, policy, n_steps=30)
    assert not rollout.valid.all()
    evaluated = evaluate_rollout(policy, rollout)
    results = []
    for noise in (0.0, 3.0):
        twin = copy.deepcopy(policy)
        learner = Learner(PPOConfig(n_steps=30, batch_size=16, n_epochs=2).resolve(3), twin)
        run = learner.optimizers["all"].run

        def disturbed(
            batch: Any, minibatches: Any, *args: Any, run: Any = run, noise: float = noise
        ) -> Any:
            off = batch["valid"] == 0
            for name in ("targets", "log_prob", "inputs"):
                batch[name] = batch[name].clone()
                batch[name][off] += noise
            weights = batch["weights"].values.clone()
            _, valid = minibatches.gather(batch["valid"], batch["valid"])
            weights[valid == 0] += noise
            batch["weights"] = PerStep(weights)
            return run(batch, minibatches, *args)

        learner.optimizers["all"].run = disturbed  # type: ignore[method-assign]
        mine = dataclasses.replace(rollout, policy_version=twin.version)
        learner.update(mine, evaluated, 1.0, np.random.default_rng(0))
        results.append(snapshot(twin))
    for name, weights in results[0].items():
        assert torch.equal(weights, results[1][name])


@pytest.mark.parametrize("batch_size", [2, 89])
def test_a_minibatch_of_reset_rows_alone_is_no_failure(batch_size: int) -> None:
    """Likely for pairs; 90 rows in steps of 89 leave one row for the last step of an epoch."""
    envs = make_ledgers("next")
    policy = make_policy(envs)
    learner = make_learner(
        PPOConfig(n_steps=30, batch_size=batch_size, n_epochs=4).resolve(3), policy
    )
    before = snapshot(policy)
    for iteration in range(4):
        rollout = learner.collect(envs)
        evaluated = evaluate_rollout(policy, rollout)
        learner.update(rollout, evaluated, 1.0, np.random.default_rng(iteration))
    assert moved(policy, before)
    assert all(torch.isfinite(p).all() for p in policy.parameters())


# Stops and failures


def test_until_stops_before_the_step() -> None:
    policy, twin = policy_of(), policy_of()
    calls = []

    def third(metrics: dict[str, Tensor]) -> bool:
        calls.append(float(metrics["loss"]))
        return len(calls) == 3

    step = GradientStep(policy, regression)
    step.run(rows(10), Minibatches.whole((10, 1), 6), {"learning_rate": 0.01}, until=third)
    reference = GradientStep(twin, regression)
    reference.run(rows(10), Minibatches.whole((10, 1), 2), {"learning_rate": 0.01})
    assert len(calls) == 3
    assert step.steps == 2
    assert not moved(policy, snapshot(twin))
    assert all(map(torch.equal, step.moments, reference.moments))


def test_until_at_the_first_minibatch_moves_nothing() -> None:
    policy = policy_of()
    before = snapshot(policy)
    step = GradientStep(policy, regression)
    step.run(rows(10), Minibatches.whole((10, 1), 6), {"learning_rate": 0.01}, until=lambda _: True)
    assert not moved(policy, before)
    assert step.steps == 0


def test_ppo_stops_at_its_target_kl() -> None:
    envs = make_ledgers("plain")
    policy = make_policy(envs)
    config = PPOConfig(n_steps=30, batch_size=30, learning_rate=0.05, target_kl=1e-9).resolve(3)
    learner = make_learner(config, policy)
    rollout = learner.collect(envs)
    learner.update(rollout, evaluate_rollout(policy, rollout), 1.0, np.random.default_rng(0))
    assert learner.optimizers["all"].steps == 1, "the first step is at ratio 1, the second beyond"


def poison(after: int, what: str) -> Any:
    """A loss that fails in its ``after``-th call: in its gradient, its value or a metric."""
    calls = []

    def loss(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        calls.append(1)
        value, _ = regression(policy, batch, hyper)
        other = value.detach()
        if len(calls) == after and what == "gradient":  # the slope of a root at 0, times 0
            value = value + policy.value(batch["obs"]).mul(0).sum().sqrt()
        if len(calls) == after and what == "loss":
            value = value * math.inf
        if len(calls) == after and what == "metric":
            other = other * math.nan
        return value, {"loss": value, "other": other}

    return loss


@pytest.mark.parametrize("part", ["all", "actor", "critic"])
@pytest.mark.parametrize("what", ["gradient", "loss", "metric"])
@pytest.mark.parametrize("after", [3, 5, 8])
def test_non_finite_numbers_restore_everything(part: str, what: str, after: int) -> None:
    if part == "actor" and what == "gradient":
        pytest.skip("the gradient of the value is not the actor's")
    policy = policy_of()
    step = GradientStep(policy, poison(after, what), part=part, max_grad_norm=0.5)
    step.run(rows(10), Minibatches.whole((10, 1), 2), {"learning_rate": 0.01})
    before, moments, steps = snapshot(policy), [m.clone() for m in step.moments], step.steps
    with pytest.raises(NonFiniteError, match=r"learning_rate") as caught:
        step.run(rows(10), Minibatches.whole((10, 1), 6), {"learning_rate": 0.01})
    assert caught.value.exit_code == 4
    assert not moved(policy, before)
    assert step.steps == steps == 2
    assert all(map(torch.equal, step.moments, moments))
    assert_shared(policy)
    step.loss = regression
    step.run(rows(10), Minibatches.whole((10, 1)), {"learning_rate": 0.01})
    assert moved(policy, before) == set(policy.part_names(part))


def test_a_learning_rate_that_explodes_restores_everything() -> None:
    policy = policy_of(dtype="float32")
    step = GradientStep(policy, regression)
    before = snapshot(policy)
    with pytest.raises(NonFiniteError):
        step.run(rows(10), Minibatches.whole((10, 1), 4), {"learning_rate": 1e38})
    assert not moved(policy, before)


def test_a_failed_run_of_torch_is_unlike_ours() -> None:
    """The world the tests above live in: torch's own clip would have spread the NaN."""
    policy = policy_of()
    loss, _ = poison(1, "gradient")(policy, rows(4), {})
    loss.backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    assert not all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)

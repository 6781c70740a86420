"""The engines of the gradient step: one source, the same numbers, and what each must refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import upslope
from upslope.config import CONFIGS, PPOConfig, ReinforceConfig
from upslope.errors import NonFiniteError
from upslope.optim import GradientStep, Minibatches, aot, minibatches, torch_parts
from upslope.optim.engines import BUILD_PAYS, planned_engine
from upslope.optim.replay import EAGER_STEPS, MOST_TAPES
from upslope.optim.tape import record
from upslope.optim.torch_parts import Unavailable
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import evaluate_rollout
from upslope.spaces import MASK_KEY

VECTOR = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
PIXELS = gym.spaces.Box(0, 255, (10, 10, 1), np.uint8)
MASKED = gym.spaces.Dict({"x": VECTOR, MASK_KEY: gym.spaces.MultiBinary(3)})
MIXED = gym.spaces.Dict({"x": VECTOR, "n": gym.spaces.Discrete(4)})
BOX, DISCRETE = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(3)
POLICIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "categorical": (VECTOR, DISCRETE, {}),
    "gaussian": (VECTOR, BOX, {}),
    "squashed": (VECTOR, BOX, {"action_dist": "squashed"}),
    "beta": (VECTOR, BOX, {"action_dist": "beta"}),
    "masked": (MASKED, DISCRETE, {}),
    "multi": (MIXED, gym.spaces.MultiDiscrete([3, 2]), {"activation_fn": "relu"}),
    "composite": (VECTOR, gym.spaces.Tuple([DISCRETE, BOX]), {}),
    "pixels": (PIXELS, DISCRETE, {"cnn": "small"}),
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-10}


class Random(gym.Env[Any, Any]):
    """Observations, rewards and ends that only the seed decides."""

    def __init__(self, observations: Any, actions: Any) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        draw = self.np_random
        return self.observe(), draw.normal(), draw.random() < 0.1, draw.random() < 0.05, {}

    def observe(self) -> Any:
        seen = self.observation_space.sample()
        if isinstance(seen, dict) and MASK_KEY in seen:
            seen[MASK_KEY][self.np_random.integers(3)] = 1
        return seen


def agent_of(algorithm: str, kind: str, **settings: Any) -> upslope.Agent:
    observations, actions, more = POLICIES[kind]
    rows = {"n_envs": 4, "n_steps": 16} if algorithm != "reinforce" else {"n_envs": 4}
    if algorithm != "reinforce" and algorithm != "a2c":
        rows["batch_size"] = 24  # the last minibatch of 64 rows is a partial one
    if algorithm == "ppo":
        rows["n_epochs"] = 17  # 51 steps in one update, before samples come to the clip's edge
    if algorithm in ("npg", "trpo", "vpg"):
        rows["n_critic_updates"] = 5
    if algorithm == "reinforce":
        rows |= {"batch_episodes": 6, "baseline": "value"}
    make = getattr(upslope, {"reinforce": "REINFORCE"}.get(algorithm, algorithm.upper()))
    env = Random(observations, actions)
    return make(  # type: ignore[no-any-return]
        lambda: Random(env.observation_space, env.action_space),
        **({"net_arch": (8,), "vec": "sync"} | rows | more | settings),
    )


def trained(agent: upslope.Agent, engine: str, least: int = 50) -> tuple[Tensor, dict[str, float]]:
    """Weights after at least so many gradient steps of every optimiser on one rollout."""
    training, policy = agent.training, agent.policy
    steps = training.learner.optimizers
    for step in steps.values():
        step.engine = engine
    rollout = training.learner.collect(training.envs)
    evaluated = evaluate_rollout(policy, rollout)
    number = 0
    while min(step.steps for step in steps.values()) < least:
        mine = dataclasses.replace(rollout, policy_version=policy.version)
        metrics = training.learner.update(mine, evaluated, 1.0, np.random.default_rng(number))
        number += 1
    assert {step.engine for step in steps.values()} == {engine}, "no engine gave way"
    agent.close()
    return torch.cat([p.detach().reshape(-1) for p in policy.parameters()]), metrics


CASES = [(algorithm, kind, "float32") for algorithm in CONFIGS for kind in list(POLICIES)[:2]]
CASES += [("ppo", kind, dtype) for kind in list(POLICIES)[2:] for dtype in TOLERANCE]
CASES += [(algorithm, "gaussian", "float64") for algorithm in CONFIGS]


@pytest.mark.parametrize(("algorithm", "kind", "dtype"), CASES)
def test_tape_agrees_with_eager(algorithm: str, kind: str, dtype: str) -> None:
    before = agent_of(algorithm, kind, dtype=dtype)
    start = torch.cat([p.detach().reshape(-1) for p in before.policy.parameters()]).clone()
    eager, its_metrics = trained(before, "eager")
    tape, metrics = trained(agent_of(algorithm, kind, dtype=dtype), "tape")
    assert float((eager - start).abs().max()) > 1e-3, "nothing was learned"
    assert float((tape - eager).abs().max()) <= TOLERANCE[dtype]
    assert metrics == pytest.approx(its_metrics, rel=1e-3, abs=1e-5, nan_ok=True)
    again, _ = trained(agent_of(algorithm, kind, dtype=dtype), "tape")
    assert torch.equal(again, tape)


# One gradient step by itself


def policy_of(features: Any = None, **settings: Any) -> ActorCritic:
    settings = {"net_arch": (8,), "dtype": "float64"} | settings
    return ActorCritic(VECTOR, BOX, features=features, **settings)


def rows(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "obs": torch.from_numpy(rng.normal(size=(n, 4))),
        "target": torch.from_numpy(rng.normal(size=n)),
        "valid": torch.ones(n, dtype=torch.float64),
    }


def regression(policy: ActorCritic, batch: Any, hyper: Any) -> tuple[Tensor, dict[str, Tensor]]:
    outputs, _ = policy.outputs(batch["obs"].to(policy.dtype))
    error = (policy.values(batch["obs"]) - batch["target"]).square() + outputs.square().sum(-1)
    loss = (error * batch["valid"]).sum() / batch["valid"].sum() * hyper.get("scale", 1.0)
    return loss, {"loss": loss}


def weights_of(policy: ActorCritic) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in policy.parameters()])


class Watched:
    """A loss that counts how often Python ran it."""

    def __init__(self, loss: Any = regression) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.loss(*args)


def take(
    policy: ActorCritic, loss: Any, engine: str = "tape", steps: int = 12, n: int = 10, **more: Any
) -> GradientStep:
    step = GradientStep(policy, loss, **more)
    step.engine = engine
    step.run(rows(n), Minibatches.shuffled(np.random.default_rng(0), (n, 1), 4, steps), RATE)
    return step


RATE = {"learning_rate": 0.01}


def test_a_replay_runs_no_python_and_imports_no_compiler() -> None:
    loss = Watched()
    step = take(policy_of(), loss)
    assert step.steps == 36
    assert loss.calls == EAGER_STEPS + 1, "some eager steps, one recorded, one to prove it"
    code = (
        "import sys, torch; sys.path[:0] = {!r}; import test_optim_engines as t; "
        "t.take(t.policy_of(), t.regression); print('torch._dynamo' in sys.modules)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code.format(sys.path)], capture_output=True, text=True, check=True
    )
    assert asked.stdout.strip() == "False"


def test_numbers_of_hyper_are_arguments_of_the_replay() -> None:
    policy, twin = policy_of(), policy_of()
    for it, engine in ((policy, "tape"), (twin, "eager")):
        step = take(it, regression, engine)
        for k in range(1, 4):
            hyper = {"learning_rate": 0.01 / k, "scale": float(k)}
            for _ in range(8):
                step.run(rows(10, k), Minibatches.whole((10, 1)), hyper)
    assert torch.equal(weights_of(policy), weights_of(twin))


def test_what_the_step_reads_besides_may_move() -> None:
    """The critic stands still in the actor's steps and moves between them."""

    def both(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        outputs, _ = policy.outputs(batch["obs"])
        loss = (outputs.sum(-1) - policy.values(batch["obs"])).square().mean()
        return loss, {"loss": loss}

    ends = []
    for engine in ("eager", "tape"):
        policy = policy_of()
        steps = [GradientStep(policy, both, part=part) for part in ("actor", "critic")]
        for step in steps:
            step.engine = engine
        for _ in range(12):
            for step in steps:
                step.run(rows(10), Minibatches.whole((10, 1)), RATE)
        ends.append(weights_of(policy))
    assert torch.equal(*ends)


@pytest.mark.parametrize("engine", ["eager", "tape"])
@pytest.mark.parametrize("stop", [1, 2, 7, 11])
def test_until_stops_before_the_step(engine: str, stop: int) -> None:
    policy, twin = policy_of(), policy_of()
    seen: list[float] = []

    def until(metrics: dict[str, Tensor]) -> bool:
        seen.append(float(metrics["loss"]))
        return len(seen) == stop

    step = GradientStep(policy, regression)
    step.engine = engine
    step.run(rows(10), Minibatches.whole((10, 1), 20), RATE, until)
    reference = GradientStep(twin, regression)
    if stop > 1:
        reference.run(rows(10), Minibatches.whole((10, 1), stop - 1), RATE)
    assert (step.steps, len(seen)) == (stop - 1, stop)
    assert torch.equal(weights_of(policy), weights_of(twin))


def test_freezing_between_runs_is_honoured_by_the_replay() -> None:
    policy = policy_of()
    step = take(policy, regression)
    policy.actor_head.requires_grad_(False)
    before = policy.actor_head.weight.detach().clone(), policy.actor[0].weight.detach().clone()
    again = Minibatches.shuffled(np.random.default_rng(1), (10, 1), 4, 12)
    step.run(rows(10), again, RATE)  # of the shape whose tape is proven
    assert torch.equal(policy.actor_head.weight, before[0])
    assert not torch.equal(policy.actor[0].weight, before[1])
    assert step.engine == "tape"


ENGINES = ["eager", "tape", pytest.param("aot", marks=[pytest.mark.slow])]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("part", ["all", "actor"])
@pytest.mark.usefixtures("own_cache")
def test_weights_that_were_exchanged_are_those_that_move(engine: str, part: str) -> None:
    """``load_state_dict(assign=True)`` puts other parameters in, of the part and beside it."""
    other = {name: x + 0.1 for name, x in policy_of().state_dict().items()}
    minibatches = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4)
    ends = []
    for it, assign in ((engine, True), ("eager", False)):
        policy = policy_of()
        step = GradientStep(policy, beside, part=part)
        step.engine = it
        step.run(rows(10), minibatches, RATE)
        policy.load_state_dict({name: x.clone() for name, x in other.items()}, assign=assign)
        holds = dict(policy.named_parameters())
        for _ in range(2):
            step.run(rows(10), minibatches, RATE)
        assert step.engine == it
        assert all(holds[name] is p for name, p in policy.named_parameters())
        ends.append(weights_of(policy))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


def beside(policy: ActorCritic, batch: Any, hyper: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of the actor that reads the critic."""
    outputs, _ = policy.outputs(batch["obs"].to(policy.actor_head.weight.dtype))
    values = policy.critic_head(policy.critic(batch["obs"].to(outputs.dtype)))[:, 0]
    error = (outputs.sum(-1) - values).square() * batch["valid"]
    return error.mean(), {"loss": error.mean()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("own_cache")
def test_another_dtype_between_runs_is_honoured(engine: str) -> None:
    minibatches = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4)
    ends = []
    for it in (engine, "eager"):
        policy = policy_of(dtype="float32")
        step = GradientStep(policy, beside)
        step.engine = it
        step.run(rows(10), minibatches, RATE)
        policy.double()
        before = weights_of(policy)
        step.run(rows(10), minibatches, RATE)
        assert step.engine == it
        assert weights_of(policy).dtype == torch.float64
        assert not torch.equal(weights_of(policy), before)
        ends.append(weights_of(policy))
    assert torch.allclose(*ends, rtol=0, atol=1e-6)


# How many steps a call takes


class Loops:
    """Counts the calls of the TorchScript loop, and the steps that each of them takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        real = torch_parts.loop

        def counting(*args: Any, **kwargs: Any) -> Any:
            loop = real(*args, **kwargs)

            def counted(state: Any, shared: Any, columns: Any) -> Any:
                self.steps.append(len(columns[0]))
                return loop(state, shared, columns)

            return counted

        monkeypatch.setattr(torch_parts, "loop", counting)


def ready(policy: ActorCritic, engine: str = "tape", n: int = 10, size: int = 4) -> GradientStep:
    """A step whose tape for minibatches of so many rows has been proven."""
    step = GradientStep(policy, regression)
    step.engine = engine
    first = Minibatches.shuffled(np.random.default_rng(1), (n, 1), size, 2)
    assert len(first) > EAGER_STEPS + 1
    step.run(rows(n), first, RATE)
    return step


def test_an_update_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = Loops(monkeypatch)
    step = ready(policy_of())
    assert loops.steps == [1, 1], "a call that proves it, and the rest"
    for n_epochs in (1, 7):
        loops.steps.clear()
        step.run(
            rows(10), Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, n_epochs), RATE
        )
        assert loops.steps == [3 * n_epochs]
    whole = Minibatches.whole((10, 1), 9)
    step.run(rows(10), whole, RATE)
    loops.steps.clear()
    step.run(rows(10), whole, RATE)
    assert loops.steps == [9]


def of_three_steps(monkeypatch: pytest.MonkeyPatch, size: int = 4) -> None:
    """Let the rows of three steps be all that is gathered at once."""
    a_row = sum(x[:1].numel() * x.element_size() for x in rows(1).values())
    monkeypatch.setattr(minibatches, "GATHERED", 3 * size * a_row)


def test_rows_of_more_steps_than_a_cache_holds_are_several_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4)
    assert len(many) == 12
    ends = []
    for size in (3, 12):
        if size == 3:
            of_three_steps(monkeypatch)
        else:
            monkeypatch.undo()
        loops = Loops(monkeypatch)
        policy = policy_of()
        step = ready(policy)
        loops.steps.clear()
        means = step.run(rows(10), many, RATE)
        assert loops.steps == [size] * (12 // size)
        ends.append((weights_of(policy), *step.moments, means["loss"]))
    assert all(torch.equal(one, two) for one, two in zip(ends[0][:-1], ends[1][:-1], strict=True))
    assert ends[0][-1] == ends[1][-1]


@pytest.mark.parametrize("stop", range(1, 14))
def test_until_stops_inside_a_call(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first, a middle and the last of three steps, in each of four calls, or never."""
    of_three_steps(monkeypatch)
    many = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4)
    ends = []
    for engine in ("tape", "eager"):
        loops, policy = Loops(monkeypatch), policy_of()
        step, seen = ready(policy, engine), list[float]()
        loops.steps.clear()
        taken = step.steps

        def until(metrics: dict[str, Tensor], seen: list[float] = seen) -> bool:
            seen.append(float(metrics["loss"]))
            return len(seen) == stop

        means = step.run(rows(10), many, RATE, until)
        assert (step.engine, len(seen)) == (engine, min(stop, 12))
        assert step.steps - taken == min(stop - 1, 12)
        assert means["loss"] == pytest.approx(np.mean(seen), rel=1e-12)
        if engine == "tape":
            again = [] if stop > 12 or stop % 3 == 1 else [(stop - 1) % 3]
            assert loops.steps == [3] * (-(-min(stop, 12) // 3)) + again
        after = step.run(rows(10), many, RATE)["loss"]  # goes on from there
        ends.append((weights_of(policy), *step.moments, torch.tensor([*seen, after])))
    for found, expected in zip(*ends, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_an_until_sees_the_metrics_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = Loops(monkeypatch)
    step, seen = ready(policy_of()), []
    loops.steps.clear()
    step.run(rows(10), Minibatches.whole((4, 1), 1), RATE, lambda said: bool(seen.append(said)))
    step.run(rows(4), Minibatches.shuffled(np.random.default_rng(0), (4, 1), 4, 3), RATE,
             lambda said: bool(seen.append(said)))  # fmt: skip
    assert [list(said) for said in seen] == [["loss", "grad_norm"]] * 4


# What cannot be replayed


def test_a_step_that_is_refused_takes_the_proven_ones_along(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy without and then with dropout: the second has no tape, the first had one."""

    def dropping(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        return regression(policy, {**batch, "obs": policy.dropout(batch["obs"])}, hyper)

    ends, whole = [], Minibatches.whole((10, 1), 8)
    loops = Loops(monkeypatch)
    for engine in ("eager", "tape"):
        torch.manual_seed(0)
        policy = policy_of()
        policy.dropout = nn.Dropout(0.5)
        step = GradientStep(policy, dropping)
        step.engine = engine
        with caplog.at_level("INFO", "upslope"):
            for trains in (False, True, False):
                policy.train(trains)
                loops.steps.clear()
                step.run(rows(10), whole, RATE)
                assert bool(loops.steps) == (step.engine == "tape")
                assert step.engine == (engine if not (trains or step.steps == 24) else "eager")
        ends.append(weights_of(policy))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)
    assert caplog.text.count("random") == 1


def test_no_more_than_some_shapes_are_kept() -> None:
    """Those that came last; one that is back after it was dropped is recorded anew."""
    ends = []
    for engine in ("tape", "eager"):
        policy = policy_of()
        step = GradientStep(policy, regression)
        step.engine = engine
        for n in [*range(2, MOST_TAPES + 6), 2, 3]:
            step.run(rows(n), Minibatches.whole((n, 1), EAGER_STEPS + 2), RATE)
            assert len(step._tapes._replays) <= MOST_TAPES
        assert step.engine == engine
        ends.append(weights_of(policy))
        kept = [key[0] for key in step._tapes._replays]  # type: ignore[index]
        if engine == "tape":
            assert kept == [*range(8, MOST_TAPES + 6), 2, 3]
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


def test_a_loss_that_reads_weights_twice_is_replayed() -> None:
    """Weight decay: a gradient of a layer's own beside the one through its output."""

    def decaying(policy: ActorCritic, batch: Any, hyper: Any) -> Any:
        loss, metrics = regression(policy, batch, hyper)
        return loss + sum(p.square().sum() for p in policy.parameters()), metrics

    ends = []
    for engine in ("eager", "tape"):
        policy = policy_of()
        assert take(policy, decaying, engine).engine == engine
        ends.append(weights_of(policy))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


class Noisy(nn.Module):
    """A layer that does what ``how`` says to its input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.count = how, 0
        self.register_buffer("seen", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "dropout":
            return self.dropout(x)
        if self.how == "branch":
            return x if x.mean() > 0 else -x
        if self.how == "choice":
            return x + x[x.sum(-1) > 0].sum()
        if self.how == "check":
            return x @ torch.linalg.inv(torch.eye(x.shape[-1], dtype=x.dtype) * 2)
        if self.how == "number":
            return x * (1 + float(self.seen))
        if self.how == "buffer":
            self.seen.add_(1)
            return x * self.seen
        self.count += 1  # "counter": something outside that no operator shows
        return x * self.count


REASONS = {
    "dropout": "random",
    "branch": "Python number",
    "number": "Python number",
    "choice": "depends on the data",
    "buffer": "changes a tensor",
    "counter": "outside",
    "check": "checks numbers",
}


class Scaled(nn.Module):
    """A layer with a buffer, and a table that it makes when it first needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        table = self.tables.setdefault(width, torch.arange(width, dtype=x.dtype) * 0.01)
        return x * self.scale + table


@pytest.mark.parametrize("engine", ["eager", "tape"])
def test_an_exchanged_buffer_is_honoured(engine: str) -> None:
    ends = []
    for scale in (None, 1.0, 3.0):
        policy = policy_of(lambda space: Scaled())
        step = take(policy, regression, engine)
        if scale is not None:
            for module in policy.modules():
                if isinstance(module, Scaled):
                    module.scale = torch.tensor(scale)
        again = Minibatches.shuffled(np.random.default_rng(1), (10, 1), 4, 12)
        step.run(rows(10), again, RATE)  # of the shape whose tape is proven
        assert step.engine == engine
        ends.append(weights_of(policy))
    assert torch.equal(ends[0], ends[1])
    assert not torch.allclose(ends[0], ends[2])


def test_what_a_module_keeps_from_acting_may_be_differentiated_through() -> None:
    agent = upslope.PPO("CartPole-v1", policy=lambda space: Scaled(), n_envs=5, n_steps=16)
    agent.learn(400)
    assert agent.training.iteration == 5


@pytest.mark.parametrize("how", REASONS)
def test_a_step_that_is_no_function_of_its_tensors_runs_eagerly(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ends = []
    for engine in ("eager", "tape"):
        policy, layer = policy_of(), Noisy(how).double()

        def loss(policy: ActorCritic, batch: Any, hyper: Any, layer: Any = layer) -> Any:
            return regression(policy, {**batch, "obs": layer(batch["obs"])}, hyper)

        torch.manual_seed(0)
        with caplog.at_level("INFO", "upslope"):
            step = take(policy, loss, engine)
        assert step.engine == "eager"
        ends.append(weights_of(policy))
    assert torch.equal(*ends)
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert REASONS[how] in said[0]


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_memory_runs_eagerly(memory: str) -> None:
    agent = upslope.PPO(
        lambda: Random(VECTOR, BOX), n_envs=2, n_steps=8, batch_size=8, memory=memory, vec="sync"
    ).learn(32)
    assert agent.training.gradient_step_engine == "eager"
    agent.close()


PRIVATE = [
    "torch.utils._python_dispatch:TorchDispatchMode",
    "torch.jit:trace",
    "torch.jit:CompilationUnit",
    "torch:Tag",
]
SWITCH = "torch._C:_jit_set_profiling_executor"  # only hurries


@pytest.mark.parametrize("name", PRIVATE)
def test_without_a_private_name_the_step_runs_eagerly(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reference = policy_of()
    take(reference, regression, "eager")
    remove(name, monkeypatch)
    policy = policy_of()
    with caplog.at_level("INFO", "upslope"):
        step = take(policy, regression)
    assert step.engine == "eager"
    assert torch.equal(weights_of(policy), weights_of(reference))
    assert name.replace(":", ".") in caplog.text


def remove(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``torch_parts`` find a torch that lacks ``name``."""
    module, _, attributes = name.partition(":")
    attribute = attributes.partition(".")[0]
    found = torch_parts.import_module

    class Lacking:
        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, key: str) -> Any:
            if key == attribute:
                raise AttributeError(key)
            return getattr(self.real, key)

    monkeypatch.setattr(
        torch_parts,
        "import_module",
        lambda path: Lacking(found(path)) if path == module else found(path),
    )


def test_every_private_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that ``torch_parts`` starts to use must enter the list above."""
    asked = set()
    real = torch_parts.part
    monkeypatch.setattr(torch_parts, "part", lambda path: asked.add(path) or real(path))
    assert take(policy_of(), regression).engine == "tape"
    assert asked == {*PRIVATE, SWITCH}


def test_without_the_switch_the_tape_is_ready_later(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = policy_of()
    take(reference, regression)
    remove(SWITCH, monkeypatch)
    policy = policy_of()
    assert take(policy, regression).engine == "tape"
    assert torch.equal(weights_of(policy), weights_of(reference))


def test_a_record_says_why_there_is_none() -> None:
    x = torch.arange(3.0)
    results, tape = record(lambda x: (x + 1, x * float(x.sum())), [x])
    assert torch.equal(results[1], 3 * x)
    assert isinstance(tape, Unavailable)
    results, tape = record(lambda x: (x + 1, x * 2), [x])
    assert not isinstance(tape, Unavailable)
    assert [y.tolist() for y in tape(x + 1)] == [[2, 3, 4], [2, 4, 6]]


# The compiled loop


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One private cache for all tests: a build takes a dozen seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(cache: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "upslope"


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)


@needs_compiler
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("algorithm", "kind", "dtype"),
    [
        ("ppo", "gaussian", "float32"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case[0] != "reinforce"),
    ],
)
def test_the_compiled_loop_agrees_with_eager(algorithm: str, kind: str, dtype: str) -> None:
    eager, its_metrics = trained(agent_of(algorithm, kind, dtype=dtype), "eager")
    loop, metrics = trained(agent_of(algorithm, kind, dtype=dtype), "aot")
    assert float((loop - eager).abs().max()) <= TOLERANCE[dtype]
    assert metrics == pytest.approx(its_metrics, rel=1e-3, abs=1e-5, nan_ok=True)
    again, _ = trained(agent_of(algorithm, kind, dtype=dtype), "aot")
    assert torch.equal(again, loop)


@needs_compiler
@pytest.mark.parametrize("stop", [1, 2, 7, None])
def test_the_compiled_loop_stops_where_until_says(stop: int | None, own_cache: Any) -> None:
    ends = []
    for engine in ("eager", "aot"):
        policy, seen = policy_of(), []

        def until(metrics: dict[str, Tensor], seen: Any = seen) -> bool:
            seen.append(float(metrics["loss"]))
            return len(seen) == stop

        step = GradientStep(policy, regression)
        step.engine = engine
        minibatches = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4)
        result = step.run(rows(10), minibatches, RATE, until)
        assert (step.steps, len(seen)) == ((12, 12) if stop is None else (stop - 1, stop))
        ends.append((weights_of(policy), step.moments[1], result))
    assert torch.allclose(ends[0][0], ends[1][0], rtol=0, atol=1e-12)
    assert torch.allclose(ends[0][1], ends[1][1], rtol=0, atol=1e-12)
    assert ends[1][2] == pytest.approx(ends[0][2], rel=1e-9)
    assert own_cache.stat().st_mode & 0o777 == 0o700
    assert [path.suffix for path in own_cache.iterdir()] == [".pt2"] * len([*own_cache.iterdir()])


@needs_compiler
def test_a_non_finite_step_of_the_loop_restores_everything(own_cache: Any) -> None:
    policy = policy_of()
    step = GradientStep(policy, regression)
    step.engine = "aot"
    before = weights_of(policy)
    minibatches = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4)
    with pytest.raises(NonFiniteError):
        step.run(rows(10), minibatches, {"learning_rate": math.inf})
    assert (step.steps, step.engine) == (0, "aot")
    assert torch.equal(weights_of(policy), before)


def test_a_cache_that_others_can_write_is_not_used(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert aot.cache_directory() == tmp_path / "upslope"
    (tmp_path / "upslope").chmod(0o770)
    with pytest.raises(Unavailable, match="not private"):
        aot.cache_directory()
    assert take(policy_of(), regression, "aot").engine == "tape"


def test_without_a_compiler_the_tape_takes_the_steps(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(aot.shutil, "which", lambda name: None)
    policy, twin = policy_of(), policy_of()
    with caplog.at_level("INFO", "upslope"):
        assert take(policy, regression, "aot").engine == "tape"
    assert "compiler" in caplog.text
    take(twin, regression, "tape")
    assert torch.equal(weights_of(policy), weights_of(twin))


def test_a_build_that_fails_leaves_nothing_behind(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(aot.sys, "executable", shutil.which("false"))
    with caplog.at_level("INFO", "upslope"):
        assert take(policy_of(), regression, "aot").engine == "tape"
    assert "the compiler failed" in caplog.text
    assert not list((tmp_path / "upslope").iterdir())


def test_a_cache_that_cannot_be_written_is_no_failure(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(aot.tempfile, "TemporaryDirectory", full)
    with caplog.at_level("INFO", "upslope"):
        assert take(policy_of(), regression, "aot").engine == "tape"
    assert "No space left" in caplog.text


@needs_compiler
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_loading_falls_back_where_a_private_name_is_gone(
    lacking: int, own_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch's raw loader the public one serves; without both, the tape."""
    minibatches = Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4)
    reference = policy_of()
    GradientStep(reference, regression).run(rows(10), minibatches, RATE)
    for name in LOADERS[:lacking]:
        remove(name, monkeypatch)
    policy = policy_of()
    step = GradientStep(policy, regression)
    step.engine = "aot"
    step.run(rows(10), minibatches, RATE)
    assert step.engine == ("tape" if lacking == 2 else "aot")
    assert torch.allclose(weights_of(policy), weights_of(reference), rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("lacking", [0, 1])
def test_a_package_that_cannot_be_loaded_gives_way_to_the_tape(
    lacking: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the raw loader and by the public one; nothing of it stays in the cache but what is new."""
    built = []

    def garbage(spec: str, directory: Any, path: Any) -> None:
        built.append(path)
        path.write_bytes(b"not a package")

    monkeypatch.setattr(aot, "_build", garbage)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in LOADERS[:lacking]:
        remove(name, monkeypatch)
    step = GradientStep(policy_of(), regression)
    step.engine = "aot"
    step.run(rows(10), Minibatches.shuffled(np.random.default_rng(0), (10, 1), 4, 4), RATE)
    assert step.engine == "tape"
    assert len(built) == 2, "a damaged file is built anew, once"


LOADERS = ["torch._C:_aoti.AOTIModelPackageLoader", "torch._inductor:aoti_load_package"]


@pytest.mark.parametrize(
    "name",
    [
        "torch._higher_order_ops.while_loop:while_loop_op",
        "torch._inductor:aoti_compile_and_package",
    ],
)
def test_without_a_name_the_builder_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the child process it is the last line, which becomes the sentence."""
    remove(name, monkeypatch)
    call = torch_parts.compile_package if "compile" in name else torch_parts.while_loop
    given: Any = (nn.Identity(), [torch.zeros(1)], "unused", ())
    with pytest.raises(Unavailable, match="has no torch"):
        call(*given[: 3 if "compile" in name else 4])


# The setting


def test_the_engine_follows_from_the_plan_alone() -> None:
    config = PPOConfig(n_envs=8, n_steps=32, batch_size=64, n_epochs=10)
    assert config.updates_per_iteration == 40
    most = BUILD_PAYS // 40
    assert planned_engine(config, most - 1) == "tape"
    assert planned_engine(config, most) == "aot"
    wide = dataclasses.replace(config, n_steps=2048, batch_size=2048)
    assert planned_engine(wide, 10**6) == "tape", "arithmetic decides there"
    assert planned_engine(dataclasses.replace(config, compile="always"), 1) == "aot"
    assert planned_engine(dataclasses.replace(config, compile="never"), 10**6) == "eager"
    assert planned_engine(ReinforceConfig(compile="always"), 10**6) == "eager"
    assert planned_engine(ReinforceConfig(baseline="value"), 1) == "tape"


@pytest.mark.parametrize(("compile", "engine"), [("never", "eager"), ("auto", "tape")])
def test_config_json_says_which_engine_ran(compile: str, engine: str, tmp_path: Any) -> None:
    agent = upslope.PPO(
        lambda: Random(VECTOR, BOX),
        n_envs=2, n_steps=8, batch_size=8, vec="sync", compile=compile, run_dir=tmp_path / "run",
    )  # fmt: skip
    agent.learn(32)
    agent.close()
    assert json.loads((tmp_path / "run/config.json").read_text())["gradient_step_engine"] == engine


def test_config_json_is_corrected_where_the_plan_could_not_be_kept(tmp_path: Any) -> None:
    agent = upslope.PPO(
        lambda: Random(VECTOR, BOX),
        n_envs=2, n_steps=8, batch_size=8, vec="sync", policy=lambda space: Noisy("number"),
        run_dir=tmp_path / "run",
    )  # fmt: skip
    agent.learn(32)
    agent.close()
    assert json.loads((tmp_path / "run/config.json").read_text())["gradient_step_engine"] == "eager"

"""Exported policies, run by onnxruntime and by torch alone, beside the agent they came from."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple
from torch import nn

import upslope
from helpers.chamber import Chamber, sizes_of
from upslope.errors import ConfigError, ModelFileError
from upslope.export import FORMATS, environment_gives_masks, export_model, formats
from upslope.export.graph import PolicyGraph, observation_names
from upslope.export.heads import ChoiceHead
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Past
from upslope.spaces import assemble, paths
from upslope.trees import leaves, stack, to_torch

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
Arrays = dict[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# observations, actions, mask, memory, further settings; in turn they hold every one of each
QUICK = [
    ("vector", "choice", "info", "gru", {"norm_obs": True}),
    ("matrix", "box", "none", "none", {"action_dist": "beta", "shared_network": True}),
]
MANY = [
    ("dict", "dict", "observation", "lstm", {"action_dist": "squashed", "norm_obs": True}),
    ("large_image", "choices", "method", "none", {}),
    ("small_image", "bits", "none", "lstm", {"norm_obs": True, "shared_network": True}),
    ("tuple", "tuple", "observation", "none", {"norm_obs": True, "dtype": "float64"}),
    ("bytes", "box", "none", "gru", {"shared_network": True}),
    ("choice", "box", "none", "none", {"action_dist": "squashed"}),
    ("choices", "dict", "info", "none", {"action_dist": "beta"}),
    ("bits", "tuple", "none", "gru", {}),
    ("large_image", "choice", "observation", "gru", {"cnn": "impala"}),
]
SMALL = {"n_envs": 2, "n_steps": 8, "batch_size": 8, "net_arch": (8,), "memory_size": 5}


def one_of_each(space: gym.Space[Any]) -> np.ndarray:
    """The last value of each choice: what no mask here forbids."""
    sizes = sizes_of(space)
    allowed = np.zeros(sum(sizes), bool)
    allowed[np.cumsum(sizes) - 1] = True
    return allowed


def trained(case: Any) -> upslope.PPO:
    observations, actions, mask, memory, settings = case
    env = functools.partial(Chamber, observations, actions, mask)
    agent = upslope.PPO(env, memory=memory, warmup_steps=6, seed=4, **SMALL, **settings)
    return agent.learn(32)


def onnx(path: Path) -> Callable[[Arrays], Arrays]:
    """An ONNX file as a function, by onnxruntime alone."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))


def pt2(path: Path) -> Callable[[Arrays], Arrays]:
    """A .pt2 file as a function, by torch alone."""
    module = torch.export.load(path).module()
    return lambda inputs: {
        name: tensor.detach().numpy()
        for name, tensor in module({k: torch.from_numpy(x) for k, x in inputs.items()}).items()
    }


RUN = {"onnx": onnx, "torch": pt2}


def compare(agent: upslope.Agent, exported: Callable[[Arrays], Arrays], n: int, mask: str) -> None:
    """Six steps of ``n`` episodes; some start anew in the middle. The agent says what is right."""
    policy = agent.policy
    space = policy.observation_space
    space.seed(n)
    rng = np.random.default_rng(n)
    names = observation_names(space, ())
    graph = PolicyGraph(policy, mask in ("info", "method"))
    state: Any = None
    carried = {s: np.zeros((n, 5), policy.actor_head.weight.detach().numpy().dtype)
               for s in graph.state_inputs}  # fmt: skip
    for t in range(6):
        obs = stack([space.sample() for _ in range(n)])
        begins = np.ones(n, bool) if t == 0 else (np.arange(n) + t) % 3 == 0
        allowed = None
        if mask != "none":
            allowed = rng.random((n, policy.actions.n_mask)) < 0.5
            allowed |= one_of_each(policy.action_space)
        inputs = dict(zip(names.values(), leaves(obs), strict=True))
        if mask == "observation":
            obs["action_mask"] = inputs["action_mask"] = allowed.astype(np.int8)
        elif allowed is not None:
            inputs["action_mask"] = allowed
        if policy.has_memory:
            inputs |= {"episode_start": begins, **carried}
        said = exported({k: np.ascontiguousarray(x) for k, x in inputs.items()})

        with torch.no_grad():
            prepared = policy.prepare(to_torch(obs, policy.device))
            past = None
            if policy.has_memory:
                before = policy.blank_state(n) if state is None else state
                past = Past(torch.from_numpy(begins), before)
            np.testing.assert_allclose(said["value"], policy.values(prepared, past), **CLOSE)
        action, state = agent.predict(obs, state, begins, deterministic=True, action_masks=allowed)
        for path in paths(policy.action_space):
            expected = action
            for step in path:
                expected = expected[step]
            found = said["_".join(["action", *map(str, path)])]
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            np.testing.assert_allclose(found, expected, **CLOSE)
        if policy.has_memory:
            carried = {name: said[name.replace("_in_", "_out_", 1)] for name in carried}
            for found, expected in zip(carried.values(), leaves(state), strict=True):
                np.testing.assert_allclose(found, expected, **CLOSE)


def check(case: Any, form: str, folder: Path) -> None:
    agent = trained(case)
    agent.save(folder / "m.safetensors")
    path = folder / f"m{FORMATS[form]}"
    with_mask = case[2] in ("info", "method")
    made = export_model(folder / "m.safetensors", path, form, action_mask=with_mask)
    assert made.gap is not None
    assert made.gap <= 1e-5
    for n in (1, 7):
        compare(agent, RUN[form](path), n, case[2])
    agent.close()


@pytest.mark.parametrize("case", QUICK, ids=lambda c: "-".join(map(str, c[:4])))
def test_onnxruntime_gives_what_the_agent_gives(case: Any, tmp_path: Path) -> None:
    check(case, "onnx", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch"])
@pytest.mark.parametrize("case", QUICK + MANY, ids=lambda c: "-".join(map(str, c[:4])))
def test_both_formats_of_everything(case: Any, form: str, tmp_path: Path) -> None:
    check(case, form, tmp_path)


def test_torch_alone_gives_what_the_agent_gives(tmp_path: Path) -> None:
    check(("vector", "box", "none", "lstm", {"norm_obs": True}), "torch", tmp_path)


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_frame_stacked_and_normalised(form: str, tmp_path: Path) -> None:
    agent = upslope.PPO("Pendulum-v1", frame_stack=3, norm_obs=True, warmup_steps=32, **SMALL)
    agent.learn(64).save(tmp_path / "m.safetensors")
    path = tmp_path / f"p{FORMATS[form]}"
    made = export_model(tmp_path / "m.safetensors", path, form)
    assert made.inputs == {"obs": "float32[batch, 3, 3]"}
    exported = RUN[form](path)
    env = gym.wrappers.FrameStackObservation(gym.make("Pendulum-v1"), 3)
    obs, _ = env.reset(seed=1)
    for _ in range(5):
        expected, _ = agent.predict(obs, deterministic=True)
        action = exported({"obs": obs[None]})["action"][0]
        np.testing.assert_allclose(action, expected, **CLOSE)
        obs, *_ = env.step(action)


class Window(nn.Module):
    """Features of the user's own."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x)) * 2


class Counting(Window):
    """What no tracer can follow: Python looks at the numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if float(x.sum()) < 1e9 else -super().forward(x)


def test_features_of_the_users_own(tmp_path: Path) -> None:
    agent = upslope.PPO("CartPole-v1", policy=Window, **SMALL).learn(32)
    agent.save(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="policy=Window"):
        export_model(tmp_path / "m.safetensors", tmp_path / "p.pt2", "torch")
    export_model(tmp_path / "m.safetensors", tmp_path / "p.pt2", "torch", policy=Window)
    compare(agent, pt2(tmp_path / "p.pt2"), 7, "none")


def test_features_that_cannot_be_traced(tmp_path: Path) -> None:
    agent = upslope.PPO("CartPole-v1", policy=Counting, **SMALL)
    agent.save(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="features module must be tensor operations"):
        export_model(tmp_path / "m.safetensors", tmp_path / "p.pt2", "torch", policy=Counting)
    assert not (tmp_path / "p.pt2").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of CartPole, normalised."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    upslope.PPO("CartPole-v1", norm_obs=True, warmup_steps=32, **SMALL).learn(32).save(path)
    return path


class TestTheFile:
    def expected_metadata(self, model: Path) -> dict[str, Any]:
        return {
            "algorithm": "ppo",
            "environment": "CartPole-v1",
            "inputs": {"obs": "float32[batch, 4]"},
            "normalizer_included": True,
            "source": {
                "file": "m.safetensors",
                "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            },
        }

    def test_onnx_says_where_it_is_from(self, model: Path, tmp_path: Path) -> None:
        export_model(model, tmp_path / "p.onnx")
        session = ort.InferenceSession(tmp_path / "p.onnx")
        said = json.loads(session.get_modelmeta().custom_metadata_map["upslope"])
        assert said == said | self.expected_metadata(model)
        assert said["versions"]["upslope"] == upslope.__version__
        (port,) = session.get_inputs()
        assert (port.name, port.type, port.shape) == ("obs", "tensor(float)", ["batch", 4])
        assert [(o.name, o.shape[0]) for o in session.get_outputs()] == [
            ("action", "batch"), ("logits", "batch"), ("value", "batch"),
        ]  # fmt: skip
        assert str(Path(upslope.__file__).parent).encode() not in (tmp_path / "p.onnx").read_bytes()

    def test_pt2_needs_torch_alone(self, model: Path, tmp_path: Path) -> None:
        export_model(model, tmp_path / "p.pt2", "torch")
        agent = upslope.load(model)
        obs = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
        code = (
            "import json, sys, torch\n"
            "said = {'upslope.json': ''}\n"
            f"module = torch.export.load({str(tmp_path / 'p.pt2')!r}, extra_files=said).module()\n"
            f"outputs = module({{'obs': torch.tensor({obs.tolist()})}})\n"
            "assert 'upslope' not in sys.modules\n"
            "numbers = {name: tensor.tolist() for name, tensor in outputs.items()}\n"
            "print(json.dumps([numbers, json.loads(said['upslope.json'])]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True,
            check=True, cwd=tmp_path,
        )  # fmt: skip
        numbers, said = json.loads(done.stdout)
        assert said == said | self.expected_metadata(model)
        assert numbers["action"] == agent.predict(obs, deterministic=True)[0].tolist()
        np.testing.assert_allclose(numbers["value"], agent.policy.value(obs).tolist(), **CLOSE)
        expected = agent.policy.distribution(obs).logits.tolist()
        np.testing.assert_allclose(numbers["logits"], expected, **CLOSE)

    def test_the_same_model_gives_the_same_bytes(self, model: Path, tmp_path: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            export_model(model, tmp_path / name)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_one_that_does_not_agree_is_not_left_behind(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = ChoiceHead.forward

        def wrong(self: ChoiceHead, outputs: torch.Tensor, mask: Any) -> dict[str, torch.Tensor]:
            return right(self, outputs + 2e-5 * torch.arange(2), mask)

        monkeypatch.setattr(ChoiceHead, "forward", wrong)
        (tmp_path / "old.pt2").write_text("old")
        for name in ("new.pt2", "old.pt2"):
            with pytest.raises(ModelFileError, match="another logits than this library"):
                export_model(model, tmp_path / name, "torch")
        assert (tmp_path / "old.pt2").read_text() == "old"
        assert [file.name for file in tmp_path.iterdir()] == ["old.pt2"]

    def test_without_onnxruntime_nothing_runs_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.without("onnxruntime", monkeypatch)
        assert formats.run_onnx(b"not looked at") is None

    def test_without_onnxscript(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.without("onnxscript", monkeypatch)
        with pytest.raises(ConfigError, match=r"pip install 'upslope\[onnx\]'"):
            export_model(model, tmp_path / "p.onnx")

    def without(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == package else find(name)
        )

    @pytest.mark.parametrize(
        ("name", "form", "said"),
        [
            ("p.pt2", "onnx", "give --format torch"),
            ("p.onnx", "torch", "give --format onnx"),
            ("p.onnx", "onx", "did you mean 'onnx'"),
            (".", "onnx", "is a directory"),
        ],
    )
    def test_names_that_are_refused(
        self, model: Path, tmp_path: Path, name: str, form: str, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            export_model(model, tmp_path / name, form)

    def test_the_model_is_never_overwritten(self, model: Path) -> None:
        with pytest.raises(ConfigError, match="is the model itself"):
            export_model(model, model)
        upslope.load(model)


class TestNames:
    def test_of_observations(self) -> None:
        one = Box(-1, 1, (2,))
        assert list(observation_names(one, ()).values()) == ["obs"]
        assert list(observation_names(Tuple((one, Tuple((one,)))), ()).values()) == [
            "obs_0",
            "obs_1_0",
        ]
        space = Dict({"a b": one, "a": Dict(b=one, c=one), "a_b": one, "value": one, "7": one})
        assert set(observation_names(space, ["value"]).values()) == {
            *("a_b", "a_b_2", "a_b_3", "a_c", "value_2", "_7"),
        }

    def test_a_mask_inside_a_part_is_a_feature(self) -> None:
        space = Dict(action=Dict(mask=MultiBinary(2)))
        graph = PolicyGraph(ActorCritic(space, Discrete(2)), with_mask=True)
        assert graph.inputs == ["action_mask_2", "action_mask"]
        assert graph.masks == ["action_mask"]

    def test_masks_in_pieces_lie_in_the_order_of_the_choices(self) -> None:
        actions = Dict(b=Discrete(2), a=Discrete(3))
        mask = Dict(a=MultiBinary(3), b=MultiBinary(2))
        space = Dict(action_mask=mask, seen=Box(-1, 1, (2,)))
        graph = PolicyGraph(ActorCritic(space, actions), with_mask=False)
        assert graph.masks == [f"action_mask_{key}" for key in actions]
        obs = assemble(space, lambda path: torch.ones(1, *_leaf(space, path).shape))
        inputs = dict(zip(graph.inputs, leaves(obs), strict=True))
        inputs["action_mask_a"] = torch.tensor([[0, 0, 1]])
        inputs["action_mask_b"] = torch.tensor([[0, 1]])
        said = graph(inputs)
        assert (said["action_a"].item(), said["action_b"].item()) == (2, 1)


def _leaf(space: Any, path: Any) -> Any:
    for step in path:
        space = space[step]
    return space


class TestMasksOfTheEnvironment:
    def test_are_asked_for(self, tmp_path: Path) -> None:
        env = functools.partial(Chamber, "vector", "choice", "info")
        upslope.PPO(env, **SMALL).save(tmp_path / "m.safetensors")
        assert environment_gives_masks(tmp_path / "m.safetensors", None) is None
        assert environment_gives_masks(tmp_path / "m.safetensors", env) is True
        never = functools.partial(Chamber, "vector", "choice", "none")
        assert environment_gives_masks(tmp_path / "m.safetensors", never) is False

    def test_by_its_recorded_id(self, tmp_path: Path) -> None:
        upslope.PPO("Taxi-v4", **SMALL).save(tmp_path / "m.safetensors")
        assert environment_gives_masks(tmp_path / "m.safetensors", None) is True
        upslope.PPO("Pendulum-v1", **SMALL).save(tmp_path / "p.safetensors")
        assert environment_gives_masks(tmp_path / "p.safetensors", None) is False

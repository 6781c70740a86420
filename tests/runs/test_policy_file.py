"""A policy as a model file: what the header says, and that a file is held to its own outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import upslope
from upslope.errors import ModelFileError
from upslope.runs.model_file import read_header, read_model, write_model
from upslope.runs.policy_file import space_from_json, space_to_json, versions

BOX = gym.spaces.Box
SPACES = [
    gym.spaces.Discrete(4),
    gym.spaces.Discrete(3, start=5),
    gym.spaces.Discrete(2, start=-1),
    BOX(-1, 1, (3,)),
    BOX(-np.inf, np.inf, (2, 3)),
    BOX(0, np.inf, (2,), np.float64),
    BOX(np.array([-1.1, -np.inf], np.float32), np.array([0.1, 2.7], np.float32)),
    BOX(0, 255, (4,), np.uint8),
    BOX(-(2**40), 2**40, (1,), np.int64),
    BOX(-1e-300, 1e300, (1,), np.float64),
]


@pytest.fixture
def agent() -> upslope.PPO:
    small = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 2, "net_arch": (8,)}
    return upslope.PPO("CartPole-v1", norm_obs=True, warmup_steps=64, **small).learn(128)


@pytest.fixture
def path(agent: upslope.PPO, tmp_path: Path) -> Path:
    agent.save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


class TestSpaces:
    @pytest.mark.parametrize("space", SPACES, ids=str)
    def test_come_back_exactly(self, space: gym.Space[Any]) -> None:
        text = json.dumps(space_to_json(space), allow_nan=False)
        again = space_from_json(json.loads(text))
        assert again == space
        assert again.dtype == space.dtype
        if isinstance(space, BOX):
            assert again.low.tobytes() == space.low.tobytes()
            assert again.high.tobytes() == space.high.tobytes()

    @pytest.mark.parametrize(
        "space",
        [
            gym.spaces.MultiBinary(3),
            gym.spaces.MultiBinary((2, 3)),
            gym.spaces.MultiDiscrete([2, 5], start=[1, -2]),
            gym.spaces.MultiDiscrete([[2, 5], [3, 4]], dtype=np.int32),
            gym.spaces.Box(0, 255, (4, 84, 84), np.uint8),
            gym.spaces.Dict(b=gym.spaces.Tuple((gym.spaces.Discrete(2),)), a=gym.spaces.Box(0, 1)),
        ],
        ids=str,
    )
    def test_every_space_that_is_read_survives(self, space: gym.Space[Any]) -> None:
        again = space_from_json(json.loads(json.dumps(space_to_json(space))))
        assert again == space
        assert again.dtype == space.dtype

    def test_bounds_that_are_all_alike_are_told_once(self) -> None:
        assert len(json.dumps(space_to_json(gym.spaces.Box(0, 255, (84, 84), np.uint8)))) < 200

    def test_others_have_no_place(self) -> None:
        with pytest.raises(ModelFileError, match="Text"):
            space_to_json(gym.spaces.Text(3))


class TestHeader:
    def test_says_everything(self, agent: upslope.PPO, path: Path) -> None:
        header = read_header(path)
        assert header["format"] == 2
        assert header["algorithm"] == "ppo"
        assert header["environment"] == {
            "name": "CartPole-v1", "id": "CartPole-v1", "is_registered": True,
        }  # fmt: skip
        assert header["config"] == agent.config.to_json()
        assert header["versions"] == versions()
        assert header["network"]["features"] is None
        assert header["network"]["distribution"] == "categorical"
        assert header["network"]["parameters"] == sum(p.numel() for p in agent.policy.parameters())
        assert header["evaluation"] is None
        assert space_from_json(header["action_space"]) == agent.policy.action_space

    def test_a_score_may_travel_along(self, agent: upslope.PPO, tmp_path: Path) -> None:
        score = agent.evaluate(3)
        agent.save(tmp_path / "m.safetensors", score)
        said = read_header(tmp_path / "m.safetensors")["evaluation"]
        assert said == json.loads(json.dumps(score.to_json()))

    def test_tensors_are_the_policy_and_its_self_test(self, agent: upslope.PPO, path: Path) -> None:
        _, tensors = read_model(path)
        state = agent.policy.state_dict()
        extra = tensors.keys() - state.keys()
        parts = ("observations", "masks", "outputs", "values", "log_probs")
        assert extra == {f"self_test.{part}" for part in parts}
        assert state.keys() <= tensors.keys()
        assert 1 <= len(tensors["self_test.observations"]) <= 8
        assert torch.equal(
            agent.policy.value(tensors["self_test.observations"]), tensors["self_test.values"]
        )

    def test_same_agent_same_bytes(self, agent: upslope.PPO, path: Path, tmp_path: Path) -> None:
        agent.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()

    def test_loaded_and_saved_is_the_same_policy(self, path: Path, tmp_path: Path) -> None:
        upslope.load(path).save(tmp_path / "again.safetensors")
        once, twice = read_model(path)[1], read_model(tmp_path / "again.safetensors")[1]
        for name in once.keys() - {n for n in once if n.startswith("self_test")}:
            assert torch.equal(once[name], twice[name]), name


class TestSelfTest:
    def rewritten(self, path: Path, header: dict[str, Any], tensors: dict[str, Any]) -> Path:
        other = path.with_name("other.safetensors")
        write_model(other, header, tensors)
        return other

    @pytest.mark.parametrize("name", ["actor_head.weight", "critic_head.bias", "self_test.outputs"])
    def test_moved_numbers_are_refused(self, path: Path, name: str) -> None:
        header, tensors = read_model(path)
        tensors[name] = tensors[name] + 0.1
        with pytest.raises(ModelFileError, match=r"gives other (outputs|values) here"):
            upslope.load(self.rewritten(path, header, tensors))

    def test_numbers_that_are_none_are_refused(self, path: Path) -> None:
        header, tensors = read_model(path)
        tensors["actor_head.bias"] = torch.full_like(tensors["actor_head.bias"], float("nan"))
        with pytest.raises(ModelFileError):
            upslope.load(self.rewritten(path, header, tensors))

    def test_rounding_is_forgiven(self, path: Path) -> None:
        header, tensors = read_model(path)
        tensors["self_test.outputs"] = tensors["self_test.outputs"] + 1e-6
        upslope.load(self.rewritten(path, header, tensors))

    @pytest.mark.parametrize(
        "name",
        [
            "actor_head.weight",
            "obs_normalizer.moments.mean",
            "self_test.values",
            "self_test.observations",
        ],
    )
    def test_missing_tensors_are_refused(self, path: Path, name: str) -> None:
        header, tensors = read_model(path)
        assert name in tensors
        del tensors[name]
        with pytest.raises(ModelFileError, match=path.with_name("other").name):
            upslope.load(self.rewritten(path, header, tensors))

    def test_surplus_tensors_are_refused(self, path: Path) -> None:
        header, tensors = read_model(path)
        with pytest.raises(ModelFileError):
            upslope.load(self.rewritten(path, header, tensors | {"surplus": torch.ones(2)}))

    @pytest.mark.parametrize(
        "change",
        [
            {"algorithm": "dqn"},
            {"algorithm": None},
            {"config": {}},
            {"config": {"gamma": 7}},
            {"config": []},
            {"observation_space": {"type": "Graph"}},
            {"observation_space": space_to_json(BOX(-1, 1, (5,)))},
            {"action_space": {"type": "Discrete", "n": 3, "start": 0}},
            {"action_space": {"type": "Discrete", "n": -3, "start": 0}},
            {"action_space": "Discrete(2)"},
            {"network": None},
            {"environment": None},
            {"environment": {"name": "x"}},
        ],
        ids=str,
    )
    def test_contents_that_do_not_fit(self, path: Path, change: dict[str, Any]) -> None:
        header, tensors = read_model(path)
        if change == {"config": {}}:
            change = {"config": {"net_arch": {"pi": [9], "vf": [9]}}}
        with pytest.raises(ModelFileError):
            upslope.load(self.rewritten(path, {**header, **change}, tensors))

    @pytest.mark.parametrize(
        "key",
        ["algorithm", "config", "network", "observation_space", "action_space", "environment"],
    )
    def test_missing_parts(self, path: Path, key: str) -> None:
        header, tensors = read_model(path)
        header = {name: value for name, value in header.items() if name != key}
        with pytest.raises(ModelFileError):
            upslope.load(self.rewritten(path, header, tensors))

    def test_settings_of_a_later_version_are_left_out(self, path: Path) -> None:
        header, tensors = read_model(path)
        config = {**header["config"], "invented_later": 3}
        agent = upslope.load(self.rewritten(path, {**header, "config": config}, tensors))
        assert agent.config.n_envs == 2


class TestUntrained:
    def test_an_unbounded_space_of_the_largest_numbers(self, tmp_path: Path) -> None:
        limit = float(np.finfo(np.float32).max)

        class Huge(gym.Env[Any, Any]):
            observation_space = BOX(-limit, limit, (3,), np.float32)
            action_space = BOX(-1, 1, (2,))

        upslope.PPO(Huge, n_envs=1).save(tmp_path / "m.safetensors")
        upslope.load(tmp_path / "m.safetensors", Huge)

    def test_saving_leaves_the_space_of_the_environment_alone(self, tmp_path: Path) -> None:
        env = gym.make("CartPole-v1")
        agent = upslope.PPO(env)
        env.observation_space.seed(3)
        expected = env.observation_space.sample()
        env.observation_space.seed(3)
        agent.save(tmp_path / "m.safetensors")
        np.testing.assert_array_equal(env.observation_space.sample(), expected)

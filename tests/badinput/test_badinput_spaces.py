"""Every space of Gymnasium as observation and as action: it trains, or is refused by name."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)

import upslope
from upslope.envs import make
from upslope.errors import UnsupportedSpaceError

BOX, CHOICE = Box(-1, 1, (3,)), Discrete(3)
MAX = float(np.finfo(np.float32).max)


class Custom(gym.Space[Any]):
    """A space that Gymnasium does not know."""

    def __init__(self) -> None:
        super().__init__((2,), np.float32)

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        return np.zeros(2, np.float32)

    def contains(self, x: Any) -> bool:
        return True


def crossed_box() -> Box:
    box = Box(-1, 1, (3,))
    box.low, box.high = box.high, box.low
    return box


BOTH = {
    "box": BOX,
    "one_sided": Box(np.array([0, -np.inf, -1], np.float32), np.array([np.inf, 0, 1], np.float32)),
    "unbounded": Box(-np.inf, np.inf, (3,)),
    "huge": Box(-MAX, MAX, (3,), np.float32),
    "float64": Box(-1, 1, (3,), np.float64),
}
CHOICES: dict[str, gym.Space[Any]] = {
    "matrix": Box(-1, 1, (2, 3)),
    "number": Box(-2, 3, ()),
    "choice": CHOICE,
    "choice_from_5": Discrete(3, start=5),
    "choice_from_minus_1": Discrete(3, start=-1),
    "no_choice": Discrete(1),
    "multi_discrete": MultiDiscrete([2, 3]),
    "multi_discrete_with_start": MultiDiscrete([2, 3], start=[4, -1]),
    "multi_discrete_matrix": MultiDiscrete([[2, 3], [4, 1]]),
    "multi_binary": MultiBinary(4),
    "multi_binary_matrix": MultiBinary((2, 2)),
    "tuple": Tuple((CHOICE, BOX)),
    "dict": Dict(a=CHOICE, b=BOX),
    "nested": Dict(a=Dict(x=BOX, y=MultiBinary(2)), b=Tuple((CHOICE, Discrete(2, start=1)))),
}
READ = (
    BOTH
    | CHOICES
    | {
        "bytes": Box(0, 255, (3,), np.uint8),
        "integers": Box(-5, 5, (3,), np.int64),
        "truths": Box(0, 1, (3,), np.bool_),
        "image": Box(0, 255, (8, 8, 3), np.uint8),
        "large_image": Box(0, 255, (3, 40, 40), np.uint8),
        "image_of_floats": Box(0, 1, (8, 8, 1)),
        "cube": Box(-1, 1, (2, 2, 2, 2)),
    }
)
WRITTEN = BOTH | CHOICES
NEITHER: dict[str, gym.Space[Any]] = {
    "empty": Box(-1, 1, (0,)),
    "text": Text(5),
    "sequence": Sequence(BOX),
    "graph": Graph(BOX, CHOICE),
    "one_of": OneOf((CHOICE, BOX)),
    "custom": Custom(),
    "nothing": Dict(),
    "text_in_a_dict": Dict(a=BOX, b=Text(5)),
    "graph_in_a_tuple": Tuple((BOX, Tuple((Graph(BOX, CHOICE),)))),
}
NOT_READ = NEITHER | {"mask_alone": Dict(action_mask=MultiBinary(3))}
NOT_WRITTEN = NEITHER | {
    "bytes": Box(0, 255, (3,), np.uint8),
    "integers": Box(-5, 5, (3,), np.int64),
    "crossed": crossed_box(),
}


def rollouts_of(agent: Callable[..., upslope.Agent]) -> Callable[..., upslope.Agent]:
    return lambda env, **more: agent(env, n_steps=8, **more)


AGENTS: dict[str, Callable[..., upslope.Agent]] = {
    "ppo": lambda env, **more: upslope.PPO(env, n_steps=8, batch_size=8, n_epochs=1, **more),
    "reinforce": lambda env, **more: upslope.REINFORCE(env, batch_episodes=2, **more),
    "vpg": rollouts_of(upslope.VPG),
    "a2c": rollouts_of(upslope.A2C),
    "npg": rollouts_of(upslope.NPG),
    "trpo": rollouts_of(upslope.TRPO),
}


class Five(gym.Env[Any, Any]):
    """Five steps of random observations; it refuses an action outside its space."""

    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 5
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} of {type(action)}"
        self.left -= 1
        return self.observe(), 1.0, self.left == 0, False, {}

    def observe(self) -> Any:
        space = self.observation_space
        if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
            shown = self.np_random.uniform(0, 1, space.shape).astype(space.dtype)
            return np.clip(shown, space.low, space.high)
        return space.sample()


def trains(algorithm: str, env: Callable[[], gym.Env[Any, Any]], path: Path) -> None:
    """One iteration, a prediction inside the space, a score, and a file that gives the same."""
    agent = AGENTS[algorithm](env, n_envs=2)
    agent.learn(1)
    assert agent.num_timesteps >= 10
    obs, _ = env().reset(seed=0)
    for deterministic in (True, False):
        action, _ = agent.predict(obs, deterministic=deterministic)
        assert agent.policy.action_space.contains(action)
    assert agent.evaluate(2, seed=0).sampled.returns.tolist() == [5.0, 5.0]
    agent.save(path)
    loaded = upslope.load(path, env)
    assert loaded.policy.observation_space == agent.policy.observation_space
    assert loaded.policy.action_space == agent.policy.action_space
    same, _ = loaded.predict(obs, deterministic=True)
    before, _ = agent.predict(obs, deterministic=True)
    for one, other in zip(leaves_of(same), leaves_of(before), strict=True):
        np.testing.assert_array_equal(one, other)


def leaves_of(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in leaves_of(branch)]
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves_of(branch)]
    return [tree]


@pytest.mark.parametrize("algorithm", AGENTS)
class TestSupported:
    @pytest.mark.parametrize("name", READ)
    def test_observations(self, algorithm: str, name: str, tmp_path: Path) -> None:
        trains(algorithm, lambda: Five(READ[name], CHOICE), tmp_path / "m.safetensors")

    @pytest.mark.parametrize("name", WRITTEN)
    def test_actions(self, algorithm: str, name: str, tmp_path: Path) -> None:
        trains(algorithm, lambda: Five(BOX, WRITTEN[name]), tmp_path / "m.safetensors")


@pytest.mark.parametrize("vec", ["sync", "async"])
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
class TestUnsupported:
    @pytest.fixture(autouse=True)
    def no_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(*_: Any, **__: Any) -> None:
            pytest.fail("a worker was started for a space that is not supported")

        monkeypatch.setattr(make, "AsyncVectorEnv", start)

    @pytest.mark.parametrize("name", NOT_READ)
    def test_observations(self, algorithm: str, name: str, vec: str) -> None:
        with pytest.raises(UnsupportedSpaceError) as caught:
            AGENTS[algorithm](lambda: Five(NOT_READ[name], CHOICE), n_envs=2, vec=vec)
        said = str(caught.value)
        assert "the observation space" in said
        assert "MultiDiscrete" in said or "no part that a network could read" in said
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("name", NOT_WRITTEN)
    def test_actions(self, algorithm: str, name: str, vec: str) -> None:
        with pytest.raises(UnsupportedSpaceError) as caught:
            AGENTS[algorithm](lambda: Five(BOX, NOT_WRITTEN[name]), n_envs=2, vec=vec)
        said = str(caught.value)
        assert "the action space" in said
        assert "Discrete" in said or "lower bound above" in said


ONLY_TEXT = """
import gymnasium as gym
class Env(gym.Env):
    observation_space, action_space = gym.spaces.Text(5), gym.spaces.Discrete(2)
def make_env():
    return Env()
"""


class TestCommandLine:
    def test_a_space_that_nobody_reads(self, refused: Callable[..., str], here: Path) -> None:
        (here / "text_env.py").write_text(ONLY_TEXT)
        said = refused("train", "text_env.py:make_env")
        assert "Text" in said
        assert "MultiBinary" in said

    def test_leaves_no_process(self, refused: Callable[..., str], here: Path) -> None:
        (here / "text_env.py").write_text(ONLY_TEXT)
        refused("train", "text_env.py:make_env", "--vec", "async", "--n-envs", "2")
        assert multiprocessing.active_children() == []
        assert not (here / "runs").exists()

    def test_check_env(self) -> None:
        with pytest.raises(UnsupportedSpaceError):
            upslope.check_env(Five(Text(5), CHOICE))
        with pytest.raises(upslope.UpslopeError, match="VectorEnv"):
            upslope.check_env(gym.make_vec("CartPole-v1", 2))  # type: ignore[arg-type]
        with pytest.raises(upslope.UpslopeError, match="CartPole-v1"):
            upslope.check_env("CartPole-v1")  # type: ignore[arg-type]


class TestArgumentsThatNoFileCanHold:
    """``env_kwargs`` go to the constructor; a model file must be writable all the same."""

    @pytest.mark.parametrize(
        "value", [np.arange(2), np.float32(0.5), float("inf"), {1, 2}], ids=str
    )
    def test_a_run_is_not_lost(self, value: Any, tmp_path: Path) -> None:
        def env(goal: Any = None) -> Five:
            return Five(BOX, CHOICE)

        agent = AGENTS["ppo"](env, n_envs=2, env_kwargs={"goal": value}, run_dir=tmp_path / "run")
        agent.learn(1)
        assert (tmp_path / "run" / "model.safetensors").exists()
        assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"

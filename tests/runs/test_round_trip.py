"""A saved agent and the loaded one are one policy: every space, memory, distribution, statistic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from golden_models import SMALL, Features, noise, some_observations
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import upslope
from upslope.config import CONFIGS
from upslope.errors import ConfigError, ModelFileError
from upslope.runs import self_test
from upslope.runs.model_file import read_header, read_model, write_model
from upslope.trees import leaves, map_tree, take

VECTOR, CHOICE = Box(-1, 1, (3,)), Discrete(3)
OBSERVATIONS: dict[str, gym.Space[Any]] = {
    "box": VECTOR,
    "unbounded": Box(-np.inf, np.inf, (3,)),
    "half_bounded": Box(np.array([0, -np.inf], np.float32), np.array([np.inf, 2.7], np.float32)),
    "matrix_float64": Box(-1e30, 1e30, (2, 2), np.float64),
    "number": Box(-2, 3, ()),
    "float16": Box(-1, 1, (2,), np.float16),
    "largest_whole_numbers": Box(-(2**63), 2**63 - 1, (2,), np.int64),
    "bytes": Box(0, 255, (4,), np.uint8),
    "depth_uint16": Box(0, 65535, (3,), np.uint16),
    "uint64": Box(0, 2**64 - 1, (1,), np.uint64),
    "yes_or_no": Box(0, 1, (2,), bool),
    "image_small": Box(0, 255, (8, 8, 3), np.uint8),
    "image_large": Box(0, 255, (36, 36, 1), np.uint8),
    "image_floats": Box(0, 1, (1, 8, 8)),
    "discrete": Discrete(4),
    "discrete_start": Discrete(3, start=-7),
    "discrete_int32": Discrete(3, start=5, dtype=np.int32),
    "multi_discrete": MultiDiscrete([2, 3], start=[4, -1]),
    "multi_discrete_matrix": MultiDiscrete([[2, 3], [4, 1]], dtype=np.int32),
    "multi_binary": MultiBinary(4),
    "multi_binary_of_one_axis": MultiBinary([4]),
    "multi_binary_matrix": MultiBinary((2, 2)),
    "dict_in_order": Dict([("z", VECTOR), ("a", CHOICE)]),
    "keys_with_slashes": Dict({"a/b": VECTOR, "a": Dict({"b": Discrete(2)}), "~0": VECTOR}),
    "nested": Dict(a=Tuple((CHOICE, Dict(x=Box(-np.inf, 0, (2,))))), b=MultiBinary([2])),
    "with_mask": Dict(action_mask=Box(1, 1, (3,), np.int8), numbers=VECTOR),
}
ACTIONS: dict[str, gym.Space[Any]] = {
    "discrete_start": Discrete(4, start=3),
    "discrete_int32": Discrete(2, dtype=np.int32),
    "multi_discrete": MultiDiscrete([[2, 3], [4, 1]], start=[[1, -1], [0, 0]]),
    "multi_binary": MultiBinary([3]),
    "box": Box(-2, 3, (2, 2)),
    "box_float64": Box(-1e-3, 1e-3, (1,), np.float64),
    "box_half_bounded": Box(np.array([0, -1], np.float32), np.array([np.inf, 1], np.float32)),
    "dict": Dict(move=Discrete(3, start=-1), push=Box(-1, 1, (2,)), flags=MultiBinary(2)),
    "nested": Tuple((Dict(a=MultiDiscrete([2, 2])), Tuple((Discrete(2), Box(0, 1, (1, 1)))))),
}


def trained(observations: gym.Space[Any], actions: gym.Space[Any], **settings: Any) -> Any:
    env = noise(observations, actions, settings.pop("masked", False))
    return upslope.PPO(env, **{**SMALL, **settings}).learn(32)


def saved(agent: upslope.Agent, folder: Path, policy: Any = None) -> Any:
    """Save and load an agent, and hold one against the other."""
    agent.save(folder / "m.safetensors")
    loaded = upslope.load(folder / "m.safetensors", policy=policy)
    assert_same(agent, loaded)
    return loaded


def assert_same(agent: Any, loaded: Any) -> None:
    """Equal bits of weights and statistics, equal numbers out.

    An optimiser keeps weights side by side in one vector, so that their alignment in memory differs
    from that of loaded ones, and with it the last bit of what torch computes.
    """
    ours, theirs = agent.policy, loaded.policy
    for space in ("observation_space", "action_space"):
        assert getattr(theirs, space) == getattr(ours, space)
        assert repr(getattr(theirs, space)) == repr(getattr(ours, space))
        assert getattr(theirs, space).dtype == getattr(ours, space).dtype
    assert loaded.config == agent.config
    assert theirs.training == ours.training
    state, other = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(other)
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name
    everything = [*theirs.parameters(), *theirs.buffers()]
    assert {str(tensor.device) for tensor in everything} == {"cpu"}
    assert [p.requires_grad for p in theirs.parameters()] == [True] * len(list(ours.parameters()))
    observations = some_observations(ours.observation_space)
    torch.testing.assert_close(ours.value(observations), theirs.value(observations))
    rewards = torch.linspace(-3, 3, 10).reshape(5, 2)
    if ours.reward_normalizer is not None:
        assert torch.equal(ours.reward_normalizer(rewards), theirs.reward_normalizer(rewards))
    assert_same_episode(ours, theirs, observations)
    ours_sampled, _ = agent.predict(observations)
    theirs_sampled, _ = loaded.predict(observations)
    assert_equal(ours_sampled, theirs_sampled)


def assert_same_episode(ours: Any, theirs: Any, observations: Any) -> None:
    """Five steps of one episode, sampled from one noise: actions and memory."""
    rng, state, other = np.random.default_rng(3), (), ()
    for t in range(5):
        row = take(observations, slice(t, t + 1))
        drawn = ours.actions.draw_noise(rng, (1,))
        begins = np.array([t == 0])
        actions, state = ours.act(row, state, None, drawn, begins)
        others, other = theirs.act(row, other, None, drawn, begins)
        assert_equal(ours.actions.to_env(actions), theirs.actions.to_env(others))
        assert_equal(state, other)
        assert_equal(ours.act(row, state)[0], theirs.act(row, other)[0])


def assert_equal(tree: Any, other: Any) -> None:
    pairs = list(zip(leaves(tree), leaves(other), strict=True))
    for one, two in pairs:
        one, two = np.asarray(one), np.asarray(two)
        assert one.dtype == two.dtype
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("space", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_observation_spaces(space: gym.Space[Any], tmp_path: Path) -> None:
    saved(trained(space, CHOICE, norm_obs=space.dtype != bool), tmp_path)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_action_spaces(space: gym.Space[Any], tmp_path: Path) -> None:
    saved(trained(VECTOR, space), tmp_path)


@pytest.mark.parametrize("shared", [False, True], ids=["two_trunks", "shared"])
@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_memories(memory: str, shared: bool, tmp_path: Path) -> None:
    settings = {"memory": memory, "memory_size": 5, "shared_network": shared}
    loaded = saved(trained(OBSERVATIONS["nested"], ACTIONS["dict"], **settings), tmp_path)
    stored = read_model(tmp_path / "m.safetensors")[1]
    assert stored["self_test.begins"].tolist() == [True, *[False] * 4, True, False, False]
    assert loaded.policy.has_memory


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("action_dist", ["gaussian", "squashed", "beta"])
def test_distributions(action_dist: str, dtype: str, memory: str, tmp_path: Path) -> None:
    settings = {"action_dist": action_dist, "dtype": dtype, "log_std_init": -0.5, "memory": memory}
    saved(trained(VECTOR, Box(-1, 4, (2,)), **settings), tmp_path)


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_algorithms(algorithm: str, tmp_path: Path) -> None:
    known = CONFIGS[algorithm].__dataclass_fields__
    agent = upslope.agent.AGENTS[algorithm](
        noise(VECTOR, CHOICE), n_envs=2, net_arch={"pi": [8, 4], "vf": []}, activation_fn="elu",
        norm_obs=True, norm_reward=True, learning_rate="lin_1e-3", seed=3, ortho_init=False,
        warmup_steps=8, **{k: SMALL[k] for k in ("n_steps", "batch_size") if k in known},
    )  # fmt: skip
    agent.learn(20)
    assert type(saved(agent, tmp_path)) is type(agent)


def test_masks(tmp_path: Path) -> None:
    agent = trained(VECTOR, CHOICE, masked=True, n_envs=3)
    loaded = saved(agent, tmp_path)
    observations = some_observations(VECTOR)
    masks = np.array([[True, False, True]] * 5)
    chosen, _ = agent.predict(observations, action_masks=masks)
    again, _ = loaded.predict(observations, action_masks=masks)
    np.testing.assert_array_equal(chosen, again)
    assert 1 not in chosen
    stored = read_model(tmp_path / "m.safetensors")[1]["self_test.masks"]
    assert stored.dtype == torch.bool
    assert (stored.sum(1) == 2).all()
    assert not stored.all(0).any()  # every value is forbidden somewhere


def test_frame_stack(tmp_path: Path) -> None:
    agent = upslope.PPO("CartPole-v1", frame_stack=3, **SMALL).learn(32)
    loaded = saved(agent, tmp_path)
    assert loaded.source.frame_stack == 3
    assert loaded.policy.observation_space.shape == (3, 4)
    assert loaded.evaluate(2, seed=1).sampled.returns.tolist() == (
        agent.evaluate(2, seed=1).sampled.returns.tolist()
    )


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", [True, False])
def test_atari_flags(preprocessing: bool, tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    settings = {**SMALL, "n_envs": 1, "vec": "sync", "frame_stack": None if preprocessing else 2}
    agent = upslope.PPO("ALE/Pong-v5", atari_preprocessing=preprocessing, **settings)
    loaded = saved(agent, tmp_path)
    assert loaded.source.atari_preprocessing is preprocessing
    assert loaded.source.frame_stack == (4 if preprocessing else 2)
    assert loaded.policy.observation_space == agent.policy.observation_space
    loaded.learn(1)


def test_policy_factory(tmp_path: Path) -> None:
    settings = {**SMALL, "norm_obs": True, "norm_reward": True}
    agent = upslope.PPO(noise(VECTOR, CHOICE), policy=Features, memory="gru", **settings).learn(32)
    saved(agent, tmp_path, Features)
    assert read_header(tmp_path / "m.safetensors")["network"]["features"].endswith(".Features")
    with pytest.raises(ConfigError, match=r"golden_models\.Features: give policy=Features"):
        upslope.load(tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="give the features factory it was made with"):
        upslope.load(tmp_path / "m.safetensors", policy=Wider)


class Wider(torch.nn.Linear):
    """Another features module than the one in the file."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(int(np.prod(space.shape or ())), 7)


class Counting(torch.nn.Module):
    """Tied layers, a buffer of whole numbers, and infinities that are meant."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.one = torch.nn.Linear(3, 3)
        self.two = self.one
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("shut", torch.tensor([0.0, float("-inf"), 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.two(self.one(x)) + self.shut).softmax(-1)


def test_tied_layers_and_buffers_of_a_factory(tmp_path: Path) -> None:
    agent = upslope.PPO(noise(VECTOR, CHOICE), policy=Counting, **SMALL).learn(32)
    loaded = saved(agent, tmp_path, Counting)
    assert loaded.policy.actor[0].one.weight is loaded.policy.actor[0].two.weight


class Stateful(torch.nn.Linear):
    """A module with state that is no tensor."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(3, 3)

    def get_extra_state(self) -> Any:
        return {"note": "x"}

    def set_extra_state(self, state: Any) -> None: ...


def test_state_that_is_no_tensor_is_refused_when_saved(tmp_path: Path) -> None:
    agent = upslope.PPO(noise(VECTOR, CHOICE), policy=Stateful, **SMALL)
    with pytest.raises(ModelFileError, match="is a dict, not a tensor; nothing was written"):
        agent.save(tmp_path / "m.safetensors")


@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
def test_training_goes_on(memory: str, tmp_path: Path) -> None:
    """What was never initialised trains as what was."""
    env = noise(VECTOR, CHOICE)
    agent = upslope.PPO(env, memory=memory, norm_obs=True, norm_reward=True, **SMALL)
    agent.save(tmp_path / "m.safetensors")
    loaded = upslope.load(tmp_path / "m.safetensors", env, n_envs=2, n_steps=16)
    for each in (agent, loaded):
        each.learn(64)
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(tensor, loaded.policy.state_dict()[name]), name


class TestSelfTest:
    """What each of its parts shows: a change of the library that hashes cannot see."""

    def refused(self, agent: upslope.Agent, folder: Path, change: Any, words: str) -> None:
        agent.save(folder / "m.safetensors")
        upslope.load(folder / "m.safetensors")
        change()
        with pytest.raises(ModelFileError, match=words) as caught:
            upslope.load(folder / "m.safetensors")
        assert str(folder / "m.safetensors") in str(caught.value)

    @pytest.mark.parametrize("memory", ["gru", "lstm"])
    def test_a_memory_that_forgets(
        self, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from upslope.policies import memory as module

        def forget() -> None:
            monkeypatch.setattr(module.Segments, "__init__", segments_of_one_row)

        def segments_of_one_row(self: Any, begins: torch.Tensor) -> None:
            n = begins.numel()
            self.rows = self.place = self.columns = self.of_row = self.last = torch.arange(n)
            self.batch_sizes, self.columns = torch.tensor([n]), torch.zeros(n, dtype=torch.int64)
            self.goes_on = torch.zeros(n, dtype=torch.bool)

        agent = trained(VECTOR, CHOICE, memory=memory, n_envs=1, learning_rate=0.05)
        self.refused(agent, tmp_path, forget, "gives other (outputs|values) here")

    def test_a_mask_that_is_ignored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from upslope.policies import actions

        plain = actions.Categorical

        def ignore() -> None:
            monkeypatch.setattr(actions, "Categorical", lambda logits, mask=None: plain(logits))

        self.refused(trained(VECTOR, CHOICE), tmp_path, ignore, "gives other log_probs here")

    def test_a_spread_that_is_bounded_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from upslope.policies import box_actions

        agent = trained(VECTOR, Box(-1, 1, (2,)), log_std_init=1.0)
        self.refused(
            agent, tmp_path,
            lambda: monkeypatch.setattr(box_actions, "LOG_STD_RANGE", (-10.0, 0.5)),
            "gives other log_probs here",
        )  # fmt: skip

    def test_a_normaliser_that_divides_by_something_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from upslope.policies import normalizer

        agent = trained(VECTOR, CHOICE, norm_obs=True, learning_rate=0.05)
        change = lambda: monkeypatch.setattr(normalizer, "EPSILON", 5.0)  # noqa: E731
        self.refused(agent, tmp_path, change, "gives other outputs here")

    def test_at_most_eight_rows(self, tmp_path: Path) -> None:
        agent = trained(VECTOR, CHOICE, n_envs=12)
        agent.save(tmp_path / "m.safetensors")
        header, tensors = read_model(tmp_path / "m.safetensors")
        assert len(tensors["self_test.observations"]) == self_test.ROWS == 8
        assert header["self_test"] == {
            "given": ["observations", "masks"],
            "gave": ["outputs", "values", "log_probs"],
        }
        more = {
            n: torch.cat([t, t]) if n.startswith("self_test.") else t for n, t in tensors.items()
        }
        write_model(tmp_path / "more.safetensors", header, more)
        with pytest.raises(ModelFileError, match="stores 16 observations, not 1 to 8"):
            upslope.load(tmp_path / "more.safetensors")

    def test_observations_that_are_no_numbers_are_not_stored(self, tmp_path: Path) -> None:
        agent = trained(VECTOR, CHOICE)
        agent.training.envs.obs[:] = np.nan
        agent.save(tmp_path / "m.safetensors")
        assert read_model(tmp_path / "m.safetensors")[1]["self_test.observations"].isfinite().all()
        upslope.load(tmp_path / "m.safetensors")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_policy_that_could_not_be_loaded_is_not_saved(
        self, value: float, tmp_path: Path
    ) -> None:
        agent = trained(VECTOR, Box(-1, 1, (2,)))
        agent.save(tmp_path / "m.safetensors")
        before = (tmp_path / "m.safetensors").read_bytes()
        with torch.no_grad():
            agent.policy.critic_head.bias.fill_(value)
        with pytest.raises(ModelFileError, match=r"not finite.*nothing was written"):
            agent.save(tmp_path / "m.safetensors")
        assert (tmp_path / "m.safetensors").read_bytes() == before


def test_trees_of_the_self_test_are_raw(tmp_path: Path) -> None:
    """The stored observations are those of the environment, before any normaliser."""
    agent = trained(OBSERVATIONS["nested"], CHOICE, norm_obs=True)
    agent.save(tmp_path / "m.safetensors")
    stored = read_model(tmp_path / "m.safetensors")[1]
    seen = map_tree(torch.as_tensor, agent.training.envs.obs)
    assert torch.equal(stored["self_test.observations/a/1/x"], seen["a"][1]["x"])
    assert torch.equal(stored["self_test.observations/b"], seen["b"])

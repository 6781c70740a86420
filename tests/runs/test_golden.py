"""Model files as released versions wrote them: every later version reads them, and alike.

`golden_models.py` says how a file of the present format is added.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_models import FACTORIES, GOLDEN, MODELS, SMALL, noise, numbers_of
from gymnasium.spaces import Box, Dict, Discrete

import upslope
from upslope.errors import ModelFileError
from upslope.runs.migrations import FORMAT, MIGRATIONS, from_1_to_2
from upslope.runs.model_file import read_header, read_model, write_model
from upslope.runs.space_json import space_from_json

FORMAT_1 = ["ppo_cartpole", "ppo_pendulum"]
FORMAT_2 = [f"format2_{name}" for name in MODELS]
HEADER_KEYS = [
    *("format", "upslope_version", "tensors_sha256", "algorithm", "environment"),
    *("observation_space", "action_space", "network", "config", "evaluation", "versions"),
]
OBSERVATIONS = {
    "ppo_cartpole": [[0.0, 0.0, 0.0, 0.0], [0.5, -1.0, 0.05, 1.5], [-2.0, 0.3, -0.1, -0.4]],
    "ppo_pendulum": [[1.0, 0.0, 0.0], [0.0, 1.0, -3.0], [-0.6, -0.8, 7.5]],
}
# As printed by the version that wrote the files.
OUTPUTS = {
    "ppo_cartpole": [
        [-1.2634608745574951, 1.2848412990570068],
        [-1.535034418106079, 1.5644583702087402],
        [1.1370964050292969, -1.1566728353500366],
    ],
    "ppo_pendulum": [[0.5391125679016113], [0.2514265775680542], [0.04686472564935684]],
}
VALUES = {
    "ppo_cartpole": [17.148393630981445, 16.83661460876465, 15.744829177856445],
    "ppo_pendulum": [-1.4927482604980469, -1.9573028087615967, -2.457747220993042],
}
MODES: dict[str, list[Any]] = {
    "ppo_cartpole": [1, 1, 0],
    "ppo_pendulum": [[1.0782251358032227], [0.5028531551361084], [0.09372945129871368]],
}
LOG_STD = -0.010925253853201866
SHA256 = {  # of the tensors: no file here is ever written again
    "ppo_cartpole": "cfc0c18ec26f0ef20522bab085f9e57a837426249494b2a9c33e275e68fa5d7c",
    "ppo_pendulum": "94a2c3e7a6e07a62c39366239549f5d3db50f1832a6618fad36f3661fd278294",
    "format2_lstm_dict": "6a02e5f9436331a5e8422de2716ccab924508c0763532e5c87d1a2e5da73074b",
    "format2_gru_beta": "2c095888e0ae73065ffb100fb893383ea290774b6dc8456fb9bf5535eab0546a",
    "format2_masked_multi": "ebcce59f163fdb85f88a10e7294defebc5bf9da0e56f881b0fe70e371cf9e8a3",
    "format2_squashed_features": "0b34f6c31b7f05ed020808a71c0fc92fb97826c203b93cdf4d5baed6199573cd",
}


def path(name: str) -> Path:
    return GOLDEN / f"{name}.safetensors"


def load(name: str) -> upslope.Agent:
    return upslope.load(path(name), policy=FACTORIES.get(name.removeprefix("format2_")))


def written_format(name: str) -> int:
    """The format in the bytes of the file, before any migration."""
    raw = path(name).read_bytes()
    table = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return int(json.loads(table["__metadata__"]["upslope"])["format"])


def observations(name: str) -> np.ndarray:
    return np.array(OBSERVATIONS[name], np.float32)


def test_every_format_has_its_files() -> None:
    formats = {written_format(file.stem) for file in GOLDEN.glob("*.safetensors")}
    assert formats == set(range(1, FORMAT + 1))
    assert set(MIGRATIONS) == set(range(1, FORMAT))
    assert {file.stem for file in GOLDEN.glob("*.safetensors")} == SHA256.keys()


@pytest.mark.parametrize("name", SHA256)
def test_bytes_are_those_of_then(name: str) -> None:
    assert hashlib.sha256(path(name).read_bytes()).hexdigest() == SHA256[name]
    assert path(name).stat().st_size < 60_000


@pytest.mark.parametrize("name", SHA256)
def test_weights_are_loaded_bit_by_bit_and_saved_again(name: str, tmp_path: Path) -> None:
    agent = load(name)
    stored = read_model(path(name))[1]
    state = agent.policy.state_dict()
    assert state.keys() == {n for n in stored if not n.startswith("self_test.")}
    for key, tensor in state.items():
        assert tensor.numpy().tobytes() == stored[key].numpy().tobytes(), key
    agent.save(tmp_path / "again.safetensors")
    assert read_header(tmp_path / "again.safetensors")["format"] == FORMAT
    factory = FACTORIES.get(name.removeprefix("format2_"))
    again = upslope.load(tmp_path / "again.safetensors", policy=factory)
    assert numbers_of(again) == numbers_of(agent)  # the same machine: bit by bit


@pytest.mark.parametrize("name", FORMAT_1)
def test_header(name: str) -> None:
    header = read_header(path(name))
    assert list(header) == [*HEADER_KEYS, "self_test"]
    assert (written_format(name), header["format"]) == (1, FORMAT)
    assert header["upslope_version"] == "0.1.0"
    assert header["self_test"] == {"given": ["observations"], "gave": ["outputs", "values"]}
    assert header["algorithm"] == "ppo"
    assert header["environment"]["is_registered"] is True
    assert header["config"]["net_arch"]["pi"] == [8, 8]
    if name == "ppo_cartpole":
        assert header["action_space"]["dtype"] == "int64"


@pytest.mark.parametrize("name", FORMAT_1)
def test_tensors(name: str) -> None:
    _, tensors = read_model(path(name))
    rows = len(tensors["self_test.observations"])
    assert 1 <= rows <= 8
    assert len(tensors["self_test.outputs"]) == len(tensors["self_test.values"]) == rows
    assert {"actor_head.weight", "critic_head.weight"} <= tensors.keys()


@pytest.mark.parametrize("name", FORMAT_1)
def test_outputs_and_values(name: str) -> None:
    policy = load(name).policy
    with torch.no_grad():
        inputs = policy.prepare(torch.as_tensor(observations(name)))
        outputs, values = policy.outputs(inputs)[0], policy.value(observations(name))
    np.testing.assert_allclose(outputs, OUTPUTS[name], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(values, VALUES[name], rtol=2e-5)


@pytest.mark.parametrize("name", FORMAT_1)
def test_predictions(name: str) -> None:
    agent = load(name)
    actions, _ = agent.predict(observations(name), deterministic=True)
    np.testing.assert_allclose(actions, MODES[name], rtol=2e-5)
    distribution = agent.policy.distribution(observations(name))
    if name == "ppo_pendulum":
        assert distribution.log_std.tolist() == pytest.approx([LOG_STD], rel=1e-5)
    else:
        torch.testing.assert_close(
            distribution.log_probs,
            torch.tensor(OUTPUTS[name]).log_softmax(-1),
            rtol=2e-5,
            atol=2e-6,
        )


@pytest.mark.parametrize("name", FORMAT_1)
def test_scores_and_learns(name: str) -> None:
    agent = upslope.load(path(name), n_envs=2, warmup_steps=0)
    score = agent.evaluate(4, seed=0)
    assert (score.deterministic.mean > 60) if name == "ppo_cartpole" else score.sampled.mean < 0
    agent.learn(1)
    assert agent.num_timesteps >= 1


@pytest.mark.parametrize("name", FORMAT_2)
def test_gives_the_numbers_of_then(name: str) -> None:
    then = json.loads((GOLDEN / f"{name}.json").read_text())
    now = json.loads(json.dumps(numbers_of(load(name))))
    assert_near(now, then)


def assert_near(now: Any, then: Any) -> None:
    if isinstance(then, dict):
        assert now.keys() == then.keys()
        for key in then:
            assert_near(now[key], then[key])
    elif isinstance(then, list):
        assert len(now) == len(then)
        for a, b in zip(now, then, strict=True):
            assert_near(a, b)
    else:
        assert now == pytest.approx(then, rel=2e-5, abs=2e-6)


def test_the_first_step() -> None:
    """Format 1 to 2: Discrete spaces get their dtype, MultiBinary of one axis its number."""
    spaces = {
        "type": "Dict",
        "spaces": [
            ["a", {"type": "MultiBinary", "n": [3]}],
            ["b", {"type": "Tuple", "spaces": [{"type": "Discrete", "n": 2, "start": 5}]}],
            ["c", {"type": "MultiBinary", "n": [2, 3]}],
        ],
    }
    migrated = from_1_to_2({"format": 1, "observation_space": spaces, "note": "kept"})
    (_, a), (_, b), (_, c) = migrated["observation_space"]["spaces"]
    assert a == {"type": "MultiBinary", "n": 3}
    assert b["spaces"] == [{"type": "Discrete", "n": 2, "start": 5, "dtype": "int64"}]
    assert c == {"type": "MultiBinary", "n": [2, 3]}
    assert migrated["note"] == "kept"
    assert spaces["spaces"][0] == ["a", {"type": "MultiBinary", "n": [3]}]  # left as it was given


@pytest.mark.parametrize("spaces", [None, 3, "x", [], [[["x"]]], {"type": ["Discrete"]}], ids=str)
def test_nonsense_is_migrated_without_harm(spaces: Any) -> None:
    header = {"format": 1, "observation_space": spaces, "action_space": spaces}
    assert from_1_to_2(header)["observation_space"] == spaces


def test_weights_that_the_self_test_of_format_1_does_not_see(tmp_path: Path) -> None:
    header, tensors = read_model(path("ppo_pendulum"))
    tensors["actions.log_std"][:] = float("nan")
    write_model(tmp_path / "m.safetensors", header, tensors)
    with pytest.raises(
        ModelFileError, match=r"'actions\.log_std' holds numbers that are not finite"
    ):
        upslope.load(tmp_path / "m.safetensors")


def test_the_whole_numbers_of_format_1() -> None:
    """It wrote them as floats, of which the largest is one too many."""
    described = {
        "type": "Box",
        "shape": [2],
        "dtype": "int64",
        "low": [-(2.0**63)],
        "high": [2.0**63],
    }
    space = space_from_json(described)
    assert space == Box(-(2**63), 2**63 - 1, (2,), np.int64)


def test_keys_with_slashes_in_format_1(tmp_path: Path) -> None:
    """Format 1 joined keys as they were; format 2 escapes the slashes inside them."""
    space = Dict({"a/b": Box(-1, 1, (2,)), "c": Box(-1, 1, (2,))})
    upslope.PPO(noise(space, Discrete(2)), **SMALL).save(tmp_path / "m.safetensors")
    header, tensors = read_model(tmp_path / "m.safetensors")
    tensors["self_test.observations/a/b"] = tensors.pop("self_test.observations/a~1b")
    write_model(tmp_path / "m.safetensors", header, tensors)
    upslope.load(tmp_path / "m.safetensors")

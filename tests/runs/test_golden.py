"""Model files of format 1 as they once were written: every later version reads them, and alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upslope
from upslope.runs.model_file import read_header, read_model

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
NAMES = ["ppo_cartpole", "ppo_pendulum"]
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
pytestmark = pytest.mark.parametrize("name", NAMES)


def path(name: str) -> Path:
    return GOLDEN / f"{name}.safetensors"


def observations(name: str) -> np.ndarray:
    return np.array(OBSERVATIONS[name], np.float32)


def test_header(name: str) -> None:
    header = read_header(path(name))
    assert list(header) == HEADER_KEYS
    assert (header["format"], header["upslope_version"]) == (1, "0.1.0")
    assert header["algorithm"] == "ppo"
    assert header["environment"]["is_registered"] is True
    assert header["config"]["net_arch"]["pi"] == [8, 8]
    assert path(name).stat().st_size < 8192


def test_tensors(name: str) -> None:
    _, tensors = read_model(path(name))
    rows = len(tensors["self_test.observations"])
    assert 1 <= rows <= 8
    assert len(tensors["self_test.outputs"]) == len(tensors["self_test.values"]) == rows
    assert {"actor_head.weight", "critic_head.weight"} <= tensors.keys()


def test_outputs_and_values(name: str) -> None:
    policy = upslope.load(path(name)).policy
    with torch.no_grad():
        inputs = policy.prepare(torch.as_tensor(observations(name)))
        outputs, values = policy.outputs(inputs)[0], policy.value(observations(name))
    np.testing.assert_allclose(outputs, OUTPUTS[name], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(values, VALUES[name], rtol=2e-5)


def test_predictions(name: str) -> None:
    agent = upslope.load(path(name))
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


def test_scores_and_learns(name: str) -> None:
    agent = upslope.load(path(name), n_envs=2, warmup_steps=0)
    score = agent.evaluate(4, seed=0)
    assert (score.deterministic.mean > 60) if name == "ppo_cartpole" else score.sampled.mean < 0
    agent.learn(1)
    assert agent.num_timesteps >= 1

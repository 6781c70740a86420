"""The model card: what the Hub reads of it, and that it says what is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.runs.model_card import card_text, write_card

yaml = pytest.importorskip("yaml")
SMALL = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1, "net_arch": (8,)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An evaluated model and its score."""
    path = tmp_path_factory.mktemp("card") / "model.safetensors"
    agent = upslope.PPO("CartPole-v1", seed=3, **SMALL).learn(64)
    score = agent.evaluate(7)
    agent.save(path, score)
    return path, score


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n.*", text, re.DOTALL)[1])


def test_the_front_matter_is_the_hubs(made: Any) -> None:
    model, score = made
    facts = front(card_text(model))
    assert facts["library_name"] == "upslope"
    assert facts["pipeline_tag"] == "reinforcement-learning"
    assert {"reinforcement-learning", "CartPole-v1", "ppo"} <= set(facts["tags"])
    (index,) = facts["model-index"]
    assert index["name"] == "ppo-CartPole-v1"
    (result,) = index["results"]
    assert result["task"]["type"] == "reinforcement-learning"
    assert result["dataset"] == {"name": "CartPole-v1", "type": "CartPole-v1"}
    for metric, sample in zip(result["metrics"], (score.deterministic, score.sampled), strict=True):
        assert metric["type"] == "mean_reward"
        assert metric["value"] == pytest.approx(sample.mean, abs=1e-4)
        ends = [metric["args"]["ci95_low"], metric["args"]["ci95_high"]]
        assert ends == pytest.approx(sample.ci95, abs=1e-4)
        assert metric["args"]["episodes"] == 7
        assert metric["verified"] is False


def test_the_hubs_own_library_reads_it(made: Any, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    write_card(made[0], tmp_path / "README.md")
    data = hub.ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == "ppo-CartPole-v1"
    assert [result.metric_type for result in data.eval_results] == ["mean_reward"] * 2
    assert data.eval_results[0].metric_value == pytest.approx(made[1].deterministic.mean, abs=1e-4)
    for result in data.eval_results:
        result.validate() if hasattr(result, "validate") else None


def test_the_text_says_what_was_measured(made: Any) -> None:
    model, score = made
    text = card_text(model)
    low, high = score.sampled.ci95
    assert f"| sampled | {score.sampled.mean:,.2f} | {low:,.2f} to {high:,.2f} |" in text
    assert "this policy, not of the algorithm" in text
    assert "upslope.load('model.safetensors')" in text
    assert f"| upslope | {upslope.__version__} |" in text
    settings = json.loads(re.search(r"```json\n(.*?)\n```", text, re.DOTALL)[1])
    assert settings == upslope.load(model).config.to_json()


def test_what_lies_beside_the_model_goes_in(tmp_path: Path) -> None:
    agent = upslope.PPO("CartPole-v1", **SMALL)
    model = tmp_path / "model.safetensors"
    agent.save(model)
    assert "has not been evaluated" in card_text(model)
    assert "model-index" not in front(card_text(model))
    (tmp_path / "evaluation.json").write_text(json.dumps(agent.evaluate(1).to_json()))
    (tmp_path / "config.json").write_text('{"total_timesteps": 12345}')
    (tmp_path / "command.txt").write_text("upslope train CartPole-v1 --seed 0\n")
    text = card_text(model)
    assert "12,345 environment steps" in text
    assert "```sh\nupslope train CartPole-v1 --seed 0\n```" in text
    assert "| none |" in text  # one episode has no interval
    assert front(text)["model-index"][0]["results"][0]["metrics"][0]["args"]["ci95_low"] is None
    (tmp_path / "command.txt").write_text("/home/somebody/train.py --secret\n")
    assert "somebody" not in card_text(model)


def test_equal_returns_have_no_interval(tmp_path: Path) -> None:
    agent = upslope.PPO("CartPole-v1", **SMALL, max_episode_steps=3)
    score = agent.evaluate(5)
    assert score.sampled.std == 0.0
    agent.save(tmp_path / "m.safetensors", score)
    text = card_text(tmp_path / "m.safetensors")
    said = "none: all 5 returns equal (95 %: at most 45 % of episodes differ)"
    assert f"| sampled | 3.00 | {said} | 0.00 |" in text
    for metric in front(text)["model-index"][0]["results"][0]["metrics"]:
        assert (metric["args"]["ci95_low"], metric["args"]["ci95_high"]) == (None, None)
        assert metric["args"]["elsewhere_at_most"] == pytest.approx(1 - 0.05 ** (1 / 5), abs=1e-4)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("upslope train E -n 1000", "once, and the command that began it reproduces it only where "
         "every resume was from a scheduled checkpoint, which it was."),
        ("upslope train E", "which it was; its goal in the end was 1,000 steps (--total-timesteps "
         "1000)."),
        ("upslope train E --total_timesteps=5_00", "1000), not the 500 of the command, and both"),
    ],
)  # fmt: skip
def test_a_resumed_run_says_so(tmp_path: Path, command: str, said: str) -> None:
    agent = upslope.PPO("CartPole-v1", **SMALL)
    agent.save(tmp_path / "m.safetensors")
    (tmp_path / "command.txt").write_text(command)
    state = {"total_timesteps": 1000, "resumed": []}
    (tmp_path / "run.json").write_text(json.dumps(state))
    assert "resumed" not in card_text(tmp_path / "m.safetensors")
    state["resumed"] = [{"checkpoint": 2, "scheduled": True, "at": "2025-01-02"}]
    (tmp_path / "run.json").write_text(json.dumps(state))
    text = card_text(tmp_path / "m.safetensors")
    assert text.count("The run was resumed") == 1
    assert said in text


@pytest.mark.parametrize("name", ['a: "b"\n---\nx|y', "über 🚀 env", "- [x](y)", "1e-05", "null"])
def test_names_of_any_kind(tmp_path: Path, name: str) -> None:
    class Named(upslope.PPO):
        pass

    agent = Named("CartPole-v1", **SMALL)
    object.__setattr__(agent.source, "name", name)
    object.__setattr__(agent.source, "is_registered", False)
    agent.save(tmp_path / "m.safetensors", agent.evaluate(2))
    text = card_text(tmp_path / "m.safetensors")
    facts = front(text)
    recorded = facts["model-index"][0]["results"][0]["dataset"]["name"]
    assert isinstance(recorded, str)
    assert " ".join(recorded.replace("?", " ").split()) == " ".join(name.split())
    heading = re.search(r"^# PPO policy for `(.*)`$", text, re.MULTILINE)
    assert heading is not None
    assert "env=..." in text


def test_it_is_replaced_whole(made: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("of before")
    write_card(made[0], tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == card_text(made[0])
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]

"""Ready callbacks: when they act, and what they leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upslope
from upslope.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from upslope.errors import ConfigError
from upslope.training import Event


def agent(**settings: Any) -> upslope.PPO:
    small = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 2, "net_arch": (8,)}
    return upslope.PPO("CartPole-v1", **(small | settings))


def weights(agent: upslope.Agent) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in agent.policy.parameters()])


def event(episodes: int, mean: float | None) -> Event:
    metrics = {"rollout/episodes": float(episodes)}
    if mean is not None:
        metrics["rollout/ep_rew_mean"] = mean
    return Event(1, 64, 1000, metrics, (), None)


class TestEvents:
    def test_say_where_training_stands(self) -> None:
        events: list[Event] = []
        made = agent()
        made.learn(640, callback=events.append)
        assert [e.iteration for e in events] == list(range(1, 11))
        assert [e.timesteps for e in events] == [64 * i for i in range(1, 11)]
        assert {e.total_timesteps for e in events} == {640}
        assert all(e.agent is made for e in events)
        finished = [episode for e in events for episode in e.episodes]
        assert len(finished) == events[-1].metrics["rollout/episodes"]
        assert all(episode.ret == episode.length for episode in finished)

    @pytest.mark.parametrize("answer", [None, True, 0, "", []])
    def test_only_false_stops(self, answer: Any) -> None:
        made = agent()
        made.learn(640, callback=lambda _: answer)
        assert made.num_timesteps == 640

    def test_several_are_all_called_and_one_stops(self) -> None:
        calls: list[str] = []
        callbacks = [
            lambda e: calls.append("a"),
            lambda e: calls.append("b") or e.iteration < 2,
            lambda e: calls.append("c"),
        ]
        for given in (callbacks, tuple(callbacks), CallbackList(callbacks)):
            calls.clear()
            made = agent()
            made.learn(640, callback=given)
            assert calls == list("abcabc")
            assert made.num_timesteps == 128

    def test_a_list_in_a_list(self) -> None:
        inner = CallbackList([lambda e: e.iteration < 3])
        made = agent().learn(640, callback=[inner, lambda e: True])
        assert made.num_timesteps == 192


class TestStopTrainingOnRewardThreshold:
    @pytest.mark.parametrize(
        ("episodes", "mean", "goes_on"),
        [
            (100, 20.0, False),
            (100, 19.999, True),
            (99, 500.0, True),
            (5000, 25.0, False),
            (100, None, True),
        ],
    )
    def test_needs_a_hundred_episodes(
        self, episodes: int, mean: float | None, goes_on: bool
    ) -> None:
        assert StopTrainingOnRewardThreshold(20)(event(episodes, mean)) is goes_on

    def test_stops_a_run(self) -> None:
        made = agent()
        made.learn(50_000, callback=StopTrainingOnRewardThreshold(15))
        assert made.num_timesteps < 10_000
        assert made.training.episodes >= 100
        assert np.mean([episode.ret for episode in made.training.recent]) >= 15

    @pytest.mark.parametrize("bad", [float("nan"), "high", None])
    def test_a_threshold_that_is_no_number(self, bad: Any) -> None:
        with pytest.raises(ConfigError, match="reward_threshold"):
            StopTrainingOnRewardThreshold(bad)


class TestEvalCallback:
    def test_is_due_every_so_many_steps(self) -> None:
        seen = []

        def note(event: Event) -> None:
            if "eval/mean_reward" in event.metrics:
                assert event.metrics["eval/mean_ep_length"] == event.metrics["eval/mean_reward"]
                seen.append(event.timesteps)

        agent().learn(1000, callback=[EvalCallback(200, 2), note])
        assert seen == [256, 448, 640, 832, 1024]

    def test_a_frequency_below_an_iteration(self) -> None:
        seen = []
        callbacks = [EvalCallback(1, 1), lambda e: seen.append("eval/mean_reward" in e.metrics)]
        agent().learn(256, callback=callbacks)
        assert seen == [True] * 4

    def test_does_not_change_training(self) -> None:
        plain = agent(seed=3).learn(1000)
        watched = agent(seed=3).learn(1000, callback=EvalCallback(100, 3))
        assert torch.equal(weights(plain), weights(watched))

    def test_keeps_the_best(self, tmp_path: Path) -> None:
        path = tmp_path / "best.safetensors"
        callback = EvalCallback(100, 3, best_model_save_path=path)
        scores: list[float] = []
        made = agent().learn(
            2000,
            callback=[callback, lambda e: scores.append(e.metrics.get("eval/mean_reward", 0))],
        )
        assert callback.best_mean_reward == max(scores)
        assert isinstance(upslope.load(path), upslope.PPO)
        assert made.num_timesteps == 2048

    def test_the_scores_are_reproducible(self) -> None:
        def run() -> list[float]:
            scores: list[float] = []
            note = lambda e: scores.append(e.metrics["eval/mean_reward"])  # noqa: E731
            agent(seed=3).learn(320, callback=[EvalCallback(1, 3, deterministic=False), note])
            return scores

        assert run() == run()

    def test_is_due_again_in_a_second_run(self) -> None:
        callback, seen = EvalCallback(200, 1), []
        note = lambda e: seen.append("eval/mean_reward" in e.metrics)  # noqa: E731
        made = agent()
        made.learn(256, callback=[callback, note])
        made.learn(256, callback=[callback, note])  # counts from 0 again
        assert seen == [False, False, False, True] * 2

    @pytest.mark.parametrize("bad", [{"eval_freq": 0}, {"n_eval_episodes": 0}, {"eval_freq": -1}])
    def test_refused(self, bad: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match="at least 1"):
            EvalCallback(**bad)


class TestCheckpointCallback:
    def test_writes_a_file_every_so_many_steps(self, tmp_path: Path) -> None:
        agent().learn(640, callback=CheckpointCallback(200, tmp_path / "kept", name_prefix="cart"))
        names = sorted(path.name for path in (tmp_path / "kept").iterdir())
        assert names == [f"cart_{steps}_steps.safetensors" for steps in (256, 448, 640)]
        upslope.load(tmp_path / "kept" / names[0]).predict(np.zeros(4))

    def test_each_file_is_the_policy_of_its_time(self, tmp_path: Path) -> None:
        then: list[torch.Tensor] = []
        made = agent()
        callbacks = [CheckpointCallback(1, tmp_path), lambda e: then.append(weights(made))]
        made.learn(192, callback=callbacks)
        for steps, kept in zip((64, 128, 192), then, strict=True):
            loaded = upslope.load(tmp_path / f"model_{steps}_steps.safetensors")
            assert torch.equal(weights(loaded), kept)

    def test_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="save_freq"):
            CheckpointCallback(0, tmp_path)

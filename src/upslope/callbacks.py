"""Ready callbacks for ``learn(callback=...)``; any ``f(event)`` will do, and False stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import ConfigError
from upslope.seeding import SeedTree
from upslope.training import WINDOW, Event

Callback = Callable[[Event], bool | None]


class CallbackList:
    """Call several callbacks; training goes on while none of them returns False."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def __call__(self, event: Event) -> bool:
        return all([callback(event) is not False for callback in self.callbacks])


class StopTrainingOnRewardThreshold:
    """Stop once the last 100 finished episodes average ``reward_threshold``.

    The first crossing is the maximum of a noisy series: confirm it on fresh episodes
    (``agent.evaluate``) before calling the task solved.
    """

    def __init__(self, reward_threshold: float) -> None:
        try:
            self.reward_threshold = float(reward_threshold)
        except (TypeError, ValueError):
            self.reward_threshold = math.nan
        if math.isnan(self.reward_threshold):
            raise ConfigError(f"reward_threshold={reward_threshold!r} is not a number")

    def __call__(self, event: Event) -> bool:
        enough = event.metrics["rollout/episodes"] >= WINDOW
        mean = event.metrics.get("rollout/ep_rew_mean", float("-inf"))
        return not (enough and mean >= self.reward_threshold)


class EvalCallback:
    """Evaluate every ``eval_freq`` steps on fresh seeds; add ``eval/mean_reward`` to the metrics.

    With ``best_model_save_path`` the best policy so far is saved there. The best of several noisy
    scores is biased upwards, so evaluate that file again before quoting its score; the episodes
    that chose it are none that ``agent.evaluate`` plays.
    """

    def __init__(
        self,
        eval_freq: int = 10_000,
        n_eval_episodes: int = 20,
        *,
        deterministic: bool = True,
        best_model_save_path: str | Path | None = None,
    ) -> None:
        if eval_freq < 1 or n_eval_episodes < 1:
            raise ConfigError("eval_freq and n_eval_episodes must be at least 1")
        self.eval_freq, self.n_eval_episodes = eval_freq, n_eval_episodes
        self.deterministic, self.best_model_save_path = deterministic, best_model_save_path
        self.best_mean_reward = float("-inf")
        self._schedule = _Every(eval_freq)

    def state(self) -> dict[str, Any]:
        """What a run continues from, as JSON types."""
        return {"best": self.best_mean_reward, "passed": self._schedule.passed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.best_mean_reward = float(state["best"])
        self._schedule.passed = int(state["passed"])

    def __call__(self, event: Event) -> bool:
        if not self._schedule.is_due(event.timesteps):
            return True
        seed = SeedTree(event.agent.config.seed).integer("selection", event.iteration)
        sample = event.agent.evaluate_one_way(
            self.n_eval_episodes, seed=seed, deterministic=self.deterministic
        )
        event.metrics["eval/mean_reward"] = sample.mean
        event.metrics["eval/mean_ep_length"] = float(sample.lengths.mean())
        if sample.success_rate is not None:
            event.metrics["eval/success_rate"] = sample.success_rate
        if sample.mean > self.best_mean_reward:
            self.best_mean_reward = sample.mean
            if self.best_model_save_path is not None:
                event.agent.save(self.best_model_save_path)
        return True


class CheckpointCallback:
    """Save a model file every ``save_freq`` steps.

    It is ``save_path/<name_prefix>_<steps>_steps.safetensors``.
    """

    def __init__(self, save_freq: int, save_path: str | Path, name_prefix: str = "model") -> None:
        if save_freq < 1:
            raise ConfigError("save_freq must be at least 1")
        self.save_freq, self.save_path, self.name_prefix = save_freq, Path(save_path), name_prefix
        self._schedule = _Every(save_freq)

    def state(self) -> dict[str, Any]:
        """What a run continues from, as JSON types."""
        return {"passed": self._schedule.passed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._schedule.passed = int(state["passed"])

    def __call__(self, event: Event) -> bool:
        if self._schedule.is_due(event.timesteps):
            name = f"{self.name_prefix}_{event.timesteps}_steps.safetensors"
            event.agent.save(self.save_path / name)
        return True


class _Every:
    """Due once for each ``frequency`` steps; counts anew where a run does."""

    def __init__(self, frequency: int) -> None:
        self._frequency, self.passed = frequency, 0

    def is_due(self, timesteps: int) -> bool:
        """Whether a multiple of the frequency was passed since the last call."""
        before, self.passed = self.passed, timesteps // self._frequency
        return self.passed > (before if self.passed >= before else 0)

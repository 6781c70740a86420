"""The noise that actions are sampled with, drawn from the run's streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.envs.episodes import Environments
from upslope.policies.actor_critic import ActorCritic


class RolloutNoise:
    """Noise of a T x B rollout, all drawn at once from the stream of its number."""

    def __init__(self, envs: Environments, policy: ActorCritic, number: int, n_steps: int) -> None:
        rng = envs.seeds.generator("actions", number)
        self._rows = iter(policy.actions.draw_noise(rng, (n_steps, envs.n_envs)))

    def row(self) -> NDArray[Any]:
        """Noise ``[B, ...]`` of the next step."""
        return next(self._rows)


class EpisodeNoise:
    """Noise of numbered episodes, each from its own stream, so it does not depend on the slot."""

    BLOCK = 128

    def __init__(self, envs: Environments, policy: ActorCritic) -> None:
        self._envs, self._actions = envs, policy.actions
        self._streams = [envs.seeds.generator("idle")] * envs.n_envs
        self._number = np.full(envs.n_envs, -2)
        self._drawn = np.zeros(envs.n_envs, dtype=np.int64)  # blocks of the episode so far
        shape = (envs.n_envs, self.BLOCK)
        self._blocks = self._actions.draw_noise(envs.seeds.generator("idle"), shape)
        self._slots = np.arange(envs.n_envs)
        self.dtype = np.float32 if policy.dtype == torch.float32 else np.float64

    def row(self) -> NDArray[Any]:
        """Noise ``[B, ...]`` of the next step, each slot's from the stream of its episode."""
        envs = self._envs
        for i in np.flatnonzero(envs.number != self._number):
            number = int(envs.number[i])
            self._streams[i] = envs.seeds.generator("episode_actions", max(number, 0))
            self._number[i], self._drawn[i] = number, 0
        block, column = np.divmod(envs.episode_step, self.BLOCK)
        for i in np.flatnonzero((block >= self._drawn) & (self._number >= 0)):
            self._blocks[i] = self._actions.draw_noise(self._streams[i], (self.BLOCK,))
            self._drawn[i] += 1
        return self._blocks[self._slots, column]

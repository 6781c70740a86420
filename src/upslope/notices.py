"""What a person should be told once while a run goes on, with the flag to use."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from upslope.envs.episodes import Episode
from upslope.rollout import Rollout

log = logging.getLogger("upslope")
ENOUGH = 20  # finished episodes before anything is said about them
LARGE, SMALL = 1e3, 1e-3  # mean size of rewards that are not 0, beyond which steps suffer


class Notices:
    """Looks at every rollout and says each thing at most once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._any_reward = False

    def state(self) -> dict[str, Any]:
        """What was said and seen so far, as JSON types."""
        return {"said": sorted(self._said), "any_reward": self._any_reward}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._said, self._any_reward = set(state["said"]), bool(state["any_reward"])

    def look(self, rollout: Rollout, recent: Sequence[Episode], is_normalised: bool) -> None:
        """Look at a rollout and the last finished episodes; ``is_normalised`` are the rewards."""
        rewards = np.abs(rollout.rewards.numpy(force=True)) * rollout.valid.numpy(force=True)
        nonzero = int(np.count_nonzero(rewards))
        self._any_reward |= nonzero > 0
        size = float(rewards.sum()) / nonzero if nonzero else 1.0
        if not is_normalised and not SMALL <= size <= LARGE:
            self._say(
                "reward scale",
                f"rewards are {size:.1e} in size on average: the critic learns badly at that "
                "scale, normalise them with --norm-reward",
            )
        if len(recent) < ENOUGH:
            return
        if not self._any_reward:
            self._say(
                "no reward",
                f"every reward so far is 0 ({len(recent)} episodes): nothing can be learned from "
                "that; `upslope doctor` looks at the environment",
            )
        short = sum(episode.length == 1 for episode in recent) / len(recent)
        if short > 0.9:
            self._say(
                "short episodes",
                f"{short:.0%} of the last {len(recent)} episodes ended on their first step: "
                "check that reset begins an episode that is not over",
            )

    def _say(self, key: str, sentence: str) -> None:
        if key not in self._said:
            self._said.add(key)
            log.warning("%s", sentence)

"""The models of the golden files, and the command that writes those that are not there yet.

`python tests/runs/golden_models.py` adds to `tests/data/golden` a file of the present format for
each model below. A file that is there is what a released version wrote, and is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from numpy.typing import NDArray

import upslope
from upslope.runs.migrations import FORMAT
from upslope.trees import Tree, map_tree, stack

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
SMALL = {
    "n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1, "net_arch": (8,),
    "warmup_steps": 8, "device": "cpu",
}  # fmt: skip


class Noise(gym.Env[Any, Any]):
    """Observations and rewards of any space, drawn at random; the last choice may be forbidden."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    masked = False

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.t += 1
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, self.t >= 7, False, self._info()

    def _info(self) -> dict[str, Any]:
        if not self.masked:
            return {}
        assert isinstance(self.action_space, Discrete)
        mask = np.ones(int(self.action_space.n), dtype=bool)
        mask[-1] = self.t % 2 == 0
        return {"action_mask": mask}


def noise(
    observations: gym.Space[Any], actions: gym.Space[Any], masked: bool = False
) -> Callable[[], Noise]:
    """Return a factory of environments of these spaces."""

    class Made(Noise):
        observation_space = observations
        action_space = actions

    Made.masked = masked
    return Made


class Features(torch.nn.Module):
    """A features module of a user: numbers through one layer."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(int(np.prod(space.shape or ())), 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1)).relu()


def some_observations(space: gym.Space[Any], n: int = 5, seed: int = 7) -> Tree:
    """Return ``[n, ...]`` observations of a space."""
    space.seed(seed)
    return stack([space.sample() for _ in range(n)])


def lstm_dict() -> upslope.Agent:
    observations = Dict(
        a=Box(-1, 1, (3,)), b=Tuple((Discrete(3, start=2), MultiBinary([2]))),
        c=Box(-np.inf, np.inf, (2, 2), np.float64),
    )  # fmt: skip
    env = noise(observations, Dict(move=Discrete(3, start=-1), push=Box(-2, 2, (2,))))
    settings = {k: v for k, v in SMALL.items() if k not in ("batch_size", "n_epochs")}
    return upslope.A2C(env, memory="lstm", memory_size=4, norm_obs=True, **settings)


def gru_beta() -> upslope.Agent:
    env = noise(Box(-np.inf, np.inf, (3,), np.float64), Box(-1, 3, (2,), np.float64))
    return upslope.PPO(
        env, memory="gru", memory_size=6, action_dist="beta", dtype="float64",
        norm_obs=True, norm_reward=True, shared_network=True, **SMALL,
    )  # fmt: skip


def masked_multi() -> upslope.Agent:
    env = noise(MultiDiscrete([3, 2], start=[1, 0]), MultiDiscrete([2, 3], start=[0, 5]))
    return upslope.PPO(env, activation_fn="silu", **SMALL)


def squashed_features() -> upslope.Agent:
    env = noise(Box(0, np.inf, (2, 2)), Box(-1, 1, (1,)))
    return upslope.PPO(env, policy=Features, action_dist="squashed", norm_obs=True, **SMALL)


MODELS: dict[str, Callable[[], upslope.Agent]] = {
    "lstm_dict": lstm_dict,
    "gru_beta": gru_beta,
    "masked_multi": masked_multi,
    "squashed_features": squashed_features,
}
FACTORIES: dict[str, Any] = {"squashed_features": Features}


def numbers_of(agent: upslope.Agent) -> dict[str, Any]:
    """Return what an agent gives for fixed observations: modes of a sequence, and values."""
    observations = some_observations(agent.policy.observation_space)
    state, modes = None, []
    for t in range(5):
        row = map_tree(lambda x, t=t: x[t : t + 1], observations)
        mode, state = agent.predict(row, state, np.array([t == 0]), deterministic=True)
        modes.append(map_tree(_listed, mode))
    with torch.no_grad():
        values = agent.policy.value(observations)
    return {"modes": modes, "values": values.tolist()}


def _listed(x: NDArray[Any]) -> Any:
    return np.asarray(x).tolist()


def main() -> None:
    """Write the golden files that are not there, and what they give."""
    for name, make in MODELS.items():
        path = GOLDEN / f"format{FORMAT}_{name}.safetensors"
        if path.exists():
            continue
        agent = make().learn(64)
        agent.save(path)
        path.with_suffix(".json").write_text(json.dumps(numbers_of(agent), indent=1) + "\n")
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

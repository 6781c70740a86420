"""CartPole without its velocities: what is seen does not say where the cart and pole are going.

upslope train bench/environments/hidden_velocity.py:make_env --memory gru
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

SHOWN = [0, 2]  # the cart's position and the pole's angle


def make_env(**arguments: Any) -> gym.Env[Any, Any]:
    """Return CartPole-v1 whose observation is (position, angle)."""
    env = gym.make("CartPole-v1", **arguments)
    box = env.observation_space
    assert isinstance(box, gym.spaces.Box)
    space = gym.spaces.Box(box.low[SHOWN], box.high[SHOWN], dtype=np.float32)
    return gym.wrappers.TransformObservation(env, lambda obs: obs[SHOWN], space)

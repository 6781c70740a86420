"""What each part of an iteration costs at least on this machine: microseconds an environment step.

A floor is the same work with nothing around it: the environment with the same actions, the network
by NumPy alone, the arithmetic of the update at the rate of a matrix product of its shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

SECONDS, REPEATS = 0.1, 5  # of one measurement; the least of the repeats counts
PASSES_OF_A_GRADIENT = 3  # forward once, backward twice its arithmetic
FLOPS_OF_A_WEIGHT = 2  # a product and a sum


def of(agent: Any, rollout: Any) -> dict[str, float]:
    """Part -> floor; there is none for logging, which nothing needs."""
    config, n_envs = agent.config, agent.training.envs.n_envs
    n_rows = rollout.rewards.numel()
    rate = gemm_rate(rows_of_a_step(config))
    actor, critic = sizes(agent.policy)
    forward = FLOPS_OF_A_WEIGHT * (actor + critic) / gemm_rate(n_rows)
    return {
        "environment": environment_seconds(agent, rollout) / n_envs * 1e6,
        "acting": network_seconds(agent.policy, rollout) / n_envs * 1e6,
        "bookkeeping": copy_seconds(rollout) / n_envs * 1e6,
        "evaluate": forward * 1e6,
        "targets": delta_seconds(rollout) / n_rows * 1e6,
        "update": update_flops(config, actor, critic) / rate * 1e6,
        "logging": 0.0,
    }


def seconds_of(function: Callable[[], Any]) -> float:
    """Seconds of one call: the least mean of several repeats."""
    function()
    started = time.perf_counter()
    function()
    calls = max(1, int(SECONDS / REPEATS / max(time.perf_counter() - started, 1e-7)))
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - started) / calls)
    return best


def rows_of_a_step(config: Any) -> int:
    """Rows that a gradient step reads."""
    return int(getattr(config, "batch_size", None) or config.n_envs * config.n_steps)


def gemm_rate(rows: int, width: int = 64) -> float:
    """Flops a second of ``[rows, width] x [width, width]`` in float32."""
    a, b = torch.ones(rows, width), torch.ones(width, width)
    out = torch.empty(rows, width)
    return FLOPS_OF_A_WEIGHT * rows * width**2 / seconds_of(lambda: torch.mm(a, b, out=out))


def sizes(policy: Any) -> tuple[int, int]:
    """Weights of the layers of actor and critic that are multiplied with each row."""
    named = {name: p.numel() for name, p in policy.named_parameters() if p.ndim == 2}
    actor = sum(size for name, size in named.items() if name in policy.part_names("actor"))
    return actor, sum(named.values()) - actor


def update_flops(config: Any, actor: int, critic: int) -> float:
    """Flops of the update per row of the rollout."""
    gradient = PASSES_OF_A_GRADIENT * FLOPS_OF_A_WEIGHT
    if hasattr(config, "cg_max_steps"):
        # a Fisher product is the gradient of a gradient's product: twice a gradient's passes
        products = 2 * gradient * (config.cg_max_steps + 1)
        line_search = 2 * FLOPS_OF_A_WEIGHT  # one candidate, and the old distribution
        of_actor = actor * (gradient + products + line_search)
        return of_actor + config.n_critic_updates * gradient * critic
    return getattr(config, "n_epochs", 1) * gradient * (actor + critic)


def environment_seconds(agent: Any, rollout: Any) -> float:
    """Seconds of one step of the bare vector, or environment, with the rollout's actions."""
    training = agent.training
    env_id, n_envs = agent.source.id, training.envs.n_envs
    actions = [training.policy.actions.to_env(x) for x in rollout.actions.numpy()]
    name = training.envs.engine.name
    if name == "sync":
        envs = [gym.make(env_id) for _ in range(n_envs)]
        return _stepped(actions, [(env, i) for i, env in enumerate(envs)])
    if name == "envpool":
        vector = _envpool(env_id, n_envs)
    else:
        vector = gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point")
    vector.reset()
    return _timed(vector.step, actions)


def network_seconds(policy: Any, rollout: Any) -> float:
    """Seconds of the actor's products and activations for one row of observations."""
    weights = [layer.weight.detach().numpy() for layer in (*policy.actor, policy.actor_head)
               if hasattr(layer, "weight")]  # fmt: skip
    x = np.ascontiguousarray(rollout.obs[0].numpy(), dtype=np.float32)
    outs = [np.zeros((len(x), len(weight)), np.float32) for weight in weights]

    def run() -> None:
        given = x
        for weight, out in zip(weights, outs, strict=True):
            given = np.dot(given, weight.T, out=out)
            if out is not outs[-1]:
                np.tanh(out, out=out)

    return seconds_of(run)


def copy_seconds(rollout: Any) -> float:
    """Seconds to copy one row of what a rollout keeps into arrays."""
    kept = [rollout.obs, rollout.actions, rollout.rewards, rollout.terminated, rollout.truncated]
    arrays = [x.numpy() for x in kept]
    targets = [np.empty_like(x) for x in arrays]

    def run() -> None:
        for target, array in zip(targets, arrays, strict=True):
            target[0] = array[0]

    return seconds_of(run)


def delta_seconds(rollout: Any) -> float:
    """Seconds of ``r + gamma v' - v`` over the rollout, the least that advantages need."""
    rewards = rollout.rewards.float().numpy()
    values, out = np.zeros_like(rewards), np.zeros_like(rewards)

    def run() -> None:
        np.multiply(values, 0.99, out=out)
        np.add(out, rewards, out=out)
        np.subtract(out, values, out=out)

    return seconds_of(run)


def _stepped(actions: list[Any], envs: list[tuple[Any, int]]) -> float:
    """Seconds of one step of all plain environments; resets are counted, as a run has them."""
    for env, _ in envs:
        env.reset(seed=0)

    def step(action: Any) -> None:
        for env, i in envs:
            _, _, terminated, truncated, _ = env.step(action[i])
            if terminated or truncated:
                env.reset()

    return _timed(step, actions)


def _timed(step: Callable[[Any], Any], actions: list[Any]) -> float:
    """Seconds of one step, over enough passes through the actions."""
    passes, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS * REPEATS:
        for action in actions:
            step(action)
        passes += 1
    return (time.perf_counter() - started) / passes / len(actions)


def _envpool(env_id: str, n_envs: int) -> Any:
    """EnvPool with as many threads as the library gives it."""
    import envpool

    from upslope.envs.make import ENVS_PER_THREAD

    threads = max(1, min(torch.multiprocessing.cpu_count(), n_envs // ENVS_PER_THREAD))
    return envpool.make_gymnasium(env_id, num_envs=n_envs, num_threads=threads)

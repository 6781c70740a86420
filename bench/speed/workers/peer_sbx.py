"""One run of SBX, by an interpreter that has it: ``python peer_sbx.py JOB``."""

from __future__ import annotations

import time
from typing import Any

import common
import jax
import sbx
import torch
from stable_baselines3.common.env_util import make_vec_env


def main() -> None:
    """Learn for the steps of the job; compiling is part of the time, as it is of a user's."""
    job = common.job()
    torch.set_num_threads(job["threads"])
    env = make_vec_env(job["env"], n_envs=job["n_envs"], seed=job["seed"])
    settings = job["settings"]
    model = getattr(sbx, job["algorithm"].upper())("MlpPolicy", env, seed=job["seed"], **settings)
    started = time.perf_counter()
    model.learn(job["steps"])
    seconds = time.perf_counter() - started
    common.answer(
        seconds=seconds,
        steps=model.num_timesteps,
        engine="jax.jit",
        vec=type(model.get_env()).__name__,
        facts=facts(model, settings),
    )


def facts(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the run really had, by the names of the job."""
    policy = model.policy
    weights = jax.tree_util.tree_leaves((policy.actor_state.params, policy.vf_state.params))
    held = {name: getattr(model, name, None) for name in settings}
    return {name: value(1.0) if callable(value) else value for name, value in held.items()} | {
        "n_envs": model.n_envs,
        "net_arch": list(policy.net_arch_pi),
        "activation_fn": policy.activation_fn.__name__,
        "optimizer": policy.optimizer_class.__name__,
        "optimizer_eps": policy.optimizer_kwargs["eps"],
        "n_parameters": sum(x.size for x in weights),
    }


if __name__ == "__main__":
    main()

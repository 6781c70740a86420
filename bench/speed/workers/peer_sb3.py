"""One run of Stable-Baselines3 or sb3-contrib: ``python peer_sb3.py JOB``."""

from __future__ import annotations

import time
from typing import Any

import common
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env


def main() -> None:
    """Learn for the steps of the job in a DummyVecEnv, which is what the library makes itself."""
    job = common.job()
    torch.set_num_threads(job["threads"])
    env = make_vec_env(job["env"], n_envs=job["n_envs"], seed=job["seed"])
    settings = job["settings"]
    model = algorithm(job["algorithm"])(
        "MlpPolicy", env, seed=job["seed"], device="cpu", **settings
    )
    started = time.perf_counter()
    model.learn(job["steps"])
    seconds = time.perf_counter() - started
    common.answer(
        seconds=seconds,
        steps=model.num_timesteps,
        engine="eager",
        vec=type(model.get_env()).__name__,
        facts=facts(model, settings),
    )


def algorithm(name: str) -> Any:
    """The class of an algorithm; TRPO is sb3-contrib's."""
    if name == "trpo":
        import sb3_contrib

        return sb3_contrib.TRPO
    return getattr(stable_baselines3, name.upper())


def facts(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the run really had, by the names of the job."""
    optimizer = model.policy.optimizer
    named = {"use_rms_prop": type(optimizer).__name__ == "RMSprop"}
    named |= {"rms_prop_eps": optimizer.defaults["eps"]}
    held = {name: named.get(name, getattr(model, name, None)) for name in settings}
    hidden = model.policy.mlp_extractor
    widths = [[x.out_features for x in net if hasattr(x, "out_features")]
              for net in (hidden.policy_net, hidden.value_net)]  # fmt: skip
    return {name: value(1.0) if callable(value) else value for name, value in held.items()} | {
        "n_envs": model.n_envs,
        "net_arch": widths[0] if widths[0] == widths[1] else widths,
        "activation_fn": model.policy.activation_fn.__name__.lower(),
        "optimizer": type(optimizer).__name__.lower(),
        "optimizer_eps": optimizer.defaults["eps"],
        "n_parameters": sum(p.numel() for p in model.policy.parameters()),
    }


if __name__ == "__main__":
    main()

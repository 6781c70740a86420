"""The rows of the speed table: what work is done, by whom, and what ratio it has to reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENGINES = ("auto", "always", "never")  # --compile; floors are of the first, aims of the first two
PEERS = ("sb3", "sbx")
NETWORK = {"net_arch": [64, 64], "activation_fn": "tanh"}  # every contender's own default
ADAM = {"optimizer": "adam", "optimizer_eps": 1e-5}
RMSPROP = {"optimizer": "rmsprop", "optimizer_eps": 1e-5}

PPO = {
    "learning_rate": 3e-4,
    "n_steps": 2048,
    "batch_size": 64,
    "n_epochs": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "normalize_advantage": True,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "target_kl": None,
}
PPO_CARTPOLE = {
    **PPO,
    "learning_rate": 1e-3,
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.8,
}
A2C = {
    "learning_rate": 7e-4,
    "n_steps": 5,
    "gamma": 0.99,
    "gae_lambda": 1.0,
    "normalize_advantage": False,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "use_rms_prop": True,
    "rms_prop_eps": 1e-5,
}
TRPO = {
    "learning_rate": 1e-3,
    "n_steps": 2048,
    "batch_size": 128,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "normalize_advantage": True,
    "target_kl": 0.01,
    "cg_max_steps": 15,
    "cg_damping": 0.1,
    "line_search_shrinking_factor": 0.8,
    "line_search_max_iter": 10,
    "n_critic_updates": 10,
}


@dataclass(frozen=True)
class Row:
    """One piece of work.

    ``settings`` go to every contender by the same names, and each reports what it made of them:
    with ``checked`` they are the facts that a run has to confirm. ``kind`` is *rate* (steps a
    second over ``learn``), *solve* (a cold shell to a return) or *million* (a cold shell to so many
    steps). ``against`` names the row whose Stable-Baselines3 runs are the comparison.
    ``memory`` is the floor and aim of the ratio of peak memory, where the row has one.
    """

    name: str
    title: str
    algorithm: str
    env: str
    n_envs: int
    steps: int
    floor: float
    aim: float
    settings: dict[str, Any] = field(default_factory=dict)
    checked: dict[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = ("sb3",)
    against: str = ""
    kind: str = "rate"
    engines: tuple[str, ...] = ENGINES
    quick_steps: int = 0  # of the quick form, 0 where it leaves the row out
    stop_return: float | None = None
    confirmed: float | None = None  # mean return on fresh episodes that a run has to reach
    scores: tuple[float, float] | None = None  # floor and aim of the sampled score
    memory: tuple[float, float] | None = None
    threads: int = 1

    @property
    def facts(self) -> dict[str, Any]:
        """What every contender of the row has to report about itself."""
        return {"n_envs": self.n_envs, **self.settings, **self.checked}


ROWS = (
    Row(
        "ppo-cartpole", "PPO CartPole-v1, 8 envs x 32, batch 256, 20 epochs",
        "ppo", "CartPole-v1", 8, 100_000, 4, 6, PPO_CARTPOLE,
        {**NETWORK, **ADAM, "n_parameters": 9155},
        PEERS, quick_steps=12_288, memory=(1.0, 0.8),
    ),
    Row(
        "ppo-halfcheetah", "PPO HalfCheetah-v5, 1 env x 2048, minibatch 64, 10 epochs",
        "ppo", "HalfCheetah-v5", 1, 100_000, 5.5, 8, PPO,
        {**NETWORK, **ADAM, "n_parameters": 11_085},
        PEERS, quick_steps=8_192, memory=(1.0, 0.8),
    ),
    Row(
        "ppo-halfcheetah-64", "PPO HalfCheetah-v5, 64 envs x 32, minibatch 64, 10 epochs",
        "ppo", "HalfCheetah-v5", 64, 100_000, 7, 11, {**PPO, "n_steps": 32},
        {**NETWORK, **ADAM, "n_parameters": 11_085},
        (), against="ppo-halfcheetah", quick_steps=8_192, memory=(1.25, 1.0),
    ),
    Row(
        "a2c-cartpole", "A2C CartPole-v1, 8 envs x 5",
        "a2c", "CartPole-v1", 8, 100_000, 3, 5, A2C,
        {**NETWORK, **RMSPROP, "n_parameters": 9155}, quick_steps=12_000,
    ),
    Row(
        "trpo-halfcheetah", "TRPO HalfCheetah-v5, 1 env x 2048, 10 passes of the critic",
        "trpo", "HalfCheetah-v5", 1, 100_000, 3, 5, TRPO,
        {**NETWORK, **ADAM, "n_parameters": 11_085}, quick_steps=8_192,
    ),
    Row(
        "solve-cartpole", "cold shell to CartPole-v1 at 475 over 100 episodes",
        "ppo", "CartPole-v1", 0, 100_000, 6, 8, kind="solve", engines=("auto", "always"),
        stop_return=475, confirmed=450,
    ),
    Row(
        "million-halfcheetah", "cold shell to 1M steps of HalfCheetah-v5, with the preset",
        "ppo", "HalfCheetah-v5", 0, 1_000_000, 7, 10, kind="million", engines=("auto", "always"),
        peers=(), against="ppo-halfcheetah", scores=(4500, 5650),
    ),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}

"""One entry of the RL Zoo's ``ppo.yml``, ``a2c.yml`` or ``trpo.yml`` -> settings of a run here.

What an entry leaves out is what Stable-Baselines3 would take, where that differs from the default
here. The zoo: https://github.com/DLR-RM/rl-baselines3-zoo
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.config import CONFIGS, PPOConfig, whole_number
from upslope.config.zoo.draft import Draft
from upslope.config.zoo.files import ALGORITHMS, algorithm_of, read_yaml
from upslope.config.zoo.network import choose_network
from upslope.config.zoo.wrappers import normalize, wrap_environment, wrap_vector
from upslope.errors import ConfigError

MUJOCO = frozenset(
    ["Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
     "InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d"]
)  # fmt: skip
OFF_POLICY = frozenset(
    ["action_noise", "buffer_size", "delta_std", "exploration_final_eps", "exploration_fraction",
     "exploration_initial_eps", "gradient_steps", "learning_starts", "n_delta", "n_top",
     "noise_std", "noise_type", "optimize_memory_usage", "policy_delay", "replay_buffer_class",
     "replay_buffer_kwargs", "target_update_interval", "tau", "top_quantiles_to_drop_per_net",
     "train_freq"]
)  # fmt: skip
WITHOUT_EQUIVALENT = {  # key -> what is done instead
    "callback": "nothing is imported on the word of a file; from Python, learn(callback=...)",
    "rollout_buffer_class": "rollouts are held in one way only",
    "rollout_buffer_kwargs": "rollouts are held in one way only",
    "stats_window_size": "the last 100 finished episodes are averaged",
    "tensorboard_log": "a run directory holds its own events (--run-dir)",
    "verbose": "--quiet is the only choice",
}


@dataclass(frozen=True)
class ZooEntry:
    """What an entry says here: settings, steps to train, and a sentence for all that differs."""

    env_id: str  # to train on
    key: str  # of the entry
    settings: dict[str, Any]
    total_timesteps: int | None
    notes: tuple[str, ...]


def read_zoo(
    text: str, path: str, algorithm: str, env_id: str, given: Mapping[str, Any] | None = None
) -> ZooEntry:
    """Return the settings of an environment's entry.

    Args:
        text: the file, in YAML.
        path: its name, for messages.
        algorithm: ppo, a2c or trpo.
        env_id: the environment to train on.
        given: settings from elsewhere that override those of the file.

    Raises:
        ConfigError: for a file that cannot be read, a missing entry, and an entry that would be
            another algorithm or environment, or holds what is never evaluated.
    """
    name, named, today = Path(path).name, algorithm_of(path), _made_today(env_id)
    entries = _entries(text, path, algorithm)
    key = _choose(entries, today, path)
    entry = entries[key]
    if not isinstance(entry, Mapping) or not all(isinstance(part, str) for part in entry):
        raise ConfigError(f"{key} in {name} is no table of settings, such as gamma: 0.98")
    draft = Draft(f"{key} in {name}", algorithm)
    if named not in (None, algorithm):
        draft.notes.append(f"{name} is of {named} by its name: it is taken for {algorithm}")
    if today != env_id:
        draft.notes.append(
            f"{env_id} is an old version: {today} is trained, with the entry of {key}"
        )
    elif key not in (env_id, env_id.rpartition(":")[2]):
        draft.notes.append(f"{env_id} has no entry in {name}: that of {key} is taken")
    total = _translate(draft, entry, dict(given or {}))
    return ZooEntry(today, key, draft.settings, total, tuple(draft.notes))


def _entries(text: str, path: str, algorithm: str) -> Mapping[str, Any]:
    """The table of a file: an entry for each environment."""
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"--config {path}: the zoo's files have settings of {', '.join(ALGORITHMS)}, "
            f"not of {algorithm}"
        )
    entries = read_yaml(text, path)
    if (
        not isinstance(entries, Mapping)
        or not all(isinstance(key, str) for key in entries)
        or not any(isinstance(entry, Mapping) for entry in entries.values())
    ):
        raise ConfigError(
            f"--config {path} must hold a table of settings for each environment id, as the zoo's "
            "files do; a single table goes into a .toml or .json file"
        )
    return entries


def _made_today(env_id: str) -> str:
    """MuJoCo's environments in their current version: -v2 and -v3 cannot be made any more."""
    stem, _, version = env_id.rpartition("-v")
    return f"{stem}-v5" if stem in MUJOCO and version in ("2", "3", "4") else env_id


def _choose(entries: Mapping[str, Any], env_id: str, path: str) -> str:
    """The entry of this id, of an older version of it, or of Atari's games."""
    bare = env_id.rpartition(":")[2]
    for key in (env_id, bare):
        if key in entries:
            return key
    older = _older(bare, entries)
    if older is not None:
        return older
    if bare.startswith("ALE/") and "atari" in entries:
        return "atari"
    near = difflib.get_close_matches(bare, list(entries), n=3, cutoff=0.5)
    raise ConfigError(
        f"--config {path} has no entry for {env_id}"
        + (f"; the nearest are {', '.join(near)}" if near else "")
        + ": copy one that fits under this name"
    )


def _older(env_id: str, entries: Mapping[str, Any]) -> str | None:
    """The entry of the newest version that is older than an id's own."""
    parts = re.fullmatch(r"(.+-v)([0-9]{1,9})", env_id)
    if parts is None:
        return None
    versions = {key: re.fullmatch(re.escape(parts[1]) + r"([0-9]{1,9})", key) for key in entries}
    older = {int(v[1]): key for key, v in versions.items() if v and int(v[1]) < int(parts[2])}
    return older[max(older)] if older else None


def _translate(draft: Draft, entry: Mapping[str, Any], given: dict[str, Any]) -> int | None:
    """Fill the draft with every key of the entry and return the steps to train."""
    rest = dict(entry)
    policy = rest.pop("policy", "MlpPolicy")
    n_timesteps = rest.pop("n_timesteps", None)
    has_memory = isinstance(policy, str) and policy.endswith("LstmPolicy")
    draft.settings |= _defaults(draft.algorithm, has_memory)
    uses_sde = str(rest.pop("use_sde", False)).lower() == "true"
    choose_network(draft, policy, rest.pop("policy_kwargs", None), uses_sde)
    _exploration(draft, uses_sde, rest.pop("sde_sample_freq", -1))
    for key, translate in _ENVIRONMENT.items():
        if key in rest:
            translate(draft, rest.pop(key))
    for key, value in rest.items():
        _plain(draft, key, value)
    draft.settings["preset"] = "none"  # tuned settings of one hand only
    try:
        n_envs = whole_number("n_envs", draft.settings["n_envs"])
        # Without their number the rows of a rollout are not looked at: flags may change them.
        config = CONFIGS[draft.algorithm].from_settings({**draft.settings, "n_envs": None})
        if isinstance(config, PPOConfig):
            _fit_minibatch(draft, config, {"n_envs": n_envs, **given})
        total = None if n_timesteps is None else whole_number("n_timesteps", _number(n_timesteps))
    except ConfigError as error:
        draft.refuse(str(error))
    return total


def _defaults(algorithm: str, has_memory: bool) -> dict[str, Any]:
    """What the zoo and Stable-Baselines3 take where an entry is silent, if it differs here."""
    if algorithm == "a2c":
        return {"n_envs": 1}
    if algorithm == "ppo" and has_memory:
        return {"n_envs": 1, "n_steps": 128, "batch_size": 128}
    return {"n_envs": 1, "n_steps": 2048}


def _exploration(draft: Draft, uses_sde: bool, sample_freq: Any) -> None:
    """``sde_sample_freq`` alone does nothing there either."""
    if uses_sde:
        also = "" if sample_freq == -1 else f" (sde_sample_freq={sample_freq})"
        draft.lacks(
            f"use_sde{also}",
            "Gaussian noise is drawn at every step, and log_std_init is its log standard deviation",
        )


def _plain(draft: Draft, key: str, value: Any) -> None:
    """A key that is a setting here, one without an equivalent, or one of another algorithm."""
    if key in WITHOUT_EQUIVALENT:
        draft.lacks(key, WITHOUT_EQUIVALENT[key])
    elif key in OFF_POLICY:
        draft.refuse(
            f"{key} belongs to an algorithm that is not trained here: take an entry of the zoo's "
            f"files of {', '.join(ALGORITHMS)}"
        )
    elif key == "sub_sampling_factor":
        if value != 1:
            draft.lacks(key, "the natural gradient is estimated from all rows")
    else:
        draft.settings[key] = _number(value) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """A number that YAML took for text, such as 1e-3."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _arguments_of_environment(draft: Draft, value: Any) -> None:
    draft.settings["env_kwargs"] = draft.mapping("env_kwargs", value)


def _monitor(draft: Draft, value: Any) -> None:
    given = draft.mapping("monitor_kwargs", value)
    if "info_keywords" in given:
        draft.settings["log_info"] = given.pop("info_keywords")
    if given:
        draft.lacks(f"monitor_kwargs {', '.join(given)}", "episodes are always recorded alike")


_ENVIRONMENT: dict[str, Callable[[Draft, Any], None]] = {
    "env_wrapper": wrap_environment,
    "vec_env_wrapper": wrap_vector,
    "normalize": normalize,
    "env_kwargs": _arguments_of_environment,
    "monitor_kwargs": _monitor,
}


def _fit_minibatch(draft: Draft, config: PPOConfig, given: Mapping[str, Any]) -> None:
    """A minibatch of more rows than there are is the whole rollout, as it is there."""
    n_envs, n_steps = given["n_envs"], given.get("n_steps", config.n_steps)
    if not isinstance(n_envs, int) or not isinstance(n_steps, int):
        return  # whoever reads the flags says what is wrong with them
    rows = n_envs * n_steps
    if config.batch_size > rows > 0:
        draft.settings["batch_size"] = rows
        if "batch_size" not in given:
            draft.notes.append(
                f"{draft.where}: batch_size={config.batch_size} is more than the {rows} rows of a "
                f"rollout: it is {rows}, as in Stable-Baselines3"
            )

"""``env_wrapper``, ``vec_env_wrapper`` and ``normalize``: the environment of an entry.

Wrappers are recognised by their names and never imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upslope.config.zoo.draft import Draft
from upslope.errors import did_you_mean

ATARI_WRAPPER = {"noop_max": 30, "frame_skip": 4, "screen_size": 84}  # as in Stable-Baselines3
NORMALIZE = ("norm_obs", "norm_reward", "clip_obs", "clip_reward")
NORMALIZE_DEFAULTS = {"epsilon": 1e-8, "training": True, "norm_obs_keys": None}  # VecNormalize's
NORMALIZED_INSTEAD = {
    "epsilon": "1e-8 is added to the variance of observations, nothing to that of rewards",
    "training": "running statistics follow the training, and rest in every evaluation",
    "norm_obs_keys": "every part of the observation is normalised alike",
}


def wrap_environment(draft: Draft, value: Any) -> None:
    """Translate ``env_wrapper``: a name, ``{name: arguments}``, or a list of such."""
    foreign = []
    for path, arguments in _named(draft, "env_wrapper", value):
        name = path.rpartition(".")[2]
        if name in ("AtariWrapper", "AtariPreprocessing"):
            _atari(draft, name, arguments)
        elif name in ("FrameStackObservation", "FrameStack"):
            draft.settings["frame_stack"] = arguments.get("stack_size", arguments.get("num_stack"))
        elif name == "TimeLimit":
            draft.settings["max_episode_steps"] = arguments.get("max_episode_steps")
        elif name == "TimeFeatureWrapper":
            draft.lacks(path, "what a time limit cuts off is bootstrapped, without the time")
        elif name not in ("Monitor", "RecordEpisodeStatistics"):  # episodes are always recorded
            foreign.append(path)
    _refuse(draft, foreign)


def wrap_vector(draft: Draft, value: Any) -> None:
    """Translate ``vec_env_wrapper``, written like ``env_wrapper``."""
    foreign = []
    for path, arguments in _named(draft, "vec_env_wrapper", value):
        name = path.rpartition(".")[2]
        if name == "VecFrameStack":
            draft.settings["frame_stack"] = arguments.get("n_stack")
        elif name == "VecNormalize":
            normalize(draft, arguments)
        elif name not in ("VecMonitor", "VecTransposeImage"):  # both are always done
            foreign.append(path)
    _refuse(draft, foreign)


def normalize(draft: Draft, value: Any) -> None:
    """Translate ``normalize``: a truth, or the arguments of VecNormalize."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if value is None or value is False:
        return
    given = {} if value is True else draft.mapping("normalize", value)
    draft.settings |= {"norm_obs": True, "norm_reward": True}
    for name, setting in given.items():
        if name in NORMALIZE:
            draft.settings[name] = setting
        elif name in NORMALIZED_INSTEAD:
            if setting != NORMALIZE_DEFAULTS[name]:
                draft.lacks(f"{name} of normalize", NORMALIZED_INSTEAD[name])
        elif name != "gamma":  # the zoo replaces it by the algorithm's
            draft.refuse(f"normalize has no argument {name!r}{did_you_mean(name, NORMALIZE)}")


def _atari(draft: Draft, name: str, arguments: Mapping[str, Any]) -> None:
    draft.settings["atari_preprocessing"] = True
    for argument, default in ATARI_WRAPPER.items():
        if arguments.get(argument, default) != default:
            draft.lacks(f"{argument} of {name}", f"it is {default}")
    ends = arguments.get("terminal_on_life_loss", name == "AtariWrapper")
    clips = arguments.get("clip_reward", name == "AtariWrapper")
    if ends:
        draft.lacks(f"terminal_on_life_loss of {name}", "an episode is a whole game")
    if clips:
        draft.settings["norm_reward"] = True
        draft.lacks(f"clip_reward of {name}", "rewards are divided by their spread (norm_reward)")


def _refuse(draft: Draft, foreign: list[str]) -> None:
    """Without its wrappers it would be another environment."""
    if foreign:
        draft.refuse(
            f"the environment is wrapped in {', '.join(foreign)}, and nothing is imported "
            "on the word of a file: write a factory that wraps it, my_env.py:make_env, and copy "
            "the entry under that name without the wrapper"
        )


def _named(draft: Draft, key: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and arguments of one wrapper or a list of them."""
    if value is None:
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            found.append((item, {}))
        elif isinstance(item, Mapping) and len(item) == 1:
            path, arguments = next(iter(item.items()))
            found.append((str(path), draft.mapping(f"{key} {path}", arguments)))
        else:
            draft.refuse(f"{key}={item!r} is neither a name nor one name with its arguments")
    return found

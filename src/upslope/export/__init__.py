"""A trained policy as a file that needs no library of ours: ONNX, or torch's own ``.pt2``."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.envs.find import EnvLike
from upslope.envs.masks import current_mask
from upslope.errors import ConfigError, UnknownEnvironmentError, did_you_mean
from upslope.export.check import largest_gap, make_vectors, stored_observations
from upslope.export.formats import run_onnx, run_torch, to_onnx, to_torch, trace
from upslope.export.graph import PolicyGraph
from upslope.policies.encoders import FeaturesFactory
from upslope.runs.durable import replace_file
from upslope.runs.model_file import read_header, read_model
from upslope.runs.policy_file import LoadedModel, load_model, versions
from upslope.runs.space_json import space_from_json
from upslope.spaces import mask_size

__all__ = ["FORMATS", "Exported", "environment_gives_masks", "export_model"]
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """A file that was written, its inputs and outputs (``float32[batch, 4]``) by name.

    ``gap`` is the largest between it and the library on the model's stored observations, None where
    nothing was there to run it (onnxruntime).
    """

    path: Path
    inputs: dict[str, str]
    outputs: dict[str, str]
    gap: float | None


def export_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str = "onnx",
    *,
    action_mask: bool = False,
    policy: FeaturesFactory | None = None,
) -> Exported:
    """Write a model's policy as one function from raw observations to the environment's actions.

    Args:
        model: what ``agent.save`` wrote.
        out: the file; what is there is replaced in one step.
        format: "onnx" or "torch".
        action_mask: take a mask beside the observation (not where it is a part of it anyway).
        policy: the features factory, for a model that was made with one.

    Raises:
        ModelFileError: the model cannot be read, the file not written, or it does not give what the
            library gives to 1e-5; nothing is left at ``out`` then that was not there before.
        ConfigError: an unknown format, a missing extra, or a policy that cannot be traced.
    """
    model, out = Path(model), Path(out)
    _check_out(model, out, format)
    loaded = load_model(model, policy)
    graph = PolicyGraph(loaded.policy.cpu().eval(), action_mask).eval()
    _, stored = read_model(model)
    vectors = make_vectors(graph, stored_observations(stored, loaded.policy.observation_space))
    example = vectors[0].inputs
    # a batch of one would be taken for a constant
    rows = {name: np.concatenate([array, array]) for name, array in example.items()}
    program = trace(graph, {k: torch.from_numpy(x) for k, x in rows.items()})
    described = {
        what: {name: _shape_text(array) for name, array in arrays.items()}
        for what, arrays in (("inputs", example), ("outputs", vectors[0].outputs))
    }
    metadata = _metadata(model, loaded, described)
    run: Any
    if format == "onnx":
        data = to_onnx(program, graph, metadata)
        run = run_onnx(data)
    else:
        data = to_torch(program, metadata)
        run = run_torch(data)
    gap = None if run is None else largest_gap(vectors, run)
    replace_file(out, [data], f"{format} file")
    return Exported(out, described["inputs"], described["outputs"], gap)


def environment_gives_masks(model: str | os.PathLike[str], env: EnvLike | None) -> bool | None:
    """Whether the environment says what is allowed; None where it is not known or not installed.

    Args:
        model: whose environment, if Gymnasium has it registered.
        env: another one to ask.
    """
    known = LoadedModel(None, read_header(model))  # type: ignore[arg-type]
    if mask_size(space_from_json(known.header["action_space"])) == 0:
        return False
    config = known.config({})
    try:
        source = known.source(env)
        if source is None:
            return None
        made = source.plain_env(config.env_kwargs, config.max_episode_steps)
    except UnknownEnvironmentError:
        if env is not None:
            raise
        return None
    try:
        _, info = made.reset(seed=0)
        return current_mask(made, info) is not None
    finally:
        made.close()


def _check_out(model: Path, out: Path, format: str) -> None:
    if format not in FORMATS:
        raise ConfigError(
            f"--format {format} is not one of {', '.join(FORMATS)}{did_you_mean(format, FORMATS)}"
        )
    others = {suffix: name for name, suffix in FORMATS.items() if name != format}
    if out.suffix in others:
        raise ConfigError(
            f"--out {out} is the name of the other format: end it in {FORMATS[format]}, "
            f"or give --format {others[out.suffix]}"
        )
    if out.is_dir():
        raise ConfigError(
            f"--out {out} is a directory: give a file, such as {out / 'policy'}{FORMATS[format]}"
        )
    if out.exists() and model.exists() and out.samefile(model):
        raise ConfigError(f"--out {out} is the model itself: give another file")


def _metadata(model: Path, loaded: LoadedModel, described: dict[str, Any]) -> dict[str, Any]:
    header, settings = loaded.header, loaded.header["config"]
    return {
        **described,
        "algorithm": header["algorithm"],
        "environment": header["environment"]["name"],
        "observation_space": header["observation_space"],
        "action_space": header["action_space"],
        "distribution": header["network"]["distribution"],
        "normalizer_included": loaded.policy.obs_normalizer is not None,
        "frame_stack": settings.get("frame_stack"),
        "atari_preprocessing": settings.get("atari_preprocessing"),
        "versions": versions(),
        "source": {"file": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()},
    }


def _shape_text(array: NDArray[Any]) -> str:
    return f"{array.dtype}[{', '.join(['batch', *map(str, array.shape[1:])])}]"

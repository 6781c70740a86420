"""Prove that a run resumes: replay one stretch between two checkpoints and compare everything."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from upslope.envs.find import EnvLike
from upslope.errors import ConfigError, ModelFileError, first_line
from upslope.policies.encoders import FeaturesFactory
from upslope.runs.checkpoint import CHECKPOINTS, Checkpoint, newest, verified
from upslope.runs.directory import CONFIG, PROGRESS
from upslope.runs.model_file import read_model
from upslope.runs.progress import CLOCKS, read_rows
from upslope.runs.resume import check_is_run, differences, reopen, stops_after
from upslope.runs.self_test import PREFIX

Tensors = Mapping[str, torch.Tensor]
Row = dict[str, str]


@dataclass(frozen=True)
class Verification:
    """What was compared, part by part, and the first difference of each; None where there is none.

    Parts are weights, normaliser, optimiser, streams (counters and RNG keys) and progress.csv.
    """

    first: int  # iteration of the checkpoint that was resumed
    last: int  # and of the one that was compared
    compared: Mapping[str, int]  # numbers or rows of each part
    differs: Mapping[str, str | None]

    @property
    def difference(self) -> str | None:
        """The first difference, or None: the stretch came out the same to the bit."""
        return next((said for said in self.differs.values() if said is not None), None)


def verify_resume(
    run: Path,
    env: EnvLike | None = None,
    *,
    policy: FeaturesFactory | None = None,
    **settings: Any,
) -> Verification:
    """Resume a copy of the run from its last but one scheduled checkpoint up to the next.

    Nothing in the run directory is changed. Callbacks that no flag stands for are not called again,
    so what they remembered and the scores of an evaluation among them are not compared.

    Args:
        run: the run directory.
        env, policy, settings: as for :func:`upslope.resume`.

    Raises:
        ModelFileError: the run has no two adjacent scheduled checkpoints that are whole.
        ConfigError: as :func:`upslope.resume`.
    """
    check_is_run(run)
    before, after = _pair(run)
    with tempfile.TemporaryDirectory(prefix="upslope-verify-") as scratch:
        copy = Path(scratch) / "run"
        _copy(run, before, copy)
        total = after.state["run"]["total_timesteps"]
        with reopen(copy, env, total_timesteps=total, policy=policy, **settings) as again:
            calls = [*again.recorded_callbacks(), stops_after(after.number)]
            again.train_into(again.directory(calls, is_tracked=False), calls)
            again.agent.close()
        found = newest(copy / CHECKPOINTS)  # of an earlier iteration, where a callback stopped it
        return _compared(before, after, found, run / PROGRESS, copy / PROGRESS)


def _copy(run: Path, before: Checkpoint, copy: Path) -> None:
    """Copy what a resume from one checkpoint reads."""
    try:
        shutil.copytree(before.path, copy / CHECKPOINTS / before.path.name)
        for name in (CONFIG, PROGRESS):
            shutil.copy(run / name, copy / name)
    except OSError as error:
        raise ConfigError(
            f"{run} cannot be copied to {copy.parent} ({first_line(error)}): put back what is "
            "missing, or set TMPDIR to where there is room"
        ) from error


def _pair(run: Path) -> tuple[Checkpoint, Checkpoint]:
    """The newest two checkpoints in a row that the undisturbed run has too, its end among them."""
    later: Checkpoint | None = None
    for found in verified(run / CHECKPOINTS):
        if later is not None and found.is_scheduled and _is_undisturbed(found, later):
            return found, later
        if found.is_scheduled or (later is None and found.state["finished"]):
            later = found
    raise ModelFileError(
        f"{run} has no two checkpoints in a row that are whole and that no signal came between: "
        "train longer, or with more --checkpoints"
    )


def _is_undisturbed(first: Checkpoint, last: Checkpoint) -> bool:
    """Whether one stretch leads from one to the other, and no resume began anew inside it."""
    if last.number - first.number > first.state["training"]["checkpoint_every"]:
        return False
    inside = range(first.number + 1, last.number)
    return all(
        resumed["scheduled"] or resumed["checkpoint"] not in inside
        for resumed in last.state["run"]["resumed"]
    )


def _compared(
    before: Checkpoint, after: Checkpoint, found: Checkpoint, there: Path, here: Path
) -> Verification:
    """Compare the later checkpoint with that of the replay, and the rows of both files between."""
    compared: dict[str, int] = {}
    differs: dict[str, str | None] = {}
    _, expected = read_model(after.policy)
    _, seen = read_model(found.policy)
    tensors = {
        "weights": (_weights(expected), _weights(seen)),
        "normaliser": (_normaliser(expected), _normaliser(seen)),
        "optimiser": (after.moments(), found.moments()),
    }
    for part, (one, other) in tensors.items():
        compared[part] = sum(x.numel() for x in one.values())
        differs[part] = next(_unequal(one, other), None)
    replayed = {x["name"] for x in found.state["callbacks"]}
    streams, again = (_streams(x, replayed) for x in (after, found))
    compared["streams"] = len(streams)
    differs["streams"] = next(iter(differences(streams, again)), None)
    rows, new_rows = _rows(before, after, replayed, there, here)
    compared["progress.csv"] = len(rows)
    last = after.state["progress"]["offset"]
    differs["progress.csv"] = next(
        chain(_unequal_rows(rows, new_rows), _unaligned(there, last), _too_few(rows, new_rows)),
        None,
    )
    return Verification(
        before.number,
        after.number,
        compared,
        {part: said and f"{part}: {said}" for part, said in differs.items()},
    )


def _normaliser(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "normalizer" in name}


def _weights(tensors: Tensors) -> Tensors:
    beside = {*_normaliser(tensors), *(name for name in tensors if name.startswith(PREFIX))}
    return {name: tensor for name, tensor in tensors.items() if name not in beside}


def _unequal(expected: Tensors, found: Tensors) -> Iterator[str]:
    for name in sorted({*expected, *found}):
        if name not in expected or name not in found:
            yield f"{name} is in one of the two only"
            continue
        one, other = expected[name], found[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            kinds = [f"{tuple(x.shape)} {x.dtype}" for x in (other, one)]
            yield f"{name} is {kinds[0]}, not {kinds[1]}"
        elif not torch.equal(_bits(one), _bits(other)):
            gap = float((one.double() - other.double()).abs().max())
            yield f"{name} differs by up to {gap:.1e}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


def _streams(checkpoint: Checkpoint, replayed: Container[str]) -> dict[str, Any]:
    """All of the state that is no clock, of the callbacks those that were called again."""
    training = dict(checkpoint.state["training"])
    training.pop("seconds")
    callbacks = [
        x for x in checkpoint.state["callbacks"] if x["state"] is not None and x["name"] in replayed
    ]
    waiting = checkpoint.state["progress"]["waiting"]
    return {**training, "callbacks": callbacks, "waiting": waiting}


def _rows(
    before: Checkpoint, after: Checkpoint, replayed: Container[str], there: Path, here: Path
) -> tuple[list[Row], list[Row]]:
    """The rows between the two checkpoints: those of the run, and those of the replay.

    The replay has one of its last iteration in any case, the run only where one was due.
    """
    first, last = (x.state["progress"]["offset"] for x in (before, after))
    rows, again = read_rows(there, first, last), read_rows(here, first)
    end, every = str(after.number), after.state["training"]["log_every"]
    if not all(x["name"] in replayed for x in after.state["callbacks"]):
        due = {end, *map(str, range(0, after.number, every))}
        rows = [_without_evaluation(row) for row in rows if row["time/iterations"] in due]
        again = [_without_evaluation(row) for row in again]
    was_forced = not after.state["finished"] and after.number % every != 0
    if was_forced and not (rows and rows[-1]["time/iterations"] == end):
        again = [row for row in again if row["time/iterations"] != end or row["eval/mean_reward"]]
    return rows, again


def _without_evaluation(row: Row) -> Row:
    return {name: "" if name.startswith("eval/") else x for name, x in row.items()}


def _unequal_rows(expected: list[Row], found: list[Row]) -> Iterator[str]:
    for one, other in zip(expected, found, strict=False):
        for name, value in one.items():
            if name not in CLOCKS and other.get(name) != value:
                where = f"row of iteration {one['time/iterations']}"
                yield f"{where}: {name} is {other.get(name)}, not {value}"


def _unaligned(path: Path, end: int) -> Iterator[str]:
    """Say so where a row does not end at byte ``end``: one was made longer, or taken away."""
    with path.open("rb") as file:
        file.seek(max(0, end - 1))
        if file.read(1) != b"\n":
            yield f"no row ends at byte {end} as the checkpoint says: rows were edited"


def _too_few(expected: list[Row], found: list[Row]) -> Iterator[str]:
    if len(expected) != len(found):
        yield f"the replay has {len(found)} rows there, the run {len(expected)}"

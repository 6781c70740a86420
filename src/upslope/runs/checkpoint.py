"""Checkpoints: directories that are whole or not there, and the newest of them that verifies.

::

    checkpoints/000123/   written as checkpoints/.tmp-<pid>-000123, synced, renamed
      model.safetensors   the policy, as any model file
      optim.safetensors   the optimisers' moments
      state.json          counters, streams, the place in progress.csv, what callbacks remember
      manifest.json       format, versions, processor, {file: [bytes, sha256]}, its own sha256;
                      written last

Nothing points at the newest one: there is no pointer to damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upslope.errors import ModelFileError, first_line
from upslope.runs.durable import cause, free_text, sync_directory, write_synced
from upslope.runs.model_file import read_model
from upslope.runs.policy_file import versions

log = logging.getLogger("upslope")
FORMAT = 1
CHECKPOINTS, MANIFEST, STATE, OPTIM = (
    "checkpoints", "manifest.json", "state.json", "optim.safetensors",
)  # fmt: skip
POLICY = "model.safetensors"
FILES = (POLICY, OPTIM, STATE)
BEST = "best_model.safetensors"  # where the run has one: it belongs to what callbacks remember
KEEP = 20  # newest ones that stay
MAX_JSON = 64 * 2**20  # bytes of a state that is read
_NAME = re.compile(r"[0-9]{6,}")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """One that was verified: its place, what its manifest says, and its state."""

    path: Path
    manifest: Mapping[str, Any]
    state: Mapping[str, Any]

    @property
    def number(self) -> int:
        """The iteration after which it was written."""
        return int(self.path.name)

    @property
    def is_scheduled(self) -> bool:
        """Whether the undisturbed run has it too: its environments begin anew there."""
        return bool(self.state["scheduled"])

    @property
    def is_undisturbed(self) -> bool:
        """Whether the undisturbed run has the very same: no resume before it began off schedule."""
        return self.is_scheduled and all(x["scheduled"] for x in self.state["run"]["resumed"])

    @property
    def policy(self) -> Path:
        """Its model file."""
        return self.path / POLICY

    @property
    def best(self) -> Path | None:
        """The run's best model as of then, where it had one."""
        return self.path / BEST if BEST in self.manifest["files"] else None

    def moments(self) -> dict[str, torch.Tensor]:
        """The optimisers' moments by name."""
        return read_model(self.path / OPTIM)[1]


def write_checkpoint(
    folder: Path, number: int, state: Mapping[str, Any], write: Callable[[Path], None]
) -> Path:
    """Write one checkpoint, or leave everything as it was; tried twice.

    Args:
        folder: the run's ``checkpoints``.
        number: of the iteration.
        state: JSON types, ``scheduled`` among them.
        write: puts the two model files into the directory that it is given.

    Raises:
        ModelFileError: with the room there is; what was written before is unharmed.
    """
    for attempt in (1, 2):
        try:
            return commit(folder, number, prepare(folder, number, state, write))
        except (OSError, ModelFileError) as error:
            if attempt == 2:
                raise _unwritten(folder, number, error) from error
    raise AssertionError


def prepare(
    folder: Path, number: int, state: Mapping[str, Any], write: Callable[[Path], None]
) -> Path:
    """Write all of a checkpoint under another name, which :func:`commit` makes its own.

    Raises:
        OSError, ModelFileError: it cannot be written; nothing of it is left.
    """
    temporary = folder / f"{_TEMPORARY}{os.getpid()}-{number:06}"
    try:
        folder.mkdir(exist_ok=True)
        temporary.mkdir()
        write(temporary)
        write_synced(temporary / STATE, [json.dumps(state).encode()])
        _seal(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return temporary


def commit(folder: Path, number: int, prepared: Path) -> Path:
    """Give a prepared checkpoint its name; one that has it already is set aside."""
    path = folder / f"{number:06}"
    set_aside(path)
    os.replace(prepared, path)
    sync_directory(folder)
    return path


def _unwritten(folder: Path, number: int, error: OSError | ModelFileError) -> ModelFileError:
    """The sentence of a checkpoint that the disk refuses."""
    reason = cause(error) if isinstance(error, OSError) else str(error)
    sizes = [_size(folder / name) for name in numbers(folder)]
    needed = f", about {sizes[-1]} bytes needed" if sizes else ""
    return ModelFileError(
        f"cannot write checkpoint {folder / f'{number:06}'} ({free_text(folder / 'x')}{needed}): "
        f"{reason}; the checkpoints before it are whole: make room, then "
        f"upslope resume {folder.parent}"
    )


def newest(folder: Path, *, scheduled: bool = False) -> Checkpoint:
    """Return the newest checkpoint that verifies; what is damaged is named in a warning.

    Args:
        folder: the run's ``checkpoints``.
        scheduled: look only for those that the undisturbed run has too.

    Raises:
        ModelFileError: there is none, or a newer version wrote the newest.
    """
    for found in verified(folder):
        if found.is_undisturbed or not scheduled:
            return found
    what = "scheduled checkpoint" if scheduled else "checkpoint"
    raise ModelFileError(
        f"{folder} holds no {what} that is whole: start the run again with the command in "
        f"{folder.parent / 'command.txt'}"
    )


def verified(folder: Path) -> Iterator[Checkpoint]:
    """Yield the checkpoints that are whole, newest first; what is damaged is named in a warning."""
    for number in reversed(numbers(folder)):
        try:
            yield read_checkpoint(folder / number)
        except _FromNewerVersion:
            raise
        except ModelFileError as error:
            log.warning("%s; the one before it is looked at", error)


def numbers(folder: Path) -> list[str]:
    """The names of the checkpoints, whole or not, oldest first."""
    with contextlib.suppress(OSError):
        named = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(named, key=int)
    return []


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint once every hash of its manifest has been verified.

    Raises:
        ModelFileError: damaged, incomplete or from a newer version.
    """
    try:
        manifest = _manifest(path / MANIFEST)
        if manifest["format"] > FORMAT:
            raise _FromNewerVersion(
                f"checkpoint {path} was written by upslope {manifest['versions']['upslope']}, this "
                f"is {versions()['upslope']}: update it"
            )
        for name in (*FILES, *({BEST} & set(manifest["files"]))):
            _verify(path / name, *manifest["files"][name])
        state = _json(path / STATE)
        if not isinstance(state["scheduled"], bool):
            raise TypeError("scheduled is no boolean")
        return Checkpoint(path, manifest, state)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFileError(f"checkpoint {path} is damaged ({_reason(error)})") from error


def prune(folder: Path, keep: int = KEEP) -> None:
    """Remove all but the newest ``keep`` checkpoints, of which the newest was just written.

    The newest of all that the undisturbed run has too stays as well: ``--exact`` goes back to it.
    """
    old = numbers(folder)[:-keep]
    if old and not any(_is_undisturbed(folder / name) for name in numbers(folder)[-keep:]):
        kept = next((name for name in reversed(old) if _is_undisturbed(folder / name)), None)
        old = [name for name in old if name != kept]
    for name in old:
        doomed = folder / f"{_TEMPORARY}old-{name}"
        with contextlib.suppress(OSError):
            os.replace(folder / name, doomed)  # so that a half removed one is none
        shutil.rmtree(doomed, ignore_errors=True)


def _is_undisturbed(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return Checkpoint(path, {}, _json(path / STATE)).is_undisturbed
    return False


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that died in the middle of a checkpoint left behind."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Rename a checkpoint that is not part of the run any more; nothing of it is lost."""
    if path.exists():
        number, aside = 1, path.with_name(f"{path.name}.aside")
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.aside-{number}")
        os.replace(path, aside)


def _seal(directory: Path) -> None:
    """Write the manifest of what lies in a directory, last, and sync it all."""
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "cpu": cpu(),
        "files": {x: _entry(directory / x) for x in (*FILES, BEST) if (directory / x).exists()},
    }
    write_synced(directory / MANIFEST, [_sealed(manifest)])
    sync_directory(directory)


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest, its own hash last: not a byte of it can differ unseen."""
    sha256 = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": sha256}, indent=2).encode()


def cpu() -> str:
    """What the processor computes with: where it differs, last bits may."""
    return f"{torch.backends.cpu.get_cpu_capability()}"


def _entry(path: Path) -> list[Any]:
    return [path.stat().st_size, _sha256(path)]


class _FromNewerVersion(ModelFileError):
    """Whole, but not for this version: to go on from an older one would fork the run."""


def _manifest(path: Path) -> Any:
    manifest = _json(path)
    if not isinstance(manifest, dict):
        raise ValueError(f"{path.name} is no manifest")
    said = manifest.pop("sha256", None)
    if _sealed(manifest) != path.read_bytes():
        found = json.loads(_sealed(manifest))["sha256"]
        raise ValueError(f"{path.name} has SHA-256 {found}, it says {said!s:.64}")
    return manifest


def _verify(path: Path, size: int, sha256: str) -> None:
    there = path.stat().st_size
    if there != size:
        raise ValueError(f"{path.name} has {there} bytes, its manifest says {size}")
    found = _sha256(path)
    if found != sha256:
        raise ValueError(f"{path.name} has SHA-256 {found}, its manifest says {sha256}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path.name} is larger than {MAX_JSON} bytes")
    return json.loads(path.read_bytes())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{Path(str(error.filename)).name}: " if error.filename else ""
        return f"{where}{cause(error)}"
    return first_line(error) if isinstance(error, ValueError) else f"{error!r:.100}"


def _size(directory: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in directory.iterdir())
    return 0

"""The compiled loop: all minibatches of an update in one call of native code.

The tape of one step is compiled once, ahead of time, by AOTInductor, in a child process
(``aot_build.py``). The file lies in a directory that only its user can write, under a name that
hashes everything it hangs on: the operators with their constants and shapes, torch, the processor
and the builder. It is native code, so no other file is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upslope.optim import torch_parts
from upslope.optim.minibatches import Columns, Minibatches
from upslope.optim.replay import PureStep, Stop, Taken, stops_at
from upslope.optim.tape import Tape, numbers_agree, record
from upslope.optim.tidy import tidied
from upslope.optim.torch_parts import Unavailable

log = logging.getLogger("upslope")
BUILDER = ("aot_build.py", "tape.py", "torch_parts.py")  # what makes native code of a tape
MOST_BUILDS = 4  # that one gradient step may ask for, of as many shapes
PROVEN_STEPS = 2  # of a loaded loop that are compared with the eager step's


class AotEngine:
    """Loops that were built or found, by the key of what they hang on."""

    def __init__(self) -> None:
        self._loops: dict[Hashable, _Loop] = {}

    def run(
        self,
        key: Hashable,
        step: PureStep,
        state: tuple[Tensor, ...],
        columns: Columns,
        minibatches: Minibatches,
        until: Stop | None,
    ) -> Taken:
        """Take a step a minibatch; those before the one at which ``until`` said True.

        The loop cannot stop by itself, so a stop runs it once more, up to there.

        Raises:
            Unavailable: where there is no such loop; nothing has been done.
        """
        kind = minibatches.in_order, minibatches.is_padded
        key = (key, minibatches.rows.shape, len(columns.rows[0]), kind)
        if key not in self._loops:
            if len(self._loops) >= MOST_BUILDS:
                raise Unavailable("its shapes change, and each would be compiled anew")
            self._loops[key] = _prepared(step, state, columns, minibatches)
        loop, most = self._loops[key], len(minibatches)
        after, metrics = loop(most, step, state, columns, minibatches)
        at = stops_at(metrics, until)
        if at is not None:
            return Taken(loop(at, step, state, columns, minibatches)[0], metrics[: at + 1], at)
        return Taken(after, metrics, most)


class _Loop:
    """A loaded package, and the constants of its tape."""

    def __init__(self, tape: Tape, path: Path, is_padded: bool) -> None:
        self._run, self._tape = torch_parts.load_package(str(path)), tape
        self._is_padded = is_padded

    def __call__(
        self,
        n: int,
        step: PureStep,
        state: Sequence[Tensor],
        columns: Columns,
        minibatches: Minibatches,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        given = _arguments(step, state, columns, minibatches, self._tape, self._is_padded)
        *after, metrics = self._run([torch.tensor(n), *given])
        return tuple(after), metrics


def _prepared(
    step: PureStep, state: tuple[Tensor, ...], columns: Columns, minibatches: Minibatches
) -> _Loop:
    """Record the step, find or build its loop, and hold that against the step."""
    is_padded = minibatches.is_padded
    some = columns.first(minibatches)
    results, tape = record(step, [x.detach() for x in (*state, *step.numbers, *some)])
    if isinstance(tape, Unavailable):
        raise tape
    tape = tidied(tape)
    given = _arguments(step, state, columns, minibatches, tape, is_padded)
    spec = {
        "tape": tape.to_json(),
        "n_state": len(state),
        "n_numbers": len(step.numbers),
        "n_columns": len(columns.rows),
        "n_per_step": len(columns.per_step),
        "valid": columns.valid,
        "n_metrics": len(results[-1]),
        "is_padded": is_padded,
        "in_order": minibatches.in_order,
        "n_steps": len(minibatches),
        "metrics_dtype": str(results[-1].dtype).removeprefix("torch."),
        "arguments": [
            [list(x.shape), str(x.dtype).removeprefix("torch.")] for x in (torch.tensor(0), *given)
        ],
    }
    path = _found_or_built(spec)
    try:
        loop = _Loop(tape, path, is_padded)
    except Unavailable:
        path.unlink(missing_ok=True)  # damaged: it is built anew, once
        loop = _Loop(tape, _found_or_built(spec), is_padded)
    try:
        _prove(loop, step, state, columns, minibatches)
    except RuntimeError as error:  # of native code
        raise Unavailable(f"the compiled loop failed: {error}") from error
    return loop


def _arguments(
    step: PureStep,
    state: Sequence[Tensor],
    columns: Columns,
    minibatches: Minibatches,
    tape: Tape,
    is_padded: bool,
) -> list[Tensor]:
    """What the loop takes after n, contiguous as it was compiled for."""
    order = [] if minibatches.in_order else [minibatches.rows.flatten(0, 1)]
    if is_padded:
        order.append(minibatches.present.repeat(minibatches.rows.shape[0], 1))
    constants = [x.detach() for x in tape.constants]
    given = [*state, *step.numbers, *order, *columns.rows, *columns.per_step, *constants]
    return [x.contiguous() for x in given]


def _prove(
    loop: _Loop,
    step: PureStep,
    state: tuple[Tensor, ...],
    columns: Columns,
    minibatches: Minibatches,
) -> None:
    """Raise Unavailable unless the first steps of the loop are those of the eager step."""
    n, expected = min(PROVEN_STEPS, len(minibatches)), state
    seen: list[Tensor] = []
    for _, (rows, _) in zip(range(n), columns.minibatches(minibatches), strict=False):
        *after, metrics = step(*expected, *step.numbers, *rows)
        expected = tuple(after)
        seen.append(metrics)
    found, record = loop(n, step, state, columns, minibatches)
    if not numbers_agree((*expected, torch.stack(seen)), (*found, record[:n])):
        raise Unavailable("the compiled loop gave other numbers than the step")


def _found_or_built(spec: dict[str, Any]) -> Path:
    """Return the package of a loop, from the cache or made for it.

    Raises:
        Unavailable: if it cannot be built, or the cache is not the user's own.
    """
    text = json.dumps(spec, sort_keys=True)
    here = Path(__file__).parent
    builder = "\n".join((here / name).read_text() for name in BUILDER)
    named = hashlib.sha256("\n".join([text, builder, *_machine()]).encode()).hexdigest()
    directory = cache_directory()
    path = directory / f"{named}.pt2"
    if not path.exists():
        log.warning("compiling the gradient step, once: this takes a while (%s)", path)
        try:
            _build(text, directory, path)
        except OSError as error:  # a full disk, a cache that is cleared meanwhile
            raise Unavailable(f"the cache {directory} cannot be written: {error}") from error
    return path


def _machine() -> list[str]:
    """What native code hangs on: torch, the machine, and what its processor can do."""
    flags = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return [torch.__version__, platform.platform(), torch.backends.cpu.get_cpu_capability(), flags]


def cache_directory() -> Path:
    """The directory of compiled loops, ``$XDG_CACHE_HOME/upslope`` or ``~/.cache/upslope``.

    Raises:
        Unavailable: if it cannot be made, or someone else could write native code into it.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise Unavailable("there is no home for the cache: set XDG_CACHE_HOME") from error
    directory = Path(home) / "upslope"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = directory.stat()
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"the cache {directory} cannot be made: {error}") from error
    if held.st_uid != os.getuid() or held.st_mode & 0o077:
        raise Unavailable(f"the cache {directory} is not private: chmod 700, and own it")
    return directory


def _build(spec: str, directory: Path, path: Path) -> None:
    """Build in a child process, beside the place, and rename into it when all went well."""
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise Unavailable("there is no C++ compiler: install g++")
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        given, made = Path(scratch) / "spec.json", Path(scratch) / "loop.pt2"
        given.write_text(spec)
        child = subprocess.run(
            [sys.executable, "-P", "-m", "upslope.optim.aot_build", str(given), str(made)],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": scratch, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is for the run
        )
        if child.returncode or not made.exists():
            said = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
            raise Unavailable(f"the compiler failed: {said[-1]:.200}")
        made.replace(path)

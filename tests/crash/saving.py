"""A process with everything imported that forks a child per save, for a test to kill or starve.

Each line it reads is JSON: ``{"do": "checkpoint", "folder": ..., "go": ..., "limit": ...}``. It
answers with the child's id. The child waits for the file ``go``, saves under RLIMIT_FSIZE where
there is a limit, and ends with 0, or with the error's exit code after sending its sentence to the
socket ``go`` + ".socket": not by a write, which a test may be making fail.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

from upslope.errors import UpslopeError
from upslope.runs.checkpoint import OPTIM, POLICY, write_checkpoint
from upslope.runs.lock import RunLock
from upslope.runs.model_file import write_model


def save_checkpoint(folder: Path, number: int) -> None:
    """Write a checkpoint whose tensors are its number."""
    tensors = {"x": torch.full((300,), float(number))}

    def write(directory: Path) -> None:
        write_model(directory / POLICY, {}, tensors)
        write_model(directory / OPTIM, {}, tensors)

    state = {"scheduled": True, "number": number, "run": {"resumed": []}}
    write_checkpoint(folder, number, state, write)


def save_model(folder: Path, number: int) -> None:
    """Write a model file whose tensors are its number."""
    write_model(folder / "model.safetensors", {}, {"x": torch.full((300,), float(number))})


def hold_lock(folder: Path, number: int) -> None:
    """Take the lock, say so, and keep it until the file ``release`` is there."""
    RunLock(folder)
    (folder / f"won-{os.getpid()}").touch()
    while not (folder / "release").exists():
        time.sleep(0.002)


def main() -> None:
    """Fork for each line until there is none; what a save imports is there before."""
    with tempfile.TemporaryDirectory() as scratch:
        save_checkpoint(Path(scratch), 0)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_child(asked))
        print(child, flush=True)
        _, status = os.waitpid(child, 0) if asked.get("wait", True) else (0, 0)
        if asked.get("wait", True):
            print(os.waitstatus_to_exitcode(status), flush=True)


def _child(asked: dict[str, object]) -> int:
    go = Path(str(asked["go"]))
    while not go.exists():
        time.sleep(0.001)
    if "limit" in asked:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(str(asked["limit"])), -1))
    said = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        globals()[str(asked["do"])](Path(str(asked["folder"])), 2)
    except UpslopeError as error:
        said.sendto(str(error).encode(), f"{go}.socket")
        return error.exit_code
    return 0


if __name__ == "__main__":
    main()

"""Ctrl-C and SIGTERM at random moments of a run's life: exit code, time, checkpoint, resume.

    python bench/crash/signals.py                 # what is missing of 100 trials, two at a time

Moments are uniform in the processor time of the run's main thread, from the moment the process
handles signals to its exit: imports, environments, training, evaluation and report. Each finished
trial is one line of signals.csv, written at once: the same command goes on after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from disturbed import (
    CHECKPOINTS,
    RUN,
    Reference,
    difference,
    newest,
    reference,
    resume,
    train,
    where,
)
from trials import Plan, main

from upslope.runs.progress import read_rows

PLAN = {
    "CartPole PPO": 34,
    "CartPole PPO, async": 33,
    "Pendulum A2C, normalised, evaluated": 33,
}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GRACE = 5.0  # seconds that a process may take


def trial(known: Reference, folder: Path, setting: str, number: int) -> dict[str, str]:
    """Signal a run once, then see what it left and that it goes on."""
    rng = np.random.default_rng([number, 1, *setting.encode()])
    kind = (signal.SIGINT, signal.SIGTERM)[number % 2]
    while (ended := _signalled(known, folder, setting, kind, rng)) is None:
        shutil.rmtree(folder / RUN)  # it was over before its moment
    hit, seconds, failure = ended
    failure = failure or _left(folder / RUN, CODES[kind]) or _goes_on(known, folder, setting)
    return {
        "signal": kind.name,
        "hit": hit,
        "seconds": f"{seconds:.2f}",
        "failure": failure.strip(),
    }


def _signalled(
    known: Reference, folder: Path, setting: str, kind: signal.Signals, rng: np.random.Generator
) -> tuple[str, float, str] | None:
    """Send a signal at a random moment; return what was hit, the seconds taken and the fault."""
    process = train(folder, setting)
    process.wait_until(process.handles_signals)
    moment = process.processor_seconds() + rng.random() * known.since_handlers
    process.wait_until(lambda: process.processor_seconds() >= moment)
    if process.process.poll() is not None:
        process.end()
        return None
    hit, sent = where(folder / RUN), time.monotonic()
    pid = process.process.pid
    (os.killpg if rng.random() < 0.5 else os.kill)(pid, kind)  # a terminal's goes to the group
    code, said = process.end()
    seconds = time.monotonic() - sent
    if code == 0 and _is_over(folder / RUN):  # its work was done, and only Python tidied up
        hit = "over"
    elif code != CODES[kind]:
        return hit, seconds, f"exit {code} instead of {CODES[kind]} ({said})"
    if seconds > GRACE:
        return hit, seconds, f"took {seconds:.1f} s"
    if "Traceback" in said or "Exception ignored" in said or "Error" in said:
        return hit, seconds, f"said: {said}"
    return hit, seconds, "left an orphan" if process.has_orphans() else ""


def _left(run: Path, code: int) -> str:
    """Whether the newest checkpoint is of the last whole iteration, and run.json right."""
    if not (run / "config.json").exists():
        return ""
    state = json.loads((run / "run.json").read_bytes())
    rows = read_rows(run / "progress.csv")
    found = newest(run / CHECKPOINTS)
    if rows and int(rows[-1]["time/iterations"]) != found.number:
        return f"checkpoint {found.number} after row {rows[-1]['time/iterations']}"
    if found.is_scheduled != (found.number % found.state["training"]["checkpoint_every"] == 0):
        return f"checkpoint {found.number} is marked wrongly"
    if not _is_over(run) and (state["state"], state["exit_code"]) != ("interrupted", code):
        return f"run.json says {state['state']}, {state['exit_code']}"
    return ""


def _is_over(run: Path) -> bool:
    if not (run / "report.html").exists():
        return False
    return bool(json.loads((run / "run.json").read_bytes())["state"] == "finished")


def _goes_on(known: Reference, folder: Path, setting: str) -> str:
    """Resume both ways: exactly, and from where the signal stopped it."""
    if not (folder / RUN / "config.json").exists():
        code, said = train(folder, setting).end()
        return f"exit {code}: {said}" if code else difference(known.folder, folder / RUN)
    found = newest(folder / RUN / CHECKPOINTS)
    is_other = not found.is_scheduled and not found.state["finished"]
    if is_other:
        shutil.copytree(folder / RUN, folder / "other" / RUN)
        code, said = resume(folder / "other").end()
        if code or said.count("no longer the undisturbed run") != 1:
            return f"resume: exit {code}: {said}"
        if not (folder / "other" / RUN / "evaluation.json").exists():
            return "resume: no evaluation"
    code, said = resume(folder, *(["--exact"] if is_other else [])).end()
    if code:
        return f"resume --exact: exit {code}: {said}"
    if is_other:
        for path in (folder / RUN / CHECKPOINTS).glob("*.aside*"):
            shutil.rmtree(path)
    return difference(known.folder, folder / RUN)


if __name__ == "__main__":
    sys.exit(main(Plan("signals", __doc__, PLAN, reference, trial)))

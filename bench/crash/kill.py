"""Kill runs at random moments, resume them, and compare with the undisturbed run.

    python bench/crash/kill.py                    # what is missing of 240 trials, two at a time
    python bench/crash/kill.py --trials 4 --csv /tmp/kill.csv

Each finished trial is one line of kill.csv, written at once: the same command goes on after Ctrl-C.
kill.md is the table. Needs Linux, and the extra envpool for its rows.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from disturbed import RUN, Process, Reference, difference, reference, resume, train, where
from trials import Plan, main

PLAN = {
    "CartPole PPO": 50,
    "CartPole PPO, normalised, evaluated": 50,
    "Pendulum A2C": 50,
    "Pendulum A2C, normalised, evaluated": 50,
    "CartPole PPO, native": 20,
    "CartPole PPO, EnvPool": 20,
}
SEVERAL = 0.3  # share of the trials with two or three kills


def trial(known: Reference, folder: Path, setting: str, number: int) -> dict[str, str]:
    """Kill a run once or a few times, finish it, and say what is different and where it was hit.

    Moments are uniform in the processor time of the run's main thread: from the run directory to
    the exit, for a run that is resumed from the start of its process.
    """
    rng = np.random.default_rng([number, *setting.encode()])
    kills = 1 if rng.random() > SEVERAL else int(rng.integers(2, 4))
    hit: list[str] = []
    while len(hit) < kills:
        killed = _killed(known, folder, setting, rng)
        if killed:
            hit.append(killed)
        elif hit:  # finished before its next moment
            break
        else:
            shutil.rmtree(folder / RUN)
    code, said = _go_on(folder, setting).end()
    failure = f"exit {code}: {said}" if code else difference(known.folder, folder / RUN)
    return {"kills": str(len(hit)), "hit": "; ".join(hit), "failure": failure.strip()}


def _killed(known: Reference, folder: Path, setting: str, rng: np.random.Generator) -> str:
    """Kill the run at a random moment; return what it had reached, "" if it ended before."""
    is_first = not (folder / RUN).exists()
    process = _go_on(folder, setting)
    begin, life = 0.0, known.whole
    if is_first:
        process.wait_until((folder / RUN).exists)
        begin, life = process.processor_seconds(), known.since_directory
    moment = begin + rng.random() * life
    process.wait_until(lambda: process.processor_seconds() >= moment)
    is_alive = process.process.poll() is None
    process.process.kill()
    code, said = process.end()
    if code > 0:
        raise RuntimeError(f"exit {code} before it was killed: {said}")
    return where(folder / RUN) if is_alive and code < 0 else ""


def _go_on(folder: Path, setting: str) -> Process:
    is_run = (folder / RUN / "config.json").exists()
    return resume(folder) if is_run else train(folder, setting)


if __name__ == "__main__":
    sys.exit(main(Plan("kill", __doc__, PLAN, reference, trial)))

"""Train every row of the score table with several seeds and append one CSV line per finished run.

    python bench/scores/run.py                             # what is still missing, two at a time
    python bench/scores/run.py --row CartPole --seeds 0-9 --jobs 4

The policy scored is the final one, never a best checkpoint. Stop it with Ctrl-C and start it again:
runs that the CSV holds with the same settings are skipped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from results import PATH, SETTINGS, Job, append, unfinished
from rows import ROWS

EVALUATION_SEED = 1_000_000  # plus the training seed: episodes that training has not seen
PACKAGES = ("upslope", "torch", "gymnasium", "envpool", "mujoco")


def main() -> int:
    """Run what is missing; return 0 if nothing is then, 1 if a run failed, 130 on Ctrl-C."""
    asked = _arguments()
    rows = [row for row in ROWS if not asked.row or any(part in row.name for part in asked.row)]
    jobs = [
        Job(row, setting, seed)
        for setting in asked.settings
        for row in rows
        for seed in asked.seeds
    ]
    missing = jobs if asked.again else unfinished(jobs, asked.csv)
    print(f"{len(jobs)} runs asked for, {len(missing)} to do -> {asked.csv}", flush=True)
    try:
        failures = Scheduler(missing, asked.jobs, asked.csv).run()
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", flush=True)
        return 130
    return 1 if failures else 0


class Scheduler:
    """At most ``n_jobs`` runs at once, each in a process of its own with one thread."""

    def __init__(self, jobs: list[Job], n_jobs: int, path: Path) -> None:
        self.waiting, self.n_jobs, self.path = list(jobs), n_jobs, path
        self.total, self.done, self.failures = len(jobs), 0, 0
        self.running: dict[Connection, tuple[Job, BaseProcess]] = {}
        self.progress: dict[Connection, float] = {}

    def run(self) -> int:
        """Work until nothing waits or runs; return the number of runs that failed."""
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.n_jobs:
                    self._start(self.waiting.pop(0))
                for pipe in wait(list(self.running)):
                    self._receive(pipe)
                self._show()
        finally:
            for _, process in self.running.values():
                process.terminate()
        return self.failures

    def _start(self, job: Job) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_work, args=(job, theirs), daemon=True)
        process.start()
        theirs.close()
        self.running[ours], self.progress[ours] = (job, process), 0.0

    def _receive(self, pipe: Connection) -> None:
        """Take one message: the share that is trained, a finished run's record, or an error."""
        job, process = self.running[pipe]
        try:
            message = pipe.recv()
        except EOFError:
            message = RuntimeError("the process ended without a result")
        if isinstance(message, float):
            self.progress[pipe] = message
            return
        del self.running[pipe], self.progress[pipe]
        process.join()
        self.done += 1
        if isinstance(message, dict):
            append(message, self.path)
            scores = "  ".join(f"{name} {_text(message[name])}" for name in "TSD")
            self._say(f"{job}: {scores}  ({message['seconds']} s)")
        else:
            self.failures += 1
            self._say(f"{job} failed: {type(message).__name__}: {message}")

    def _say(self, line: str) -> None:
        clear = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{clear}[{self.done}/{self.total}] {line}", flush=True)

    def _show(self) -> None:
        """The progress line, on a terminal only."""
        if sys.stdout.isatty():
            parts = [f"{job} {self.progress[pipe]:.0%}" for pipe, (job, _) in self.running.items()]
            print(f"\r\033[K[{self.done}/{self.total}] {', '.join(parts)}", end="", flush=True)


def train(job: Job, tell: Any) -> dict[str, Any]:
    """Train and score one run; ``tell(share)`` hears how much of it is trained."""
    from upslope.agent import AGENTS

    row = job.row
    agent = AGENTS[row.algo](row.env, seed=job.seed, **job.given)
    started = time.perf_counter()
    agent.learn(row.steps, lambda event: tell(event.timesteps / row.steps))
    seconds = time.perf_counter() - started
    recent = [episode.ret for episode in agent.training.recent]
    score = agent.evaluate(100, seed=EVALUATION_SEED + job.seed)
    record = {
        "env": row.env,
        "algo": row.algo,
        "setting": job.setting,
        "seed": job.seed,
        "steps": row.steps,
        "T": round(sum(recent) / len(recent), 3) if recent else "",
        "S": round(score.sampled.mean, 3),
        "D": round(score.deterministic.mean, 3),
        "episodes": agent.training.episodes,
        "seconds": round(seconds, 1),
        "engine": f"{agent.training.envs.n_envs} x {agent.training.envs.engine.name}",
        "settings_hash": job.settings_hash,
        "settings": job.settings_json,
        "git_commit": _git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    agent.close()
    return record | {name: _version(name) for name in PACKAGES}


def _work(job: Job, pipe: Connection) -> None:
    """What a process of its own does: one run, its record or its error through the pipe."""

    def tell(share: float) -> None:
        nonlocal told
        if time.monotonic() > told + 1:
            told = time.monotonic()
            pipe.send(min(1.0, float(share)))

    told = 0.0
    try:
        pipe.send(train(job, tell))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        pipe.send(error)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", default=[], metavar="PART",
                        help="rows whose name (ENV/ALGO/STEPS) contains PART")  # fmt: skip
    parser.add_argument("--seeds", type=_seeds, default=_seeds("0-4"), help="such as 0-4 or 0,3")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS),
                        help="tuned settings, the plain defaults, or both (default)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--csv", type=Path, default=PATH, help="where the lines go")
    parser.add_argument("--again", action="store_true", help="also run what the CSV holds already")
    return parser.parse_args()


def _seeds(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return (
        list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]
    )


def _text(score: float | str) -> str:
    return f"{score:.1f}" if isinstance(score, float) else "none"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git_commit() -> str:
    """The commit, with a plus where the sources differ from it."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", "src") else "")


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    sys.exit(main())

"""How a run is started: a fresh process each, its environment, and the record of what came back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results import PACKAGES, Job

WORKERS = Path(__file__).parent / "workers"
FIRST_STEPS = {"CartPole-v1": 1024, "HalfCheetah-v5": 2048}  # one rollout of a preset, at least
RUN = "run"  # the run directory of a command, beside its output
SPAWNED = "UPSLOPE_BENCH_SPAWNED"  # tells a worker when its process was asked for
MOST_TRIES = 3  # to find every loop in the cache
MEBIBYTE = 1024  # of ru_maxrss, which counts KiB on Linux


class RunError(Exception):
    """A run that failed, or that did other work than was asked for; one sentence."""


class Contenders:
    """Starts runs one at a time, in a directory of its own that goes when it closes.

    ``--compile auto`` and ``never`` get an empty cache of compiled loops each time; ``always``
    gets one that a short run of the same row has filled before, outside the timing.
    """

    def __init__(self, sbx_python: str | None) -> None:
        self.sbx_python = sbx_python
        self.scratch = Path(tempfile.mkdtemp(prefix="upslope-bench-"))
        self._child: subprocess.Popen[bytes] | None = None
        self._filled: set[str] = set()

    def __enter__(self) -> Contenders:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, job: Job) -> dict[str, Any]:
        """Run a job to its end and return its line.

        Raises:
            RunError: if the process failed, or reported other settings than the row's.
        """
        load, cache = os.getloadavg()[0], self.scratch / "empty"
        if job.compile == "always":
            found = self._run_with_filled_cache(job)
        else:
            shutil.rmtree(cache, ignore_errors=True)
            found = self._start(job, cache)
        if job.row.kind == "rate":
            check_facts(found["facts"], job)
        return record(job, found, load)

    def stop(self) -> None:
        """End the run that is going on, with every process it started."""
        if self._child is not None and self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def _run_with_filled_cache(self, job: Job) -> dict[str, Any]:
        """Run a job that finds all its loops built; one that had to build any is run once more."""
        cache = self.scratch / "filled"
        if job.row.name not in self._filled:
            self._start(job, cache, warms_up=True)
            self._filled.add(job.row.name)
        for _ in range(MOST_TRIES):
            before = set(cache.rglob("*.pt2"))
            found = self._start(job, cache)
            if set(cache.rglob("*.pt2")) == before:
                return found
        raise RunError("each run compiled loops anew, so there is none with a filled cache")

    def start_worker(
        self, script: str, given: dict[str, Any], threads: int, python: str = sys.executable
    ) -> dict[str, Any]:
        """Run a worker script with the filled cache and return its answer.

        Raises:
            RunError: if it failed.
        """
        command = [python, str(WORKERS / script), json.dumps(given)]
        home, _ = self._process(command, self.scratch / "filled", threads)
        return _answer(home)

    def _start(self, job: Job, cache: Path, *, warms_up: bool = False) -> dict[str, Any]:
        """Run one process; return what it found, with its seconds from the start to the exit."""
        is_command = job.contender == "upslope" and job.row.kind != "rate"
        command = _train_command(job, warms_up) if is_command else self._worker(job, warms_up)
        home, about = self._process(command, cache, job.row.threads)
        if not is_command:
            return _answer(home) | {"wall_seconds": about["wall_seconds"]}
        return about if warms_up else _of_run_directory(home / RUN, job, about) | about

    def _process(
        self, command: list[str], cache: Path, threads: int
    ) -> tuple[Path, dict[str, float]]:
        """Run a command to its end in a directory of its own; return that, and what it took."""
        cache.mkdir(mode=0o700, exist_ok=True)
        home = Path(tempfile.mkdtemp(dir=self.scratch))
        environment = os.environ | threads_of(threads) | {"XDG_CACHE_HOME": str(cache)}
        with (home / "stdout").open("wb") as stdout, (home / "stderr").open("wb") as stderr:
            spawned, started = time.time(), time.perf_counter()
            environment[SPAWNED] = str(spawned)
            self._child = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, cwd=home, env=environment,
                start_new_session=True,
            )  # fmt: skip
            _, status, usage = os.wait4(self._child.pid, 0)
            wall = time.perf_counter() - started
            self._child.returncode = os.waitstatus_to_exitcode(status)
        if self._child.returncode:
            said = (home / "stderr").read_text(errors="replace").strip().splitlines()
            raise RunError(f"exit code {self._child.returncode}: {(said or [''])[-1]:.300}")
        peak = round(usage.ru_maxrss / MEBIBYTE, 1)
        return home, {"spawned": spawned, "wall_seconds": wall, "peak_mb": peak}

    def _worker(self, job: Job, warms_up: bool) -> list[str]:
        """The command of a worker script."""
        row = job.row
        given = {
            "algorithm": row.algorithm, "env": row.env, "n_envs": row.n_envs, "seed": job.round,
            "steps": 1 if warms_up else job.steps, "settings": row.settings,
            "compile": job.compile, "threads": row.threads, "stop_return": row.stop_return,
        }  # fmt: skip
        script = {"upslope": "ours.py", "sb3": "peer_sb3.py", "sbx": "peer_sbx.py"}[job.contender]
        if row.kind == "solve":
            script = "solve_sb3.py"
        python = self.sbx_python if job.contender == "sbx" else sys.executable
        return [str(python), str(WORKERS / script), json.dumps(given)]


def _answer(home: Path) -> dict[str, Any]:
    """The last line that a worker printed."""
    found: dict[str, Any] = json.loads((home / "stdout").read_text().splitlines()[-1])
    return found


def sbx_is_there(python: str | None) -> bool:
    """Whether an interpreter can import SBX."""
    if python is None:
        return False
    try:
        found = subprocess.run([python, "-c", "import sbx"], capture_output=True, check=False)
    except OSError:
        return False
    return found.returncode == 0


def threads_of(n: int) -> dict[str, str]:
    """The environment variables that hold numerical libraries, XLA's too, to ``n`` threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    eigen = "true" if n > 1 else "false"
    return dict.fromkeys(names, str(n)) | {"XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={eigen}"}


def check_facts(found: dict[str, Any], job: Job) -> None:
    """Raise RunError unless a contender did the work that the row says."""
    wrong = [
        f"{name} was {found.get(name)!r}, not {value!r}"
        for name, value in job.row.facts.items()
        if found.get(name) != value
    ]
    if wrong:
        raise RunError("the run did other work than its row says: " + "; ".join(wrong))


def record(job: Job, found: dict[str, Any], load: float) -> dict[str, Any]:
    """The line of a finished run."""
    seconds = found["seconds"]
    return {
        "row": job.row.name,
        "contender": job.contender,
        "compile": job.compile,
        "round": job.round,
        "seed": job.round,
        "quick": "yes" if job.quick else "",
        "steps": found["steps"],
        "seconds": round(seconds, 4),
        "wall_seconds": round(found["wall_seconds"], 4),
        "steps_per_s": round(found["steps"] / seconds, 1),
        "peak_mb": found["peak_mb"],
        **{name: found.get(name, "") for name in ("engine", "vec", "reached")},
        **{name: found.get(name, "") for name in ("score_sampled", "score_mode")},
        "threads": job.row.threads,
        "load_average": round(load, 2),
        "cpu": cpu_model(),
        "settings_hash": job.settings_hash,
        "settings": job.settings_json,
        **{name: found["versions"].get(name, "") for name in PACKAGES},
        "git_commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """What the processor calls itself, and how many cores there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} cores"


def git_commit() -> str:
    """The commit, with a plus where the sources differ from it."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", "src") else "")


def _train_command(job: Job, warms_up: bool) -> list[str]:
    """The plain command; only what a benchmark has to know about it is added."""
    row = job.row
    beside = Path(sys.executable).with_name("upslope")
    command = [str(beside)] if beside.exists() else [sys.executable, "-m", "upslope"]
    command += ["train", row.env, "--seed", str(job.round), "--run-dir", RUN]
    command += [] if job.compile == "auto" else ["--compile", job.compile]
    if warms_up:
        return [*command, "--total-timesteps", str(FIRST_STEPS[row.env]), "--episodes", "0"]
    if row.stop_return is not None:
        return [*command, "--stop-return", f"{row.stop_return:g}"]
    return [*command, "--total-timesteps", str(job.steps)]


def _of_run_directory(path: Path, job: Job, about: dict[str, float]) -> dict[str, Any]:
    """What a run directory says; training is over when progress.csv got its last row.

    ``seconds`` are from the process's start to the return, or else to the end of training.
    """
    run, config, score = (
        json.loads((path / f"{name}.json").read_text()) for name in ("run", "config", "evaluation")
    )
    is_reached = run["time_to_return"] is not None
    solved = job.row.kind == "solve" and is_reached
    trained = (path / "progress.csv").stat().st_mtime - about["spawned"]
    return {
        "seconds": run["time_to_return"] if solved else trained,
        "steps": run["steps_to_return"] if solved else run["timesteps"],
        "engine": config["gradient_step_engine"],
        "vec": config["engine"]["name"],
        "reached": ("yes" if is_reached else "no") if job.row.kind == "solve" else "",
        "score_sampled": round(score["sampled"]["mean"], 3),
        "score_mode": round(score["deterministic"]["mean"], 3),
        "versions": {name.replace("-", "_"): x for name, x in config["versions"].items()},
    }

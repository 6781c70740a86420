"""Many trials, a few at a time: one CSV line each, at once, and a table of them."""

from __future__ import annotations

import argparse
import csv
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from disturbed import Reference

import upslope

HERE = Path(__file__).parent
KEYS = ("setting", "trial")
Trial = Callable[[Reference, Path, str, int], dict[str, str]]


@dataclass(frozen=True)
class Plan:
    """A suite: its name and documentation, trials per setting, and how a trial goes."""

    name: str
    about: str
    trials: dict[str, int]
    reference: Callable[[Path, str], Reference]
    trial: Trial


def main(plan: Plan) -> int:
    """Do what is missing; 0 if every trial went well, 1 if one failed, 130 on Ctrl-C."""
    asked = _arguments(plan)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which trials would inherit
    wanted = [
        (setting, number)
        for setting, count in plan.trials.items()
        if asked.setting in setting
        for number in range(count if asked.trials is None else asked.trials)
    ]
    done = {(line["setting"], int(line["trial"])) for line in read(asked.csv)}
    missing = [each for each in wanted if each not in done]
    print(f"{len(wanted)} trials asked for, {len(missing)} to do -> {asked.csv}", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="upslope-crash-") as scratch:
            _run(plan, missing, asked.jobs, Path(scratch), asked.csv)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", flush=True)
        return 130
    lines = read(asked.csv)
    asked.csv.with_suffix(".md").write_text(table(lines))
    print(table(lines), end="")
    return int(any(line["failure"] for line in lines))


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(lines: list[dict[str, str]]) -> str:
    """The Markdown: trials, disturbances and failures of each setting, and each failure below."""
    head = ("run", "trials", "as the undisturbed run", "failed")
    rows = [head, ("---",) * len(head)]
    for setting in sorted({line["setting"] for line in lines}):
        of_it = [line for line in lines if line["setting"] == setting]
        failed = sum(bool(line["failure"]) for line in of_it)
        rows.append((setting, str(len(of_it)), str(len(of_it) - failed), str(failed)))
    failed = sum(bool(line["failure"]) for line in lines)
    rows.append(("all", str(len(lines)), str(len(lines) - failed), str(failed)))
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
    for line in lines:
        if line["failure"]:
            first = line["failure"].splitlines()[0]
            text += f"\n* {line['setting']}, trial {line['trial']}: {first}"
    return text


def _run(plan: Plan, missing: list[tuple[str, int]], jobs: int, scratch: Path, path: Path) -> None:
    """Run trials; the undisturbed run of a setting comes before its first."""
    known: dict[str, Reference] = {}
    locks = {setting: threading.Lock() for setting, _ in missing}

    def one(setting: str, number: int) -> dict[str, str]:
        with locks[setting]:
            if setting not in known:
                name = f"reference-{sorted(locks).index(setting)}"
                known[setting] = plan.reference(scratch / name, setting)
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            found = plan.trial(known[setting], folder, setting, number)
        except (RuntimeError, upslope.UpslopeError, OSError, ValueError) as error:
            found = {"failure": f"{type(error).__name__}: {error}"}
        shutil.rmtree(folder, ignore_errors=True)
        return {"setting": setting, "trial": str(number), **found}

    pool = ThreadPoolExecutor(jobs)
    waiting: set[Future[dict[str, str]]] = {pool.submit(one, *each) for each in missing}
    done = failed = 0
    try:
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                line = future.result()
                append(line, path)
                done += 1
                failed += bool(line["failure"])
                _show(done, len(missing), failed, line)
    finally:
        pool.shutdown(cancel_futures=True)


def append(line: dict[str, str], path: Path) -> None:
    """Add a line; a file that is new begins with the names."""
    stamped = {
        **line,
        "version": upslope.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    names = ["setting", "trial", "kills", "signal", "hit", "seconds", "failure", "version", "date"]
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(stamped)


def _show(done: int, total: int, failed: int, line: dict[str, str]) -> None:
    """A bar on a terminal, elsewhere a line for each failure and each tenth trial."""
    if sys.stdout.isatty():
        filled = 30 * done // total
        bar = "#" * filled + "." * (30 - filled)
        print(f"\r\033[K[{bar}] {done}/{total}, {failed} failed", end="", flush=True)
        if done == total:
            print()
    elif line["failure"] or done % 10 == 0 or done == total:
        print(f"{done}/{total}, {failed} failed {line['failure']}", flush=True)


def _arguments(plan: Plan) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=plan.about.splitlines()[0])
    parser.add_argument("--setting", default="", help="settings whose name contains this")
    parser.add_argument("--trials", type=int, help="of each setting (default: the plan's)")
    parser.add_argument("--jobs", type=int, default=2, help="at once (default: 2)")
    parser.add_argument("--csv", type=Path, default=HERE / f"{plan.name}.csv")
    return parser.parse_args()

"""Put every fault of tests/lab/mutations.py into the shipped code, run every layer's checks.

python bench/lab/mutations.py [--only WORDS] [--layers NAMES]

Appends to mutations.csv one line per fault and check, skips what is there already for the same
changed line, and writes mutations.md, whose last line says whether clean code raises anything. All
of it takes about a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
TESTS = HERE.parents[1] / "tests"
sys.path[:0] = [str(TESTS / "lab"), str(TESTS / "helpers")]

from layers import LAYERS, alarm  # noqa: E402
from layers.sampled import SEED  # noqa: E402
from mutations import FAULTS, Fault, injected  # noqa: E402

CSV, TABLE = HERE / "mutations.csv", HERE / "mutations.md"
COLUMNS = ("fault", "source", "place", "old", "new", "layer", "check", "caught", "said", "seconds")
SIZES = {"two lengths": 0.1}  # 500 batches instead of 5,000: no fault here needs more
CLEAN = Fault("none", "clean code", "", "", "", ())

Line = dict[str, str]


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the faults' names")
    parser.add_argument("--layers", default=",".join(LAYERS), help="separated by commas")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no check after so many")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    finished, deadline = read(), time.monotonic() + asked.seconds
    for fault in (*FAULTS, CLEAN):
        for layer in asked.layers.split(","):
            for check in LAYERS[layer]:
                known = find(fault, layer, check, finished)
                if known or asked.only not in fault.name or time.monotonic() > deadline:
                    continue
                finished.append(run(fault, layer, check))
                append(finished[-1])
    TABLE.write_text(table(finished))
    print(table(finished), end="")


def run(fault: Fault, layer: str, check: str) -> Line:
    """One check against one fault."""
    given = {"size": SIZES[check]} if check in SIZES else {}
    started = time.process_time()
    with injected(fault) if fault is not CLEAN else contextlib.nullcontext():
        said = alarm(LAYERS[layer][check], **given)
    seconds = time.process_time() - started
    known = (fault.name, fault.source, fault.place, fault.old.strip(), fault.new.strip())
    found = (layer, check, "no" if said is None else "yes", said or "", f"{seconds:.1f}")
    return dict(zip(COLUMNS, (*known, *found), strict=True))


def read() -> list[Line]:
    """Lines of the CSV that are there already."""
    if not CSV.exists():
        return []
    with CSV.open(newline="") as file:
        return list(csv.DictReader(file))


def append(line: Line) -> None:
    """Add one line to the CSV, with its head if it is the first."""
    is_new = not CSV.exists()
    with CSV.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(line)


def find(fault: Fault, layer: str, check: str, finished: list[Line]) -> Line | None:
    """The line of one fault, as it is now, and one check."""
    wanted = (fault.name, fault.place, fault.old.strip(), fault.new.strip(), layer, check)
    for line in finished:
        keys = ("fault", "place", "old", "new", "layer", "check")
        if tuple(line[key] for key in keys) == wanted:
            return line
    return None


def table(finished: list[Line]) -> str:
    """The Markdown: fault x layer, what no layer saw, and the changed lines."""
    rows = [("fault", "from", *LAYERS), ("---",) * (2 + len(LAYERS))]
    rows += [
        (fault.name, fault.source, *(cell(fault, layer, finished) for layer in LAYERS))
        for fault in FAULTS
    ]
    lines = [
        "# Faults put into the shipped code, and the layers of tests that catch them",
        "",
        f"Made by `python bench/lab/mutations.py` with seed {SEED}. A cell says how many of the",
        "layer's checks raise; - is none. An alarm of the library itself (`StaleRolloutError`)",
        'counts for the layer "ratio". Sampling decides in two stages, by the sizes of',
        "`tests/lab/layers/sampled.py` (500 batches for the two lengths).",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(blind(layer, finished) for layer in LAYERS),
        "",
        "## The changed lines",
        "",
        "| fault | place | shipped | changed |",
        "| --- | --- | --- | --- |",
        *(changed(fault) for fault in FAULTS),
        "",
        *verdict(finished),
    ]
    return "\n".join(lines) + "\n"


def cell(fault: Fault, layer: str, finished: list[Line]) -> str:
    """How many checks of a layer caught a fault, of those that were run."""
    lines = [find(fault, layer, check, finished) for check in LAYERS[layer]]
    ran = [line for line in lines if line is not None]
    caught = sum(line["caught"] == "yes" for line in ran)
    if not ran:
        return "not run"
    return f"{caught} of {len(ran)}" if caught else "-"


def blind(layer: str, finished: list[Line]) -> str:
    """One line on what a layer does not see."""
    names = [fault.name for fault in FAULTS if cell(fault, layer, finished) == "-"]
    if all(cell(fault, layer, finished) == "not run" for fault in FAULTS):
        return f"* Not run: {layer}."
    return f"* Not seen by {layer} ({len(names)} of {len(FAULTS)}): {', '.join(names) or 'none'}."


def changed(fault: Fault) -> str:
    """One row of the list of changed lines."""
    cells = (f"`{text.strip()}`".replace("|", "\\|") for text in (fault.old, fault.new))
    return f"| {fault.name} | `upslope.{fault.place}` | {' | '.join(cells)} |"


def verdict(finished: list[Line]) -> list[str]:
    """What was caught, and the last line: whether clean code raises."""
    missed = [
        fault.name
        for fault in FAULTS
        if not any(" of " in cell(fault, layer, finished) for layer in LAYERS)
    ]
    said = f"Caught: {len(FAULTS) - len(missed)} of {len(FAULTS)} faults"
    said += f"; not: {', '.join(missed)}." if missed else "."
    lines = [find(CLEAN, layer, check, finished) for layer in LAYERS for check in LAYERS[layer]]
    ran = [line for line in lines if line is not None]
    raised = [f"{line['layer']}: {line['check']}" for line in ran if line["caught"] == "yes"]
    clean = f"raise on clean code: {', '.join(raised)}" if raised else "none raises on clean code"
    return [said, f"Of {len(ran)} checks on clean code:", "", clean]


if __name__ == "__main__":
    main()

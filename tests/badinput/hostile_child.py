"""A process that is given files to load, and writes down what came of each and what it did.

`python hostile_child.py FILES.json`, a list of [name, path]. One line of JSON a file: the class and
words of what was raised (null where the file was loaded), processor seconds, megabytes above what
the process took before, and every audit event that is more than reading the file.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import hostile_files
import torch
from golden_models import FACTORIES, Features

import upslope

# What would mean that something in a file was run, or that another file was touched.
WATCHED = (
    "exec", "compile", "import", "open", "os.", "subprocess.", "pickle.", "marshal.", "shutil.",
    "socket.", "ctypes.", "code.", "urllib.", "tempfile.", "webbrowser.", "shelve.", "glob.",
)  # fmt: skip
# The file by its number, and how the installed version is looked up.
PYTHON = [folder for folder in sys.path if "lib/python" in folder]
OWN = ("open (3,", *(f"{call} ('{at}" for at in PYTHON for call in ("open", "os.listdir")))
LIMIT = 8 * 2**30  # bytes of address space: no file may ask for more than the machine has
events: list[str] = []
watching = False


def note(event: str, arguments: Any) -> None:
    if watching and event.startswith(WATCHED):
        events.append(f"{event} {str(arguments)[:120]}")


def peak() -> float:
    """Megabytes that the process took at most since the last call of :func:`reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def try_file(name: str, path: str) -> dict[str, Any]:
    """Load one file, watched."""
    global watching
    policy = Features if name.startswith("features_units") or name == "features_memory" else None
    load: Any = pickle_load if name.startswith("canary") else upslope.load
    events.clear()
    reset_peak()
    before = peak()
    raised, words = None, ""
    start = time.process_time()
    watching = True
    try:
        agent = load(path, policy=policy)
        assert agent is None or agent.source is None, "an environment is believed"
    except Exception as error:
        raised, words = type(error).__name__, str(error)
    watching = False
    seconds = time.process_time() - start
    own = (f"open ('{path}'", *OWN)
    more = [event for event in events if not event.startswith(own)]
    return {
        "name": name, "raised": raised, "words": words, "seconds": seconds,
        "megabytes": peak() - before, "events": more,
    }  # fmt: skip


def pickle_load(path: str, policy: Any) -> None:
    """What a careless loader does: the watch must see it."""
    with open(path, "rb") as file:
        pickle.load(file)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    sys.addaudithook(note)
    for path in hostile_files.good_models():  # what is imported when first needed, is now
        upslope.load(path, policy=FACTORIES.get(path.stem.removeprefix("format2_")))
    metadata.version("upslope")
    os.chdir(Path(sys.argv[1]).parent)  # where the traps lie
    for name, path in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(try_file(name, path)), flush=True)


if __name__ == "__main__":
    main()

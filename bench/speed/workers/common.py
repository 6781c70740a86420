"""What the worker scripts share: the job from the command line, one JSON line as the answer."""

from __future__ import annotations

import json
import resource
import sys
from importlib import metadata
from typing import Any


def job() -> dict[str, Any]:
    """The job: algorithm, env, n_envs, steps, seed, settings, threads and ``compile``."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def answer(**found: Any) -> None:
    """Print the last line of standard output: what was found, peak memory (MiB) and versions."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found | {"peak_mb": round(peak, 1), "versions": versions()}), flush=True)


def versions() -> dict[str, str]:
    """Distribution -> version of everything installed beside this interpreter."""
    named = ((x.metadata["Name"], x.version) for x in metadata.distributions())
    return {name.replace("-", "_").lower(): version for name, version in named if name}

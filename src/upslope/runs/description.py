"""What a run was asked to do and where: its place, config.json and command.txt."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.runs.policy_file import versions
from upslope.training import threads_of

if TYPE_CHECKING:
    from upslope.agent import Agent


def default_path(env_name: str, algorithm: str, seed: int) -> Path:
    """Return ``runs/<env>__<algo>__s<seed>__<stamp>`` with what file systems dislike replaced."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return unused(Path("runs") / f"{file_name(env_name)}__{algorithm}__s{seed}__{stamp}")


def file_name(text: str) -> str:
    """Return ``text`` as one harmless path component of at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "env"


def unused(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def describe(
    agent: Agent, total_timesteps: int, command: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return config.json: the complete, resolved settings, and what they were resolved with."""
    training, source = agent.training, agent.source
    engine = training.envs.engine
    training.plan(total_timesteps)
    return {
        "environment": {
            "name": source.name if source else None,
            "id": source.id if source else None,
            "is_registered": bool(source and source.is_registered),
            "reward_threshold": source.reward_threshold if source else None,
        },
        "engine": {
            "name": engine.name,
            "autoreset": engine.autoreset.value,
            "established": getattr(engine, "established", None),
        },
        "gradient_step_engine": training.gradient_step_engine,
        "algorithm": agent.config.algorithm,
        "total_timesteps": total_timesteps,
        "checkpoint_every": training.checkpoint_every,
        "log_every": training.log_every,
        "snr_every": training.snr_every,
        "device": str(agent.policy.device),
        "torch_threads": threads_of(agent.config, agent.policy),
        "settings": agent.config.to_json(),
        "command": dict(command or {}),
        "versions": versions(),
        "git_commit": _git_commit(),
    }


def seconds_since_process_start() -> float:
    """Seconds since this process started (Linux); elsewhere the processor time it has used."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return up - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()


def command_line() -> list[str]:
    """The command that started this process, as it can be typed again."""
    return (
        ["upslope", *sys.argv[1:]]
        if Path(sys.argv[0]).name in ("upslope", "__main__.py")
        else sys.argv
    )


def _git_commit() -> str | None:
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def now() -> str:
    """This moment as run.json says it."""
    return datetime.now(UTC).isoformat(timespec="seconds")

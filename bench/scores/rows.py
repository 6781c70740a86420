"""The rows of the score table: what is trained, how it is scored, and what it has to reach."""

from __future__ import annotations

from dataclasses import dataclass

METRICS = {
    "T": "mean return of the last 100 training episodes (sampled actions)",
    "S": "final policy, 100 fresh episodes, sampled actions",
    "D": "final policy, 100 fresh episodes, mode of each distribution",
}


@dataclass(frozen=True)
class Row:
    """One task.

    ``passes`` and ``match`` are figures for the mean of the seeds, ``floor`` for the worst seed.
    """

    env: str
    algo: str
    steps: int
    metric: str
    passes: float
    match: float
    floor: float | None = None

    @property
    def name(self) -> str:
        """How the command line names it: ``CartPole-v1/ppo``."""
        return f"{self.env}/{self.algo}"


# `match` is what the best published run of a task, or a peer library that was run here, reaches
# after as many steps; `passes` is what a correct program reaches at least.
ROWS = (
    Row("CartPole-v1", "ppo", 100_000, "D", 450, 475, floor=400),
    Row("CartPole-v1", "reinforce", 200_000, "T", 430, 483),
    Row("Acrobot-v1", "ppo", 300_000, "T", -90, -83),
    Row("Pendulum-v1", "ppo", 100_000, "D", -250, -175),
    Row("InvertedPendulum-v5", "ppo", 200_000, "D", 950, 1000),
    Row("HalfCheetah-v5", "ppo", 500_000, "S", 1400, 4000),
)

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
        """How the command line names it: ``CartPole-v1/ppo/100k``."""
        return f"{self.env}/{self.algo}/{self.steps // 1000}k"


# `match` is what the best published run of a task, or a peer library that was run here, reaches
# after as many steps; `passes` is what a correct program reaches at least.
ROWS = (
    Row("CartPole-v1", "reinforce", 200_000, "T", 430, 483),
    Row("CartPole-v1", "vpg", 200_000, "T", 450, 496),
    Row("CartPole-v1", "a2c", 200_000, "T", 450, 496),
    Row("CartPole-v1", "npg", 100_000, "D", 450, 500),
    Row("CartPole-v1", "trpo", 100_000, "D", 475, 500),
    Row("CartPole-v1", "ppo", 100_000, "D", 450, 475, floor=400),
    Row("Acrobot-v1", "a2c", 300_000, "T", -92, -84),
    Row("Acrobot-v1", "trpo", 100_000, "D", -95, -83),
    Row("Acrobot-v1", "ppo", 300_000, "T", -90, -83),
    Row("Pendulum-v1", "ppo", 100_000, "D", -250, -175),
    Row("LunarLander-v3", "ppo", 300_000, "T", 140, 183),
    Row("LunarLander-v3", "ppo", 1_000_000, "D", 200, 240),
    Row("InvertedPendulum-v5", "ppo", 200_000, "D", 950, 1000),
    Row("Reacher-v5", "ppo", 300_000, "S", -6.5, -5.0),
    Row("Hopper-v5", "ppo", 500_000, "S", 1270, 1950),
    Row("Hopper-v5", "ppo", 1_000_000, "T", 2100, 2380),
    Row("Hopper-v5", "trpo", 1_000_000, "D", 1900, 3150),
    Row("HalfCheetah-v5", "ppo", 500_000, "S", 1400, 4000),
    Row("HalfCheetah-v5", "ppo", 1_000_000, "S", 1443, 5650),
)

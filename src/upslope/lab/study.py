"""Every estimator through the code that trains, beside what theory says of it exactly.

Episodes are collected, weighed and differentiated by ``collect``, ``theory`` and backward as in a
training run; bias and variance of the sampled gradients are then set beside the exact ones of
``moments.py``, and the decision *unbiased or not* is made by a test in two stages (Eq. 12.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.envs.engines import VectorEngine
from upslope.envs.episodes import Environments
from upslope.envs.tabular import MDP
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab.estimators import Steps
from upslope.lab.problems import Problem, find_problem
from upslope.lab.roster import Contender, roster
from upslope.lab.statistics import Findings, examine
from upslope.lab.workers import Tell, run_all
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout
from upslope.seeding import SeedTree
from upslope.theory.returns import reward_to_go
from upslope.unit_gradients import episode_units, unit_gradients

EPISODES = 48  # of one batch, the unit of the tests: its mean is close to normal
STAGE_TWO = 4  # times the data of the first stage
PARTS = 1 + STAGE_TWO  # of the work on one problem
LEVEL = 0.01  # 1 minus the confidence of all intervals together
COPIES = 512  # environments side by side
LEARNED_FROM = 30  # episodes that the learned V has seen


@dataclass(frozen=True)
class Row:
    """One estimator in one process: what theory says, and what was measured."""

    mdp: str
    name: str
    target: str  # finite, discounted or undiscounted-weights
    predicted_unbiased: bool
    reason: str  # why theory says that it is biased
    floor: float | None  # least variance of one episode without knowing the process
    findings: Findings

    @property
    def agrees(self) -> bool:
        """Whether the verdict is what theory says."""
        return self.findings.verdict == ("unbiased" if self.predicted_unbiased else "biased")

    def to_json(self) -> dict[str, Any]:
        """One object of ``lab estimators --json``."""
        own = {name: value for name, value in vars(self).items() if name != "findings"}
        return own | asdict(self.findings)


def study_all(names: Sequence[str], batches: int, seed: int, jobs: int, tell: Tell) -> list[Row]:
    """Measure every estimator on several problems; see :func:`study`.

    Args:
        names: of :data:`~upslope.lab.problems.PROBLEMS`.
        jobs: processes.
        tell: called after each of the ``PARTS`` of each problem.
    """
    tasks = [Task(name, batches, seed, LEVEL / len(names)) for name in names]
    found: dict[int, list[Row]] = {}
    run_all(_study, tasks, jobs, lambda _, told: tell(told), found.__setitem__)
    return [row for i in range(len(tasks)) for row in found[i]]


class Task(NamedTuple):
    """The study of one problem."""

    name: str
    batches: int
    seed: int
    level: float


def _study(task: Task, tell: Tell) -> list[Row]:
    name, batches, seed, level = task
    return study(find_problem(name), batches, seed, level, lambda: tell(name))


def study(
    problem: Problem,
    batches: int,
    seed: int = 0,
    level: float = LEVEL,
    progress: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Measure every estimator on one problem.

    Args:
        problem: process, discount and policy.
        batches: of ``EPISODES`` episodes each in the first stage; the second takes four times as
            many, with a seed of its own. The figures are those of all.
        seed: of episodes and actions.
        level: 1 minus the confidence of all intervals of a kind together.
        progress: called after each of the ``PARTS`` of the work.
    """
    policy = problem.policy()
    contenders = roster(problem, policy, learned_values(problem, seed))
    stages = []
    for part in range(PARTS):
        number = SeedTree(seed).integer("study", part)
        stages.append(sample(problem, policy, contenders, batches, number))
        progress()
    rows = []
    for known in contenders:
        first, *others = (stage[known.name] for stage in stages)
        found = examine(known, first, torch.cat(others), level / len(contenders), EPISODES)
        reason = "" if known.predicted_unbiased else known.reason
        labels = known.name, known.target_name, known.predicted_unbiased, reason, known.floor
        rows.append(Row(problem.name, *labels, found))
    return rows


def sample(
    problem: Problem, policy: ActorCritic, contenders: list[Contender], batches: int, seed: int
) -> dict[str, Tensor]:
    """Mean gradients ``[batches, d]`` over batches of ``EPISODES`` episodes, by estimator."""
    n_episodes = batches * EPISODES
    envs = environments(problem.mdp, min(COPIES, n_episodes), seed)
    rollout = collect(envs, policy, n_episodes=n_episodes)
    evaluated = evaluate_rollout(policy, rollout)
    states = Steps.of(policy, rollout, evaluated, problem.gamma)
    columns: dict[str, Tensor] = {"state": states.values.round().long()}
    losses = {}
    for known in contenders:
        for name, column in known.columns(states).items():
            columns[name] = torch.where(rollout.valid, column, torch.zeros_like(column))
        losses[known.name] = known.loss
    units = episode_units(rollout, EPISODES)
    sums = unit_gradients(policy, rollout, evaluated, losses, columns, units)
    return {known.name: known.transform(sums[known.name] / EPISODES) for known in contenders}


def learned_values(problem: Problem, seed: int) -> Tensor:
    """V ``[S]`` that fits best the returns of other episodes: Eq. 7.3 solved over tables."""
    policy = problem.policy()
    number = SeedTree(seed).integer("learned values", 0)
    envs = environments(problem.mdp, LEARNED_FROM, number)
    rollout = collect(envs, policy, n_episodes=LEARNED_FROM)
    evaluated = evaluate_rollout(policy, rollout)
    returns = reward_to_go(rollout.rewards, rollout.boundary, problem.gamma)
    state = evaluated.values.round().long()[rollout.valid]
    count = torch.bincount(state, minlength=problem.mdp.n_states)
    total = torch.zeros(problem.mdp.n_states, dtype=torch.float64)
    return total.index_add(0, state, returns[rollout.valid]) / count.clamp(min=1)


def environments(mdp: MDP, copies: int, seed: int) -> Environments:
    """Copies of a process on an engine; our own vector needs no probe, its tests are one."""
    vector = TabularVectorEnv(mdp, copies)
    return Environments(VectorEngine(lambda _: vector, name="vector"), SeedTree(seed))

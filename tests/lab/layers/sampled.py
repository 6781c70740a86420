"""Layer C, sampling: what ``collect`` makes of seeds, quotas and streams, in real environments.

It is the weakest layer and decides in two stages: where a test rejects, fresh seeds and four times
the data decide, and only a second rejection is a failure. A check takes its ``seed``, which
UPSLOPE_TEST_SEED sets (nightly runs take a fresh one), and ``size``, the share of the episodes that
theory asks for.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy import integrate, stats
from torch import Tensor

import upslope.rollout
import upslope.unit_gradients
from upslope.algorithms import make_learner
from upslope.config import CONFIGS
from upslope.envs.engines import SyncEngine, VectorEngine
from upslope.envs.episodes import Environments
from upslope.envs.tabular import MDP, TabularEnv, deterministic, random_mdp, sentinel
from upslope.lab import baselines, estimators, exact, moments
from upslope.lab.policies import probabilities, scores
from upslope.lab.tests import hotelling
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import Rollout
from upslope.seeding import SeedTree

from .enumerated import ERROR, GAMMA, LAMBDA, exact_means, exact_values, gae_mean
from .pages import WatchedPage, one_update
from .streams import policy_for

SEED = int(os.environ.get("UPSLOPE_TEST_SEED", "0"))
ALPHA = 1e-3  # of each stage, for means; their product with the number of tests is the family's
ALPHA_VARIANCE = 1e-4
STAGE_TWO = 4  # times the data
UNITS, UNIT = 400, 50  # batch means of so many episodes each
SQUARES = 4000  # episodes whose gradients are squared one by one
BATCHES = 5000  # of the two-length task
QUICK = {"two lengths": 0.02}  # shares of the data with which the quick tests get by

PValues = dict[str, tuple[float, float]]  # test -> p-value, and the level at which it rejects


def check_sentinel(seed: int = SEED, size: float = 1.0) -> None:
    """Means and variances in the sentinel with a wrong V, reset rows between its episodes."""
    two_stages(sentinel_p_values, seed, size)


def check_variances(seed: int = SEED, size: float = 1.0) -> None:
    """Variances of returns and baselines against the exact ones, and their order."""
    two_stages(variance_p_values, seed, size)


def check_two_lengths(seed: int = SEED, size: float = 1.0) -> None:
    """REINFORCE's page on numbered episodes of length 1 or 10: the gradient is -1/4."""
    two_stages(two_length_p_values, seed, size)


def check_counts(seed: int = SEED, size: float = 1.0) -> None:
    """Counts of (s, a, s', end) and of first states against the tables of a process."""
    two_stages(count_p_values, seed, size)


def check_clipped_actions(seed: int = SEED, size: float = 1.0) -> None:
    """A bounded Gaussian, a third of whose actions are clipped, against quadrature."""
    two_stages(clipped_p_values, seed, size)


def two_stages(p_values: Callable[[int, float], PValues], seed: int, size: float) -> None:
    """Fail for tests that reject twice, the second time with a fresh seed and more data."""
    rejected = [name for name, (p, level) in p_values(seed, size).items() if p < level]
    if rejected:
        second = p_values(SeedTree(seed).integer("second stage"), STAGE_TWO * size)
        again = {name: second[name][0] for name in rejected if second[name][0] < second[name][1]}
        said = ", ".join(f"{name} (p = {p:.1e})" for name, p in again.items())
        assert not again, f"rejected in both stages: {said}"


def sentinel_p_values(seed: int, size: float) -> PValues:
    """T^2 of every estimator's batch means, and of |x - Ex|^2 against the exact variance."""
    mdp = sentinel(4).with_limit(4, is_task=False)
    values = exact_values(mdp, policy_for(mdp)) + ERROR
    policy = policy_for(mdp, values)
    envs = next_step_environments(mdp, seed)
    rollout = upslope.rollout.collect(envs, policy, n_episodes=_units(size) * UNIT)
    evaluated = upslope.rollout.evaluate_rollout(policy, rollout)
    steps = estimators.Steps.of(policy, rollout, evaluated, GAMMA)
    columns = estimators.weights_of(estimators.applicable(5), steps)
    page = one_update("vpg", policy, rollout, gamma=GAMMA, gae_lambda=LAMBDA)
    value = one_update(
        "reinforce", policy, rollout, gamma=GAMMA, baseline="value",
        batch_episodes=len(rollout.episodes),
    )  # fmt: skip
    columns |= {
        "VPG": page.batch["weights"].view_as(steps.rewards),
        "REINFORCE, baseline V": value.batch["weights"].view_as(steps.rewards),
    }
    means = exact_means(mdp, policy)
    means["episode return - mean"] = 0.8 * means["episode return"]  # the batch is of 5
    means |= {
        "VPG": gae_mean(mdp, policy, values, LAMBDA),
        "REINFORCE, baseline V": means["reward-to-go without gamma^t"],
    }
    found = gradients(policy, rollout, evaluated, columns, UNIT)
    basis = span_of_scores(mdp, policy)
    tests = {
        f"mean of {name}": (mean_test(x / UNIT, means[name], basis), ALPHA)
        for name, x in found.items()
    }
    for lam in estimators.LAMBDAS[1:-1]:  # on the same data, so that the noise is shared
        gap, wanted = (x[f"GAE({lam:g})"] - x["GAE(1)"] for x in (found, means))
        tests[f"GAE({lam:g}) - GAE(1)"] = (mean_test(gap / UNIT, wanted, basis), ALPHA)
    each = gradients(policy, rollout, evaluated, {"": columns["VPG"]}, 1, int(SQUARES * size))[""]
    squares = (each - means["VPG"]).square().sum(1)
    rho = moments.td_table(mdp, values, GAMMA)
    trace = moments.weighted(mdp, policy, rho, GAMMA * LAMBDA, 1.0)[1]
    tests["variance of VPG"] = (t_test(squares, float(trace)), ALPHA_VARIANCE)
    return tests


def variance_p_values(seed: int, size: float) -> PValues:
    """t of |x - Ex|^2 episode by episode, of a log ratio by jackknife, and of paired differences.

    The order of two variances is asserted where the exact ones say that it can be seen.
    """
    mdp = random_mdp(2, 2, 5, seed=3)
    policy = policy_for(mdp)
    pi = probabilities(policy, mdp.n_states)
    values = exact.state_values(mdp, pi, GAMMA, mdp.horizon)[0]
    best = baselines.optimal(mdp, policy, GAMMA, time_dependent=False)
    rho, mean = moments.reward_table(mdp), exact_means(mdp, policy)["reward-to-go"]
    traces = {
        "episode return": moments.episode_return(mdp, policy, GAMMA)[1],
        "reward-to-go": moments.weighted(mdp, policy, rho, GAMMA, GAMMA)[1],
        "reward-to-go - V": moments.weighted(mdp, policy, rho, GAMMA, GAMMA, values)[1],
        "reward-to-go - b*": moments.weighted(mdp, policy, rho, GAMMA, GAMMA, best)[1],
    }
    envs = Environments(SyncEngine([TabularEnv(mdp) for _ in range(16)]), SeedTree(seed))
    rollout = upslope.rollout.collect(envs, policy, n_episodes=int(SQUARES * size))
    evaluated = upslope.rollout.evaluate_rollout(policy, rollout)
    steps = estimators.Steps.of(policy, rollout, evaluated, GAMMA)
    state = rollout.obs.argmax(-1)
    minus = estimators.with_discount(estimators.to_go_minus_value)
    columns = {
        "episode return": estimators.whole_return(steps),
        "reward-to-go": estimators.with_discount(estimators.to_go)(steps),
        "reward-to-go - V": minus(replace(steps, values=values[state])),
        "reward-to-go - b*": minus(replace(steps, values=best[state])),
    }
    each = gradients(policy, rollout, evaluated, columns, 1)
    squares = {name: (x - mean).square().sum(1) for name, x in each.items()}
    tests = {
        f"variance of {name}": (t_test(x, float(traces[name])), ALPHA_VARIANCE)
        for name, x in squares.items()
    }
    whole, to_go = squares["episode return"], squares["reward-to-go"]
    ratio = float(traces["reward-to-go"] / traces["episode return"])
    tests["log ratio"] = (jackknife(to_go, whole, math.log(ratio)), ALPHA)
    assert ratio < 0.9, "this process cannot show that reward-to-go varies less"
    tests["reward-to-go varies less"] = (float(to_go.mean() < whole.mean()), ALPHA)
    gap = squares["reward-to-go - V"] - squares["reward-to-go - b*"]
    wanted = float(traces["reward-to-go - V"] - traces["reward-to-go - b*"])
    assert wanted > 0.02 * float(traces["reward-to-go - V"]), "nor that b* is better than V"
    tests["V - b*"] = (t_test(gap, wanted), ALPHA)
    tests["b* varies less than V"] = (float(gap.mean() > 0), ALPHA)
    return tests


def two_length_p_values(seed: int, size: float) -> PValues:
    """z of the first state's gradient over many batches of 8 episodes, by the page's own step."""
    mdp, n = two_lengths(), 8
    policy = policy_for(mdp)
    with torch.no_grad():
        for parameter in policy.actor_head.parameters():
            parameter.zero_()  # either action with probability 1/2
    envs = Environments(SyncEngine([TabularEnv(mdp) for _ in range(n)]), SeedTree(seed))
    config = CONFIGS["reinforce"].from_settings({"batch_episodes": n}).resolve(n)
    learner = make_learner(config, policy)
    settings = {"batch_episodes": n, "gamma": 1.0, "baseline": "none"}
    page = WatchedPage("reinforce", policy, (1, n), **settings)
    found = []
    for _ in range(int(BATCHES * size)):
        followed = page.update(learner.collect(envs)).gradients["actor"]
        found.append(float(followed[0]))  # weight of action 0 in state 0
    return {"gradient at the decision": (t_test(torch.tensor(found), -0.25), ALPHA)}


def count_p_values(seed: int, size: float) -> PValues:
    """G-tests of first states, of actions in each state, and of what follows each action."""
    mdp = random_mdp(3, 2, 4, seed=7, termination=0.2)
    policy = policy_for(mdp)
    pi = probabilities(policy, mdp.n_states)
    envs = Environments(SyncEngine([TabularEnv(mdp) for _ in range(16)]), SeedTree(seed))
    rollout = upslope.rollout.collect(envs, policy, n_episodes=int(UNITS * UNIT * size / 4))
    valid = rollout.valid
    state = rollout.obs.argmax(-1)[valid]
    action, step = rollout.actions[valid], rollout.episode_step[valid]
    arrival, ended = _successors(rollout)[valid], rollout.terminated[valid]
    inside = step < (mdp.horizon or 0) - 1  # where the limit does not end it anyway
    starts = torch.bincount(state[step == 0], minlength=3)
    tests = {"first states": (g_test(starts, mdp.start), ALPHA)}
    outcome = torch.stack([mdp.continuing, mdp.transitions * mdp.termination], -1)
    for s in range(mdp.n_states):
        counts = torch.bincount(action[state == s], minlength=2)
        tests[f"actions in state {s}"] = (g_test(counts, pi[s]), ALPHA)
        for a in range(mdp.n_actions):
            here = inside & (state == s) & (action == a)
            cell = 2 * arrival[here] + ended[here]
            counts = torch.bincount(cell, minlength=6)
            tests[f"after {s}, {a}"] = (g_test(counts, outcome[s, a].reshape(-1)), ALPHA)
    return tests


def clipped_p_values(seed: int, size: float) -> PValues:
    """T^2 of REINFORCE's batch means in mean and log sigma of the Gaussian."""
    envs = Environments(SyncEngine([Bounded() for _ in range(64)]), SeedTree(seed))
    policy = ActorCritic(envs.observation_space, envs.action_space, net_arch=(), dtype="float64")
    with torch.no_grad():
        policy.actor_head.weight.fill_(Bounded.mean)
    law = stats.norm(Bounded.mean, Bounded.sigma)
    assert law.cdf(-1) + law.sf(1) > 0.3, "too few actions are clipped to test anything"
    rollout = upslope.rollout.collect(envs, policy, n_episodes=int(UNITS * UNIT * size / 4))
    evaluated = upslope.rollout.evaluate_rollout(policy, rollout)
    page = one_update("reinforce", policy, rollout, baseline="none", batch_episodes=UNIT)
    columns = {"page": page.batch["weights"].view_as(rollout.rewards)}
    x = gradients(policy, rollout, evaluated, columns, UNIT)["page"] / UNIT
    of_log_std, of_mean = Bounded.gradient()
    wanted = torch.tensor([of_log_std, of_mean, of_mean], dtype=torch.float64)
    half = 0.5**0.5  # weight and bias of the only observation, 1, move the mean alike
    basis = torch.tensor([[1, 0], [0, half], [0, half]], dtype=torch.float64)
    return {"mean of the gradient": (mean_test(x, wanted, basis), ALPHA)}


class Bounded(gym.Env[Any, Any]):
    """One step in [-1, 1]; the reward is a cubic of the clipped action."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    mean, sigma = 0.3, 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), self.reward(float(action[0])), True, False, {}

    @staticmethod
    def reward(a: float) -> float:
        return 1.0 + 2 * a - a**2 + 0.5 * a**3

    @classmethod
    def gradient(cls) -> tuple[float, float]:
        """Exact derivatives of the mean reward in log sigma and in the mean, by quadrature."""

        def part(slope: Callable[[float], float]) -> float:
            def integrand(u: float) -> float:
                gain = cls.reward(min(max(u, -1.0), 1.0))
                density = math.exp(-0.5 * ((u - cls.mean) / cls.sigma) ** 2)
                return slope((u - cls.mean) / cls.sigma) * gain * density

            edges = (cls.mean - 9 * cls.sigma, -1.0, 1.0, cls.mean + 9 * cls.sigma)
            pieces = [integrate.quad(integrand, *ends)[0] for ends in itertools.pairwise(edges)]
            return float(sum(pieces)) / (cls.sigma * math.sqrt(2 * math.pi))

        return part(lambda z: z**2 - 1), part(lambda z: z / cls.sigma)


def two_lengths() -> MDP:
    """Action 0 ends at once with 1; action 1 walks ten steps and ends with 2."""
    walk = range(1, 10)
    successors = [[0, 1], *([min(s + 1, 9)] * 2 for s in walk)]
    rewards = [[1.0, 0.0], *([2.0 * (s == 9)] * 2 for s in walk)]
    ends = [[1.0, 0.0], *([float(s == 9)] * 2 for s in walk)]
    return deterministic("two lengths", successors, rewards, ends)


def next_step_environments(mdp: MDP, seed: int, n: int = 64) -> Environments:
    """Real environments in Gymnasium's vector that resets on the next step."""
    make = partial(TabularEnv, mdp)
    vector = SyncVectorEnv([make] * n, autoreset_mode=AutoresetMode.NEXT_STEP)
    engine = VectorEngine(lambda _: vector, name="vector", seeds_episodes=True)
    return Environments(engine, SeedTree(seed))


def gradients(
    policy: ActorCritic,
    rollout: Rollout,
    evaluated: Any,
    columns: dict[str, Tensor],
    unit: int,
    n_units: int | None = None,
) -> dict[str, Tensor]:
    """Sums of score times weight over units of episodes ``[U, d]``, by shipped loss and backward.

    ``n_units``: only the first so many.
    """
    units = upslope.unit_gradients.episode_units(rollout, unit)
    if n_units is not None:
        units = torch.where(units < n_units, units, torch.full_like(units, -1))
    losses = {name: upslope.unit_gradients.pseudo_loss(name) for name in columns}
    return upslope.unit_gradients.unit_gradients(policy, rollout, evaluated, losses, columns, units)


def span_of_scores(mdp: MDP, policy: ActorCritic) -> Tensor:
    """Orthonormal directions ``[d, k]`` that scores can point in."""
    _, table = scores(policy, torch.eye(mdp.n_states, dtype=torch.float64))
    _, sizes, directions = torch.linalg.svd(table.flatten(0, 1), full_matrices=False)
    return directions[sizes > 1e-9 * sizes.max()].T


def mean_test(x: Tensor, mean: Tensor, basis: Tensor) -> float:
    """p-value of T^2 that units ``x [n, d]`` have a mean; units that are all alike are an alarm."""
    spread = (x @ basis).std(0)
    assert spread.min() > 1e-9 * x.abs().max(), "units are alike, so they were not drawn apart"
    return hotelling(x, mean, basis)[1]


def t_test(x: Tensor, mean: float) -> float:
    """p-value of Student's t that ``x [n]`` has a mean."""
    return float(stats.ttest_1samp(x.numpy(), mean).pvalue)


def jackknife(above: Tensor, below: Tensor, log_ratio: float, batches: int = 100) -> float:
    """p-value that log(mean of above / mean of below) is ``log_ratio``, leaving batches out."""
    sums = [x[: len(x) // batches * batches].view(batches, -1).sum(1) for x in (above, below)]
    left = [(x.sum() - x).log() for x in sums]
    out = left[0] - left[1]
    error = ((out - out.mean()).square().sum() * (batches - 1) / batches).sqrt()
    t = float(((sums[0].sum() / sums[1].sum()).log() - log_ratio) / error)
    return 2 * float(stats.t.sf(abs(t), batches - 1))


def g_test(counts: Tensor, law: Tensor) -> float:
    """p-value of the log-likelihood ratio of ``counts`` against probabilities ``law``."""
    possible = law > 0
    assert not counts[~possible].any(), "something impossible happened"
    assert counts.any(), "a case was never drawn"
    observed, expected = counts[possible].numpy(), (law[possible] * counts.sum()).numpy()
    if len(observed) < 2:
        return 1.0
    return float(stats.power_divergence(observed, expected, lambda_="log-likelihood").pvalue)


def _units(size: float) -> int:
    return int(UNITS * size)


def _successors(rollout: Rollout) -> Tensor:
    """State that truly followed each row ``[T, B]``."""
    after = torch.cat([rollout.obs[1:], rollout.last_obs[None]])
    after[rollout.final_rows[:, 0], rollout.final_rows[:, 1]] = rollout.final_obs
    return after.argmax(-1)


CHECKS = {
    "sentinel": check_sentinel,
    "variances": check_variances,
    "two lengths": check_two_lengths,
    "counts": check_counts,
    "clipped actions": check_clipped_actions,
}

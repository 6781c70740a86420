"""The end of an episode, worked out by hand, in every mode and for every algorithm.

V(s) is the observation itself, gamma and lambda are 1/2; so a row's delta is r + s'/2 - s, without
s' where the episode terminated, and the trace decays by 1/4.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope
from upslope.algorithms import make_learner
from upslope.config import CONFIGS
from upslope.envs.engines import SyncEngine, VectorEngine
from upslope.envs.episodes import Environments
from upslope.optim import GradientStep
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, evaluate_rollout
from upslope.seeding import SeedTree

MODES = ("plain", "next_step", "same_step", "disabled")
ENDS = {"terminated": (True, False), "truncated": (False, True), "both": (True, True)}
WITH_GAE = ("vpg", "a2c", "npg", "trpo", "ppo")


class Case(NamedTuple):
    """Episodes as (observations, the last one final; rewards), and what follows from them.

    ``rollouts`` are transitions collected at a time; ``expected`` are the advantages where the ends
    that are reached terminate (or both), and where they truncate.
    """

    episodes: list[tuple[list[float], list[float]]]
    rollouts: list[int]
    terminated: list[list[float]]
    truncated: list[list[float]]


LONG = ([6.0, 10.0, 12.0, 14.0, 16.0, 18.0], [5.0, 7.0, 0.0, 0.0, 0.0])
CASES = {
    # deltas 1, 3 - 4 = -1 (or 3 + 4 - 4 = 3), 4, 3
    "in the middle": Case(
        [([2, 4, 8], [1, 3]), LONG], [4], [[0.75, -1, 4.75, 3]], [[1.75, 3, 4.75, 3]]
    ),
    "at the first step": Case([([2, 8], [1]), LONG], [3], [[-1, 4.75, 3]], [[3, 4.75, 3]]),
    "at the last row": Case([([2, 4, 8], [1, 3]), LONG], [2], [[0.75, -1]], [[1.75, 3]]),
    "two episodes in one rollout": Case(
        [([2, 4, 8], [1, 3]), ([6, 10, 12], [5, 7]), ([14, 16, 0], [9, 0])],
        [5],
        [[0.75, -1, 3.25, -3, 3]],
        [[1.75, 3, 4.75, 3, 3]],
    ),
    "spanning two rollouts": Case(
        [([2, 4, 6, 8], [1, 3, 5]), ([10, 12, 0], [7, 0])],
        [2, 2],
        [[1.5, 2], [-1, 3]],
        [[1.5, 2], [3, 3]],
    ),
    "of one step each": Case(
        [([2, 4], [1]), ([6, 8], [5]), ([10, 12], [7])], [3], [[-1, -1, -3]], [[1, 3, 3]]
    ),
}


class Scripted(gym.Env[Any, Any]):
    """Plays the episodes in turn; all end alike."""

    observation_space = Box(-100, 100, (1,), np.float64)
    action_space = Discrete(2)

    def __init__(self, episodes: list[Any], end: str) -> None:
        self.episodes, self.end, self.number = episodes, ENDS[end], -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.number, self.t = (self.number + 1) % len(self.episodes), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.episodes[self.number][1][self.t]
        self.t += 1
        over = self.t == len(self.episodes[self.number][1])
        return self.observe(), float(reward), over and self.end[0], over and self.end[1], {}

    def observe(self) -> Any:
        return np.array([self.episodes[self.number][0][self.t]], np.float64)


def environments(make: Callable[[], gym.Env[Any, Any]], mode: str, n: int = 1) -> Environments:
    if mode == "plain":
        return Environments(SyncEngine([make() for _ in range(n)]), SeedTree(0))
    vector = SyncVectorEnv([make] * n, autoreset_mode=AutoresetMode[mode.upper()])
    return Environments(VectorEngine(lambda _: vector, name="vector"), SeedTree(0))


def policy_of(envs: Environments) -> ActorCritic:
    """A policy in float64 whose value is the sum of the observation."""
    policy = ActorCritic(envs.observation_space, envs.action_space, net_arch=(), dtype="float64")
    torch.nn.init.ones_(policy.critic_head.weight)
    torch.nn.init.zeros_(policy.critic_head.bias)
    return policy


Change = Callable[[Any], Any]


def same(thing: Any) -> Any:
    return thing


def weighed(
    algorithm: str,
    envs: Environments,
    amounts: list[int],
    rollout_change: Change = same,
    evaluated_change: Change = same,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Rollout]]:
    """Weights and targets of the valid rows that reach the gradient step, rollout by rollout."""
    caught: list[Any] = []

    def run(self: Any, batch: Any, *_: Any, **__: Any) -> dict[str, float]:
        caught.append(batch)
        return {"value_loss": 0.0, "policy_gradient_loss": 0.0}

    settings = {"gamma": 0.5, "normalize_advantage": False}
    if algorithm == "reinforce":
        settings |= {"batch_episodes": amounts[0]}
    else:
        settings |= {"gae_lambda": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientStep, "run", run)
        for amount in amounts:
            more = {} if algorithm == "reinforce" else {"n_steps": amount}
            if algorithm == "ppo":
                more |= {"batch_size": amount}
            config = CONFIGS[algorithm].from_settings(settings | more).resolve(envs.n_envs)
            policy = policy_of(envs)
            learner = make_learner(config, policy)
            rollout = rollout_change(learner.collect(envs))
            evaluated = evaluated_change(evaluate_rollout(policy, rollout))
            learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
            batch = caught[-1]
            valid = batch["valid"].bool()
            yield batch["weights"][valid], batch["targets"][valid], rollout


def check_case(case: Case, end: str, mode: str, algorithm: str = "vpg", **changes: Change) -> None:
    """Raise AssertionError unless the advantages and targets are those worked out by hand."""
    envs = environments(functools.partial(Scripted, case.episodes, end), mode)
    expected = case.truncated if end == "truncated" else case.terminated
    amounts = list(case.rollouts)
    if mode == "next_step":  # reset rows take room
        lengths = np.cumsum([len(rewards) for _, rewards in case.episodes])
        edges = np.cumsum([0, *case.rollouts])
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            amounts[i] += int(((lengths < high) & (lengths >= max(low, 1))).sum())
    for i, (weights, targets, rollout) in enumerate(weighed(algorithm, envs, amounts, **changes)):
        assert len(weights) == len(expected[i]), f"{len(weights)} rows, not {len(expected[i])}"
        torch.testing.assert_close(
            weights, torch.tensor(expected[i], dtype=torch.float64), rtol=0, atol=1e-12
        )
        values = rollout.obs[rollout.valid].squeeze(-1)
        torch.testing.assert_close(targets, weights + values, rtol=0, atol=1e-12)
        assert rollout.n_valid == case.rollouts[i]


@pytest.mark.parametrize("algorithm", WITH_GAE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", CASES)
def test_advantages_worked_out_by_hand(name: str, end: str, mode: str, algorithm: str) -> None:
    check_case(CASES[name], end, mode, algorithm)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("returns", ["to-go", "episode"])
def test_returns_of_whole_episodes_by_hand(end: str, mode: str, returns: str) -> None:
    """1 + 3/2 = 2.5 and 5 + 7/2 = 8.5, however the episodes end: REINFORCE never bootstraps."""
    case = CASES["two episodes in one rollout"]
    envs = environments(functools.partial(Scripted, case.episodes, end), mode)
    by_hand = {"to-go": [2.5, 3, 8.5, 7], "episode": [2.5, 2.5, 8.5, 8.5]}
    with pytest.MonkeyPatch.context() as patch:
        from_settings = CONFIGS["reinforce"].from_settings
        patch.setattr(
            CONFIGS["reinforce"],
            "from_settings",
            lambda given: from_settings(given | {"returns": returns, "baseline": "none"}),
        )
        weights, _, rollout = next(weighed("reinforce", envs, [2]))
    assert weights.tolist() == by_hand[returns]
    assert [e.ret for e in rollout.episodes] == [4.0, 12.0]
    assert [e.length for e in rollout.episodes] == [2, 2]


class TestInjectedFaults:
    """Each fault, put into the code that ships, is caught by the table above."""

    def table(self, **changes: Change) -> None:
        for case in CASES.values():
            for end in ENDS:
                for mode in MODES:
                    check_case(case, end, mode, **changes)

    def caught(self, **changes: Change) -> None:
        with pytest.raises(AssertionError):
            self.table(**changes)

    def test_without_a_fault_nothing_is_caught(self) -> None:
        self.table()

    def gae_with(self, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
        right = upslope.theory.returns.gae
        monkeypatch.setattr("upslope.algorithms.vpg.gae", lambda *given: right(*change(*given)))
        self.caught()

    def test_a_time_limit_taken_as_termination(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gae_with(monkeypatch, lambda r, v, n, t, b, g, m: (r, v, n, b, b, g, m))

    def test_termination_bootstrapped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gae_with(monkeypatch, lambda r, v, n, t, b, g, m: (r, v, n, t & False, b, g, m))

    def test_a_trace_that_runs_over_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gae_with(monkeypatch, lambda r, v, n, t, b, g, m: (r, v, n, t, b & False, g, m))

    def test_only_termination_cuts_the_trace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gae_with(monkeypatch, lambda r, v, n, t, b, g, m: (r, v, n, t, t, g, m))

    def test_the_next_episodes_first_observation_as_successor(self) -> None:
        def forget(rollout: Rollout) -> Rollout:
            return dataclasses.replace(
                rollout, final_rows=rollout.final_rows[:0], final_obs=rollout.final_obs[:0]
            )

        self.caught(rollout_change=forget)

    def test_final_observations_one_row_off(self) -> None:
        def shift(rollout: Rollout) -> Rollout:
            rows = rollout.final_rows.clone()
            rows[:, 0] = (rows[:, 0] - 1).clamp(min=0)
            return dataclasses.replace(rollout, final_rows=rows)

        self.caught(rollout_change=shift)

    def test_a_reset_row_trained_on(self) -> None:
        self.caught(rollout_change=lambda r: dataclasses.replace(r, valid=torch.ones_like(r.valid)))

    def test_the_last_row_not_bootstrapped(self) -> None:
        def cut(evaluated: EvaluatedRollout) -> EvaluatedRollout:
            values = evaluated.next_values.clone()
            values[-1] = 0
            return dataclasses.replace(evaluated, next_values=values)

        self.caught(evaluated_change=cut)

    def test_ends_one_row_late(self) -> None:
        self.caught(
            rollout_change=lambda r: dataclasses.replace(
                r, terminated=r.terminated.roll(1, 0), truncated=r.truncated.roll(1, 0)
            )
        )

    def test_a_mode_mistaken_for_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "upslope.envs.engines.autoreset_mode", lambda env: AutoresetMode.SAME_STEP
        )
        with pytest.raises((AssertionError, upslope.errors.EnvironmentFaultError)):
            self.table()

    def test_reset_rows_not_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = Environments._begin_next

        def begin(self: Environments, *given: Any) -> None:
            right(self, *given)
            self._valid = self._every

        monkeypatch.setattr(Environments, "_begin_next", begin)
        self.caught()


class Recorder:
    """Writes down what an engine hands over, and what was done, step by step."""

    def __init__(self, engine: Any) -> None:
        self.rows: list[Any] = []
        step, reset, reset_some = engine.step, engine.reset, engine.reset_some

        def record_step(actions: Any, active: Any) -> Any:
            obs, rewards, terminated, truncated, infos = step(actions, active)
            final = {
                i: np.array(infos["final_obs"][i])
                for i in np.flatnonzero(terminated | truncated)
                if isinstance(infos, dict) and "final_obs" in infos
            }
            parts = (np.array(x) for x in (obs, rewards, terminated, truncated))
            self.rows.append((*parts, final))
            return obs, rewards, terminated, truncated, infos

        def record_reset(seeds: Any) -> Any:
            self.rows.clear()
            obs = reset(seeds)
            self.first = np.array(obs)
            return obs

        def record_partial(indices: Any, seeds: Any) -> Any:
            obs = reset_some(indices, seeds)
            if self.rows:  # not as part of a reset of all
                self.rows[-1] = (*self.rows[-1], np.array(obs))
            return obs

        engine.step, engine.reset, engine.reset_some = record_step, record_reset, record_partial


def transcribed(
    recorder: Recorder, mode: str, value: Callable[[Any], float], gamma: float, lam: float
) -> dict[tuple[int, int], float]:
    """Advantages by the definition, from the raw stream alone: sums of deltas to the cut."""
    steps, n_envs = len(recorder.rows), len(recorder.first)
    advantages: dict[tuple[int, int], float] = {}
    for b in range(n_envs):
        seen, resetting = recorder.first[b], False
        run: list[tuple[int, float]] = []  # rows and deltas of the episode so far

        def close(run: list[tuple[int, float]], b: int = b) -> None:
            for i, (t, _) in enumerate(run):
                deltas = [delta for _, delta in run[i:]]
                advantages[t, b] = sum((gamma * lam) ** k * d for k, d in enumerate(deltas))

        for t in range(steps):
            obs, rewards, terminated, truncated, final, *after = recorder.rows[t]
            if resetting:  # nothing happened here but a reset
                seen, resetting = obs[b], False
                continue
            over = bool(terminated[b] or truncated[b])
            then = final[b] if mode == "same_step" and over else obs[b]
            follows = 0.0 if terminated[b] else value(then)
            run.append((t, float(rewards[b]) + gamma * follows - value(seen)))
            seen = (after[0] if after else obs)[b]
            if over:
                close(run)
                run, resetting = [], mode == "next_step"
        close(run)
    return advantages


def engines_of_others(kind: str) -> Environments:
    if kind == "envpool":
        pytest.importorskip("envpool")
        return upslope.make_vec_env("CartPole-v1", 8, 3, "envpool")
    if kind == "native":
        return upslope.make_vec_env("CartPole-v1", 8, 3, "native")
    if kind == "envpool acrobot":
        pytest.importorskip("envpool")
        source = upslope.envs.find.find_environment("Acrobot-v1")
        make = upslope.envs.make.make_environments
        return make(source, n_envs=8, seed=3, vec="envpool", max_episode_steps=17)
    name, mode = kind.split(" ")

    def make_one() -> gym.Env[Any, Any]:
        return gym.make(name, max_episode_steps=13)

    return environments(make_one, mode, n=3)


@pytest.mark.parametrize(
    "kind",
    [
        "envpool",
        "envpool acrobot",
        "native",
        *(f"{name} {mode}" for name in ("CartPole-v1", "Pendulum-v1") for mode in MODES),
    ],
)
def test_the_stream_of_an_engine_written_out(kind: str) -> None:
    """Whatever an engine hands over: advantages equal those of its raw stream, by definition."""
    envs = engines_of_others(kind)
    recorder = Recorder(envs.engine)
    policy = ActorCritic(envs.observation_space, envs.action_space, dtype="float64", seed=5)
    rollout = upslope.collect(envs, policy, n_steps=60)
    evaluated = evaluate_rollout(policy, rollout)
    ours = upslope.theory.returns.gae(
        rollout.rewards, evaluated.values, evaluated.next_values, rollout.terminated,
        rollout.boundary, 0.97, 0.9,
    )  # fmt: skip

    def value(obs: Any) -> float:
        with torch.no_grad():
            return float(policy.value(np.asarray(obs)[None]))

    mode = envs.engine.autoreset.name.lower()
    by_hand = transcribed(recorder, mode, value, 0.97, 0.9)
    assert {tuple(row) for row in rollout.valid.nonzero().tolist()} == set(by_hand)
    assert len(rollout.episodes) > 3
    for (t, b), advantage in by_hand.items():
        assert float(ours[t, b]) == pytest.approx(advantage, abs=1e-10, rel=1e-12)
    envs.close()

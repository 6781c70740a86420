"""Every check of every layer passes on the code as it ships, and stands on what it says it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layers import LAYERS, same_data, sampled
from layers.enumerated import PROCESSES, streams_of
from layers.pages import WITH_GAE, actor_vector, one_update
from layers.streams import Columns, as_rollout, continued, policy_for, single_episodes, two_episodes
from ledger import BOTH, TERMINATED, TRUNCATED, ending

import upslope
from upslope.envs.tabular import random_mdp, sentinel
from upslope.lab.policies import probabilities
from upslope.lab.tests import hotelling
from upslope.policies.actor_critic import ActorCritic

FAST = [
    pytest.param(check, id=f"{layer}-{name}")
    for layer, checks in LAYERS.items()
    for name, check in checks.items()
    if layer != "sampled"
]


@pytest.mark.parametrize("check", FAST)
def test_clean_code_passes(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", sampled.CHECKS)
def test_clean_code_passes_sampling(name: str) -> None:
    sampled.CHECKS[name](size=sampled.QUICK.get(name, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled.QUICK)
def test_clean_code_passes_sampling_at_full_size(name: str) -> None:
    sampled.CHECKS[name]()


class TestStreams:
    """What layers A and B read."""

    @pytest.mark.parametrize("mode", same_data.MODES)
    def test_recorded_streams_have_every_boundary(self, mode: str) -> None:
        envs, policy = same_data.worlds(mode)
        rollouts = [upslope.collect(envs, policy, n_steps=same_data.STEPS) for _ in range(2)]
        rows = [same_data.transitions(rollout) for rollout in rollouts]
        ended = {at: row for found in rows for at, row in found.items() if row.ended}
        assert {ending(row.episode) for row in ended.values()} == {TERMINATED, TRUNCATED, BOTH}
        assert any(t == same_data.STEPS - 1 for t, _ in ended), "none ends on a last row"
        assert any(row.step == 0 for row in ended.values()), "none is of one step"
        per_slot = [sum(row.ended for (_, b), row in rows[0].items() if b == i) for i in range(3)]
        assert max(per_slot) >= 2, "no slot sees two ends in one rollout"
        first, second = ({row.episode for row in found.values()} for found in rows)
        assert first & second, "no episode spans two rollouts"
        assert any(row.ended for found in rows for (t, _), row in found.items() if t == 0)
        resets = sum(int((~rollout.valid).sum()) for rollout in rollouts)
        assert (resets > 0) == (mode == "next")

    def test_batches_of_whole_episodes_have_every_end(self) -> None:
        for mode in same_data.MODES:
            envs, policy = same_data.worlds(mode)
            rollout = upslope.collect(envs, policy, n_episodes=same_data.QUOTA)
            rows = same_data.whole_episodes(rollout)
            assert {ending(row.episode) for row in rows.values()} > {TERMINATED}
            assert len({row.step for row in rows.values() if row.ended}) > 2

    def test_every_pair_of_trajectories_is_there(self) -> None:
        mdp = PROCESSES["random"].with_limit(2, is_task=False)
        pi = probabilities(policy_for(mdp), 2)
        assert len(single_episodes(mdp, pi).prob) == 72
        for reset_row in (False, True):
            pairs = two_episodes(mdp, pi, reset_row)
            assert len(pairs.prob) == 5184
            assert float(pairs.prob.sum()) == pytest.approx(1, abs=1e-12)
            assert (pairs.ended.sum(0) == 2).all()

    @pytest.mark.parametrize("name", PROCESSES)
    def test_a_pair_is_one_trajectory_and_then_another(self, name: str) -> None:
        _, pairs = streams_of(name, False, reset_row=name == "random")
        mdp = PROCESSES[name].with_limit(PROCESSES[name].horizon, is_task=False)
        one = single_episodes(mdp, probabilities(policy_for(mdp), mdp.n_states))
        n = len(one.prob)
        for column in range(0, n * n, 97):
            for part, source in enumerate(divmod(column, n)):
                here = pairs.valid[:, column] & (pairs.episode[:, column] == 2 * column + part)
                there = one.valid[:, source]
                for field in ("states", "actions", "rewards", "next_states", "episode_step"):
                    ours = getattr(pairs, field)[here, column]
                    assert torch.equal(ours, getattr(one, field)[there, source]), field

    def test_streams_that_go_on_are_a_law_with_every_restart(self) -> None:
        mdp = random_mdp(2, 2, 2, seed=1, termination=0.3).with_limit(2, is_task=False)
        columns = continued(mdp, probabilities(policy_for(mdp), 2), 3)
        assert float(columns.prob.sum()) == pytest.approx(1, abs=1e-12)
        assert columns.episode.max() == 2
        started = columns.ended[:-1]
        assert (columns.episode_step[1:][started] == 0).all()
        went_on = columns.next_states[:-1][~started]
        assert torch.equal(columns.states[1:][~started], went_on)

    def test_a_watched_page_leaves_the_policy_as_it_was(self) -> None:
        mdp = sentinel(3)
        policy = policy_for(mdp, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        columns = single_episodes(mdp, probabilities(policy, 3))
        one_update("vpg", policy, as_rollout(policy, columns))  # lets views be made, once
        before, version = actor_vector(policy).clone(), policy.version
        for page in (*WITH_GAE, "reinforce"):
            seen = one_update(page, policy, as_rollout(policy, columns))
            assert (seen.moved is not None) == (page in ("npg", "trpo"))
            assert torch.equal(actor_vector(policy), before)
            assert policy.version == version


class TestTwoStages:
    """The decision of layer C."""

    def decide(self, *stages: float) -> list[tuple[int, float]]:
        asked: list[tuple[int, float]] = []

        def p_values(seed: int, size: float) -> sampled.PValues:
            asked.append((seed, size))
            return {"other": (0.5, 1e-3), "this": (stages[len(asked) - 1], 1e-3)}

        sampled.two_stages(p_values, 7, 0.5)
        return asked

    def test_a_first_rejection_is_no_failure(self) -> None:
        (seed, size), (fresh, larger) = self.decide(1e-9, 0.2)
        assert seed == 7
        assert fresh != seed
        assert larger == 4 * size

    def test_nothing_more_is_drawn_where_nothing_rejects(self) -> None:
        assert self.decide(2e-3) == [(7, 0.5)]

    def test_two_rejections_are_one(self) -> None:
        with pytest.raises(AssertionError, match="rejected in both stages: this"):
            self.decide(1e-9, 9e-4)

    def test_a_second_test_must_be_the_same(self) -> None:
        stages = [{"a": (0.0, 1e-3), "b": (1.0, 1e-3)}, {"a": (1.0, 1e-3), "b": (0.0, 1e-3)}]
        sampled.two_stages(lambda seed, size: stages.pop(0), 0, 1.0)

    def test_counts_that_do_not_fit(self) -> None:
        law = torch.tensor([0.5, 0.25, 0.25, 0.0])
        assert sampled.g_test(torch.tensor([500, 240, 260, 0]), law) > 0.1
        assert sampled.g_test(torch.tensor([600, 200, 200, 0]), law) < 1e-6
        with pytest.raises(AssertionError, match="impossible"):
            sampled.g_test(torch.tensor([500, 250, 249, 1]), law)

    @pytest.mark.slow
    def test_false_alarms_are_as_many_as_they_should_be(self) -> None:
        """2,000 repetitions of 400 means of 50 episodes, drawn from the enumerated law."""
        mdp = sentinel(4).with_limit(4, is_task=False)
        policy = policy_for(mdp, torch.tensor([4.0, 5.0, 7.0], dtype=torch.float64))
        columns = single_episodes(mdp, probabilities(policy, 3))
        x, mean = episode_gradients(policy, columns)
        basis = sampled.span_of_scores(mdp, policy)
        rng = torch.Generator().manual_seed(sampled.SEED)
        found = []
        for _ in range(2000):
            drawn = torch.multinomial(columns.prob, 400 * 50, replacement=True, generator=rng)
            means = x[drawn].view(400, 50, -1).mean(1)
            found.append(hotelling(means, mean, basis)[1])
        p = torch.tensor(found)
        assert 0.035 <= float((p < 0.05).double().mean()) <= 0.065
        assert 0.003 <= float((p < 0.01).double().mean()) <= 0.017
        assert sampled.stats.kstest(found, "uniform").pvalue > 1e-3


def episode_gradients(policy: ActorCritic, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_t score_t GAE_t of each trajectory ``[N, d]`` by what ships, and its exact mean."""
    rollout = as_rollout(policy, columns)
    page = one_update("vpg", policy, rollout, gamma=0.8, gae_lambda=0.95)
    evaluated = upslope.rollout.evaluate_rollout(policy, rollout)
    weights = page.batch["weights"].view(rollout.valid.shape)
    x = sampled.gradients(policy, rollout, evaluated, {"": weights}, 1)[""]
    return x, columns.prob @ x

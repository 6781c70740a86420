"""What each page promises of one update, beyond the formulas it is made of."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

import upslope
from upslope.algorithms import make_learner
from upslope.config import CONFIGS
from upslope.errors import NonFiniteError, StaleRolloutError
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import Rollout, evaluate_rollout

REGIONS = ["npg", "trpo"]
ROLLOUTS = [algorithm for algorithm in CONFIGS if algorithm != "reinforce"]
SEPARATE = ["vpg", "npg", "trpo"]  # the critic has steps of its own
needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="envpool is not installed"
)
ENGINES = ["sync", "async", "native", pytest.param("envpool", marks=needs_envpool)]
TASKS = ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "Acrobot-v1"]


class Unbounded(gym.Env[Any, Any]):
    """Actions without bounds in two dimensions; the reward is their distance from a moving spot."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym.spaces.Box(-np.inf, np.inf, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, self.steps = -float(np.square(action - self.spot[:2]).sum()), self.steps + 1
        return self.observe(), reward, self.np_random.random() < 0.1, self.steps == 15, {}

    def observe(self) -> Any:
        self.spot = self.np_random.normal(size=3).astype(np.float32)
        return self.spot


def make(algorithm: str, env: Any, **settings: Any) -> upslope.Agent:
    common = {"n_envs": 4, "n_steps": 32, "net_arch": (16,)}
    if algorithm == "ppo":
        common |= {"batch_size": 64, "n_epochs": 2}
    return getattr(upslope, algorithm.upper())(env, **(common | settings))  # type: ignore[no-any-return]


def weights(policy: ActorCritic, part: str = "all") -> Tensor:
    named = dict(policy.named_parameters())
    return torch.cat([named[n].detach().flatten() for n in policy.part_names(part)])


def independent_kl(before: Any, after: Any) -> Tensor:
    """Mean KL(before || after) by torch's own distributions."""
    kind = torch.distributions
    if hasattr(before, "logits"):
        pair = [kind.Categorical(logits=d.logits.double()) for d in (before, after)]
        return kind.kl_divergence(*pair)
    pair = [
        kind.Independent(kind.Normal(d.mean.double(), d.log_std.double().exp()), 1)
        for d in (before, after)
    ]
    return kind.kl_divergence(*pair)


def updates(agent: upslope.Agent, count: int) -> list[tuple[Rollout, Any, Any, dict[str, float]]]:
    """(rollout, pi before on its states, pi after, metrics) of so many updates."""
    training, found = agent.training, []
    for number in range(count):
        rollout = training.learner.collect(training.envs)
        evaluated = evaluate_rollout(agent.policy, rollout)
        before = frozen(agent.policy, rollout)
        metrics = training.learner.update(rollout, evaluated, 1.0, np.random.default_rng(number))
        after = frozen(agent.policy, rollout)
        found.append((rollout, before, after, metrics))
    return found


@torch.no_grad()
def frozen(policy: ActorCritic, rollout: Rollout) -> Any:
    """A copy of pi(.|s) for the states of a rollout."""
    distribution = policy.distribution(rollout.obs)
    names = ("logits",) if hasattr(distribution, "logits") else ("mean", "log_std")
    return type(distribution)(*(getattr(distribution, name).clone() for name in names))


class TestTrustRegion:
    @pytest.mark.parametrize("algorithm", REGIONS)
    @pytest.mark.parametrize("vec", ENGINES)
    @pytest.mark.parametrize("env", [*TASKS, Unbounded], ids=[*TASKS, "unbounded"])
    def test_measured_kl_of_every_step(self, algorithm: str, vec: str, env: Any) -> None:
        if env is Unbounded and vec not in ("sync", "async"):
            pytest.skip("an environment of our own has no native or EnvPool form")
        if vec == "native" and env != "CartPole-v1":
            pytest.skip("CartPole alone has a native vector")
        self.assert_inside(make(algorithm, env, vec=vec, target_kl=0.02, cg_damping=0.001))

    @pytest.mark.parametrize("algorithm", REGIONS)
    @pytest.mark.parametrize("mode", AutoresetMode)
    def test_measured_kl_in_every_autoreset_mode(self, algorithm: str, mode: AutoresetMode) -> None:
        envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 4, autoreset_mode=mode)
        self.assert_inside(make(algorithm, envs, n_envs=None, target_kl=0.02, cg_damping=0.001))

    @pytest.mark.parametrize("algorithm", REGIONS)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_measured_kl_with_normalised_observations(self, algorithm: str, dtype: str) -> None:
        self.assert_inside(
            make(algorithm, "Pendulum-v1", norm_obs=True, dtype=dtype, target_kl=0.5)
        )

    def assert_inside(self, agent: upslope.Agent) -> None:
        target, moved = agent.config.target_kl, 0  # type: ignore[attr-defined]
        rounding = 1e-5 if agent.policy.dtype == torch.float32 else 1e-12
        for rollout, before, after, metrics in updates(agent, 6):
            kl = float(independent_kl(before, after)[rollout.valid].mean())
            assert metrics["approx_kl"] == pytest.approx(kl, rel=1e-3, abs=rounding)
            assert metrics["approx_kl"] <= target
            assert kl <= target + rounding
            moved += metrics["is_line_search_success"] == 1.0 and kl > target / 100
        agent.close()
        assert moved > 2

    @pytest.mark.parametrize("algorithm", REGIONS)
    def test_a_search_that_fails_moves_nothing(self, algorithm: str) -> None:
        """One candidate only, along a direction that the quadratic model takes much too far."""
        agent = make(
            algorithm, "Pendulum-v1", target_kl=5.0, cg_damping=1e-6, line_search_max_iter=1
        )
        actor, critic = weights(agent.policy, "actor"), weights(agent.policy, "critic")
        ((_, _, _, metrics),) = updates(agent, 1)
        assert metrics["is_line_search_success"] == metrics["line_search_scale"] == 0.0
        assert metrics["approx_kl"] == 0.0
        assert torch.equal(weights(agent.policy, "actor"), actor)
        assert not torch.equal(weights(agent.policy, "critic"), critic)

    @pytest.mark.parametrize("algorithm", REGIONS)
    def test_no_signal_no_step(self, algorithm: str) -> None:
        class Zero(Unbounded):
            def step(self, action: Any) -> Any:
                obs, _, terminated, truncated, info = super().step(action)
                return obs, 0.0, terminated, truncated, info

        agent = make(algorithm, Zero)
        with torch.no_grad():
            for name in agent.policy.part_names("critic"):
                agent.policy.get_parameter(name).zero_()
        actor = weights(agent.policy, "actor")
        ((_, _, _, metrics),) = updates(agent, 1)
        assert torch.equal(weights(agent.policy, "actor"), actor)
        undefined = metrics.pop("explained_variance")  # targets that do not vary
        assert np.isnan(undefined)
        assert all(np.isfinite(value) for value in metrics.values())

    def test_only_trpo_demands_improvement(self) -> None:
        """Along minus the gradient the surrogate falls: NPG's search steps, TRPO's does not."""
        steps = {}
        for algorithm in REGIONS:
            agent = make(algorithm, "CartPole-v1", seed=3)
            page = importlib.import_module(f"upslope.algorithms.{algorithm}")
            learner = agent.training.learner
            uphill = page.conjugate_gradient
            try:
                page.conjugate_gradient = lambda *args, uphill=uphill: -uphill(*args)
                ((_, _, _, metrics),) = updates(agent, 1)
            finally:
                page.conjugate_gradient = uphill
            assert learner is agent.training.learner
            steps[algorithm] = metrics["is_line_search_success"]
        assert steps == {"npg": 1.0, "trpo": 0.0}

    @pytest.mark.parametrize("algorithm", REGIONS)
    def test_frozen_parameters_stay(self, algorithm: str) -> None:
        agent = make(algorithm, "Pendulum-v1")
        agent.policy.actions.log_std.requires_grad_(False)
        before = weights(agent.policy, "actor")
        updates(agent, 2)
        assert torch.equal(agent.policy.actions.log_std, torch.zeros(1))
        assert not torch.equal(weights(agent.policy, "actor"), before)


class TestEveryPage:
    @pytest.mark.parametrize("algorithm", SEPARATE)
    def test_the_critic_is_fitted_after_it_has_served(self, algorithm: str) -> None:
        """The actor's step is the same whatever the regression does (EGLP lemma)."""
        actors = []
        for passes in (1, 7):
            agent = make(algorithm, "CartPole-v1", seed=2, n_critic_updates=passes)
            updates(agent, 1)
            actors.append(weights(agent.policy, "actor"))
        assert torch.equal(*actors)

    @pytest.mark.parametrize("algorithm", ROLLOUTS)
    def test_rows_that_are_no_transitions_weigh_nothing(self, algorithm: str) -> None:
        """Rewards, actions and successors of reset rows are replaced by nonsense: same update."""
        envs = SyncVectorEnv(
            [lambda: gym.make("CartPole-v1")] * 4, autoreset_mode=AutoresetMode.NEXT_STEP
        )
        agent = make(algorithm, envs, n_envs=None, n_steps=64, seed=5)
        rollout = agent.training.learner.collect(agent.training.envs)
        evaluated = evaluate_rollout(agent.policy, rollout)
        assert not rollout.valid.all()
        nonsense = ~rollout.valid
        spoilt = dataclasses.replace(
            rollout,
            rewards=rollout.rewards.masked_fill(nonsense, 1e3),
            actions=torch.where(nonsense, 1 - rollout.actions, rollout.actions),
        )
        after = []
        start = {name: p.detach().clone() for name, p in agent.policy.named_parameters()}
        for data in (rollout, spoilt):
            with torch.no_grad():
                for name, parameter in agent.policy.named_parameters():
                    parameter.copy_(start[name])
            learner = make_learner(agent.config, agent.policy)
            data = dataclasses.replace(data, policy_version=agent.policy.version)
            learner.update(data, evaluated, 1.0, np.random.default_rng(0))
            after.append(weights(agent.policy))
        torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-6)
        assert (after[0] - torch.cat([p.flatten() for p in start.values()])).abs().max() > 1e-4

    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_old_data_is_refused(self, algorithm: str) -> None:
        settings = {"n_steps": None} if algorithm == "reinforce" else {}
        agent = make_for(algorithm, **settings)
        training = agent.training
        rollout = training.learner.collect(training.envs)
        evaluated = evaluate_rollout(agent.policy, rollout)
        training.learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
        with pytest.raises(StaleRolloutError, match="collect again"):
            training.learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))

    @pytest.mark.parametrize("algorithm", SEPARATE)
    def test_an_update_that_fails_half_way_is_undone(
        self, algorithm: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The actor has moved when the critic's regression meets infinity: both are put back."""
        agent = make(algorithm, "CartPole-v1")
        agent.learn(256)
        before = weights(agent.policy)

        def fail(*_: Any, **__: Any) -> Any:
            assert not torch.equal(weights(agent.policy, "actor"), before[: n_actor(agent.policy)])
            raise NonFiniteError("value_loss became non-finite")

        monkeypatch.setattr(agent.training.learner.optimizers["critic"], "run", fail)
        with pytest.raises(NonFiniteError):
            agent.learn(256, reset_num_timesteps=False)
        assert torch.equal(weights(agent.policy), before)

    @pytest.mark.parametrize("algorithm", REGIONS)
    def test_a_gradient_that_is_not_finite_is_named(self, algorithm: str) -> None:
        agent = make(algorithm, "CartPole-v1")
        learner = agent.training.learner
        rollout = learner.collect(agent.training.envs)
        evaluated = evaluate_rollout(agent.policy, rollout)
        evaluated = dataclasses.replace(evaluated, values=evaluated.values * torch.inf)
        before = weights(agent.policy)
        with pytest.raises(NonFiniteError, match="policy gradient became non-finite"):
            learner.update(rollout, evaluated, 1.0, np.random.default_rng(0))
        assert torch.equal(weights(agent.policy), before)


def make_for(algorithm: str, **settings: Any) -> upslope.Agent:
    if algorithm == "reinforce":
        return upslope.REINFORCE("CartPole-v1", n_envs=4, batch_episodes=4, net_arch=(16,))
    return make(algorithm, "CartPole-v1", **settings)


def n_actor(policy: ActorCritic) -> int:
    return len(weights(policy, "actor"))

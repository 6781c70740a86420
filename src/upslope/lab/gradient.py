"""Signal and noise of the gradient of a trained policy, by every estimator on the same episodes.

The unit is an episode: what one adds to the gradient of a batch is independent of the others, which
steps of one episode are not. Estimators that subtract a mean over the batch take it over all
episodes measured, so their units depend on one another by a share of 1/N.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from upslope.agent import EVALUATION_ENVS, Agent
from upslope.arguments import check_spaces
from upslope.config import Config, ReinforceConfig, whole_number
from upslope.config.rollout import RolloutConfig
from upslope.envs.episodes import Environments
from upslope.envs.make import environment_settings, make_environments
from upslope.errors import ConfigError
from upslope.evaluation import evaluate
from upslope.lab import noise
from upslope.lab.estimators import (
    LAMBDAS,
    Estimator,
    Steps,
    Weigh,
    advantage,
    applicable,
    minus_batch_mean,
    to_go,
    weights_of,
    whole_return,
)
from upslope.lab.gradient_study import GradientStudy, Measured
from upslope.lab.noise import Estimate, Sample
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import EvaluatedRollout, Rollout, collect, evaluate_rollout
from upslope.seeding import SeedTree
from upslope.training import torch_threads, worthwhile_threads
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

MOST, LEAST = 64, 16  # episodes, where the number is not given
STEPS = 50_000  # that they should take at most
PROBE = 8  # episodes that tell how long one is, and nothing else
HELD = 2**29  # bytes of gradients that are computed at a time
# They bootstrap nothing, so no error of V is their error, and carry no gamma^t, as in practice. The
# first needs no V at all; where all returns are equal it is 0, and nothing can be compared with it.
REFERENCES = ("reward-to-go - leave-one-out", "reward-to-go - V", "reward-to-go without gamma^t")
ROUNDING = 32  # times eps and the largest return: what a mean of equal returns may be off

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: unknown)


def measure(
    agent: Agent,
    n_episodes: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    estimators: tuple[Estimator, ...] | None = None,
) -> GradientStudy:
    """Collect fresh whole episodes with an agent's policy and measure its gradient on them.

    Args:
        agent: nothing of its policy changes.
        n_episodes: at least 4; by default 64, fewer where they are so long that it would take more
            than 50,000 steps, but 16 at least. That is decided before any of them is collected.
        seed: of episodes and actions; by default the run's.
        progress: told what is being done and how far it is.
        estimators: to measure; by default all that the policy allows, and the run's own.

    Raises:
        ConfigError: for fewer episodes, or without an environment.
        EnvironmentFaultError: if an episode does not end.
    """
    told = progress or (lambda what, done, total: None)
    seed = agent.config.seed if seed is None else whole_number("seed", seed, low=0)
    if n_episodes is None:
        told("looking how long an episode is", 0, 0)
        n_episodes = default_episodes(agent, seed)
    elif whole_number("n_episodes", n_episodes) < noise.FEWEST:
        raise ConfigError(
            f"{n_episodes} episode(s) cannot tell the signal of a gradient from its noise: "
            f"ask for at least {noise.FEWEST}, and better for {MOST}"
        )
    told(f"collecting {n_episodes} episodes", 0, 0)
    with _environments(agent, seed, "lab gradient", n_episodes) as envs:
        rollout = collect(envs, agent.policy, n_episodes=n_episodes)
    return _studied(agent, seed, rollout, _allowed(agent.config, estimators), told)


def default_episodes(agent: Agent, seed: int) -> int:
    """How many episodes to collect; other episodes than those tell their length."""
    limit = agent.config.max_episode_steps
    if limit is None and agent.source is not None:
        limit = agent.source.max_episode_steps
    if limit is not None and MOST * limit <= STEPS:
        return MOST
    with _environments(agent, seed, "lab gradient probe", PROBE) as envs:
        lengths = evaluate(agent.policy, envs, PROBE, deterministic=False).lengths
    return min(MOST, max(LEAST, int(STEPS / lengths.mean())))


def own_estimator(config: Config) -> Estimator:
    """What the run itself multiplies scores with, before it standardises."""
    if not isinstance(config, ReinforceConfig):
        assert isinstance(config, RolloutConfig)
        lam = config.gae_lambda
        name = "TD residual" if lam == 0 else f"GAE({lam:g})"
        return Estimator(name, advantage(lam), reads_values=True, bootstraps=True)
    whole, baseline = config.returns == "episode", config.baseline
    weigh, name = (whole_return, "episode return") if whole else (to_go, "reward-to-go")
    if baseline == "none":
        name = name if whole else f"{name} without gamma^t"
        return Estimator(name, weigh, keeps_discount=whole)
    if baseline == "value":
        return Estimator(f"{name} - V", _minus_value(weigh), whole, reads_values=True)
    kind = "mean" if baseline == "mean" else "leave-one-out"
    subtracted = minus_batch_mean(weigh, baseline == "loo", not whole, None)
    return Estimator(f"{name} - {kind}", subtracted, keeps_discount=whole)


def _minus_value(weigh: Weigh) -> Weigh:
    return lambda steps: weigh(steps) - steps.values


def _allowed(config: Config, wanted: tuple[Estimator, ...] | None) -> dict[Estimator, bool]:
    """Every estimator, and whether the policy allows it: V must have been trained to be read."""
    every = list(applicable() if wanted is None else wanted)
    if wanted is None and own_estimator(config).name not in [e.name for e in every]:
        lam = getattr(config, "gae_lambda", 1.0)  # a GAE goes where it belongs, others to the end
        every.insert(len(every) - sum(other > lam for other in LAMBDAS), own_estimator(config))
    has_values = not isinstance(config, ReinforceConfig) or config.baseline == "value"
    return {e: has_values or not e.reads_values for e in every}


@contextlib.contextmanager
def _environments(agent: Agent, seed: int, stream: str, n_episodes: int) -> Iterator[Environments]:
    """Fresh environments of an agent, their episodes numbered from 0 under a stream of its seed."""
    source = agent.source
    if source is None:
        raise ConfigError(
            "this model's environment is not known: give it, as in upslope.load(path, env=...)"
        )
    given = source.instance is not None
    envs = make_environments(
        source,
        n_envs=None if given else min(EVALUATION_ENVS, n_episodes),
        seed=SeedTree(seed).integer(stream),
        vec="auto" if given else "sync",
        **environment_settings(agent.config),
    )
    try:
        check_spaces(agent.policy, envs.observation_space, envs.action_space)
        yield envs
    finally:
        if given:
            agent.training.restart_environments()
        else:
            envs.close()


def _studied(
    agent: Agent, seed: int, rollout: Rollout, allowed: Mapping[Estimator, bool], told: Progress
) -> GradientStudy:
    chosen = {e.name: e for e, is_allowed in allowed.items() if is_allowed}
    evaluated = evaluate_rollout(agent.policy, rollout)
    steps = Steps.of(agent.policy, rollout, evaluated, agent.config.gamma)
    psi = _without_rounding(weights_of(tuple(chosen.values()), steps), steps)
    known = [name for name in REFERENCES if name in psi and bool(psi[name].any())]
    reference = next(iter([*known, *chosen]))
    psi = {reference: psi[reference], **psi}  # first: others are compared with it as they come
    n_episodes = len(rollout.episodes)
    threads = worthwhile_threads(rollout.n_valid // n_episodes, agent.policy)
    with torch_threads(threads):
        found = _gradients(agent.policy, rollout, evaluated, psi, told)
        n_parameters, rows = _compared(chosen, found)
    return GradientStudy(
        environment=agent.source.name if agent.source is not None else "",
        config=agent.config,
        seed=seed,
        episodes=n_episodes,
        steps=rollout.n_valid,
        mean_return=sum(episode.ret for episode in rollout.episodes) / n_episodes,
        truncated_share=sum(not e.terminated for e in rollout.episodes) / n_episodes,
        n_parameters=n_parameters,
        reference=reference,
        own=own_estimator(agent.config).name,
        left_out=tuple(e.name for e, is_allowed in allowed.items() if not is_allowed),
        rows=tuple(rows[name] for name in chosen),
    )


def _without_rounding(psi: dict[str, Tensor], steps: Steps) -> dict[str, Tensor]:
    """Weights of which nothing is left but the rounding of a difference of returns are 0."""
    tiny = ROUNDING * torch.finfo(steps.rewards.dtype).eps * to_go(steps).abs().max()
    return {name: w if w.abs().max() > tiny else torch.zeros_like(w) for name, w in psi.items()}


def _gradients(
    policy: ActorCritic,
    rollout: Rollout,
    evaluated: EvaluatedRollout,
    psi: Mapping[str, Tensor],
    told: Progress,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each estimator's gradients ``[N, d]``; no more at a time than ``HELD`` holds."""
    units = episode_units(rollout)
    n_units = int(units.max()) + 1
    part = max(LEAST, n_units // 20)  # episodes between two reports of progress
    names, size = list(psi), sum(p.numel() for p in policy.parameters()) * policy.dtype.itemsize
    at_once = max(1, HELD // (n_units * size))
    for first in range(0, len(names), at_once):
        group = names[first : first + at_once]
        losses = {name: pseudo_loss(name) for name in group}
        columns, pieces = {name: psi[name] for name in group}, []
        for start in range(0, n_units, part):
            told("gradients", first * n_units + start * len(group), len(names) * n_units)
            inside = (units >= start) & (units < start + part)
            members = torch.where(inside, units - start, -1)
            pieces.append(unit_gradients(policy, rollout, evaluated, losses, columns, members))
        for name in group:
            yield name, torch.cat([piece.pop(name) for piece in pieces]).cpu()


def _compared(
    estimators: Mapping[str, Estimator], found: Iterator[tuple[str, Tensor]]
) -> tuple[int, dict[str, Measured]]:
    """Number of parameters, and every estimator by name beside the first that is found."""
    name, reference = next(found)
    (alone,) = noise.compress(reference)
    rows = {name: _measured(estimators[name], alone, None)}
    for name, gradients in found:
        rows[name] = _measured(estimators[name], *noise.compress(gradients, reference))
    return reference.shape[1], rows


def _measured(estimator: Estimator, gradients: Tensor, reference: Tensor | None) -> Measured:
    """Figures of ``[N, d]`` gradients; without a reference they are the reference's own."""
    sample = Sample.of(gradients)
    snr, halves = noise.signal_to_noise(sample), noise.cosine_of_halves(gradients, gradients)
    ratio, difference = Estimate(1.0, 1.0, 1.0), Estimate(0.0, 0.0, 0.0)
    cosine, across = noise.cosine(gradients, gradients), halves
    if reference is not None:
        ratio = noise.variance_ratio(sample, Sample.of(reference))
        difference = noise.difference(gradients, reference)
        cosine = noise.cosine(gradients, reference)
        across = noise.cosine_of_halves(gradients, reference)
    return Measured(
        estimator, noise.signal(sample), noise.variance(sample), snr, noise.noise_scale(snr),
        ratio, difference, cosine, across, halves,
    )  # fmt: skip

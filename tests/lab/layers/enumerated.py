"""Layer B, enumerated expectation: every stream, times its probability, through what ships.

Weights, loss and backward pass are the shipped ones; the sum over all streams is an expectation
without sampling error. It is compared with the oracle of *the estimator itself*, a wrong V and the
bias it brings included, and the oracle then with the gradient of an objective, algebraically. So a
fault in the mean is seen at any size, and there are no false alarms.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

import upslope.rollout
import upslope.unit_gradients
from upslope.envs.tabular import MDP, deterministic, random_mdp, sentinel
from upslope.lab import bias, estimators, exact, moments
from upslope.lab.policies import probabilities, scores
from upslope.policies.actor_critic import ActorCritic

from .pages import REGIONS, WITH_GAE, actor_vector, one_update
from .streams import (
    Columns,
    as_rollout,
    continued,
    policy_for,
    single_episodes,
    two_episodes,
)

GAMMA, LAMBDA, ERROR = 0.8, 0.95, 5.0  # V is wrong by ERROR in every state
TOLERANCE = 1e-10
PROCESSES = {
    "sentinel": sentinel(3),
    "random": random_mdp(2, 2, 2, seed=0, termination=0.1),
}


def check_streams() -> None:
    """Every estimator on all two-episode streams, under limits that truncate and terminate."""
    for name, process in PROCESSES.items():
        for is_task in (False, True):
            mdp = process.with_limit(process.horizon, is_task=is_task)
            policy, columns = streams_of(name, is_task, reset_row=name == "random")
            found = expected_gradients(policy, columns)
            for estimator, wanted in exact_means(mdp, policy).items():
                where = f"{estimator} in {name}, limit {'terminates' if is_task else 'truncates'}"
                equal(found[estimator], 2 * wanted, where)


def check_oracle() -> None:
    """The oracle's means are gradients of what they are said to be, bias apart."""
    for name, process in PROCESSES.items():
        for is_task in (False, True):
            mdp = process.with_limit(process.horizon, is_task=is_task)
            policy, _ = streams_of(name, is_task, reset_row=name == "random")
            means, horizon = exact_means(mdp, policy), mdp.horizon
            finite = exact.policy_gradient(mdp, policy, "finite", GAMMA, horizon)
            equal(means["reward-to-go"], finite, f"reward-to-go in {name}")
            equal(means["episode return"], finite, f"episode return in {name}")
            equal(means["episode return - mean"], finite / 2, f"mean of two in {name}")
            values = exact_values(mdp, policy)
            e = torch.full((mdp.n_states,), ERROR, dtype=torch.float64)
            c = bias.nstep(mdp, policy, e, GAMMA, 1.0)
            for lam in estimators.LAMBDAS:
                right = gae_mean(mdp, policy, values, lam)
                practice = _practice_gradient(mdp, policy)
                equal(right, practice, f"GAE({lam:g}) with exact V in {name}")
                wrong = gae_mean(mdp, policy, values + ERROR, lam)
                equal(wrong, right + bias.gae(c, lam), f"bias of GAE({lam:g}) in {name}")


def check_batches_of_reinforce() -> None:
    """REINFORCE's own step on every batch of two episodes: returns, baselines and divisor."""
    mdp = short_or_long()
    policy = policy_for(mdp, torch.tensor([3.0, -2.0], dtype=torch.float64))
    pairs = two_episodes(mdp, probabilities(policy, mdp.n_states))
    to_go, _ = moments.weighted(mdp, policy, moments.reward_table(mdp), GAMMA, 1.0)
    whole, _ = moments.episode_return(mdp, policy, GAMMA)
    for returns, mean in (("to-go", to_go), ("episode", whole)):
        for baseline, kept in (("none", 1.0), ("value", 1.0), ("loo", 1.0), ("mean", 0.5)):
            found = _expected_step(policy, pairs, returns=returns, baseline=baseline)
            equal(found, kept * mean, f"reinforce, {returns}, baseline {baseline}")


def check_standardised_batches() -> None:
    """The same with standardised weights: the expectation of the estimator by its definition."""
    mdp = short_or_long()
    policy = policy_for(mdp)
    pairs = two_episodes(mdp, probabilities(policy, mdp.n_states))
    found = _expected_step(policy, pairs, baseline="none", normalize_advantage=True)
    _, table = scores(policy, torch.eye(mdp.n_states, dtype=torch.float64))
    wanted = torch.zeros_like(found)
    for i, p in enumerate(pairs.prob):
        one = pairs.pick(i)
        rows = one.valid.nonzero()[:, 0].tolist()
        reward, episode = one.rewards[:, 0], one.episode[:, 0]
        to_go = [
            sum(GAMMA ** (k - t) * reward[k] for k in rows if k >= t and episode[k] == episode[t])
            for t in rows
        ]
        x = torch.stack([torch.as_tensor(g) for g in to_go])
        x = (x - x.mean()) / (x.std() + 1e-8)
        wanted += p / 2 * (x[:, None] * table[one.states[rows, 0], one.actions[rows, 0]]).sum(0)
    equal(found, wanted, "reinforce, standardised")


def check_rollouts() -> None:
    """Each page's own step on every rollout of three rows, episodes running on past its end.

    The actor follows (1/T) sum_t rho_t, rho the visits of the reset chain; the critic regresses on
    targets that are wrong by what V is wrong. Row weights are probabilities.
    """
    mdp, steps = random_mdp(2, 2, 2, seed=1, termination=0.3), 3
    mdp = replace(mdp, limit_is_task=False)
    policy = policy_for(mdp, torch.tensor([4.0, 6.0], dtype=torch.float64))
    columns = continued(mdp, probabilities(policy, mdp.n_states), steps)
    rollout, n = as_rollout(policy, columns), len(columns.prob)
    actor, critic = _of_reset_chain(mdp, policy, steps, policy.critic_head.weight.detach()[0])
    d = len(actor_vector(policy))
    for page in WITH_GAE:
        seen = one_update(
            page, policy, rollout, n * columns.prob, gamma=GAMMA, gae_lambda=LAMBDA, ent_coef=0.0
        )
        if page in REGIONS:
            equal(seen.gradients["critic"][:-1], 2 * critic, f"critic of {page}")
            continue
        joint = seen.gradients.get("all")
        equal(seen.gradients["actor"] if joint is None else joint[:d], actor, f"actor of {page}")
        ours = seen.gradients["critic"] / 2 if joint is None else joint[d:]
        equal(ours[:-1], critic, f"critic of {page}")


def check_natural_step() -> None:
    """NPG's and TRPO's step = (F_w + cI)^-1 g with the lab's F under the visits of practice.

    States share features, or no error of w could be seen; the row weights are probabilities.
    """
    target_kl, damping = 1e-3, 0.1
    mdp = sentinel(3).with_limit(3, is_task=False)
    shared = policy_for(mdp, hidden=2)
    policy = policy_for(mdp, exact_values(mdp, shared), hidden=2)
    columns = single_episodes(mdp, probabilities(policy, mdp.n_states))
    visits = exact.visitation(mdp, probabilities(policy, mdp.n_states), 1.0, 3).sum(0)
    g = _practice_gradient(mdp, policy) / visits.sum()
    fisher = exact.fisher(policy, visits / visits.sum())
    curved = fisher + damping * torch.eye(len(g), dtype=torch.float64)
    x = torch.linalg.solve(curved, g)
    full = (2 * target_kl / (x @ curved @ x)).sqrt() * x
    for page in REGIONS:
        seen = one_update(
            page, policy, as_rollout(policy, columns), len(columns.prob) * columns.prob,
            gamma=GAMMA, gae_lambda=LAMBDA, ent_coef=0.0, target_kl=target_kl, cg_damping=damping,
            cg_max_steps=500,
        )  # fmt: skip
        assert seen.moved is not None
        wanted = seen.metrics["line_search_scale"] * full
        equal(seen.moved / full.norm(), wanted / full.norm(), f"step of {page}", 1e-8)
        kl = _kl(mdp, policy, seen.moved, visits / visits.sum())
        equal(torch.tensor(seen.metrics["approx_kl"]) / kl, kl / kl, f"KL of {page}", 1e-7)


def check_fisher() -> None:
    """The lab's F_w = the enumerated mean of score score' over rows, and over trajectories."""
    mdp = sentinel(3).with_limit(3, is_task=False)
    policy = policy_for(mdp, hidden=2)
    pi, table = scores(policy, torch.eye(mdp.n_states, dtype=torch.float64))
    columns = single_episodes(mdp, pi)
    s = table[columns.states, columns.actions] * columns.valid[..., None]
    visits = exact.visitation(mdp, pi, 1.0, 3).sum(0)
    ours = exact.fisher(policy, visits / visits.sum()) * visits.sum()
    equal(ours, torch.einsum("n,tnd,tne->de", columns.prob, s, s), "F of the rows")
    whole = s.sum(0)
    equal(ours, torch.einsum("n,nd,ne->de", columns.prob, whole, whole), "F of trajectories")


def expected_gradients(policy: ActorCritic, columns: Columns) -> dict[str, Tensor]:
    """E of each estimator of the lab ``[d]``, summed over the two episodes of a stream."""
    rollout = as_rollout(policy, columns)
    evaluated = upslope.rollout.evaluate_rollout(policy, rollout)
    steps = estimators.Steps.of(policy, rollout, evaluated, GAMMA)
    weights = estimators.weights_of(estimators.applicable(2), steps)
    found = upslope.unit_gradients.unit_gradients(
        policy,
        rollout,
        evaluated,
        {name: upslope.unit_gradients.pseudo_loss(name) for name in weights},
        {name: psi * columns.prob for name, psi in weights.items()},
        torch.zeros_like(columns.episode),
    )
    return {name: gradient[0] for name, gradient in found.items()}


def exact_means(mdp: MDP, policy: ActorCritic) -> dict[str, Tensor]:
    """The mean of each estimator over one episode, by the lab's recursions."""
    rewards = moments.reward_table(mdp)
    whole, _ = moments.episode_return(mdp, policy, GAMMA)
    dropped, _ = moments.weighted(mdp, policy, rewards, GAMMA, 1.0)
    wrong = policy.critic_head.weight.detach()[0]
    return {
        "episode return": whole,
        "episode return - mean": whole / 2,
        "episode return - leave-one-out": whole,
        "reward-to-go": moments.weighted(mdp, policy, rewards, GAMMA, GAMMA)[0],
        "reward-to-go without gamma^t": dropped,
        "reward-to-go - leave-one-out": dropped,
        "reward-to-go - V": dropped,
        "TD residual": gae_mean(mdp, policy, wrong, 0.0),
        **{f"GAE({lam:g})": gae_mean(mdp, policy, wrong, lam) for lam in estimators.LAMBDAS[1:]},
    }


def gae_mean(mdp: MDP, policy: ActorCritic, values: Tensor, lam: float) -> Tensor:
    """Mean of sum_t score_t GAE_t under V ``[S]``, or ``[H + 1, S]``."""
    horizon = moments.horizon_of(mdp)
    table = values.expand(horizon + 1, -1).clone() if values.dim() == 1 else values.clone()
    if mdp.limit_is_task:
        table[-1] = 0.0  # an episode that the limit terminates has no successor
    rho = moments.td_table(mdp, table, GAMMA)
    return moments.weighted(mdp, policy, rho, GAMMA * lam, 1.0)[0]


def exact_values(mdp: MDP, policy: ActorCritic) -> Tensor:
    """V ``[S]`` where the limit is only the sampling's, V ``[H + 1, S]`` where it is the task's."""
    horizon = mdp.horizon if mdp.limit_is_task else None
    return exact.state_values(mdp, probabilities(policy, mdp.n_states), GAMMA, horizon)


@cache
def streams_of(name: str, is_task: bool, reset_row: bool) -> tuple[ActorCritic, Columns]:
    """A policy whose critic answers V + ERROR, and all two-episode streams of it."""
    process = PROCESSES[name]
    mdp = process.with_limit(process.horizon, is_task=is_task)
    pi = probabilities(policy_for(mdp), mdp.n_states)
    values = exact.state_values(mdp, pi, GAMMA, None) + ERROR
    return policy_for(mdp, values), two_episodes(mdp, pi, reset_row)


def short_or_long() -> MDP:
    """One step or two, as the first action says; five trajectories with distinct rewards."""
    rewards, ends = [[1.0, -0.5], [0.3, 2.0]], [[1.0, 0.0], [1.0, 1.0]]
    mdp = deterministic("short or long", [[0, 1], [1, 0]], rewards, ends, horizon=2)
    return replace(mdp, start=torch.tensor([0.7, 0.3], dtype=torch.float64))


def equal(ours: Tensor, wanted: Tensor, where: str, tolerance: float = TOLERANCE) -> None:
    """Two tensors are the same but for rounding."""
    gap = float((ours - wanted).abs().max())
    assert gap <= tolerance, f"{where}: off by {gap:.1e}"


def _practice_gradient(mdp: MDP, policy: ActorCritic) -> Tensor:
    """E sum_t score_t A(s_t, a_t) over the rows that are sampled."""
    if mdp.limit_is_task:  # whose Q is that of the steps left, as reward-to-go's is
        return moments.weighted(mdp, policy, moments.reward_table(mdp), GAMMA, 1.0)[0]
    return exact.policy_gradient(mdp, policy, "undiscounted-weights", GAMMA, mdp.horizon)


def _expected_step(policy: ActorCritic, pairs: Columns, **settings: object) -> Tensor:
    """E of the gradient that REINFORCE's page follows after a batch of two episodes ``[d]``."""
    total = torch.zeros_like(actor_vector(policy))
    for i, p in enumerate(pairs.prob):
        rollout = as_rollout(policy, pairs.pick(i))
        seen = one_update("reinforce", policy, rollout, gamma=GAMMA, batch_episodes=2, **settings)
        total += p * seen.gradients["actor"]
    return total


def _of_reset_chain(
    mdp: MDP, policy: ActorCritic, steps: int, values: Tensor
) -> tuple[Tensor, Tensor]:
    """(1/T) sum_t E[score_t A_t] ``[d]`` and E[A_t 1{s_t = s}] ``[S]``, A = GAE of T rows.

    The state is joined by the step in the episode, k < H; A_t = delta_t + gamma lambda A_{t+1}
    while the episode goes on, and nothing follows the last row but its bootstrap.
    """
    pi, table = scores(policy, torch.eye(mdp.n_states, dtype=torch.float64))
    horizon = moments.horizon_of(mdp)
    on = mdp.continuing
    delta = mdp.expected_rewards + GAMMA * on @ values - values[:, None]
    ahead = torch.zeros(horizon + 1, mdp.n_states, dtype=torch.float64)
    weights = []
    for _ in range(steps):
        weights.insert(0, delta + GAMMA * LAMBDA * torch.einsum("sat,kt->ksa", on, ahead[1:]))
        ahead = torch.zeros_like(ahead)
        ahead[:horizon] = (pi * weights[0]).sum(-1)
    visits = torch.zeros(horizon, mdp.n_states, dtype=torch.float64)
    visits[0] = mdp.start
    actor, critic = torch.zeros(table.shape[-1], dtype=torch.float64), torch.zeros_like(mdp.start)
    for weight in weights:
        flow = visits[..., None] * pi
        actor += torch.einsum("ksa,ksa,sad->d", flow, weight, table) / steps
        critic += (flow * weight).sum((0, 2)) / steps
        moved = torch.einsum("ksa,sat->kt", flow, on)
        visits = torch.zeros_like(visits)
        visits[1:] = moved[:-1]
        visits[0] = (1 - visits.sum()) * mdp.start
    return actor, critic


def _kl(mdp: MDP, policy: ActorCritic, moved: Tensor, weights: Tensor) -> Tensor:
    """sum_s w(s) KL(old || new) of the policy and itself after a step ``moved [d]``."""
    states = torch.eye(mdp.n_states, dtype=torch.float64)
    new, place = copy.deepcopy(policy), 0
    named = dict(new.named_parameters())
    with torch.no_grad():
        for name in new.part_names("actor"):
            size = named[name].numel()
            named[name].add_(moved[place : place + size].view_as(named[name]))
            place += size
        log_old, log_new = (p.actor_head(p.actor(states)).log_softmax(-1) for p in (policy, new))
    return weights @ (log_old.exp() * (log_old - log_new)).sum(1)


CHECKS = {
    "streams": check_streams,
    "oracle": check_oracle,
    "batches of REINFORCE": check_batches_of_reinforce,
    "standardised batches": check_standardised_batches,
    "rollouts": check_rollouts,
    "natural step": check_natural_step,
    "Fisher matrix": check_fisher,
}

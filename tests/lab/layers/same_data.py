"""Layer A, same data: on recorded streams the shipped weights and gradients are brute force's.

The streams come from the world of ``tests/helpers/ledger.py``, whose observations say which episode
and step they belong to. So what truly happened on a row is read from its observation alone, and a
record that is wrong is seen as well as a formula that is. Everything is in float64 and written out
in loops; the tolerance is that of rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from ledger import ends, length, make_ledgers, make_policy, observation, read, reward
from torch import Tensor

import upslope.rollout
from upslope.envs.episodes import Environments
from upslope.lab import estimators
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import Rollout

from .pages import REGIONS, WITH_GAE, actor_vector, one_update

GAMMA, LAMBDA = 0.9, 0.8
MODES = ("plain", "next", "same", "disabled")
SEED, N_ENVS, STEPS, QUOTA = 26, 3, 16, 6  # a seed whose streams have every boundary
TOLERANCE = 1e-12

Place = tuple[int, int]
Numbers = dict[Place, float]


class Row(NamedTuple):
    """One transition as the world says it was."""

    episode: int
    step: int
    obs: np.ndarray
    action: Any
    reward: float
    successor: np.ndarray
    terminated: bool
    ended: bool


def check_advantages() -> None:
    """GAE weights and critic targets of every page, in every mode, over two rollouts."""
    for mode in MODES:
        envs, policy = worlds(mode)
        for _ in range(2):
            rollout = upslope.rollout.collect(envs, policy, n_steps=STEPS)
            rows = transitions(rollout)
            wanted = advantages(rows, value_of(policy))
            targets = {at: wanted[at] + value_of(policy)(row.obs) for at, row in rows.items()}
            for page in WITH_GAE:
                seen = one_update(page, policy, rollout, gamma=GAMMA, gae_lambda=LAMBDA)
                agree(seen.batch["weights"], wanted, rollout, f"{page} in mode {mode}")
                agree(seen.batch["targets"], targets, rollout, f"targets of {page}, mode {mode}")


def check_returns() -> None:
    """REINFORCE's weights: both returns, every baseline, in every mode."""
    for mode in MODES:
        envs, policy = worlds(mode)
        rollout = upslope.rollout.collect(envs, policy, n_episodes=QUOTA)
        rows = whole_episodes(rollout)
        for returns in ("episode", "to-go"):
            for baseline in ("none", "mean", "loo", "value"):
                seen = one_update(
                    "reinforce", policy, rollout, gamma=GAMMA, batch_episodes=QUOTA,
                    returns=returns, baseline=baseline,
                )  # fmt: skip
                wanted = weights_of_episodes(rows, returns, baseline, value_of(policy))
                agree(seen.batch["weights"], wanted, rollout, f"{returns}, {baseline}, {mode}")


def check_standardised() -> None:
    """Weights standardised over the valid rows of a rollout that has reset rows."""
    envs, policy = worlds("next")
    rollout = upslope.rollout.collect(envs, policy, n_steps=STEPS)
    wanted = standardised(advantages(transitions(rollout), value_of(policy)))
    for page in WITH_GAE[:-1]:  # PPO standardises its minibatches
        seen = one_update(
            page, policy, rollout, gamma=GAMMA, gae_lambda=LAMBDA, normalize_advantage=True
        )
        agree(seen.batch["weights"], wanted, rollout, f"{page}, standardised")


def check_gradients() -> None:
    """Actor's and critic's gradient of one step = the closed form of a linear network."""
    for box in (False, True):
        envs, policy = worlds("next", box)
        rollout = upslope.rollout.collect(envs, policy, n_steps=STEPS)
        rows = transitions(rollout)
        weights = advantages(rows, value_of(policy))
        for page in ("vpg", "a2c", "ppo"):
            seen = one_update(page, policy, rollout, gamma=GAMMA, gae_lambda=LAMBDA, ent_coef=0.0)
            d, joint = len(actor_vector(policy)), seen.gradients.get("all")
            actor = seen.gradients["actor"] if joint is None else joint[:d]
            critic = seen.gradients["critic"] if joint is None else 2 * joint[d:]  # vf_coef 1/2
            equal(actor, gradient(policy, rows, weights, len(rows)), f"actor of {page}")
            # V - target is minus the advantage, as the target is advantage + V
            equal(critic, _critic_gradient(policy, rows, weights), f"critic of {page}")
        rollout = upslope.rollout.collect(envs, policy, n_episodes=QUOTA)
        rows = whole_episodes(rollout)
        weights = weights_of_episodes(rows, "to-go", "none", value_of(policy))
        seen = one_update(
            "reinforce", policy, rollout, gamma=GAMMA, batch_episodes=QUOTA, baseline="none"
        )
        equal(seen.gradients["actor"], gradient(policy, rows, weights, QUOTA), "reinforce")


def check_ppo_standardised() -> None:
    """PPO's step with weights standardised inside its loss, which drops the padding again."""
    envs, policy = worlds("next")
    rollout = upslope.rollout.collect(envs, policy, n_steps=STEPS)
    rows = transitions(rollout)
    weights = standardised(advantages(rows, value_of(policy)))
    for over in ("batch", "minibatch"):
        seen = one_update(
            "ppo", policy, rollout, gamma=GAMMA, gae_lambda=LAMBDA, ent_coef=0.0,
            normalize_advantage=True, normalize_advantage_over=over,
        )  # fmt: skip
        actor = seen.gradients["all"][: len(actor_vector(policy))]
        equal(actor, gradient(policy, rows, weights, len(rows)), f"ppo standardised over {over}")


def check_natural_step() -> None:
    """NPG's and TRPO's step = the dense solution, scaled and searched by loops, and its KL."""
    target_kl, damping = 0.01, 0.1
    envs, policy = worlds("next")
    rollout = upslope.rollout.collect(envs, policy, n_steps=STEPS)
    rows = transitions(rollout)
    weights = advantages(rows, value_of(policy))
    g = gradient(policy, rows, weights, len(rows))
    curved = _fisher(policy, rows) + damping * torch.eye(len(g), dtype=torch.float64)
    x = torch.linalg.solve(curved, g)
    full = (2 * target_kl / (x @ curved @ x)).sqrt() * x
    for page in REGIONS:
        seen = one_update(
            page, policy, rollout, gamma=GAMMA, gae_lambda=LAMBDA, ent_coef=0.0,
            target_kl=target_kl, cg_damping=damping, cg_max_steps=200,
        )  # fmt: skip
        scale, kl = _searched(policy, rows, weights, full, page, target_kl)
        assert seen.moved is not None
        equal(seen.moved, scale * full, f"step of {page}", 1e-8)
        equal(torch.tensor(seen.metrics["approx_kl"]), torch.tensor(kl), f"KL of {page}", 1e-7)


def check_estimators() -> None:
    """Every estimator of the lab on whole episodes with reset rows between them."""
    envs, policy = worlds("next")
    rollout = upslope.rollout.collect(envs, policy, n_episodes=QUOTA)
    rows, value, size = whole_episodes(rollout), value_of(policy), QUOTA // 2
    evaluated = upslope.rollout.evaluate_rollout(policy, rollout)
    steps = estimators.Steps.of(policy, rollout, evaluated, GAMMA)
    ours = estimators.weights_of(estimators.applicable(size), steps)
    halves = _halves(rows, rollout, size)

    def by_half(returns: str, baseline: str) -> Numbers:
        pieces = [weights_of_episodes(half, returns, baseline, value) for half in halves]
        return {at: x for piece in pieces for at, x in piece.items()}

    to_go = by_half("to-go", "none")
    wanted = {
        "episode return": by_half("episode", "none"),
        "episode return - mean": by_half("episode", "mean"),
        "episode return - leave-one-out": by_half("episode", "loo"),
        "reward-to-go": {at: GAMMA ** rows[at].step * x for at, x in to_go.items()},
        "reward-to-go without gamma^t": to_go,
        "reward-to-go - leave-one-out": by_half("to-go", "loo"),
        "reward-to-go - V": by_half("to-go", "value"),
        "TD residual": advantages(rows, value, 0.0),
        **{f"GAE({lam:g})": advantages(rows, value, lam) for lam in estimators.LAMBDAS[1:]},
    }
    for name, weights in ours.items():
        agree(weights.reshape(-1), wanted[name], rollout, name)


def check_sampled_actions() -> None:
    """Box actions are kept as they were sampled from the streams of the run, though clipped.

    The environment is given the clipped ones, and log-probabilities are those of the sampled.
    """
    for quota in (False, True):
        envs, policy = worlds("plain", box=True)
        amount = {"n_episodes": 3 * QUOTA} if quota else {"n_steps": STEPS}
        rollout = upslope.rollout.collect(envs, policy, **amount)
        rows = whole_episodes(rollout) if quota else transitions(rollout)
        sigma = policy.actions.log_std.detach().exp().numpy()
        noise = envs.seeds.generator("actions", 0).standard_normal((STEPS, N_ENVS, 2))
        for (t, b), row in rows.items():
            number = int(rollout.episode[t, b])
            stream = envs.seeds.generator("episode_actions", number)
            z = stream.standard_normal((128, 2))[row.step] if quota else noise[t, b]
            mean = _affine(policy, row.obs).numpy()
            near(np.asarray(row.action), mean + sigma * z, f"action of row {t}, {b}")
            density = -0.5 * (z**2).sum() - np.log(sigma).sum() - np.log(2 * np.pi)
            near(float(rollout.log_prob[t, b]), density, f"log-probability of row {t}, {b}")
        assert rollout.clipped_share > 0.3, "too few actions were clipped to test anything"


def worlds(mode: str, box: bool = False) -> tuple[Environments, ActorCritic]:
    """Environments and a linear policy whose weights are all away from 0."""
    envs = make_ledgers(mode, N_ENVS, SEED, box=box)
    policy = make_policy(envs, net_arch=())
    rng = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weights in policy.parameters():
            weights.copy_(0.5 * torch.randn(weights.shape, generator=rng, dtype=torch.float64))
        if box:  # wide enough for the bounds, 1 from the centre, to clip many actions
            policy.actions.log_std.copy_(torch.tensor([0.2, 0.4]))
    return envs, policy


def transitions(rollout: Rollout) -> dict[Place, Row]:
    """Every transition of a T x B rollout by place; what was recorded of it must be so."""
    steps, n_envs = rollout.rewards.shape
    rows: dict[Place, Row] = {}
    for t in range(steps):
        for b in range(n_envs):
            e, step = read(rollout.obs[t, b].numpy())
            is_transition = step < length(e)  # a final observation is answered by a reset
            assert bool(rollout.valid[t, b]) == is_transition, f"row {t}, {b} is told wrongly"
            if is_transition:
                rows[t, b] = _row(rollout, t, b)
    return rows


def whole_episodes(rollout: Rollout) -> dict[Place, Row]:
    """The rows of numbered episodes, each of which must be there once, from first to last step."""
    rows = {(t, b): _row(rollout, t, b) for t, b in rollout.valid.nonzero().tolist()}
    for e, places in _episodes(rows).items():
        steps = [rows[at].step for at in places]
        assert steps == list(range(length(e))), f"episode {e} has the steps {steps}"
    assert len(_episodes(rows)) == len(rollout.episodes), "an episode is missing, or came twice"
    return rows


def advantages(
    rows: dict[Place, Row], value: Callable[[np.ndarray], float], lam: float = LAMBDA
) -> Numbers:
    """A_t as the sum it is: TD errors of the same episode, as far as the rollout goes."""
    delta = {}
    for at, row in rows.items():
        tail = 0.0 if row.terminated else GAMMA * value(row.successor)
        delta[at] = row.reward + tail - value(row.obs)
    found = {}
    for t, b in rows:
        total, weight, k = 0.0, 1.0, t
        while True:
            total += weight * delta[k, b]
            if rows[k, b].ended or (k + 1, b) not in rows:
                break
            weight, k = weight * GAMMA * lam, k + 1
        found[t, b] = total
    return found


def weights_of_episodes(
    rows: dict[Place, Row], returns: str, baseline: str, value: Callable[[np.ndarray], float]
) -> Numbers:
    """REINFORCE's weights: a return minus a baseline, over all episodes of ``rows``."""
    to_go: dict[int, list[float]] = {}
    for e, places in _episodes(rows).items():
        rewards = [rows[at].reward for at in places]
        to_go[e] = [
            sum(GAMMA**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))
        ]
    whole, found = returns == "episode", {}
    for at, row in rows.items():
        step = 0 if whole else row.step
        of_all = {e: seen[step] if step < len(seen) else 0.0 for e, seen in to_go.items()}
        own = of_all[row.episode]
        base = {"none": 0.0, "value": value(row.obs)}.get(baseline)
        if base is None:
            others = [x for e, x in of_all.items() if baseline == "mean" or e != row.episode]
            base = sum(others) / len(others)
        found[at] = own - base
    return found


def standardised(weights: Numbers) -> Numbers:
    """(x - mean) / std, with the divisor n - 1."""
    x = np.array(list(weights.values()))
    return dict(zip(weights, (x - x.mean()) / (x.std(ddof=1) + 1e-8), strict=True))


def gradient(
    policy: ActorCritic, rows: dict[Place, Row], weights: Numbers, divisor: float
) -> Tensor:
    """sum of score times weight, over ``divisor``: ``[d]``."""
    total = torch.zeros_like(actor_vector(policy))
    for at, row in rows.items():
        total += weights[at] * score(policy, row.obs, row.action)
    return total / divisor


def score(policy: ActorCritic, obs: np.ndarray, action: Any) -> Tensor:
    """grad log pi(a|s) ``[d]`` of a linear policy, by hand."""
    out, pieces = _affine(policy, obs), {}
    if hasattr(policy.actions, "log_std"):
        sigma = policy.actions.log_std.detach().exp()
        gap = torch.as_tensor(action) - out
        slope = gap / sigma**2
        pieces["actions.log_std"] = (gap / sigma) ** 2 - 1
    else:
        slope = -out.softmax(0)
        slope[int(action)] += 1
    pieces["actor_head.weight"] = torch.outer(slope, torch.as_tensor(obs)).reshape(-1)
    pieces["actor_head.bias"] = slope
    return torch.cat([pieces[name] for name in policy.part_names("actor")])


def value_of(policy: ActorCritic) -> Callable[[np.ndarray], float]:
    """V(s) of a linear critic, without torch."""
    weight = policy.critic_head.weight.detach().numpy()[0].copy()
    bias = float(policy.critic_head.bias.detach())
    return lambda obs: float(weight @ obs) + bias


def agree(column: Tensor, wanted: Numbers, rollout: Rollout, where: str) -> None:
    """The valid rows of a column ``[T * B]`` are those of ``wanted``, with the same numbers."""
    grid = column.view(rollout.valid.shape)
    assert {(t, b) for t, b in rollout.valid.nonzero().tolist()} == set(wanted), where
    ours = np.array([float(grid[at]) for at in wanted])
    near(ours, np.array(list(wanted.values())), where)


def equal(ours: Tensor, wanted: Tensor, where: str, tolerance: float = TOLERANCE) -> None:
    """Two tensors are the same but for rounding, relative to their size."""
    near(ours.detach().numpy(), wanted.detach().numpy(), where, tolerance)


def near(ours: Any, wanted: Any, where: str, tolerance: float = TOLERANCE) -> None:
    """Two arrays are the same but for rounding, relative to their size."""
    gap, size = float(np.abs(ours - wanted).max()), float(np.abs(wanted).max())
    assert gap <= tolerance * max(1.0, size), f"{where}: off by {gap:.1e}"


def _row(rollout: Rollout, t: int, b: int) -> Row:
    """The transition at a place; the record must say what the world does."""
    e, step = read(rollout.obs[t, b].numpy())
    assert step < length(e), f"row {t}, {b} follows the end of its episode"
    action = rollout.actions[t, b].numpy()
    gain, (terminated, truncated) = reward(e, step, _taken(action)), ends(e, step)
    near(float(rollout.rewards[t, b]), gain, f"reward of row {t}, {b}")
    recorded = bool(rollout.terminated[t, b]), bool(rollout.truncated[t, b])
    assert recorded == (terminated, truncated), f"row {t}, {b} ends as {recorded}"
    assert int(rollout.episode_step[t, b]) == step, f"row {t}, {b} has another step"
    successor = observation(e, step + 1)
    ended = terminated or truncated
    return Row(e, step, observation(e, step), action, gain, successor, terminated, ended)


def _taken(action: np.ndarray) -> Any:
    """What the environment was given, for a sampled action in units of half the range."""
    if action.ndim == 0:
        return int(action)
    low, high = -2, 3
    scaled = action * (high - low) / 2 + (high + low) / 2
    return np.clip(scaled, low, high).astype(np.float32)


def _episodes(rows: dict[Place, Row]) -> dict[int, list[Place]]:
    found: dict[int, list[Place]] = {}
    for at in sorted(rows):
        found.setdefault(rows[at].episode, []).append(at)
    return found


def _halves(rows: dict[Place, Row], rollout: Rollout, size: int) -> list[dict[Place, Row]]:
    """Rows of the first ``size`` numbered episodes, and those of the others."""
    rank = {n: i for i, n in enumerate(sorted({int(rollout.episode[at]) for at in rows}))}
    halves: list[dict[Place, Row]] = [{}, {}]
    for at, row in rows.items():
        halves[rank[int(rollout.episode[at])] // size][at] = row
    return halves


def _affine(policy: ActorCritic, obs: np.ndarray) -> Tensor:
    head = policy.actor_head
    return head.weight.detach() @ torch.as_tensor(obs) + head.bias.detach()


def _critic_gradient(policy: ActorCritic, rows: dict[Place, Row], advantage: Numbers) -> Tensor:
    """Minus the gradient of the mean of (V - target)^2, in weight and bias."""
    total = torch.zeros(len(next(iter(rows.values())).obs) + 1, dtype=torch.float64)
    for at, row in rows.items():
        total += 2 * advantage[at] * torch.cat([torch.as_tensor(row.obs), torch.ones(1)])
    return total / len(rows)


def _fisher(policy: ActorCritic, rows: dict[Place, Row]) -> Tensor:
    """Mean over the rows of E_a[score score'] ``[d, d]``."""
    d = len(actor_vector(policy))
    total = torch.zeros(d, d, dtype=torch.float64)
    for row in rows.values():
        for action, p in enumerate(_affine(policy, row.obs).softmax(0)):
            of_action = score(policy, row.obs, action)
            total += p * torch.outer(of_action, of_action)
    return total / len(rows)


def _searched(
    policy: ActorCritic,
    rows: dict[Place, Row],
    weights: Numbers,
    full: Tensor,
    page: str,
    target_kl: float,
) -> tuple[float, float]:
    """Scale of the first candidate that may be taken, and KL(old || new) there, by loops."""
    head = policy.actor_head
    n_weights = head.weight.numel()
    shrink = {"npg": 0.5, "trpo": 0.8}[page]
    start = sum(weights.values()) / len(rows)
    for k in range(10):
        step = shrink**k * full
        weight = head.weight.detach() + step[:n_weights].view_as(head.weight)
        bias = head.bias.detach() + step[n_weights:]
        kl = gain = 0.0
        for at, row in rows.items():
            old = _affine(policy, row.obs).log_softmax(0)
            new = (weight @ torch.as_tensor(row.obs) + bias).log_softmax(0)
            kl += float((old.exp() * (old - new)).sum()) / len(rows)
            ratio = float((new - old)[int(row.action)].exp())
            gain += ratio * weights[at] / len(rows)
        if kl <= target_kl and (page == "npg" or gain > start):
            return shrink**k, kl
    raise AssertionError(f"no candidate step of {page} may be taken")


CHECKS = {
    "advantages": check_advantages,
    "returns": check_returns,
    "standardised": check_standardised,
    "gradients": check_gradients,
    "PPO standardised": check_ppo_standardised,
    "natural step": check_natural_step,
    "estimators": check_estimators,
    "sampled actions": check_sampled_actions,
}

"""Page 10: KL divergence and return along a real TRPO step, and what accepted steps did."""

from __future__ import annotations

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.algorithms.common import rows_of
from upslope.algorithms.trpo import Learner
from upslope.config import TRPOConfig
from upslope.envs.episodes import Environments
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import gridworld
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab import bounds, exact
from upslope.lab.problems import Problem
from upslope.optim import ActorFunctions, FlatParameters
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import evaluate_rollout
from upslope.seeding import SeedTree
from upslope.theory.trust_region import (
    LineSearchResult,
    conjugate_gradient,
    fisher_matvec,
    line_search,
    step_size,
)

GRID = gridworld(horizon=None)
GAMMA, HIDDEN, COPIES, SEED = 0.95, 2, 16, 0
SCALES = [10 ** (i / 20 - 1) for i in range(47)]  # of the full step
ROWS = 1024  # of the batch whose step is drawn
RUNS, UPDATES, FEW_ROWS = 4, 60, 64  # of the count of accepted steps


def main() -> None:
    """Draw both panels, print what the page quotes."""
    policy = new_policy()
    before = exact.state_probabilities(GRID, policy)
    values = exact.state_values(GRID, before, GAMMA)
    with torch.no_grad():
        policy.critic_head.weight.copy_(values[None])  # the critic is right
    actor, step, found = one_step(policy)
    figure, (left, right) = drawing.panels("AB", height=4.0)
    draw_divergence(left, actor, step, found)
    draw_return(right, policy, before, step, found)
    drawing.save(figure, "10-trpo")
    count_falls()


def new_policy() -> ActorCritic:
    """A network of two hidden units over the nine cells: they share almost everything."""
    logits = torch.zeros(GRID.n_states, GRID.n_actions, dtype=torch.float64)
    return Problem("grid", GRID, GAMMA, logits, HIDDEN).policy()


def environments(seed: int) -> Environments:
    """Copies of the grid side by side."""
    return make_environments(find_environment(TabularVectorEnv(GRID, COPIES)), seed=seed)


def config_for(rows: int) -> TRPOConfig:
    """TRPO as it ships, with weights in units of reward."""
    n_steps = rows // COPIES
    return TRPOConfig(gamma=GAMMA, n_envs=COPIES, n_steps=n_steps, normalize_advantage=False)


def one_step(policy: ActorCritic) -> tuple[ActorFunctions, Tensor, LineSearchResult]:
    """The rollout's functions, the full step and the line search's choice, as TRPO finds them."""
    config = config_for(ROWS)
    learner = Learner(config, policy)
    rollout = learner.collect(environments(SEED))
    evaluated = evaluate_rollout(policy, rollout)
    weights = learner.weigh(rollout, evaluated).weights
    batch = rows_of(rollout, evaluated, log_prob=evaluated.log_prob, weights=weights)
    with torch.no_grad():
        old = policy.distribution_of(batch["inputs"])
    actor = ActorFunctions(policy, learner.objective, {**batch, "old": old})
    product = fisher_matvec(actor.kl, actor.theta, config.cg_damping)
    x = conjugate_gradient(product, actor.gradient(), config.cg_max_steps)
    step = step_size(x, product(x), config.target_kl) * x
    found = line_search(actor.evaluate, actor.theta, step, config.target_kl)
    flat = FlatParameters(policy, policy.part_names("actor")).vector
    learner.update(rollout, evaluated, 1.0, SeedTree(SEED).generator("minibatches"))
    print(f"the step here is the algorithm's: {torch.allclose(flat, found.theta, atol=1e-12)}")
    with torch.no_grad():
        flat.copy_(actor.theta)
    return actor, step, found


def draw_divergence(
    axes: Axes, actor: ActorFunctions, step: Tensor, found: LineSearchResult
) -> None:
    """Measured KL of the batch along the step beside the model that set its length."""
    target = config_for(ROWS).target_kl
    kls = [float(actor.evaluate(actor.theta + scale * step)[1]) for scale in SCALES]
    axes.plot(SCALES, [target * s**2 for s in SCALES], "--", color=drawing.GREY, label="model")
    axes.plot(SCALES[::4], kls[::4], "o", color=drawing.BLUE, markersize=5, label="measured")
    axes.axhline(target, color=drawing.INK, linewidth=0.8)
    axes.plot(found.scale, found.kl, "*", color=drawing.RED, markersize=13, zorder=5)
    axes.set(xscale="log", yscale="log", xlabel="length, in full steps", ylabel="mean KL, nats")
    axes.set_title(f"Along one step (star: taken; line: {target:g} nats)")
    axes.legend(loc="upper left")
    print(f"taken: {found.scale:g} of the full step, measured KL {found.kl:.4f}, target {target:g}")
    ten = SCALES.index(10.0)
    print(f"10 times the step: KL {kls[ten]:.2f}, model {target * SCALES[ten] ** 2:.2f}")


def draw_return(
    axes: Axes, policy: ActorCritic, before: Tensor, step: Tensor, found: LineSearchResult
) -> None:
    """Exact gain along the step, the exact surrogate, and the bound of Eq. 10.4."""
    flat = FlatParameters(policy, policy.part_names("actor"))
    values = exact.state_values(GRID, before, GAMMA)
    advantages = exact.action_values(GRID, values, GAMMA) - values[:, None]
    visits = exact.visitation(GRID, before, GAMMA, None)
    rows = []
    for scale in [*SCALES, found.scale]:
        with flat.replaced_by(flat.vector + scale * step):
            after = exact.state_probabilities(GRID, policy)
        low, gain = bounds.improvement(GRID, before, after, GAMMA)
        rows.append((float(visits @ (after * advantages).sum(1)), float(gain), float(low)))
    *along, taken = rows
    surrogates, gains, lows = (list(column) for column in zip(*along, strict=True))
    axes.plot(SCALES, surrogates, "--", color=drawing.GREY, label="surrogate $L_\\pi$")
    axes.plot(SCALES, gains, color=drawing.BLUE, label="return")
    axes.plot(SCALES, lows, ":", color=drawing.RED, label="guaranteed (Eq. 10.4)")
    axes.plot(found.scale, taken[1], "*", color=drawing.RED, markersize=13, zorder=5)
    axes.set(xscale="log", ylim=(-0.5, 1.6))
    axes.set(xlabel="length, in full steps", ylabel="exact gain, units of reward")
    axes.set_title("What it does to the return")
    axes.legend(loc="upper left")
    print(f"taken: the return rises by {taken[1]:.3f}, the surrogate by {taken[0]:.3f}")
    print(f"  the bound (Eq. 10.4) says {taken[2]:.2f}")
    print(f"  it is below 0 from {crossing(lows):.2f} steps on")
    best = max(range(len(SCALES)), key=gains.__getitem__)
    print(f"the return is highest after {SCALES[best]:.1f} steps, by {gains[best]:.2f}, and below")
    print(
        f"  its start from {crossing(gains):.0f} on, where the surrogate says {surrogates[-1]:.1f}"
    )


def crossing(values: list[float]) -> float:
    """Scale from which on the values are below 0."""
    return next(scale for scale, value in zip(SCALES, values, strict=True) if value < 0)


def count_falls() -> None:
    """Accepted steps of several short runs, and after how many of them the exact return fell."""
    config, changes, kls = config_for(FEW_ROWS), [], []
    for seed in range(RUNS):
        policy = new_policy()
        with torch.no_grad():
            policy.critic_head.weight.zero_()
        learner, envs = Learner(config, policy), environments(seed)
        rng = SeedTree(seed).generator("minibatches")
        for _ in range(UPDATES):
            rollout, before = learner.collect(envs), exact_return(policy)
            metrics = learner.update(rollout, evaluate_rollout(policy, rollout), 1.0, rng)
            if metrics["is_line_search_success"]:
                changes.append(exact_return(policy) - before)
                kls.append(metrics["approx_kl"])
    fell = [change for change in changes if change < 0]
    print(f"{RUNS} runs, batches of {FEW_ROWS} rows: {len(fell)} of {len(changes)} accepted steps")
    print(f"  lowered the exact return, by up to {-min(fell):.3f}; largest KL {max(kls):.4f}")


def exact_return(policy: ActorCritic) -> float:
    """J_gamma of the policy."""
    return float(exact.objective(GRID, exact.state_probabilities(GRID, policy), GAMMA))


if __name__ == "__main__":
    main()

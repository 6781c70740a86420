"""Page 11: the KL divergence of PPO's epochs by clip range, and where no clip holds it."""

from __future__ import annotations

import math

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope.algorithms.common import rows_of
from upslope.algorithms.ppo import Learner
from upslope.config import PPOConfig
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.optim import Batch, Minibatches
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Categorical, Distribution
from upslope.policies.make import make_policy
from upslope.rollout import EvaluatedRollout, Rollout, evaluate_rollout
from upslope.seeding import SeedTree
from upslope.theory.objectives import clipped_surrogate_loss
from upslope.theory.trust_region import mean_kl
from upslope.unit_gradients import UnitLoss, pseudo_loss, unit_gradients

CONFIG = PPOConfig(seed=0, n_envs=8, n_steps=128, dtype="float64")
RATE = 3e-4
CLIPS = {0.1: drawing.GREEN, 0.2: drawing.BLUE, 0.4: drawing.PURPLE}
NEVER = 1e9  # a clip range that no ratio leaves
EPOCHS = 20
FACTORS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 40]  # how much more the second state's logit moves
STEPS, LENGTH = 100, 0.05  # of plain gradient descent


def main() -> None:
    """Draw both panels, print what the page quotes."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    for clip, color in {**CLIPS, NEVER: drawing.RED}.items():
        draw_epochs(left, clip, color)
    left.plot([], color=drawing.INK, linewidth=0.8, label="most, were all ratios inside")
    left.set(yscale="log", ylim=(2e-4, 100), xlabel="epochs", ylabel="KL of the batch, nats")
    left.set_xticks(range(0, EPOCHS + 1, 5))
    left.set_title("CartPole: mean (points), largest of a state (dashed)")
    left.legend(loc="upper left", ncols=2)
    for clip, color in CLIPS.items():
        draw_shared(right, clip, color)
    right.set(xscale="log", yscale="log", ylabel="mean KL of the two states, nats")
    right.set_xlabel("sensitivity of the second state / of the first")
    right.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    right.minorticks_off()
    right.set_title("One parameter, two states, advantages 1 and 0")
    right.legend(loc="upper left")
    drawing.save(figure, "11-ppo")


def ceiling(clip: float) -> float:
    """The largest KL of a state if every action's ratio stayed in the range: all at 1 - clip."""
    return -clip - math.log1p(-clip)


def draw_epochs(axes: Axes, clip: float, color: str) -> None:
    """KL from the collecting policy after each epoch of PPO's own gradient steps."""
    envs = make_environments(find_environment("CartPole-v1"), n_envs=CONFIG.n_envs, seed=0)
    policy = make_policy(CONFIG, envs.observation_space, envs.action_space)
    learner = Learner(CONFIG, policy)
    rollout = learner.collect(envs)
    evaluated = evaluate_rollout(policy, rollout)
    weighed = learner.weigh(rollout, evaluated)
    compare_gradients(policy, rollout, evaluated, weighed.weights, clip)
    batch = rows_of(
        rollout, evaluated, log_prob=evaluated.log_prob, weights=weighed.advantages,
        targets=weighed.targets,
    )  # fmt: skip
    with torch.no_grad():
        old = policy.distribution_of(batch["inputs"])
    rng, hyper = SeedTree(0).generator("minibatches"), {"learning_rate": RATE, "clip_range": clip}
    means, largest = [], []
    for _ in range(EPOCHS):
        order = Minibatches.shuffled(rng, rollout.valid.shape, CONFIG.batch_size, 1)
        learner.optimizers["all"].run(batch, order, hyper)
        with torch.no_grad():
            of_states = old.kl(policy.distribution_of(batch["inputs"]))
        means.append(float(of_states.mean()))
        largest.append(float(of_states.max()))
    epochs, name = range(1, EPOCHS + 1), "no clip" if clip == NEVER else f"clip {clip:g}"
    axes.plot(epochs, means, "o", color=color, markersize=4, label=name)
    axes.plot(epochs, largest, "--", color=color, linewidth=1)
    print(f"{name}: mean KL {means[0]:.4f} after 1 epoch, {means[9]:.4f} after 10, largest of a "
          f"state then {largest[9]:.4f}")  # fmt: skip
    if clip != NEVER:
        axes.axhline(ceiling(clip), color=color, linewidth=0.8, zorder=1)
        print(f"  if every ratio stayed inside, each state's would be below {ceiling(clip):.4f}")


def compare_gradients(
    policy: ActorCritic,
    rollout: Rollout,
    evaluated: EvaluatedRollout,
    weights: Tensor,
    clip: float,
) -> None:
    """Eq. 11.3 on the rollout: the surrogate's gradient beside the policy gradient."""

    def clipped(distribution: Distribution, rows: Batch) -> Tensor:
        loss = clipped_surrogate_loss(
            rows["new_log_prob"], rows["log_prob"], rows["weights"], rows["valid"], clip
        )
        return loss * rows["valid"].sum()  # a mean over rows, as a sum

    losses: dict[str, UnitLoss] = {"clipped": clipped, "plain": pseudo_loss("weights")}
    one = torch.zeros_like(rollout.episode)
    found = unit_gradients(policy, rollout, evaluated, losses, {"weights": weights}, one)
    gap = float((found["clipped"] - found["plain"]).norm() / found["plain"].norm())
    print(f"clip {clip:g} at ratio 1: relative distance from the policy gradient below 1e-12: "
          f"{gap < 1e-12}")  # fmt: skip


def draw_shared(axes: Axes, clip: float, color: str) -> None:
    """KL after many clipped steps on two states, only the first of which pushes."""
    kls = [shared_kl(float(factor), clip) for factor in FACTORS]
    axes.plot(FACTORS, kls, "o-", color=color, markersize=4, label=f"clip {clip:g}")
    axes.axhline(ceiling(clip), color=color, linewidth=0.8, zorder=1)
    print(f"clip {clip:g}, two states, factor 1, 10 and 40: KL {kls[0]:.3f}, {kls[5]:.2f} "
          f"and {kls[-1]:.2f}")  # fmt: skip


def shared_kl(factor: float, clip: float) -> float:
    """Mean KL of both states after the steps; the second state's logit is ``factor`` theta."""
    scale = torch.tensor([1.0, factor], dtype=torch.float64)
    weight, both = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.ones(2)
    taken = torch.tensor([1, 1])

    def policy(theta: Tensor) -> Categorical:
        return Categorical(torch.stack([0 * scale, theta * scale], -1))

    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    old = policy(theta.detach())
    for _ in range(STEPS):
        log_prob = policy(theta).log_prob(taken)
        loss = clipped_surrogate_loss(log_prob, old.log_prob(taken), weight, both, clip)
        (slope,) = torch.autograd.grad(loss, theta)
        theta = (theta - LENGTH * slope).detach().requires_grad_()
    return float(mean_kl(old, policy(theta.detach()), both))


if __name__ == "__main__":
    main()

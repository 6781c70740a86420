"""Page 12: the noise scale from more and more episodes, and signal to noise along a run."""

from __future__ import annotations

import math

import drawing
import torch
from matplotlib.axes import Axes
from torch import Tensor

from upslope import REINFORCE
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import MDP, gridworld
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.lab import exact, moments, noise
from upslope.lab.estimators import Steps, to_go
from upslope.lab.noise import Estimate, Sample
from upslope.lab.policies import scores
from upslope.lab.problems import find_problem
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout
from upslope.training import Event
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients

COPIES, EPISODES = 64, [128, 256, 512, 1024, 2048, 4096]
PROCESSES = {"corridor": "delayed-reward", "grid": "gridworld"}
COLORS = {
    ("corridor", "episode"): drawing.BLUE, ("corridor", "step"): drawing.RED,
    ("grid", "episode"): drawing.GREEN, ("grid", "step"): drawing.PURPLE,
}  # fmt: skip
GRID, GAMMA = gridworld(), 0.95
BATCH, TIMESTEPS, RATE = 32, 24_000, 3e-3  # of the run
EVERY, FRESH = 10, 400  # iterations between two measurements, and episodes of each


def main() -> None:
    """Draw both panels, print what the page quotes."""
    figure, (left, right) = drawing.panels("AB", height=4.0)
    left.axhline(1, color=drawing.INK, linewidth=1.2)
    for shift, (called, name) in zip((0.94, 1.06), PROCESSES.items(), strict=True):
        draw_noise_scale(left, called, name, shift)
    ticks = [0.1, 0.25, 0.5, 1, 2, 4, 8]
    left.set(xscale="log", yscale="log", ylim=(0.1, 13))
    left.set_xticks(EPISODES, [str(n) for n in EPISODES])
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    left.set(xlabel="episodes", ylabel="measured noise scale / exact")
    left.set_title("Reward-to-go, 99 % intervals")
    left.legend(loc="lower right", ncols=2)
    draw_run(right)
    drawing.save(figure, "12-diagnostics")


def draw_noise_scale(axes: Axes, called: str, name: str, shift: float) -> None:
    """B_simple of reward-to-go over its exact value, with episodes or single steps as units."""
    problem = find_problem(name)
    policy, gamma, process = problem.policy(), problem.gamma, problem.limited()
    rho = moments.reward_table(process)
    mean, trace = moments.weighted(process, policy, rho, gamma, 1.0)
    exactly = float(trace / mean.square().sum())
    print(f"{called}: exact noise scale {exactly:.1f} episodes")
    by_episode, by_step = gradients(problem.mdp, policy, gamma, EPISODES[-1], seed=0)
    length = len(by_step) / len(by_episode)
    for unit, units, size in (("episode", by_episode, 1.0), ("step", by_step, length)):
        found = [noise_scale(units[: round(n * size)], size) for n in EPISODES]
        drawing.measured(
            axes,
            [n * shift * (1.06 if unit == "step" else 1) for n in EPISODES],
            [estimate.value / exactly for estimate in found],
            [(estimate.low / exactly, estimate.high / exactly) for estimate in found],
            COLORS[called, unit],
            f"{called}, unit: {unit}",
        )
        for n, (value, low, high) in zip(EPISODES, found, strict=True):
            said = "no value" if math.isnan(value) else f"{value:.1f}"
            print(f"  unit {unit}, {n} episodes: {said}, interval {low:.1f} to {high:.1f}")


def gradients(
    mdp: MDP, policy: ActorCritic, gamma: float, n_episodes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Gradients of fresh episodes ``[N, d]``, and of their steps ``[rows, d]`` in that order."""
    envs = make_environments(find_environment(TabularVectorEnv(mdp, COPIES)), seed=seed)
    rollout = collect(envs, policy, n_episodes=n_episodes)
    evaluated = evaluate_rollout(policy, rollout)
    weights, units = to_go(Steps.of(policy, rollout, evaluated, gamma)), episode_units(rollout)
    losses, columns = {"all": pseudo_loss("weights")}, {"weights": weights}
    found = unit_gradients(policy, rollout, evaluated, losses, columns, units)["all"]
    rows = rollout.valid.reshape(-1).nonzero().squeeze(1)
    rows = rows[units.reshape(-1)[rows].argsort(stable=True)]
    states, actions = rollout.obs.argmax(-1).reshape(-1)[rows], rollout.actions.reshape(-1)[rows]
    _, table = scores(policy, torch.eye(mdp.n_states, dtype=torch.float64))
    return found, table[states, actions] * weights.reshape(-1)[rows, None]


def noise_scale(units: Tensor, size: float) -> Estimate:
    """B_simple in episodes of ``size`` units, with its interval."""
    return Estimate(*(x / size for x in noise.noise_scale(signal_to_noise(units))))


def signal_to_noise(units: Tensor) -> Estimate:
    """SNR of one unit, with its interval."""
    return noise.signal_to_noise(Sample.of(units))


def draw_run(axes: Axes) -> None:
    """SNR of an episode's reward-to-go gradient, and the return, along a run of REINFORCE."""
    agent = REINFORCE(
        TabularVectorEnv(GRID, BATCH), batch_episodes=BATCH, baseline="none", gamma=GAMMA,
        learning_rate=RATE, net_arch=(16,), dtype="float64", seed=0,
    )  # fmt: skip
    known: list[tuple[int, float, float]] = []
    measured: list[tuple[int, Estimate]] = []

    def watch(event: Event) -> bool:
        policy, at = event.agent.policy, event.iteration
        mean, trace = moments.weighted(GRID, policy, moments.reward_table(GRID), GAMMA, 1.0)
        pi = exact.state_probabilities(GRID, policy)
        objective = float(exact.objective(GRID, pi, GAMMA, GRID.horizon))
        known.append((at, float(mean.square().sum() / trace), objective))
        if at % EVERY == 1:
            measured.append((at, signal_to_noise(gradients(GRID, policy, GAMMA, FRESH, at)[0])))
        return True

    agent.learn(TIMESTEPS, callback=watch)
    iterations, ratios, returns = zip(*known, strict=True)
    axes.plot(iterations, ratios, color=drawing.INK, label="exact")
    at, found = zip(*measured, strict=True)
    drawing.measured(
        axes, at, [e.value for e in found], [(e.low, e.high) for e in found], drawing.BLUE,
        f"{FRESH} fresh episodes",
    )  # fmt: skip
    batch = f"1 / batch of {BATCH}"
    axes.axhline(1 / BATCH, color=drawing.RED, linewidth=1, linestyle="--", label=batch)
    axes.set(yscale="log", ylim=(3e-3, 0.4), xlabel="iteration", ylabel="SNR of an episode")
    axes.set_title("A run of REINFORCE on the grid")
    beside = axes.twinx()
    beside.plot(iterations, returns, color=drawing.GREY, linewidth=1.5)
    beside.set(ylim=(-0.7, 0.52), ylabel="return (grey), exact")
    beside.grid(False)
    beside.spines["right"].set_visible(True)
    axes.legend(loc="lower center")
    print(f"run with batches of {BATCH} episodes:")
    peak = max(known, key=lambda row: row[1])
    for iteration, ratio, objective in (known[0], peak, known[-1]):
        print(f"iteration {iteration}: SNR {ratio:.3f}, noise scale {1 / ratio:.0f} episodes, "
              f"return {objective:.2f}")  # fmt: skip
    exactly = {iteration: ratio for iteration, ratio, _ in known}
    inside = sum(e.low <= exactly[iteration] <= e.high for iteration, e in measured)
    print(f"{inside} of {len(measured)} intervals of 99 % hold the exact SNR")


if __name__ == "__main__":
    main()

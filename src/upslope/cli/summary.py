"""What a person reads at the end: what was reached, how sure that is, and where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.evaluation import Sample, Score
    from upslope.runs.directory import RunDirectory


def train_summary(
    agent: Agent, directory: RunDirectory, score: Score | None, stop_return: float | None
) -> str:
    """Return the closing lines of ``upslope train``."""
    training, state = agent.training, directory.state
    recent = [episode.ret for episode in training.recent]
    lines = []
    if recent:
        mean = sum(recent) / len(recent)
        lines.append(f"return   {mean:,.1f}, average of the last {len(recent)} training episodes")
    else:
        lines.append("return   no episode finished: train longer, or set --max-episode-steps")
    if stop_return is not None:
        lines.append(_goal(stop_return, state))
    trained = f"trained  {training.timesteps:,} steps in {state['seconds']:.1f} s"
    surplus = training.timesteps - state["total_timesteps"]
    if surplus > 0:
        trained += f", {surplus:,} more than asked (iterations are whole)"
    if state["state"] == "interrupted":
        trained += " (interrupted)"
    lines.append(trained)
    if score is not None:
        lines += score_lines(score)
    lines.append(f"run      {directory.path}")
    lines.append(f"next     upslope play {directory.path}{_env_flag(agent)}")
    return "\n".join(lines)


def score_lines(score: Score) -> list[str]:
    """Two lines on this policy's score, sampled and deterministic."""
    return [
        f"sampled  {sample_text(score.sampled)}",
        f"mode     {sample_text(score.deterministic)}",
    ]


def sample_text(sample: Sample) -> str:
    """One line: mean, interval, worst, failures, successes, number of episodes."""
    n = len(sample.returns)
    if n < 2:
        text = f"{sample.mean:,.1f} in one episode, which gives no interval"
    elif sample.std == 0:
        share = 100 * (1 - 0.05 ** (1 / n))
        text = (
            f"{sample.mean:,.1f} in all of {n} fresh episodes "
            f"(95 %: at most {share:.0f} % of episodes differ)"
        )
    else:
        low, high = sample.ci95
        text = (
            f"{sample.mean:,.1f} [{low:,.1f}, {high:,.1f}] on {n} fresh episodes, "
            f"worst {sample.min:,.1f}"
        )
    if sample.failure_share:
        text += f", {100 * sample.failure_share:.0f} % below {sample.threshold:g}"
    if sample.success_rate is not None:
        text += f", success {100 * sample.success_rate:.0f} %"
    return text


def _env_flag(agent: Agent) -> str:
    """What has to be typed where the environment is not one that Gymnasium has registered."""
    source = agent.source
    return f" --env {source.name}" if source is not None and not source.is_registered else ""


def _goal(stop_return: float, state: dict[str, object]) -> str:
    if state["time_to_return"] is None:
        return f"goal     {stop_return:g} was not reached"
    return (
        f"goal     {stop_return:g} reached after {state['steps_to_return']:,} steps, "
        f"{state['time_to_return']:.1f} s from the start of the process"
    )

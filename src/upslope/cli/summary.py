"""What a person reads at the end: what was reached, how sure that is, and where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upslope.statistics.words import elsewhere, percent

if TYPE_CHECKING:
    from upslope.agent import Agent
    from upslope.evaluation import BestModel, Sample, Score
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
    trained = f"trained  {training.timesteps:,} steps"
    if state["seconds"] is not None:  # None where the run ended before training did
        trained += f" in {state['seconds']:.1f} s"
    surplus = training.timesteps - state["total_timesteps"]
    if surplus > 0:
        trained += f", {surplus:,} more than asked (iterations are whole)"
    if state["state"] == "interrupted":
        trained += " (interrupted)"
    lines.append(trained)
    if score is not None:
        lines += score_lines(score)
    lines.append(f"run      {directory.path}")
    command = "resume" if state["state"] == "interrupted" else "play"
    lines.append(f"next     upslope {command} {directory.path}{_env_flag(agent)}")
    return "\n".join(lines)


def score_lines(score: Score) -> list[str]:
    """What this policy is worth, sampled and by its mode, and what it is held against."""
    lines = [
        f"sampled  this policy {sample_text(score.sampled)}",
        f"mode     this policy {sample_text(score.deterministic)}",
    ]
    if score.best_model is not None:
        lines += best_lines(score.best_model)
    if score.random is not None:
        lines.append(f"random   a random policy {sample_text(score.random)}")
    return lines


def best_lines(best: BestModel) -> list[str]:
    """Two lines on the best checkpoint: the score that chose it, and one that did not."""
    chosen = best.selection
    bias = (
        f"the highest of {chosen.candidates} scores, so biased upwards"
        if chosen.candidates > 1
        else "the only score"
    )
    return [
        f"best     this policy of step {chosen.timesteps:,} was chosen with {chosen.mean:,.1f}, "
        f"{bias};",
        f"         scored again by its mode it {sample_text(best.fresh)}",
    ]


def sample_text(sample: Sample) -> str:
    """What a policy did, with "this policy" before it: mean, interval, worst, failures, successes.

    The intervals are of 95 %: Student's t for the mean, Clopper and Pearson's for the failures,
    Wilson's for the successes.
    """
    n, share = len(sample.returns), sample.elsewhere_at_most
    if n < 2:
        text = f"returned {sample.mean:,.1f} in one episode, which gives no interval"
    elif share is not None:
        text = f"returned {sample.mean:,.1f} in {n} of {n} fresh episodes ({elsewhere(share)})"
    else:
        low, high = sample.ci95
        text = (
            f"averaged {sample.mean:,.1f} [{low:,.1f}, {high:,.1f}] on {n} fresh episodes, "
            f"worst {sample.min:,.1f}"
        )
    if sample.failure_share is not None and sample.failure_ci95 is not None:
        text += f", {percent(sample.failure_share, sample.failure_ci95)} below "
        text += f"{sample.threshold:g}"
    if sample.success_rate is not None:
        text += f", success {percent(sample.success_rate, sample.success_ci95)}"
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

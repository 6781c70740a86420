"""Go on with a run: from its newest checkpoint that is whole, as if nothing had happened."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.agent import Agent, load
from upslope.callbacks import Callback, EvalCallback, StopTrainingOnRewardThreshold
from upslope.config import whole_number
from upslope.envs.find import EnvLike
from upslope.errors import ConfigError, ModelFileError
from upslope.policies.encoders import FeaturesFactory
from upslope.runs.checkpoint import CHECKPOINTS, Checkpoint, cpu, newest, numbers, set_aside
from upslope.runs.checkpoint_writer import callback_name
from upslope.runs.directory import BEST_MODEL, CONFIG, MODEL, PROGRESS, RUN, RunDirectory
from upslope.runs.lock import RunLock
from upslope.runs.model_file import read_header
from upslope.runs.policy_file import unnamed_environment, versions
from upslope.training import Event, threads_of

log = logging.getLogger("upslope")
MAY_CHANGE = (
    "total_timesteps", "gradient_step_engine", "device", "torch_threads", "versions", "git_commit",
)  # fmt: skip


def resume(
    run: str | os.PathLike[str],
    env: EnvLike | None = None,
    *,
    total_timesteps: int | None = None,
    exact: bool = False,
    callback: Callback | Sequence[Callback] | None = None,
    policy: FeaturesFactory | None = None,
    **settings: Any,
) -> Agent:
    """Finish a run that was interrupted or killed, and return its agent.

    The result is the undisturbed run's, to the bit, where it goes on from a scheduled checkpoint on
    the same machine with the same versions; ``upslope verify-resume`` checks that.

    Args:
        run: the run directory.
        env: its environment again, where the recorded one is not an id that Gymnasium has
            registered.
        total_timesteps: another goal; by default the recorded one.
        exact: go back to the newest scheduled checkpoint, though a signal left a newer one.
        callback: those of ``learn`` again; what they remembered is given back to them.
        policy: the features factory, for a policy that was made with one.
        settings: those again that no file can hold, such as a callable ``learning_rate``.

    Raises:
        ModelFileError: there is no checkpoint that is whole, or it does not fit ``env``.
        ConfigError: ``run`` is no run, was edited, or needs ``env`` or a callable again.
        RunDirectoryBusyError: a process is at work on it.
    """
    calls: list[Any] = (
        list(callback) if isinstance(callback, Sequence) else [callback] * (callback is not None)
    )
    with reopen(
        Path(run), env, total_timesteps=total_timesteps, exact=exact, policy=policy, **settings
    ) as again:
        if again.is_over:
            log.info("%s is finished: give a larger total_timesteps to go on", again.path)
        else:
            again.train(calls + again.recorded_callbacks())
    return again.agent


@dataclass
class Reopened:
    """A run that goes on: its agent as of the checkpoint, and the lock on its directory."""

    path: Path
    agent: Agent
    checkpoint: Checkpoint
    total_timesteps: int
    lock: RunLock

    def __enter__(self) -> Reopened:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @property
    def command(self) -> dict[str, Any]:
        """The flags beside the settings that the run was started with."""
        return dict(self.checkpoint.state["config"]["command"])

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to train; what comes after training may be missing."""
        recorded = self.checkpoint.state["run"]["total_timesteps"]
        done = self.agent.num_timesteps >= self.total_timesteps
        return done or (self.checkpoint.state["finished"] and self.total_timesteps == recorded)

    @property
    def is_over(self) -> bool:
        """Whether its process knew, too, that all was trained: its files are there and say so."""
        try:
            state = json.loads((self.path / RUN).read_bytes())["state"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        recorded = self.checkpoint.state["run"]["total_timesteps"]
        is_saved = state == "finished" and (self.path / MODEL).exists()
        return is_saved and (self.is_trained or self.total_timesteps == recorded)

    def recorded_callbacks(self) -> list[Any]:
        """Those that the recorded command stands for."""
        return callbacks_of(self.command, self.path)

    def directory(self, callbacks: Sequence[Any], *, is_tracked: bool = True) -> RunDirectory:
        """The run's files from the checkpoint on; callbacks remember what they knew there."""
        restore(callbacks, self.checkpoint.state["callbacks"])
        for name in numbers(self.path / CHECKPOINTS):
            if int(name) > self.checkpoint.number:
                set_aside(self.path / CHECKPOINTS / name)
        made = RunDirectory(
            self.path,
            self.agent,
            self.total_timesteps,
            callbacks=callbacks,
            command=self.command,
            is_tracked=is_tracked,
            checkpoint=self.checkpoint,
            lock=self.lock,
        )
        made.target_return = self.checkpoint.state["target_return"]
        return made

    def train_into(self, directory: RunDirectory, callbacks: Sequence[Any]) -> None:
        """Do what is left to train."""
        if self.is_trained:
            with directory:
                pass
        else:
            self.agent.train_to(self.total_timesteps, callbacks, directory)

    def train(self, callbacks: Sequence[Any]) -> None:
        """Make the directory and do what is left to train."""
        self.train_into(self.directory(callbacks), callbacks)


def reopen(
    run: Path,
    env: EnvLike | None = None,
    *,
    total_timesteps: int | None = None,
    exact: bool = False,
    policy: FeaturesFactory | None = None,
    **settings: Any,
) -> Reopened:
    """Lock a run and load its newest checkpoint; see :func:`resume`."""
    check_is_run(run)
    try:
        lock = RunLock(run)
    except OSError as error:
        raise ConfigError(
            f"cannot write in {run} ({error.strerror}), where the run goes on: make it writable"
        ) from error
    try:
        found = newest(run / CHECKPOINTS, scheduled=exact)
        total = _goal(found, total_timesteps)
        _check_unedited(run, found)
        _check_rows(run / PROGRESS, found)
        agent = restored_agent(found, env, policy, settings)
    except BaseException:
        lock.release()
        raise
    return Reopened(run, agent, found, total, lock)


def check_is_run(path: Path) -> None:
    """Raise ConfigError unless a run lies at ``path``."""
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path} is no run directory: it has no {CONFIG}; check the path")


def restored_agent(
    found: Checkpoint,
    env: EnvLike | None,
    policy: FeaturesFactory | None,
    settings: Mapping[str, Any],
) -> Agent:
    """Return the agent of a checkpoint, ready for its next iteration."""
    _check_callables(found, settings)
    agent = load(found.policy, env, policy=policy, **_recorded(found), **settings)
    if agent.source is None:
        raise unnamed_environment(
            found.path.parent.parent, found.state["config"]["environment"]["name"]
        )
    training = agent.training
    _check_engine(found, training.envs.engine.name)
    try:
        training.load_state(found.state["training"], found.moments())
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelFileError(
            f"checkpoint {found.path} is intact but does not fit this version ({error!r:.100}): "
            "resume it with the version that wrote it, or start anew with --from its model"
        ) from error
    _say_what_differs(found, agent)
    return agent


def callbacks_of(command: Mapping[str, Any], path: Path) -> list[Any]:
    """The callbacks that the flags of a command stand for."""
    made: list[Any] = []
    if command.get("eval_freq") is not None:
        best = path / BEST_MODEL
        made.append(EvalCallback(int(command["eval_freq"]), best_model_save_path=best))
    if command.get("stop_return") is not None:
        made.append(StopTrainingOnRewardThreshold(command["stop_return"]))
    return made


def restore(callbacks: Sequence[Any], recorded: Sequence[Mapping[str, Any]]) -> None:
    """Give callbacks back what those of their names remembered, in order; say who is missing."""
    left = list(callbacks)
    for entry in recorded:
        match = next((x for x in left if callback_name(x) == entry["name"]), None)
        if match is None:
            log.warning(
                "the callback %s of the run is not there: the run goes on without it", entry["name"]
            )
            continue
        left.remove(match)
        if entry["state"] is not None:
            match.load_state(entry["state"])


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Say where two trees of JSON differ, as ``gamma: 0.99 -> 0.9``."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        missing = object()
        return [
            line
            for key in keys
            for line in differences(
                before.get(key, missing), after.get(key, missing), f"{where}.{key}".strip(".")
            )
        ]
    same = before == after and isinstance(before, bool) == isinstance(after, bool)
    said = [json.dumps(x) if _is_json(x) else "absent" for x in (before, after)]
    return [] if same else [f"{where}: {said[0]} -> {said[1]}"]


def stops_after(iteration: int) -> Callable[[Event], bool]:
    """A callback that ends training after so many iterations."""

    def stop(event: Event) -> bool:
        return event.iteration < iteration

    return stop


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | dict)


def _goal(found: Checkpoint, total_timesteps: int | None) -> int:
    recorded = int(found.state["run"]["total_timesteps"])
    if total_timesteps is None:
        return recorded
    total = whole_number("total_timesteps", total_timesteps)
    done = int(found.state["training"]["timesteps"])
    if total != recorded and total <= done:
        raise ConfigError(
            f"the run has {done} steps behind it already: give a larger total_timesteps than that"
        )
    return total


def _check_unedited(run: Path, found: Checkpoint) -> None:
    """Raise if config.json does not say any more what the run was started with."""
    try:
        said = json.loads((run / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run / CONFIG} cannot be read ({error}): put it back") from error
    changed = differences(_fixed(found.state["config"]), _fixed(said))
    if changed:
        raise ConfigError(
            f"{run / CONFIG} was edited since the checkpoint, and a run goes on with what it was "
            f"started with ({'; '.join(changed):.300}): put it back, or start a new run with --from"
        )


def _check_rows(path: Path, found: Checkpoint) -> None:
    """Raise if progress.csv lost rows that it had at the checkpoint."""
    there = path.stat().st_size if path.exists() else 0
    before = found.state["progress"]["offset"]
    if there < before:
        raise ConfigError(
            f"{path} has {there} bytes, and had {before} at checkpoint {found.number}: put back "
            "the rows that it lost"
        )


def _fixed(description: Any) -> Any:
    """What of a config.json stays as it is for the whole of a run."""
    if not isinstance(description, dict):
        return description
    return {key: value for key, value in description.items() if key not in MAY_CHANGE}


def _check_callables(found: Checkpoint, settings: Mapping[str, Any]) -> None:
    recorded = read_header(found.policy)["config"]
    callables = [
        name for name, value in recorded.items() if _is_callable(value) and name not in settings
    ]
    if callables:
        raise ConfigError(
            f"{', '.join(callables)} of the run was a function, which no file holds: resume it "
            f"from Python, upslope.resume(run, {callables[0]}=...)"
        )
    unknown = [name for name in settings if not _is_callable(recorded.get(name))]
    if unknown:
        raise ConfigError(
            f"a run goes on with the settings it was started with, and {unknown[0]} is one of "
            "them: leave it out, or start a new run with --from"
        )


def _recorded(found: Checkpoint) -> dict[str, Any]:
    """The settings of the run, which hold for its environment however that is given again."""
    recorded = read_header(found.policy)["config"]
    return {name: x for name, x in recorded.items() if not _is_callable(x)}


def _is_callable(value: Any) -> bool:
    """Whether a setting was a function, of which a file has the name alone."""
    return isinstance(value, dict) and "callable" in value


def _check_engine(found: Checkpoint, name: str) -> None:
    recorded = found.state["config"]["engine"]["name"]
    if name != recorded:
        raise ConfigError(
            f"the run's environments were stepped by the engine {recorded}, and here it would be "
            f"{name}: install what it needs, or start a new run with --from"
        )


def _say_what_differs(found: Checkpoint, agent: Agent) -> None:
    """Warn where the bits may differ from the undisturbed run's, and why."""
    changed = differences(found.manifest["versions"], versions())
    changed += differences(found.manifest["cpu"], cpu(), "processor")
    here = {
        "device": str(agent.policy.device),
        "torch_threads": threads_of(agent.config, agent.policy),
    }
    changed += differences({name: found.state["config"].get(name) for name in here}, here)
    if changed:
        log.warning(
            "the run goes on, but not to the last bit: %s since the checkpoint", "; ".join(changed)
        )
    if not found.is_scheduled and not found.state["finished"]:
        log.warning(
            "this goes on from iteration %d, where a signal stopped the run, so it is no longer "
            "the undisturbed run; --exact goes back to the newest scheduled checkpoint",
            found.number,
        )

"""Experiment trackers beside progress.csv: Weights & Biases and MLflow, where asked for.

Each gets the settings, every row of progress.csv under its tags, the evaluation and the model. One
that fails while training goes on is heard of once and left out from then on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from upslope.errors import ConfigError, ModelFileError, did_you_mean, first_line
from upslope.runs.durable import replace_file

log = logging.getLogger("upslope")
TRACKERS = ("wandb", "mlflow")
STEP = "time/total_timesteps"
RECORD = "tracking.json"  # in a run directory: the trackers' own names of the run
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_REMEDIES = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "check MLFLOW_TRACKING_URI",
}


class ScalarWriter(Protocol):
    """What takes the rows of progress.csv; TensorBoard's events file is one too."""

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take a row's numbers by their tags, at a step (environment steps)."""

    def close(self) -> None:
        """Write what waits, and end."""


class Tracker(ScalarWriter, Protocol):
    """A writer that keeps the whole story of a run, on a server or in files."""

    name: str
    id: str  # what the tracker calls the run, with which it goes on there

    def add_evaluation(self, score: Mapping[str, Any]) -> None:
        """Take the object of evaluation.json."""

    def add_model(self, model: Path) -> None:
        """Take the model file."""

    def end(self, exit_code: int) -> None:
        """Say how the run ended, and close."""


class Trackers:
    """Several trackers as one, none of which can stop a run.

    Args:
        trackers: opened ones.
        record: ``RECORD`` of the run, where the last step that they were given is noted.
    """

    def __init__(self, trackers: Sequence[Tracker] = (), record: Path | None = None) -> None:
        self._open, self._record = list(trackers), record
        self._sent = -1 if record is None else _last_sent(record)

    @property
    def names(self) -> list[str]:
        """Those that still take what is written."""
        return [tracker.name for tracker in self._open]

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Give a row to each, unless a process that was killed gave them that one."""
        if not self._open or step <= self._sent:
            return
        self._each(lambda tracker: tracker.add_scalars(values, step))
        self._sent = step
        if self._record is not None:
            _note_sent(self._record, step)

    def add_evaluation(self, score: Mapping[str, Any]) -> None:
        """Give the object of evaluation.json to each."""
        self._each(lambda tracker: tracker.add_evaluation(score))

    def end(self, exit_code: int, model: Path | None = None) -> None:
        """Give the model file to each, where there is one, say how the run ended, and close."""
        if model is not None and model.exists():
            self._each(lambda tracker: tracker.add_model(model))
        self._each(lambda tracker: tracker.end(exit_code))
        self._open.clear()

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._open):
            try:
                tell(tracker)
            except Exception as error:  # a network, a disk, a server: nothing that training needs
                self._open.remove(tracker)
                log.warning(
                    "%s failed (%s: %s) and gets nothing more; training goes on, and progress.csv "
                    "has every row",
                    tracker.name,
                    type(error).__name__,
                    first_line(error),
                )


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the trackers that are asked for, each once; ``"wandb,mlflow"`` names two.

    Raises:
        ConfigError: for one that does not exist, or whose extra is not installed.
    """
    asked = tuple(dict.fromkeys(name for text in names for name in text.split(",") if name))
    for name in asked:
        if name not in TRACKERS:
            raise ConfigError(
                f"--track {name} is not one of {', '.join(TRACKERS)}{did_you_mean(name, TRACKERS)}"
            )
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--track {name} needs {name}: run pip install 'upslope[{name}]'")
    return asked


def open_writers(names: Sequence[str], path: Path, config: Mapping[str, Any]) -> Trackers:
    """Open the trackers that are asked for; a run directory that has been tracked goes on there.

    Args:
        names: of ``TRACKERS``.
        path: the run directory; its last part names the run.
        config: the object of config.json.

    Raises:
        ConfigError: before any training, if one is not installed or cannot start.
    """
    known = _recorded(path)
    opened: list[Tracker] = []
    for name in check_trackers(names):
        try:
            opened.append(_OPEN[name](path, config, known.get(name)))
        except Exception as error:
            Trackers(opened).end(1)
            raise ConfigError(
                f"{name} cannot start ({type(error).__name__}: {first_line(error)}): "
                f"{_REMEDIES[name]}, or leave --track {name} out"
            ) from error
    if opened:
        ids = {tracker.name: tracker.id for tracker in opened}
        _write_record(path / RECORD, _read_record(path / RECORD) | ids)
    return Trackers(opened, path / RECORD)


class Wandb:
    """A run of Weights & Biases. WANDB_PROJECT (default: upslope), WANDB_MODE, WANDB_DIR hold."""

    name = "wandb"

    def __init__(self, path: Path, config: Mapping[str, Any], known: str | None) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "upslope"),
            name=path.name,
            id=known,
            resume="allow" if known else None,
            config=dict(config),
            settings=wandb.Settings(console="off"),  # the live line would be sent, frame by frame
        )
        self.id = str(self._run.id)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log a row at once, so that a tag has one value a step."""
        self._run.log({STEP: step, **values})

    def add_evaluation(self, score: Mapping[str, Any]) -> None:
        """Put the numbers into the run's summary, as ``evaluation/sampled/mean`` and so on."""
        self._run.summary.update(dict(_numbers(score, "evaluation")))

    def add_model(self, model: Path) -> None:
        """Log the model file as an artifact of type model."""
        artifact = self._wandb.Artifact(f"model-{self.id}", type="model")
        artifact.add_file(str(model))
        self._run.log_artifact(artifact)

    def end(self, exit_code: int) -> None:
        """Finish the run as succeeded or failed; waits until all is sent."""
        self._run.finish(exit_code=exit_code)

    def close(self) -> None:
        """Finish the run as succeeded."""
        self.end(0)


class Mlflow:
    """A run of MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME (default: upslope) hold.

    The client is used as it is, so that a run of the user's own in this process stays active.
    """

    name = "mlflow"

    def __init__(self, path: Path, config: Mapping[str, Any], known: str | None) -> None:
        from mlflow.tracking import MlflowClient

        for variable, value in _PATIENCE.items():  # its own patience is minutes at every call
            os.environ.setdefault(variable, value)
        self._client = MlflowClient()
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "upslope")
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            run = self._client.create_run(experiment, run_name=path.name)
            self.id = str(run.info.run_id)
            for key, value in _flat(config, ""):
                self._client.log_param(self.id, key, value)
        else:
            self.id = known
            self._client.set_terminated(known, "RUNNING")

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log a row in one call."""
        self._log(values, step)

    def add_evaluation(self, score: Mapping[str, Any]) -> None:
        """Log the numbers, as ``evaluation/sampled/mean`` and so on, and evaluation.json."""
        self._log(dict(_numbers(score, "evaluation")), 0)
        self._client.log_dict(self.id, dict(score), "evaluation.json")

    def add_model(self, model: Path) -> None:
        """Log the model file as an artifact."""
        self._client.log_artifact(self.id, str(model))

    def end(self, exit_code: int) -> None:
        """End the run: FINISHED, FAILED, or KILLED by a signal."""
        ended = "FINISHED" if exit_code == 0 else "KILLED" if exit_code > 128 else "FAILED"
        self._client.set_terminated(self.id, ended)

    def close(self) -> None:
        """End the run as finished."""
        self.end(0)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(tag, float(value), now, step) for tag, value in values.items()]
        self._client.log_batch(self.id, metrics=rows)


_OPEN: dict[str, Callable[[Path, Mapping[str, Any], str | None], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def _recorded(path: Path) -> dict[str, str]:
    """The trackers' own names of a run, as ``RECORD`` has them."""
    known = _read_record(path / RECORD)
    return {name: str(known[name]) for name in TRACKERS if name in known}


def _read_record(record: Path) -> dict[str, Any]:
    """What ``RECORD`` says; nothing where it is not there or damaged."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(record.read_text())
        if isinstance(known, dict):
            return known
    return {}


def _last_sent(record: Path) -> int:
    sent = _read_record(record).get("last_step")
    return sent if isinstance(sent, int) else -1


def _note_sent(record: Path, step: int) -> None:
    """Note the last step that was sent; where the disk refuses, a row may come twice."""
    with contextlib.suppress(ModelFileError):
        _write_record(record, _read_record(record) | {"last_step": step})


def _write_record(record: Path, content: Mapping[str, Any]) -> None:
    replace_file(record, [(json.dumps(content, indent=2) + "\n").encode()], record.name)


def _numbers(tree: Mapping[str, Any], root: str) -> Iterator[tuple[str, float]]:
    """The numbers of nested objects by path; an interval's ends as ``.../low`` and ``/high``."""
    for key, value in tree.items():
        name = f"{root}/{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, name)
        elif isinstance(value, (list, tuple)) and len(value) == 2:
            yield from _numbers(dict(zip(("low", "high"), value, strict=True)), name)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def _flat(tree: Mapping[str, Any], root: str) -> Iterator[tuple[str, str]]:
    """Settings as text by path, ``settings/gamma``, each as short as MLflow takes it."""
    for key, value in tree.items():
        name = f"{root}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}/")
        else:
            yield name[:250], str(value)[:6000]

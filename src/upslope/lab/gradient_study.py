"""What ``lab gradient`` finds out about one policy: the figures of every estimator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from upslope.config import Config, ReinforceConfig
from upslope.lab.estimators import Estimator
from upslope.lab.noise import LEVEL, Estimate, finite_or_none

MARGIN = 0.25  # relative difference up to which two estimators agree
LEAST_SHARE = 0.01  # relative difference, or one of variances, that is worth a word


@dataclass(frozen=True)
class Measured:
    """One estimator's figures for the gradient of one episode, with intervals."""

    estimator: Estimator
    signal: Estimate  # |G|^2
    variance: Estimate  # tr S
    snr: Estimate
    noise_scale: Estimate  # in episodes
    variance_ratio: Estimate  # tr S over the reference's
    difference: Estimate  # along the reference, as a share of its length
    cosine: float  # with the reference, both from all episodes
    cosine_across: float  # with the reference, each from the other half of the episodes
    cosine_halves: float  # with itself, each from the other half: the most that can be hoped for

    @property
    def name(self) -> str:
        """The estimator's."""
        return self.estimator.name

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 in every episode, as a mean's is that is taken from equal returns."""
        return self.variance.value == self.signal.value == 0

    @property
    def is_decided(self) -> bool:
        """Whether the episodes show a gradient, so that the noise scale has a value."""
        return math.isfinite(self.noise_scale.high)

    @property
    def batch_episodes(self) -> int | None:
        """Whole episodes at which noise and signal are equal."""
        return max(1, math.ceil(self.noise_scale.value)) if self.is_decided else None

    def to_json(self, mean_length: float) -> dict[str, Any]:
        """Return one of gradient.json's estimators; ``mean_length`` of an episode, in steps."""
        batch, estimator = self.batch_episodes, self.estimator
        cosines = ("cosine", "cosine_across", "cosine_halves")
        return {
            "name": self.name,
            "keeps_discount": estimator.keeps_discount,
            "reads_values": estimator.reads_values,
            "bootstraps": estimator.bootstraps,
            "decided": self.is_decided,
            "signal": self.signal.to_json(),
            "variance": self.variance.to_json(),
            "snr": self.snr.to_json(),
            "noise_scale": self.noise_scale.to_json(),
            "batch_episodes": batch,
            "batch_steps": None if batch is None else round(batch * mean_length),
            "variance_ratio": self.variance_ratio.to_json(),
            "difference": self.difference.to_json(),
            **{name: finite_or_none(getattr(self, name)) for name in cosines},
        }

    @property
    def agrees(self) -> bool:
        """Whether the interval of the difference lies within :data:`MARGIN`."""
        return max(-self.difference.low, self.difference.high) <= MARGIN

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference leaves out 0, by more than a hair."""
        return self.difference.low > LEAST_SHARE or self.difference.high < -LEAST_SHARE


@dataclass(frozen=True)
class GradientStudy:
    """What was measured on one policy."""

    environment: str
    config: Config
    seed: int
    episodes: int
    steps: int
    mean_return: float
    truncated_share: float  # of episodes that a time limit cut
    n_parameters: int
    reference: str  # name of the estimator that others are compared with
    own: str  # name of the estimator that the run trains with
    left_out: tuple[str, ...]  # that need a V, which this run did not train
    rows: tuple[Measured, ...]

    @property
    def mean_length(self) -> float:
        """Steps of an episode."""
        return self.steps / self.episodes

    @property
    def batch_steps(self) -> float:
        """Environment steps that an iteration of this run learns from."""
        return self.config.steps_per_iteration(1) * (
            self.mean_length if isinstance(self.config, ReinforceConfig) else 1.0
        )

    @property
    def batch_episodes(self) -> float:
        """The same in episodes of the measured length."""
        return self.batch_steps / self.mean_length

    @property
    def is_standardised(self) -> bool:
        """Whether the run standardises its weights, which rescales and slightly turns them."""
        return bool(getattr(self.config, "normalize_advantage", False))

    @property
    def best(self) -> Measured | None:
        """The estimator of least variance, of those with the reference's target that agree with it.

        One that bootstraps nothing agrees in the mean by theory, the others where it is measured;
        of equals it is the simplest.
        """
        fit = [row for row in self.rows if self.has_target(row) and row.variance.value > 0]
        fit = [row for row in fit if not row.estimator.bootstraps or row.agrees]
        least = min((row.variance.value for row in fit), default=0.0) * (1 + LEAST_SHARE)
        return next((row for row in fit if row.variance.value <= least), None)

    def has_target(self, row: Measured) -> bool:
        """Whether an estimator's mean is the reference's, and not the discounted objective's."""
        return not row.estimator.keeps_discount or self.config.gamma == 1.0

    def row(self, name: str) -> Measured:
        """The figures of one estimator."""
        return {row.name: row for row in self.rows}[name]

    def to_json(self) -> dict[str, Any]:
        """Return the object of gradient.json; what has no value is null."""
        best = self.best
        return {
            "environment": self.environment,
            "algorithm": self.config.algorithm,
            "seed": self.seed,
            "gamma": self.config.gamma,
            "level": LEVEL,
            "episodes": self.episodes,
            "steps": self.steps,
            "mean_length": self.mean_length,
            "mean_return": self.mean_return,
            "truncated_share": self.truncated_share,
            "parameters": self.n_parameters,
            "reference": self.reference,
            "best": None if best is None else best.name,
            "run": {
                "estimator": self.own,
                "standardised": self.is_standardised,
                "batch_steps": self.batch_steps,
                "batch_episodes": self.batch_episodes,
            },
            "left_out": list(self.left_out),
            "estimators": [row.to_json(self.mean_length) for row in self.rows],
        }

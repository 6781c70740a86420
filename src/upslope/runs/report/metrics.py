"""What the report draws, in order: each column with its meaning and its healthy range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from upslope.runs.report.data import Record, number


@dataclass(frozen=True)
class Metric:
    """A column of progress.csv as a person should read it."""

    tag: str
    title: str
    unit: str
    meaning: str
    healthy: Mapping[str, str]  # by algorithm; "" for all others
    band: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # drawn, by algorithm
    spread: str | None = None  # the column of one standard deviation around it
    floor: float | None = None  # a value that the axis must show
    is_absence_at_zero: bool = False  # nothing is drawn where every number is 0
    sign: float = 1.0  # -1 where the column holds minus what is drawn

    def healthy_for(self, record: Record) -> str:
        """Return the healthy range of this run's algorithm in words."""
        text = self.healthy.get(record.algorithm, self.healthy.get("", ""))
        target = number(record.setting("target_kl"))
        return text.replace("{target_kl}", "none" if target is None else f"{target:g}")


_TRUST_REGION = (
    "just below the target_kl of {target_kl}, never above it; 0 where no step was accepted"
)

METRICS: tuple[Metric, ...] = (
    Metric(
        "rollout/ep_rew_mean",
        "Average return",
        "sum of rewards",
        "Mean of the last 100 finished episodes' undiscounted returns: what training is for, and "
        "no loss measures it.",
        {"": "rises, with a band that narrows once the task is solved"},
        spread="rollout/ep_rew_std",
    ),
    Metric(
        "eval/mean_reward",
        "Return of evaluations on the way",
        "sum of rewards",
        "Mean return of fresh episodes with the mode of the policy, from --eval-freq.",
        {"": "rises with the average return; the best of them is best_model.safetensors"},
    ),
    Metric(
        "rollout/success_rate",
        "Success rate",
        "share of episodes",
        "Share of the last 100 episodes that the environment calls a success.",
        {"": "rises towards 1"},
        floor=0.0,
    ),
    Metric(
        "rollout/ep_len_mean",
        "Episode length",
        "steps",
        "Mean length of the last 100 finished episodes.",
        {"": "depends on the task: grows where surviving pays, shrinks where a goal ends it"},
        floor=0.0,
    ),
    Metric(
        "train/explained_variance",
        "Value fit (explained variance)",
        "share",
        "Share of the variance of the value targets that the critic predicted before the update.",
        {
            "": "towards 1 while the policy improves; around 0 the critic is useless, far below it "
            "harmful. Falls back to 0 when a solved task leaves nothing to explain"
        },
        {"": (0.2, 1.0)},
        floor=0.0,
    ),
    Metric(
        "train/approx_kl",
        "Size of a policy update (approximate KL)",
        "nats",
        "KL divergence between the policy that collected the data and the one after the update.",
        {
            "": "0.003 to 0.03 is usual; above 0.1 an update leaves the data it was made from",
            "npg": _TRUST_REGION,
            "trpo": _TRUST_REGION,
        },
        {"ppo": (0.003, 0.03)},
        floor=0.0,
    ),
    Metric(
        "train/entropy_loss",
        "Entropy of the policy",
        "nats",
        "How undecided the policy is, averaged over states; the column holds it with a minus sign.",
        {"": "falls slowly as the policy decides; a sudden drop ends exploration, and with a "
             "bonus (ent_coef) that is too large it never falls"},
        sign=-1.0,
    ),
    Metric(
        "train/clip_fraction",
        "Clip fraction",
        "share of rows",
        "Share of rows whose probability ratio left PPO's clip and gave no gradient.",
        {"": "0.05 to 0.3; near 0 the epochs are too timid, above 0.4 too bold"},
        {"": (0.05, 0.3)},
        floor=0.0,
    ),
    Metric(
        "rollout/clipped_share",
        "Actions clipped by the bounds",
        "share of components",
        "Share of sampled action components outside the action space's bounds.",
        {"": "a fresh Gaussian clips 0.32; far above that, exploring changes nothing"},
        floor=0.0,
        is_absence_at_zero=True,
    ),
    Metric(
        "train/learning_rate",
        "Learning rate",
        "step size",
        "Step size of the gradient steps.",
        {
            "": "as scheduled, and above 0 until the end",
            "npg": "of the critic alone: the policy's step follows from target_kl",
            "trpo": "of the critic alone: the policy's step follows from target_kl",
        },
        floor=0.0,
    ),
    Metric(
        "train/gradient_snr",
        "Gradient signal to noise",
        "ratio, of one episode",
        "Squared length of the policy gradient over its variance from episode to episode; a "
        "rollout of N episodes has N times as much.",
        {"": "above 0; falls towards 0 near an optimum. Where N times it is far below 1, a step "
             "follows mostly noise"},
        floor=0.0,
    ),
    Metric(
        "train/grad_norm",
        "Gradient norm",
        "before clipping",
        "Length of the gradient before max_grad_norm clips it.",
        {"": "steady; above max_grad_norm all the time, the clip sets the step size"},
        floor=0.0,
    ),
    Metric(
        "train/is_line_search_success",
        "Accepted trust-region steps",
        "1 yes, 0 no",
        "Whether the line search found a step that keeps the KL divergence and improves.",
        {"": "1 nearly always"},
        floor=0.0,
    ),
    Metric(
        "train/normalizer_kl",
        "Move by the observation normaliser",
        "nats",
        "How far new observation statistics alone moved the policy.",
        {"": "falls towards 0 as the statistics settle; stays well below an update's own KL"},
        floor=0.0,
    ),
    Metric(
        "rollout/valid_share",
        "Valid share",
        "share of rows",
        "Share of collected rows that are transitions; the rest are resets or wait for others.",
        {"": "1, or a little less with engines that spend a row on each reset"},
        floor=0.0,
    ),
)  # fmt: skip

PHASES: Mapping[str, str] = {
    "environment": "stepping the environments",
    "acting": "choosing actions and recording",
    "evaluate": "values and log-probabilities of a rollout",
    "gradient_quality": "measuring the gradient's signal to noise",
    "update": "gradient steps",
    "evaluation": "evaluations on the way",
    "logging": "metrics, files and the display",
}

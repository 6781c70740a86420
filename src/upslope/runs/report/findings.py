"""What is wrong with a run, in words: each rule looks at one record and says one thing or nothing.

A rule is a pure function of what a run recorded, with a threshold whose reason stands beside it. It
stays silent where its columns are absent or too short to judge by. Sound runs fire none; a planted
fault fires its own (``tests/runs/report``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

from upslope.runs.report.actions import ActionFacts, action_facts
from upslope.runs.report.data import STEPS, Record, mapping, number
from upslope.training import WINDOW

RETURN, SPREAD, EPISODES = "rollout/ep_rew_mean", "rollout/ep_rew_std", "rollout/episodes"
EXPLAINED, KL, ENTROPY = "train/explained_variance", "train/approx_kl", "train/entropy_loss"
CLIP_FRACTION, CLIPPED = "train/clip_fraction", "rollout/clipped_share"
RATE, SNR, NORMALIZER_KL = "train/learning_rate", "train/gradient_snr", "train/normalizer_kl"
LINE_SEARCH = "train/is_line_search_success"

ENOUGH_ROWS = 8  # fewer rows are the beginning of a run, which proves nothing
ENOUGH_UPDATES = 20  # before a critic has had time to explain anything
ENOUGH_EPISODES = 20  # before a mean return is taken for one
# Explained variance falls to 0 when a task is solved and the targets no longer vary, and stays near
# 0.2 where they are mostly chance (FrozenLake): a critic that once did better is only accused where
# the return never rose. In the end three of four rows must be that bad: A2C's few rows are noisy.
EXPLAINED_EVER, EXPLAINED_LATE = 0.2, 0.03
ALIKE = 0.25  # of the widest spread of episodes that there was
NEIGHBOURS = 5  # rows whose median has to pass, so that one lucky row does not
STILL = 1e-6  # nats an update, below which the policy has not moved: PPO's steps are near 1e-2
ENTROPY_GONE = 0.05  # share of the maximum: one action in about 99 of 100 for two choices
ENTROPY_LOST = 4.0  # nats per dimension since the start: sigma 55 times smaller
EARLY = 0.25  # of the steps: losing entropy later than that is what convergence looks like
ENTROPY_STUCK = 0.98  # share of the maximum that the policies of learning runs leave soon
STUCK_DIMENSION = 0.05  # nats below the most that a dimension can have
KL_SPIKE = 0.1  # nats: ten times a usual update, three times the largest of the sound runs
SPIKES = 0.03  # share of the rows that may spike
CLIP_FRACTION_HIGH = 0.5  # median: half of all rows then give no gradient by the end of an update
CLIPPED_HIGH = 0.75  # late median: a fresh Gaussian clips 0.32
COLLAPSE = 0.5  # of what had been gained, lost again
RATE_ZERO = 0.1  # share of the rows; a linear schedule ends at 0 but is not there before its end
SNR_HOPELESS = 0.02  # of a whole rollout: its gradient is then a fiftieth signal
NORMALIZER_FAR = 0.01  # nats, median after the first fifth: a whole TRPO step that nobody asked for
LINE_SEARCH_LOW = 0.5  # late mean share of accepted steps; sound runs are near 1
SURE = 3.0  # standard errors between two means of training episodes
CONFIDENCE = 1.96  # standard errors between the trained and the random policy's mean return


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its name, the numbers that show it, what to try."""

    name: str
    evidence: str
    remedy: str

    @property
    def sentence(self) -> str:
        """All three in one sentence, for the terminal."""
        return f"{self.name}: {self.evidence}; {self.remedy}"


def diagnose(record: Record) -> list[Finding]:
    """Apply every rule; none fires on a run without rows."""
    return [found for rule in RULES if (found := rule(record)) is not None]


def not_judged(record: Record) -> list[str]:
    """Return what could not be judged, one sentence each."""
    if _compared_with_random(record) is None:
        return [
            "Whether the policy learned anything could not be judged: evaluation.json does not "
            "compare it with a random one."
        ]
    return []


def no_episode_finished(record: Record) -> Finding | None:
    """No return is known: every other number is about an unfinished game."""
    finished = record.values(EPISODES)
    if not finished or finished[-1] > 0:
        return None
    n_envs = record.config.get("settings", {}).get("n_envs") or 1
    return Finding(
        "no episode finished",
        f"0 episodes ended in {record.steps:,.0f} steps, {record.steps / n_envs:,.0f} in each of "
        f"{n_envs} environments, so there is no return to report",
        "train longer, or with fewer --n-envs; end endless episodes with --max-episode-steps",
    )


def no_evidence_of_learning(record: Record) -> Finding | None:
    """The trained policy's mean return is not above that of the measured random policy."""
    compared = _compared_with_random(record)
    if compared is None or compared.errors > CONFIDENCE:
        return None
    moves = record.values(KL)
    still = f"; a median update moved the policy by {median(moves):.1e} nats" if moves else ""
    return Finding(
        "no evidence of learning",
        f"this policy's return {_text(compared.trained)} is not above the random policy's "
        f"{_text(compared.random)} by more than chance allows{still}",
        "look at --learning-rate and --total-timesteps, and at the task with `upslope doctor`",
    )


def value_explains_nothing(record: Record) -> Finding | None:
    """The critic tells no state from another, although the policy moved and returns differ."""
    values = record.values(EXPLAINED)
    updates = max(record.values("time/iterations"), default=0.0)
    if len(values) < ENOUGH_ROWS or updates < ENOUGH_UPDATES or not _policy_moved(record):
        return None
    if _returns_are_alike(record):
        return None
    ranges = range(len(values) - NEIGHBOURS + 1)
    best = max(median(values[i : i + NEIGHBOURS]) for i in ranges)
    late = quantiles(record.late(EXPLAINED), n=4, method="inclusive")[2]
    excused = best >= EXPLAINED_EVER and (_is_solved(record) or _rose_after(record, 0))
    if late >= EXPLAINED_LATE or excused:
        return None
    return Finding(
        "value explains nothing",
        f"three of four rows of the last quarter explain less than {max(late, 0.01):.2f} of the "
        f"targets' variance, and the best {NEIGHBOURS} rows together {max(best, 0):.2f}",
        "raise --vf-coef or the critic's rate, set --norm-reward, or lower --gamma",
    )


def entropy_gone_early(record: Record) -> Finding | None:
    """The policy stopped exploring in the first quarter, and got no better afterwards."""
    entropies, facts = record.points(ENTROPY), action_facts(record.action_space)
    if len(entropies) < ENOUGH_ROWS or facts is None or _is_solved(record):
        return None
    least = _least_entropy(facts, -entropies[0][1])
    gone = next((at for at, loss in entropies if -loss < least), None)
    if gone is None or gone > EARLY * record.steps or _rose_after(record, gone):
        return None
    if median(record.late(ENTROPY)) < -least:  # it came back
        return None
    return Finding(
        "entropy gone early",
        f"after {gone:,.0f} of {record.steps:,.0f} steps the policy's entropy was below "
        f"{least:.2f} nats, and the return has not risen since",
        "lower --learning-rate, or raise --ent-coef",
    )


def entropy_stuck_at_maximum(record: Record) -> Finding | None:
    """The entropy bonus outweighs the return."""
    facts, bonus = action_facts(record.action_space), number(record.setting("ent_coef"))
    if record.n_rows < ENOUGH_ROWS or facts is None or not bonus or not record.values(ENTROPY):
        return None
    late = -median(record.late(ENTROPY))
    most = facts.most_entropy(record.setting("action_dist"))
    if facts.is_discrete:
        is_stuck = late >= ENTROPY_STUCK * most
    else:
        is_stuck = late >= most - STUCK_DIMENSION * facts.size
    if not is_stuck:
        return None
    return Finding(
        "entropy stuck at its maximum",
        f"{late:.3f} nats in the last quarter, and the most possible is {most:.3f}, with "
        f"ent_coef={bonus:g}",
        "lower --ent-coef",
    )


def kl_spikes(record: Record) -> Finding | None:
    """Updates that threw the policy far from the one that collected the data."""
    values = record.values(KL)
    spikes = [value for value in values if value > KL_SPIKE]
    if len(values) < ENOUGH_ROWS or record.algorithm in ("npg", "trpo"):  # theirs is bounded
        return None
    if len(spikes) <= max(1, SPIKES * len(values)):
        return None
    return Finding(
        "KL spikes",
        f"{len(spikes)} of {len(values)} updates moved the policy by more than {KL_SPIKE:g} nats, "
        f"the largest by {max(spikes):.3g}",
        "lower --learning-rate or --n-epochs, or set --target-kl 0.02",
    )


def clip_fraction_high(record: Record) -> Finding | None:
    """Most rows left the clip, although the KL divergence is not to blame."""
    values = record.values(CLIP_FRACTION)
    if len(values) < ENOUGH_ROWS or median(values) <= CLIP_FRACTION_HIGH or kl_spikes(record):
        return None
    return Finding(
        "clip fraction high",
        f"the median update leaves the clip in {median(values):.0%} of its rows, which then give "
        "no gradient",
        "lower --learning-rate or --n-epochs, or raise --clip-range",
    )


def actions_clipped(record: Record) -> Finding | None:
    """Most sampled actions lie outside the bounds, where exploring does nothing."""
    if len(record.values(CLIPPED)) < ENOUGH_ROWS or _is_solved(record):
        return None
    late = median(record.late(CLIPPED))
    if late <= CLIPPED_HIGH:
        return None
    return Finding(
        "actions clipped by the bounds",
        f"{late:.0%} of the sampled action components of the last quarter lie outside the bounds",
        "take --action-dist squashed or beta, or lower --log-std-init or --ent-coef",
    )


def return_collapsed(record: Record) -> Finding | None:
    """What had been learned was lost again."""
    rows = _returns(record)
    if len(rows) < ENOUGH_ROWS:
        return None
    start, best = rows[0], max(rows, key=lambda row: row.mean)
    tail = rows[-max(1, len(rows) // 10) :]
    late, spread = median(row.mean for row in tail), median(row.spread for row in tail)
    gained, lost = best.mean - start.mean, best.mean - late
    noise = SURE * math.hypot(best.error, spread / math.sqrt(tail[-1].episodes))
    if gained <= best.spread or lost <= max(COLLAPSE * gained, noise):
        return None
    return Finding(
        "return collapsed",
        f"the average return fell from {best.mean:,.4g} at {best.steps:,.0f} steps to "
        f"{late:,.4g} in the end, {lost / gained:.0%} of what had been gained",
        "lower --learning-rate or let it fall (lin_...), set --target-kl, and keep the best policy "
        "with --eval-freq",
    )


def learning_rate_zero(record: Record) -> Finding | None:
    """Steps were taken at a rate of 0: nothing could be learned from them."""
    rates = record.values(RATE)
    zeros = sum(rate <= 0 for rate in rates)
    if not rates or zeros <= max(1, RATE_ZERO * len(rates)):
        return None
    return Finding(
        "learning rate zero",
        f"{zeros} of {len(rates)} rows have a learning rate of 0",
        "let the schedule end with the run (--total-timesteps), or give a constant rate",
    )


def gradient_is_noise(record: Record) -> Finding | None:
    """A rollout's gradient is noise almost alone, and the return does not rise."""
    iterations, lengths = record.values("time/iterations"), record.values("rollout/ep_len_mean")
    measured = record.values(SNR)
    if len(measured) < NEIGHBOURS or not lengths or not iterations or _rose_after(record, 0):
        return None
    episodes = record.steps / iterations[-1] / max(1.0, median(lengths))
    of_rollout = median(measured) * episodes
    if of_rollout >= SNR_HOPELESS:
        return None
    return Finding(
        "gradient is noise",
        f"the signal-to-noise ratio of one rollout's gradient is {of_rollout:.2g} "
        f"({median(measured):.2g} an episode, {episodes:.2g} episodes a rollout)",
        "collect more a rollout (--n-envs, --n-steps), or lower --gae-lambda or --gamma",
    )


def normalizer_moves_policy(record: Record) -> Finding | None:
    """New observation statistics changed the policy as much as an update does."""
    settled = [kl for at, kl in record.points(NORMALIZER_KL) if at > record.steps / 5]
    if len(settled) < ENOUGH_ROWS or median(settled) <= NORMALIZER_FAR:
        return None
    return Finding(
        "normaliser moves the policy",
        f"new observation statistics move it by {median(settled):.2g} nats an iteration, long "
        "after the start",
        "look for an observation that drifts or spikes (`upslope doctor`), raise --warmup-steps, "
        "or lower --clip-obs",
    )


def line_search_fails(record: Record) -> Finding | None:
    """The trust region accepts no step, so the policy stays where it is."""
    if len(record.values(LINE_SEARCH)) < ENOUGH_ROWS:
        return None
    late = record.late(LINE_SEARCH)
    share = sum(late) / len(late)
    if share >= LINE_SEARCH_LOW:
        return None
    return Finding(
        "line search fails",
        f"only {share:.0%} of the last quarter's steps were accepted",
        "raise --cg-damping or --line-search-max-iter, or lower --target-kl",
    )


RULES: tuple[Callable[[Record], Finding | None], ...] = (
    no_episode_finished,
    no_evidence_of_learning,
    return_collapsed,
    learning_rate_zero,
    value_explains_nothing,
    entropy_gone_early,
    entropy_stuck_at_maximum,
    kl_spikes,
    clip_fraction_high,
    actions_clipped,
    gradient_is_noise,
    normalizer_moves_policy,
    line_search_fails,
)


@dataclass(frozen=True)
class _Compared:
    trained: float
    random: float
    errors: float  # standard errors between the two means


@dataclass(frozen=True)
class _Return:
    steps: float
    mean: float
    spread: float
    episodes: float  # that the mean was taken over

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.spread / math.sqrt(self.episodes)


def _compared_with_random(record: Record) -> _Compared | None:
    """Compare the sampled policy, the one that was trained, with the measured random one."""
    numbers = []
    for name in ("sampled", "random"):
        score = mapping(record.evaluation.get(name))
        mean, std, n = (number(score.get(key)) for key in ("mean", "std", "episodes"))
        if mean is None or std is None or n is None or n < 2:
            return None
        numbers += [mean, std * std / n]
    trained, of_trained, random, of_random = numbers
    error, difference = math.sqrt(of_trained + of_random), trained - random
    if error == 0:
        return _Compared(trained, random, math.copysign(math.inf, difference) if difference else 0)
    return _Compared(trained, random, difference / error)


def _returns(record: Record) -> list[_Return]:
    """The average returns that enough episodes stand behind."""
    names = (STEPS, RETURN, SPREAD, EPISODES)
    rows = zip(*(record.columns.get(name, ()) for name in names), strict=False)
    return [
        _Return(at, mean, spread, min(finished, WINDOW))
        for at, mean, spread, finished in rows
        if at is not None and mean is not None and spread is not None
        if finished is not None and finished >= ENOUGH_EPISODES
    ]


def _rose_after(record: Record, steps: float) -> bool:
    """Whether the average return rose by more than chance allows after so many steps."""
    rows = [row for row in _returns(record) if row.steps >= steps]
    if len(rows) < 2:
        return False
    first, last = rows[0], rows[-1]
    return last.mean - first.mean > SURE * math.hypot(first.error, last.error)


def _is_solved(record: Record) -> bool:
    """Whether the return reached what the environment registered as enough, at the end."""
    threshold = number(mapping(record.config.get("environment")).get("reward_threshold"))
    late = record.late(RETURN)
    return threshold is not None and bool(late) and median(late) >= threshold


def _returns_are_alike(record: Record) -> bool:
    """Whether the episodes' spread has all but gone, which leaves a critic nothing to explain."""
    spreads, late = record.values(SPREAD), record.late(SPREAD)
    return bool(late) and median(late) <= ALIKE * max(spreads)


def _policy_moved(record: Record) -> bool:
    """Whether updates changed the policy at all: by its KL, else by its entropy."""
    moves, entropies = record.values(KL), record.values(ENTROPY)
    if moves:
        return median(moves) > STILL
    return not entropies or max(entropies) - min(entropies) > STILL


def _least_entropy(facts: ActionFacts, at_start: float) -> float:
    if facts.is_discrete:
        return ENTROPY_GONE * facts.most_entropy(None)
    return at_start - ENTROPY_LOST * facts.size


def _text(value: float) -> str:
    return f"{value:,.4g}"

"""``upslope lab gradient RUN``: signal and noise of the gradient of a trained policy."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.cli.eval import load_run
from upslope.cli.lab_out import output_folder
from upslope.cli.parser import Parser, whole_number
from upslope.errors import ConfigError

if TYPE_CHECKING:
    from upslope.lab.gradient_study import GradientStudy, Measured
    from upslope.lab.noise import Estimate

WIDTH = 100
NOISE = ("estimator", "variance", "of the reference's", "SNR", "noise scale, episodes", "in steps")
AGREEMENT = ("estimator", "target", "difference along it", "same", "halves", "itself")


def parser() -> Parser:
    """Return the parser of ``upslope lab gradient``."""
    made = Parser(
        "upslope lab gradient",
        "Measure variance, signal-to-noise and noise scale of the gradient of a trained policy, by "
        "every estimator on the same fresh episodes, and how far the estimators agree.",
    )
    made.add_argument("run", metavar="RUN", help="a run directory or a model file")
    made.add_argument("--env", metavar="ENV",
                      help="the environment, needed where it is the user's own")  # fmt: skip
    made.add_argument("--episodes", type=whole_number(), metavar="N",
                      help="fresh episodes, at least 4 (default: 64, fewer where they take more "
                           "than 50,000 steps, but 16 at least)")  # fmt: skip
    made.add_argument("--seed", type=whole_number(), metavar="S",
                      help="of episodes and actions (default: the run's)")  # fmt: skip
    made.add_argument("--max-episode-steps", type=whole_number(1), metavar="N",
                      help="cut episodes after so many steps (default: as in the run)")  # fmt: skip
    made.add_argument("--out", metavar="DIR",
                      help="write gradient.json, gradient.csv and gradient.png there")  # fmt: skip
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    limit = asked.max_episode_steps
    settings = {} if limit is None else {"max_episode_steps": limit}
    agent, path = load_run(asked.run, asked.env, **settings)

    from upslope.lab.gradient import measure

    out = None
    if asked.out is not None:
        out = output_folder(asked.out, "gradient.png")
    with _bar(quiet=asked.json) as progress:
        study = measure(agent, asked.episodes, asked.seed, progress)
    result = {"model": str(path), **study.to_json(), "findings": findings(study)}
    if asked.json:
        print(json.dumps(result, allow_nan=False))
    else:
        print(report(study))
    if out is not None:
        _write(out, study, result)
        if not asked.json:
            print(f"\nwritten  {out / 'gradient.json'}, gradient.csv, gradient.png")
    return 0


def report(study: GradientStudy) -> str:
    """Return the findings, and two tables: noise, and agreement."""
    parts = [textwrap.fill(sentence, WIDTH) for sentence in findings(study)]
    parts.append(
        "Noise of one episode's gradient ([99 % interval]; *: this run's estimator)\n"
        + _table(NOISE, [_noise_cells(row, study) for row in study.rows])
    )
    parts.append(
        f"Agreement with the reference, {study.reference} (cosine: on the same episodes, between\n"
        "halves of them, and of the estimator with itself between halves: the most to hope for)\n"
        + _table(AGREEMENT, [_agreement_cells(row, study) for row in study.rows])
    )
    return "\n\n".join(parts)


def findings(study: GradientStudy) -> list[str]:
    """What the figures say, in sentences: the answer first, what is left open last."""
    about = (
        f"{study.environment}, {study.config.algorithm}: {study.episodes} fresh episodes of "
        f"{study.mean_length:,.1f} steps on average, mean return {study.mean_return:,.1f}; "
        f"gradients of {study.n_parameters:,} parameters."
    )
    return [about, _best(study), *_of_the_run(study), *_undecided(study), *_remarks(study)]


def _best(study: GradientStudy) -> str:
    best = study.best
    if best is None:
        return "Best estimator: undecided, none that agrees with the reference shows any gradient."
    text = f"Best estimator: {best.name}, of least variance among those that agree in the mean"
    if best.name == study.reference:
        text += " (it is the reference)"
    else:
        share = f"{_interval(best.variance_ratio)} of that of the reference, {study.reference}"
        text += f": {share}"
    open_ = [row.name for row in study.rows if row.estimator.bootstraps and not row.agrees]
    if open_:
        text += f". Not shown to agree within 25 %: {', '.join(open_)}"
    return f"{text}."


def _of_the_run(study: GradientStudy) -> list[str]:
    """The noise scale of the run's own estimator, and the batch that it takes."""
    own, batch = study.row(study.own), study.batch_episodes
    taken = (
        f"This run takes {study.batch_steps:,.0f} steps an iteration, "
        f"{_plain(batch)} episodes of this length"
    )
    scaled = " (which it standardises)" if study.is_standardised else ""
    if own.is_zero:
        return [f"Noise scale: none, {own.name} is 0 in every episode. {taken}."]
    if not own.is_decided:
        return [
            f"Noise scale: {_scale(own)}, in episodes, for {own.name}{scaled}, this run's "
            f"estimator: {study.episodes} episodes do not tell its gradient from 0. {taken}."
        ]
    steps = (own.batch_episodes or 0) * study.mean_length
    ratio = own.noise_scale.value / batch
    pair = ("noise", "signal") if ratio >= 1 else ("signal", "noise")
    return [
        f"Noise scale: {_interval(own.noise_scale)} episodes for {own.name}{scaled}, this run's "
        f"estimator. It suggests batches of {own.batch_episodes:,} episodes, about {steps:,.0f} "
        "steps: there noise equals signal; far smaller ones follow mostly noise, far larger ones "
        "gain little.",
        f"{taken}: its {pair[0]} is {_plain(max(ratio, 1 / ratio))} times the {pair[1]}, in "
        "squared lengths.",
    ]


def _undecided(study: GradientStudy) -> list[str]:
    rows = [row for row in study.rows if not row.is_zero]
    scales = sum(not row.is_decided for row in rows)
    agreements = sum(math.isinf(row.difference.high) for row in rows)
    what = []
    if scales:
        what.append(f"the noise scale of {scales} (the interval of |G|^2 holds 0)")
    if agreements:
        what.append(f"the agreement of {agreements}")
    if not what:
        return []
    return [
        f"Undecided in {study.episodes} episodes, of {len(rows)} estimators: "
        f"{' and '.join(what)}; for more, raise --episodes."
    ]


def _remarks(study: GradientStudy) -> list[str]:
    """What explains differences that are no faults."""
    said = []
    biased = [row for row in study.rows if row.estimator.bootstraps and row.differs]
    if biased:
        shares = ", ".join(f"{row.name} {_percent(row.difference)}" for row in biased)
        why = "V errs" if study.truncated_share == 0 else "V errs, or a time limit hides rewards"
        said.append(f"Seen to differ from the reference, along it: {shares}; {why}.")
    if not all(study.has_target(row) for row in study.rows):
        said.append(
            "Estimators with the target `discounted` follow the gradient of the discounted return, "
            "by design another vector than the reference, which drops gamma^t."
        )
    if study.left_out:
        said.append(
            f"No V was trained in this run, so the estimators that read one are left out: "
            f"{', '.join(study.left_out)}."
        )
    elif study.truncated_share > 0:
        share = f"{100 * study.truncated_share:.0f} %"
        said.append(
            f"A time limit cut {share} of the episodes: estimators that bootstrap count what V "
            "expects beyond it, the reference nothing."
        )
    return said


def _noise_cells(row: Measured, study: GradientStudy) -> tuple[str, ...]:
    batch = row.batch_episodes
    if row.is_zero:
        return (_marked(row, study), "0", "-", "-", "0 in every episode", "-")
    return (
        _marked(row, study),
        f"{row.variance.value:.3g}",
        _interval(row.variance_ratio) if row.name != study.reference else "reference",
        f"{row.snr.value:.3g}",
        _scale(row),
        "-" if batch is None else f"{batch * study.mean_length:,.0f}",
    )


def _agreement_cells(row: Measured, study: GradientStudy) -> tuple[str, ...]:
    is_reference = row.name == study.reference
    return (
        _marked(row, study),
        "discounted" if row.estimator.keeps_discount else "",
        "reference" if is_reference else "-" if row.is_zero else _percent(row.difference),
        *(
            "-" if math.isnan(x) else f"{x:.2f}"
            for x in (row.cosine, row.cosine_across, row.cosine_halves)
        ),
    )


def _scale(row: Measured) -> str:
    """The noise scale, or what is known of it where it has no value."""
    scale = row.noise_scale
    if row.is_decided:
        return _interval(scale)
    known = 0 < scale.low < math.inf
    return f"undecided, >= {_plain(scale.low)}" if known else "undecided"


def _marked(row: Measured, study: GradientStudy) -> str:
    return f"{row.name} *" if row.name == study.own else row.name


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *lines)
    )
    return "\n".join(f"  {row}" for row in rows)


def _interval(x: Estimate) -> str:
    if math.isnan(x.value):
        return "-"
    high = "open" if math.isinf(x.high) else _plain(x.high)
    return f"{_plain(x.value)} [{_plain(x.low)}, {high}]"


def _percent(x: Estimate) -> str:
    if math.isinf(x.high) or math.isnan(x.high):
        return "undecided"
    value, low, high = (f"{round(100 * share):+d}" for share in x)
    return f"{value} [{low}, {high}] %"


def _plain(x: float) -> str:
    """Three digits at most, without an exponent where people would not write one."""
    return f"{x:,.0f}" if 100 <= abs(x) < 1e7 else f"{x:.3g}"


def _write(out: Path, study: GradientStudy, result: dict[str, Any]) -> None:
    from upslope.lab.gradient_figure import save_figure

    lines = [_flat(row) for row in result["estimators"]]
    try:
        (out / "gradient.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        with (out / "gradient.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        save_figure(study, out / "gradient.png")
    except OSError as error:
        reason = f"{error.filename}: {error.strerror or error}"
        raise ConfigError(f"--out {out} cannot be written to ({reason}); name another") from error


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One line of gradient.csv: an estimate becomes three columns."""
    line: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            low, high = value["ci99"]
            line |= {key: value["value"], f"{key}_low": low, f"{key}_high": high}
        else:
            line[key] = value
    return line


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield ``progress(what, done, total)``, or None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )

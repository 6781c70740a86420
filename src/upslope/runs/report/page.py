"""One file that opens anywhere: the template filled, its data, style and script all inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from upslope.errors import ConfigError
from upslope.runs.report.animation import PlayedEpisode
from upslope.runs.report.charts import Chart, Line, chart
from upslope.runs.report.data import STEPS, Record, mapping, number
from upslope.runs.report.findings import RULES, diagnose, not_judged
from upslope.runs.report.metrics import METRICS, PHASES, Metric
from upslope.runs.resumes import how_to_repeat, resumes
from upslope.statistics.words import equal_values, percent

COLOURS = 8  # of the page's palette
ROWS_INSIDE = 5000  # of a run that the page carries; of more, evenly spaced ones
SCORES = {
    "sampled": "sampled actions, as in training",
    "deterministic": "the mode of each distribution",
    "best_model": "the best policy on the way",
    "random": "a random policy",
}
SCORE_COLUMNS = (
    "mean return", "95 % interval", "std of episodes", "interquartile mean", "worst",
    "below the threshold", "successes", "episodes",
)  # fmt: skip


def render(records: Sequence[Record], episode: PlayedEpisode | str | None = None) -> str:
    """Return the HTML of a report on one run or several.

    Args:
        records: at least one.
        episode: of the policy, or the sentence on why there is none; None leaves the part out.

    Raises:
        ConfigError: without jinja2.
    """
    try:
        import jinja2
    except ImportError:
        raise ConfigError("a report needs jinja2: run pip install 'upslope[report]'") from None

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = _names(records)
    colours = _colours(records)
    played = episode if isinstance(episode, PlayedEpisode) else None
    style, script = _read("style.css"), _read("script.js")
    return environment.from_string(_read("template.html")).render(
        title=_title(records),
        runs=[_run(*parts) for parts in zip(records, names, colours, strict=True)],
        several=len(records) > 1,
        panels=[panel for metric in METRICS if (panel := _panel(metric, records, names, colours))],
        episode=None if played is None else _episode_view(played),
        no_episode=episode if isinstance(episode, str) else None,
        n_rules=len(RULES),
        begun=_begun,
        data=_data(records, names, played),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


@dataclass(frozen=True)
class Panel:
    """One chart with its words."""

    metric: Metric
    chart: Chart
    healthy: str
    last: Sequence[str]  # of each run, in order


def _panel(
    metric: Metric, records: Sequence[Record], names: Sequence[str], colours: Sequence[int]
) -> Panel | None:
    """Draw a metric for every run that has it; None where none does."""
    lines = [
        _line(metric, record, name, colour, banded=len(records) == 1)
        for record, name, colour in zip(records, names, colours, strict=True)
    ]
    algorithms = {record.algorithm for record in records}
    algorithm = algorithms.pop() if len(algorithms) == 1 else ""
    healthy = metric.band.get(algorithm, metric.band.get(""))
    if metric.is_absence_at_zero and not any(y for line in lines for _, y in line.points):
        return None
    drawn = chart(lines, floor=metric.floor, healthy=healthy)
    if drawn is None:
        return None
    words = list(dict.fromkeys(metric.healthy_for(record) for record in records))
    last = [f"{line.points[-1][1]:,.4g}" if line.points else "none" for line in lines]
    return Panel(metric, drawn, "; or ".join(words), last)


def _line(metric: Metric, record: Record, name: str, colour: int, banded: bool) -> Line:
    points = [(at, metric.sign * value) for at, value in record.points(metric.tag)]
    if not (banded and metric.spread):
        return Line(points, name, colour)
    tags = (STEPS, metric.tag, metric.spread)
    rows = zip(*(record.columns.get(tag, ()) for tag in tags), strict=False)
    around = [(at, y, s) for at, y, s in rows if at is not None and y is not None and s is not None]
    low = [(at, y - s) for at, y, s in around]
    high = [(at, y + s) for at, y, s in around]
    return Line(points, name, colour, low, high)


def _run(record: Record, name: str, colour: int) -> dict[str, Any]:
    """What the template says about one run."""
    config, state = record.config, record.state
    last = record.values("rollout/ep_rew_mean")[-1:]
    return {
        "name": name,
        "colour": colour,
        "environment": record.environment,
        "algorithm": record.algorithm,
        "seed": record.setting("seed"),
        "steps": f"{record.steps:,.0f}",
        "last_return": f"{last[0]:,.4g}" if last else "none yet",
        "ending": _ending(state),
        "state": str(state.get("state") or "unknown"),
        "is_fine": state.get("state") == "finished",
        "findings": diagnose(record),
        "not_judged": not_judged(record),
        "scores": _scores(record.evaluation),
        "sampled": _in_short(mapping(record.evaluation.get("sampled"))),
        "phases": _phases(mapping(state.get("phase_seconds"))),
        "facts": _facts(config, state),
        "command": record.command or "not recorded",
        "resumes": resumes(state),
        "how_to_repeat": how_to_repeat(state, record.command),
        "config": json.dumps(config, indent=2, default=str),
    }


def _ending(state: Mapping[str, Any]) -> str:
    """Say how the run ended."""
    steps, seconds = number(state.get("timesteps")), number(state.get("seconds"))
    spent = f" after {steps:,.0f} steps" if steps is not None else ""
    spent += f" in {seconds:,.1f} s" if seconds is not None else ""
    ended = state.get("state")
    if ended == "finished":
        return f"finished{spent}"
    if ended == "interrupted":
        return f"interrupted{spent}: what follows is of an unfinished run"
    if ended == "failed":
        return f"failed{spent}: {state.get('error') or 'no cause is recorded'}"
    return "not ended: still running, or killed without a word"


def _scores(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """A table, one line a policy and way to act; scores within scores are taken in turn.

    Columns that no line has are left out.
    """
    lines = []
    for key, value in evaluation.items():
        words, score = SCORES.get(key, key.replace("_", " ")), mapping(value)
        if number(score.get("mean")) is not None:
            lines.append((words, _score(score)))
        for inner, part in score.items():
            if number(mapping(part).get("mean")) is not None:
                lines.append((f"{words}: {SCORES.get(inner, inner)}", _score(mapping(part))))
    columns = [column for column in SCORE_COLUMNS if any(cells.get(column) for _, cells in lines)]
    table = [(words, [cells[column] for column in columns]) for words, cells in lines]
    return {"columns": columns, "lines": table}


def _score(score: Mapping[str, Any]) -> dict[str, str]:
    """One line's cells, in the order of ``SCORE_COLUMNS``."""
    cells = (
        _text(score.get("mean")),
        _interval(score),
        _text(score.get("std")),
        _text(score.get("iqm")),
        _text(score.get("min")),
        _share(score, "failure_share", "failure_ci95"),
        _share(score, "success_rate", "success_ci95"),
        _text(score.get("episodes")),
    )
    return dict(zip(SCORE_COLUMNS, cells, strict=True))


def _interval(score: Mapping[str, Any]) -> str:
    """The interval, or in words why equal returns have none."""
    share, episodes = number(score.get("elsewhere_at_most")), number(score.get("episodes"))
    if share is not None and episodes is not None:
        return equal_values(int(episodes), share)
    ends = _ends(score.get("ci95"))
    return "" if ends is None else f"{ends[0]:,.4g} to {ends[1]:,.4g}"


def _share(score: Mapping[str, Any], name: str, interval: str) -> str:
    known = number(score.get(name))
    return "" if known is None else percent(known, _ends(score.get(interval)))


def _ends(interval: Any) -> tuple[float, float] | None:
    """Both ends of an interval; None where it is none."""
    ends = [number(end) for end in interval] if isinstance(interval, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def _in_short(score: Mapping[str, Any]) -> str:
    mean, interval = _text(score.get("mean")), _interval(score)
    return f"{mean} ({interval})" if interval else mean


def _phases(seconds: Mapping[str, Any]) -> list[dict[str, str]]:
    """Seconds and share of each phase, the longest first."""
    known = {name: number(value) for name, value in seconds.items()}
    spent = {name: value for name, value in known.items() if value is not None and value >= 0}
    total = sum(spent.values())
    if not total:
        return []
    return [
        {
            "name": name,
            "words": PHASES.get(name, name.replace("_", " ")),
            "seconds": f"{value:.3g}",
            "share": f"{100 * value / total:.1f}",
        }
        for name, value in sorted(spent.items(), key=lambda item: -item[1])
    ]


def _facts(config: Mapping[str, Any], state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What has to be the same for the same numbers."""
    engine = mapping(config.get("engine"))
    versions = mapping(config.get("versions"))
    settings = mapping(config.get("settings"))
    facts = {
        "seed": settings.get("seed"),
        "environments": f"{settings.get('n_envs')} x {engine.get('name')}" if engine else None,
        "engine of the gradient steps": config.get("gradient_step_engine"),
        "device": config.get("device"),
        "torch threads": config.get("torch_threads"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
        "git commit of the working directory": config.get("git_commit"),
        "started": state.get("started"),
        "finished": state.get("finished"),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def _episode_view(played: PlayedEpisode) -> dict[str, Any]:
    panels = []
    for title, series in played.series.items():
        lines = [
            Line(list(zip(played.steps, values, strict=True)), label, i % COLOURS)
            for i, (label, values) in enumerate(series.items())
        ]
        drawn = chart(lines)
        if drawn is not None:
            panels.append({"title": title, "chart": drawn})
    film = None if played.film is None else base64.b64encode(played.film).decode()
    return {
        "panels": panels,
        "film": film,
        "speed": played.speed,
        "ret": f"{played.ret:,.4g}",
        "length": f"{played.length:,}",
        "end": played.end,
        "notes": played.notes,
        "last": len(played.steps) - 1,
    }


def _data(records: Sequence[Record], names: Sequence[str], played: PlayedEpisode | None) -> str:
    """Return the numbers of the page as JSON that cannot end its element."""
    drawn = [{"tag": metric.tag, "sign": metric.sign} for metric in METRICS]
    content: dict[str, Any] = {
        "metrics": drawn,
        "runs": [
            {"name": name, **_columns(record)} for record, name in zip(records, names, strict=True)
        ],
        "episode": None if played is None else {"steps": played.steps, "series": played.series},
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _columns(record: Record) -> dict[str, Any]:
    """The columns, whole, or every k-th row and the last of a very long run."""
    n = record.n_rows
    stride = max(1, -(-n // ROWS_INSIDE))
    kept = sorted({*range(0, n, stride), n - 1}) if n else []
    columns = {
        tag: [cells[i] if i < len(cells) else None for i in kept]
        for tag, cells in record.columns.items()
    }
    return {"rows": n, "stride": stride, "columns": columns}


def _names(records: Sequence[Record]) -> list[str]:
    """Short names, all different: the directory's, with its parents where two are alike."""
    names = [record.path.resolve().name for record in records]
    if len(set(names)) < len(names):
        names = [str(record.path) for record in records]
    return names


def _colours(records: Sequence[Record]) -> list[int]:
    """One colour an environment and algorithm where there are several, else one a run."""
    groups = [(record.environment, record.algorithm) for record in records]
    different = list(dict.fromkeys(groups))
    if len(different) > 1:
        return [different.index(group) % COLOURS for group in groups]
    return [i % COLOURS for i in range(len(records))]


def _title(records: Sequence[Record]) -> str:
    first = records[0]
    if len(records) > 1:
        return f"{len(records)} runs on {', '.join(sorted({r.environment for r in records}))}"
    return f"{first.environment} · {first.algorithm} · seed {first.setting('seed')}"


def _begun(sentence: str) -> str:
    """The sentence with a capital; what follows stays as it is."""
    return sentence[:1].upper() + sentence[1:]


def _text(value: Any) -> str:
    known = number(value)
    return "" if known is None else f"{known:,.4g}"


def _read(name: str) -> str:
    return resources.files("upslope.runs.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What Content-Security-Policy calls an element of this text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"

"""A model card: README.md beside a model file, as the Hugging Face Hub reads it.

Its front matter is the Hub's (``model-index`` with the results), the text says what the policy is,
how well it did and with which interval, and how to load it. A run directory with it can be uploaded
as it is.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upslope.runs.durable import replace_file
from upslope.runs.model_file import read_header
from upslope.runs.resumes import how_to_repeat
from upslope.statistics.words import equal_values

CARD = "README.md"
_WAYS = {"deterministic": "the most probable actions", "sampled": "sampled actions"}


def write_card(model: Path, card: Path | None = None) -> None:
    """Write the card of a model file; the score is that of its header, or evaluation.json's.

    Args:
        model: what ``agent.save`` wrote; config.json, evaluation.json and command.txt beside it are
            read where they are there.
        card: where it goes; by default README.md beside the model.

    Raises:
        ModelFileError: the model cannot be read, or the card not written.
    """
    text = card_text(model)
    replace_file(card or model.with_name(CARD), [text.encode()], "model card")


def card_text(model: Path) -> str:
    """Return the card of a model file."""
    header = read_header(model)
    score = header.get("evaluation") or _json_beside(model, "evaluation.json")
    run = _json_beside(model, "config.json") or {}
    facts = _front_matter(model, header, score)
    return "\n".join(
        ["---", *_yaml(facts, ""), "---", "", *_text(model, header, score or {}, run), ""]
    )


def _front_matter(
    model: Path, header: Mapping[str, Any], score: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the Hub reads: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    env, algorithm = header["environment"]["name"], header["algorithm"]
    facts: dict[str, Any] = {
        "library_name": "upslope",
        "pipeline_tag": "reinforcement-learning",
        "tags": [env, algorithm, "reinforcement-learning", "deep-reinforcement-learning"],
    }
    if not score:
        return facts
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": env, "type": env},
        "metrics": [_metric(way, score[way]) for way in _WAYS],
    }
    return facts | {"model-index": [{"name": f"{algorithm}-{env}", "results": [result]}]}


def _metric(way: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """One way to act: the mean, with its interval and what it rests on as the metric's args."""
    open_share, episodes = sample.get("elsewhere_at_most"), sample["episodes"]
    is_interval = sample["ci95"] and open_share is None  # equal returns have none
    low, high = sample["ci95"] if is_interval else (None, None)
    return {
        "type": "mean_reward",
        "value": sample["mean"],
        "name": f"mean return of {episodes} fresh episodes, {_WAYS[way]}",
        "args": {
            "actions": way,
            "episodes": episodes,
            "std": sample["std"],
            "ci95_low": low,
            "ci95_high": high,
            "elsewhere_at_most": open_share,
        },
        "verified": False,
    }


def _text(
    model: Path, header: Mapping[str, Any], score: Mapping[str, Any], run: Mapping[str, Any]
) -> Iterator[str]:
    env, algorithm = header["environment"]["name"], header["algorithm"].upper()
    parameters, spread = header["network"]["parameters"], header["network"]["distribution"]
    yield f"# {algorithm} policy for {_code(env)}"
    yield ""
    yield (
        f"A policy trained by policy gradients ({algorithm}) with Upslope: {parameters:,} "
        f"parameters, {spread} actions. `{model.name}` holds the weights, the normaliser and the "
        "spaces; nothing in it is executed when it is loaded."
    )
    yield from ["", "## Evaluation", ""]
    yield from _evaluation(score, header["environment"])
    yield from ["", "## Use", "", "```python", "import upslope", ""]
    load = f"agent = upslope.load({model.name!r}"
    is_known = header["environment"]["is_registered"]
    yield f"{load})" if is_known else f"{load}, env=...)  # give the environment: {_one_line(env)}"
    yield "action, state = agent.predict(obs, deterministic=True)"
    yield from ["```", "", "## Training", ""]
    yield from _training(model, header, run)


def _evaluation(score: Mapping[str, Any], env: Mapping[str, Any]) -> Iterator[str]:
    if not score:
        yield "This policy has not been evaluated."
        return
    yield "| actions | mean return | 95 % interval | std | worst | episodes |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for way in _WAYS:
        sample = score[way]
        cells = [
            way,
            _short(sample["mean"]),
            _interval(sample),
            _short(sample["std"]),
            _short(sample["min"]),
        ]
        yield f"| {' | '.join([*cells, str(sample['episodes'])])} |"
    yield ""
    yield (
        "The interval is Student's t of the mean over fresh episodes "
        f"(seed {score['seed']}) of **this policy, not of the algorithm**: what the algorithm does "
        "takes several training seeds."
    )


def _interval(sample: Mapping[str, Any]) -> str:
    """The interval, or that there is none, in words where that is because returns are equal."""
    share = sample.get("elsewhere_at_most")
    if share is not None:
        return equal_values(sample["episodes"], share)
    return " to ".join(_short(end) for end in sample["ci95"]) if sample["ci95"] else "none"


def _training(model: Path, header: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    steps = run.get("total_timesteps")
    if steps is not None:
        yield f"{steps:,} environment steps, seed {header['config'].get('seed')}."
        yield ""
    command = None
    with contextlib.suppress(OSError, ValueError):
        command = model.with_name("command.txt").read_text().strip()
        if shlex.split(command)[0] == "upslope":  # not the script of somebody's own, with its paths
            yield from ["```sh", command, "```", ""]
    if (said := how_to_repeat(_json_beside(model, "run.json") or {}, command)) is not None:
        yield from [said, ""]
    yield "| library | version |"
    yield "| --- | --- |"
    for name, version in header["versions"].items():
        yield f"| {_one_line(name)} | {_one_line(version)} |"
    yield from ["", "<details><summary>Settings</summary>", "", "```json"]
    yield json.dumps(header["config"], indent=2)
    yield from ["```", "", "</details>"]


def _yaml(value: Any, indent: str) -> Iterator[str]:
    """Objects of text, numbers, lists and objects as block YAML; texts as JSON writes them."""
    items = value.items() if isinstance(value, dict) else [(None, entry) for entry in value]
    for key, entry in items:
        head = f"{indent}-" if key is None else f"{indent}{key}:"
        if not isinstance(entry, (dict, list)):
            yield f"{head} {_scalar(entry)}"
        elif key is None:
            first, *rest = _yaml(entry, f"{indent}  ")
            yield f"{head} {first.lstrip()}"
            yield from rest
        else:
            yield head
            yield from _yaml(entry, f"{indent}  ")


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"  # YAML 1.1 takes 1e-05 for a text
    return json.dumps(value, ensure_ascii=False)


def _short(number: float) -> str:
    return f"{number:,.2f}"


def _code(text: str) -> str:
    return f"`{_one_line(text).replace('`', '')}`"


def _one_line(text: Any) -> str:
    """A text of a file's as one line of a table, a comment or a heading."""
    return " ".join(str(text).split()).replace("|", "/")[:200]


def _json_beside(model: Path, name: str) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(model.with_name(name).read_text())
        return found if isinstance(found, dict) else None
    return None

"""``upslope export RUN``: the policy as an ONNX or .pt2 file, or a model card beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upslope.cli.eval import model_of
from upslope.cli.parser import Parser
from upslope.errors import ConfigError


def parser() -> Parser:
    """Return the parser of ``upslope export``."""
    made = Parser(
        "upslope export",
        "Write a trained policy as a file that needs no library of ours: from raw observations to "
        "the environment's actions, normaliser, masks and memory included.",
    )
    made.add_argument("run", metavar="RUN", help="a run directory or a model file")
    made.add_argument(
        "--format",
        metavar="{onnx,torch}",
        help="ONNX, or torch.export's .pt2 (default: as --out ends, else onnx)",
    )
    made.add_argument(
        "--out", metavar="FILE", help="the file (default: beside the model, .onnx or .pt2)"
    )
    made.add_argument(
        "--card",
        action="store_true",
        help="write README.md beside the model instead: a Hugging Face model card",
    )
    made.add_argument(
        "--action-mask",
        action="store_true",
        default=None,
        help="add the input action_mask (default: where the environment gives one)",
    )
    made.add_argument(
        "--env", metavar="ENV", help="the environment, asked whether it gives masks (default: own)"
    )
    return made


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    asked = parser().parse(arguments)
    model = model_of(asked.run)
    if asked.card:
        return _write_card(model, asked.out, asked.format)
    named = {".pt2": "torch"}.get(Path(asked.out).suffix, "onnx") if asked.out else "onnx"
    return _export(model, asked.out, asked.format or named, asked.action_mask, asked.env)


def _write_card(model: Path, out: str | None, form: str | None) -> int:
    from upslope.runs.model_card import CARD, write_card

    if form is not None:
        raise ConfigError("--card writes a text and has no --format: give one of the two")
    path = Path(out) if out else model.with_name(CARD)
    write_card(model, path)
    print(f"card     {path}")
    return 0


def _export(model: Path, out: str | None, form: str, mask: bool | None, env: str | None) -> int:
    from upslope.export import FORMATS, environment_gives_masks, export_model

    path = Path(out) if out else model.with_suffix(FORMATS.get(form, ""))
    known = mask if mask is not None else environment_gives_masks(model, env)
    try:
        made = export_model(model, path, form, action_mask=bool(known))
    except ConfigError as error:
        if "features factory" in str(error):
            raise ConfigError(
                f"{error}; use upslope.export.export_model(..., policy=...) from Python"
            ) from None
        raise
    held = (
        "not run: pip install 'upslope[onnx]' to have it checked against this library"
        if made.gap is None
        else f"checked against this library, largest gap {made.gap:.1e}"
    )
    print(f"{form:<8} {path} ({path.stat().st_size:,} bytes)\n         {held}")
    for title, ports in (("inputs", made.inputs), ("outputs", made.outputs)):
        for i, (name, what) in enumerate(ports.items()):
            print(f"{'' if i else title:<8} {name} {what}")
    if known is None:
        print("         no action_mask: the environment is unknown (--env ENV, or --action-mask)")
    return 0

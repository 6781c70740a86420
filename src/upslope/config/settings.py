"""How one setting is declared, read from text, checked and written: what the Configs stand on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from upslope.errors import ConfigError

Schedule = float | str | Callable[[float], float]


def setting(
    default: Any,
    doc: str,
    *,
    kind: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    optional: bool = False,
    group: str = "algorithm",
    source: str = "",
) -> Any:
    """Declare one field: ``kind`` is int, float, bool, choice, text, schedule, net_arch or mapping.

    ``low`` and ``high`` are inclusive bounds, ``above`` an exclusive lower one; ``optional`` admits
    ``None``.
    """
    metadata = {
        "doc": doc, "kind": kind, "low": low, "high": high, "above": above,
        "choices": choices, "optional": optional, "group": group, "source": source,
    }  # fmt: skip
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def schedule_at(schedule: Schedule, progress_remaining: float) -> float:
    """Return a schedule's value where ``progress_remaining`` of the run is left: 1 to 0 at the end.

    Raises:
        ConfigError: if a callable returns something that is not a finite number >= 0.
    """
    if isinstance(schedule, str):
        return float(schedule.removeprefix("lin_")) * progress_remaining
    if not callable(schedule):
        return schedule
    try:
        value = schedule(progress_remaining)
    except Exception as error:
        raise ConfigError(
            f"the schedule {plain(schedule)['callable']} raised {type(error).__name__}: {error}; "
            "it is called with the progress remaining, from 1 to 0"
        ) from error
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ConfigError(
            f"the schedule {plain(schedule)['callable']} returned {value!r} at "
            f"{progress_remaining:.3f}: it must return a finite number >= 0"
        )
    return float(value)


def parse_text(declared: dataclasses.Field[Any], text: str) -> Any:
    """Turn a flag's text into the field's type.

    Text that does not parse is returned as it is, for the check to name.
    """
    kind = declared.metadata["kind"]
    if declared.metadata["optional"] and text.lower() == "none":
        return None
    try:
        if kind == "int":
            number = float(text) if "e" in text.lower() else int(text.replace("_", ""))
            return int(number) if number == int(number) else text
        if kind in ("float", "schedule"):
            return float(text)
    except (ValueError, OverflowError):
        return text
    if kind == "names":
        return tuple(part for part in text.split(",") if part)
    return text


def checked(declared: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value in its canonical type, or raise ConfigError: field, value and range."""
    rule = declared.metadata
    if value is None and rule["optional"]:
        return None
    try:
        return _CHECKS[rule["kind"]](rule, value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{declared.name}={value!r} is not {_expected(rule)}: {rule['doc']}"
        ) from None


def _check_int(rule: Mapping[str, Any], value: Any) -> int:
    if not _is_number(value) or value != int(value):
        raise ValueError
    return int(_check_range(rule, value))


def _check_float(rule: Mapping[str, Any], value: Any) -> float:
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError
    return float(_check_range(rule, value))


def _check_schedule(rule: Mapping[str, Any], value: Any) -> Schedule:
    if callable(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        start = _check_float(rule, float(value.removeprefix("lin_")))
        return f"lin_{start!r}" if value.startswith("lin_") else start
    return _check_float(rule, value)


def _check_range(rule: Mapping[str, Any], value: Any) -> Any:
    low, high, above = rule["low"], rule["high"], rule["above"]
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        raise ValueError
    return value


def _check_bool(rule: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError
    return value


def _check_choice(rule: Mapping[str, Any], value: Any) -> str:
    if isinstance(value, type):  # activation_fn=torch.nn.Tanh
        value = value.__name__.lower()
    if value not in rule["choices"]:
        raise ValueError
    return str(value)


def _check_text(rule: Mapping[str, Any], value: Any) -> str:
    if (
        not isinstance(value, str) and type(value).__module__ != "torch"
    ):  # torch.device prints as its name
        raise ValueError
    return str(value)


def _check_names(rule: Mapping[str, Any], value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise ValueError
    return names


def _check_mapping(rule: Mapping[str, Any], value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    return dict(value)


def _check_net_arch(rule: Mapping[str, Any], value: Any) -> Any:
    """Return ``{"pi": (..), "vf": (..)}`` from widths, such a mapping, or a flag's text."""
    if isinstance(value, str):
        if "=" in value:
            value = dict(part.split("=", 1) for part in value.split(";"))
        else:
            value = [part for part in value.split(",") if part]
    if not isinstance(value, Mapping):
        value = {"pi": value, "vf": value}
    if set(value) != {"pi", "vf"}:
        raise ValueError
    return {part: _widths(value[part]) for part in ("pi", "vf")}


def _widths(value: Any) -> tuple[int, ...]:
    parts = [part for part in value.split(",") if part] if isinstance(value, str) else list(value)
    if isinstance(value, bytes) or any(isinstance(part, (bool, float)) for part in parts):
        raise ValueError
    widths = tuple(int(part) for part in parts)
    if any(not 1 <= width <= 65536 for width in widths):
        raise ValueError
    return widths


_CHECKS: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "int": _check_int, "float": _check_float, "schedule": _check_schedule, "bool": _check_bool,
    "choice": _check_choice, "text": _check_text, "names": _check_names, "mapping": _check_mapping,
    "net_arch": _check_net_arch,
}  # fmt: skip


def _expected(rule: Mapping[str, Any]) -> str:
    """Say in words what a field accepts."""
    kind = rule["kind"]
    if kind == "choice":
        return "one of " + ", ".join(rule["choices"])
    if kind not in ("int", "float", "schedule"):
        return {
            "bool": "True or False",
            "net_arch": "widths in 1..65536 such as 64,64 or pi=64,64;vf=64,64",
        }.get(kind, f"a {kind}")
    words = {
        "int": "a whole number",
        "float": "a finite number",
        "schedule": "a number, lin_X or a callable",
    }[kind]
    limits = (("low", ">="), ("above", ">"), ("high", "<="))
    bounds = [f"{sign} {rule[key]:g}" for key, sign in limits if rule[key] is not None]
    parts = [words, " and ".join(bounds), "or None" if rule["optional"] else ""]
    return " ".join(part for part in parts if part)


def _is_number(value: Any) -> bool:
    return (
        not isinstance(value, (bool, str))
        and getattr(getattr(value, "dtype", None), "kind", "f") != "b"  # numpy's own bool
        and hasattr(value, "__float__")
        and not hasattr(value, "__len__")
    )


def is_device(name: str) -> bool:
    """Tell whether ``name`` is ``auto`` or a device's name in torch; it need not exist here."""
    return name in ("auto", "cpu", "cuda", "mps") or (
        name.startswith("cuda:") and name[5:].isdigit()
    )


def plain(value: Any) -> Any:
    """Return a setting's value in JSON types; a callable becomes ``{"callable": its name}``."""
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return {"callable": f"{getattr(value, '__module__', '?')}.{name}"}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def whole_number(name: str, value: Any, low: int = 1) -> int:
    """Return ``value`` as an int, or raise ConfigError unless it is whole and >= ``low``."""
    rule = {"low": low, "high": None, "above": None}
    try:
        return _check_int(rule, value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}={value!r} is not a whole number >= {low}") from None

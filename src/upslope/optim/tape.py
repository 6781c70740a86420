"""The tape: the operators of one gradient step, backward included, recorded once and replayed.

The step is a pure function of tensors, so the list of the operators that it ran is the step, for
all arguments of these shapes, unless it looked at a number (``if``, ``float``), drew one or wrote
into something that outlives it. Such a step is refused. ``tidy.py`` rewrites the list,
``replay.py`` and ``aot.py`` run it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.optim import torch_parts
from upslope.optim.torch_parts import Call, Function, Unavailable

ALIASES = ("aten::detach", "aten::alias")  # without gradient the same tensor
NUMBER = "aten::_local_scalar_dense"  # what float() and if run


@dataclass(frozen=True)
class Slot:
    """The place of a tensor on the tape: an argument, or the result of an instruction."""

    place: int


class Instruction(NamedTuple):
    """One operator: arguments in which a Slot stands for a tensor, and where its results go."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]
    is_many: bool


@dataclass
class Tape:
    """A recorded function of tensors: its arguments, then its constants, at the places ``inputs``.

    ``constants`` are tensors that it read and was not given: other parameters, buffers. They are
    read anew in each replay, so they may change. ``written`` are the places of tensors that an
    operator writes into, ``shapes`` and ``dtypes`` those of what lies at a place.
    """

    inputs: tuple[int, ...]
    instructions: list[Instruction] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    results: tuple[int, ...] = ()
    written: frozenset[int] = frozenset()
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[int, torch.dtype] = field(default_factory=dict)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run it operator by operator, on the arguments and then the constants."""
        held = dict(zip(self.inputs, tensors, strict=True))
        for operator, args, kwargs, results, is_many in self.instructions:
            found = operator(*filled(args, held), **filled(kwargs, held))
            for place, tensor in zip(results, found if is_many else (found,), strict=True):
                if place is not None:
                    held[place] = tensor
        return tuple(held[place] for place in self.results)

    def traceable(self) -> Tape:
        """The same tape, every operator in a form that TorchScript can be shown."""
        shown = [
            step._replace(
                operator=torch_parts.traceable(
                    step.operator, [place is not None for place in step.results]
                )
            )
            for step in self.instructions
        ]
        return dataclasses.replace(self, instructions=shown)

    def to_json(self) -> dict[str, Any]:
        """The operators by name, without the constants' numbers: what a compiler needs to know.

        Raises:
            Unavailable: if an operator was given something that JSON cannot say.
        """
        return {
            "inputs": self.inputs,
            "results": self.results,
            "instructions": [
                [x.operator.name(), _json(x.args), _json(x.kwargs), x.results, x.is_many]
                for x in self.instructions
            ],
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Tape:
        """Read what :meth:`to_json` wrote."""
        instructions = [
            Instruction(_operator(name), tuple(_read(args)), _read(kwargs), tuple(results), is_many)
            for name, args, kwargs, results, is_many in said["instructions"]
        ]
        return cls(tuple(said["inputs"]), instructions, [], tuple(said["results"]))


def record(
    function: Function, arguments: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tape | Unavailable]:
    """Run ``function`` once, and return what it returned and its tape, or why there is none.

    Raises:
        Unavailable: before it ran, if torch cannot be watched.
    """
    calls: list[Call] = []
    with torch_parts.watch(calls.append):
        results = function(*arguments)
    try:
        return results, _tape_of(calls, arguments, results)
    except Unavailable as reason:
        return results, reason


def _tape_of(calls: list[Call], arguments: Sequence[Tensor], results: Sequence[Tensor]) -> Tape:
    recorder = _Recorder(arguments, calls)
    for call in calls:
        recorder.add(call)
    return recorder.finish(results)


class _Recorder:
    """Turns calls on tensors into instructions on slots; every tensor is known by its identity."""

    def __init__(self, arguments: Sequence[Tensor], calls: list[Call]) -> None:
        self._place = {id(tensor): i for i, tensor in enumerate(arguments)}
        if len(self._place) < len(arguments):
            raise Unavailable("two of its arguments are one tensor")
        self._constants: list[Tensor] = []
        made: set[int] = set()
        for _, args, kwargs, result in calls:
            for tensor in _tensors((args, kwargs)):
                if id(tensor) not in self._place and id(tensor) not in made:
                    self._place[id(tensor)] = len(self._place)
                    self._constants.append(tensor)
            made |= {id(x) for x in _many(result)}
        self._next = len(self._place)
        self._not_its_own = {_storage(x) for x in (*arguments, *self._constants)} - {0}
        self._written: set[int] = set()  # storages
        self._at = dict(enumerate([*arguments, *self._constants]))
        self._tape = Tape(tuple(self._at), constants=self._constants)

    def add(self, call: Call) -> None:
        """Put one call at the end of the tape."""
        operator, args, kwargs, result = call
        name = operator.name().partition(".")[0]
        if name == NUMBER:
            raise Unavailable("it turns a tensor into a Python number")
        if name in ALIASES:
            place = self._place[id(args[0])]
            self._place.setdefault(id(result), place)
            return
        more = torch_parts.depends_on_more(operator, args)
        if more is not None:
            raise Unavailable(more)
        targets = _tensors(torch_parts.written(operator, args, kwargs))
        if not targets and not _tensors(result):
            raise Unavailable(f"it checks numbers ({operator})")
        for target in targets:
            if _storage(target) in self._not_its_own:
                raise Unavailable(f"it changes a tensor that it did not make ({operator})")
            self._written.add(_storage(target))
        encoded = self._encoded(args), self._encoded(kwargs)
        results = tuple(self._placed(x) for x in _many(result))
        is_many = isinstance(result, list | tuple)
        self._tape.instructions.append(Instruction(operator, *encoded, results, is_many))

    def finish(self, results: Sequence[Tensor]) -> Tape:
        """Say what the function returned."""
        if not all(id(tensor) in self._place for tensor in results):
            raise Unavailable("it returns a tensor that no operator made")
        return dataclasses.replace(
            self._tape,
            results=tuple(self._place[id(tensor)] for tensor in results),
            written=frozenset(i for i, x in self._at.items() if _storage(x) in self._written),
            shapes={i: tuple(x.shape) for i, x in self._at.items()},
            dtypes={i: x.dtype for i, x in self._at.items()},
        )

    def _placed(self, result: Any) -> int | None:
        if not isinstance(result, Tensor):
            return None
        place = self._place.get(id(result))
        if place is None:  # an operator that writes returns the tensor it was given
            place = self._place[id(result)] = self._next
            self._at[place] = result
            self._next += 1
        return place

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Slot(self._place[id(value)])
        if isinstance(value, list | tuple):
            return type(value)(self._encoded(x) for x in value)
        if isinstance(value, dict):
            return {key: self._encoded(x) for key, x in value.items()}
        return value


def numbers_agree(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether two engines' results, the weights first, differ by rounding alone."""
    rtol, atol = (1e-9, 1e-12) if expected[0].dtype == torch.float64 else (1e-4, 1e-6)
    for one, other in zip(expected, found, strict=True):
        if not torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True):
            return False
    return True


def filled(value: Any, held: dict[int, Any]) -> Any:
    """Put what is held in the places of the slots."""
    if isinstance(value, Slot):
        return held[value.place]
    if isinstance(value, list | tuple):
        return type(value)(filled(x, held) for x in value)
    if isinstance(value, dict):
        return {key: filled(x, held) for key, x in value.items()}
    return value


def _json(value: Any) -> Any:
    if isinstance(value, Slot):
        return {"slot": value.place}
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, list | tuple):
        return [_json(x) for x in value]
    if isinstance(value, dict):
        return {"items": {key: _json(x) for key, x in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Unavailable(f"an operator was given {type(value).__name__}, which cannot be written down")


def _read(said: Any) -> Any:
    if isinstance(said, list):
        return [_read(x) for x in said]
    if not isinstance(said, dict):
        return said
    ((kind, value),) = said.items()
    if kind == "items":
        return {key: _read(x) for key, x in value.items()}
    if kind == "slot":
        return Slot(value)
    return torch.device(value) if kind == "device" else getattr(torch, value)


def _operator(name: str) -> Any:
    """The overload of that name, ``aten::mul.Tensor``."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def _many(result: Any) -> Sequence[Any]:
    return result if isinstance(result, list | tuple) else (result,)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in arguments of an operator."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [x for each in value for x in _tensors(each)]
    if isinstance(value, dict):
        return [x for each in value.values() for x in _tensors(each)]
    return []

"""A recorded tape rewritten: the same function within rounding, by fewer and quicker operators.

Autograd repeats itself (every mean sums ``valid`` anew) and turns matrices round and back; in small
networks each operator costs more than its arithmetic. What is rewritten here was measured:
``tanh`` takes six times as long as ``sigmoid`` in torch, and ``A' B`` with few columns five times
as long as ``B' A``. Nothing is rewritten that an operator writes into.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from upslope.optim.tape import Instruction, Slot, Tape, filled

aten = torch.ops.aten
FEW_COLUMNS = 8  # of a matrix product, below which its transposed form is quicker
DOT_ROWS = 4096  # up to which a dot product rounds as little as a sum
SHAPE_ALONE = ("aten::ones_like", "aten::zeros_like", "aten::new_zeros", "aten::scalar_tensor")
OF_CONSTANTS = ("aten::neg", "aten::mul.Tensor", "aten::expand", "aten::unsqueeze", "aten::view")
PRODUCTS = ("aten::mul.Tensor", "aten::div.Tensor")
SUMS = ("aten::add.Tensor", "aten::sub.Tensor")
FLATTENS = ("aten::view", "aten::reshape", "aten::_unsafe_view")
VIEWS = (*FLATTENS, "aten::expand")


def tidied(tape: Tape) -> Tape:
    """Return a tape of the same arguments and results with as few operators as the rules find."""
    return _without_unused(_Tidy(tape).run())


class _Tidy:
    """One pass from the first operator to the last; each is kept, replaced, or known already."""

    def __init__(self, tape: Tape) -> None:
        self._tape, self._kept = tape, list[Instruction]()
        self._same: dict[int, int] = {}  # place -> an earlier one that holds the same tensor
        self._seen: dict[Hashable, int] = {}  # where the result of such a call lies
        self._maker: dict[int, int] = {}  # place -> which of the kept instructions made it
        self._readers: dict[int, list[Instruction]] = defaultdict(list)
        for step in tape.instructions:
            for slot in _slots((step.args, step.kwargs)):
                self._readers[slot].append(step)
        self._turned: set[int] = set()  # places of matrices that lie by columns now
        self._known: dict[int, Tensor] = {}  # what hangs on shapes alone
        self._shapes, self._dtypes = dict(tape.shapes), dict(tape.dtypes)
        self._uses = Counter(
            slot for step in tape.instructions for slot in _slots((step.args, step.kwargs))
        )
        self._uses.update(tape.results)
        self._next = 1 + max([*tape.inputs, *tape.shapes])

    def run(self) -> Tape:
        """Rewrite every instruction."""
        for step in self._tape.instructions:
            self._add(step._replace(args=self._now(step.args), kwargs=self._now(step.kwargs)))
        used = {slot for step in self._kept for slot in _slots((step.args, step.kwargs))}
        results = tuple(self._same.get(place, place) for place in self._tape.results)
        known = {p: x for p, x in self._known.items() if p in used or p in results}
        return dataclasses.replace(
            self._tape,
            instructions=self._kept,
            results=results,
            inputs=(*self._tape.inputs, *known),
            constants=[*self._tape.constants, *known.values()],
            shapes=self._shapes,
            dtypes=self._dtypes,
        )

    def _add(self, step: Instruction) -> None:
        places = {*_slots((step.args, step.kwargs)), *(p for p in step.results if p is not None)}
        if places & self._tape.written or step.is_many:
            self._keep(step)
            return
        key = _hashable((step.operator, step.args, step.kwargs))
        (result,) = step.results
        assert result is not None
        if key in self._seen:
            earlier = self._seen[key]
            if earlier in self._turned and not self._may_turn(result):
                self._keep(step)
                return
            self._same[result] = earlier
            return
        if not self._rewritten(step, result):
            self._keep(step)
        self._seen[key] = self._same.get(result, result)

    def _rewritten(self, step: Instruction, result: int) -> bool:
        """Try the rules for an operator; True where one has put something in its place."""
        name = step.operator.name()
        if self._is_known(step, name):
            held = {place: self._lent(place) for place in _slots((step.args, step.kwargs))}
            self._known[result] = step.operator(
                *filled(step.args, held), **filled(step.kwargs, held)
            )
            return True
        if name in VIEWS:
            return self._view(step, result)
        if name in PRODUCTS and self._has_zero(step, result, name):
            return True
        if name in SUMS and self._adds_zero(step, result):
            return True
        rules: dict[str, Callable[[Instruction, int], bool]] = {
            "aten::t": self._transpose,
            "aten::tanh": self._tanh,
            "aten::mm": self._thin_product,
            "aten::sum": self._dot,
            "aten::mul.Tensor": self._unexpanded,
            "aten::pow.Tensor_Scalar": self._first_power,
        }
        return name in rules and rules[name](step, result)

    def _is_known(self, step: Instruction, name: str) -> bool:
        if name in SHAPE_ALONE:
            return True
        slots = _slots((step.args, step.kwargs))
        return name in OF_CONSTANTS and bool(slots) and all(slot in self._known for slot in slots)

    def _lent(self, place: int) -> Tensor:
        """What is known, or something of its shape."""
        if place in self._known:
            return self._known[place]
        return torch.zeros(self._shapes[place], dtype=self._dtypes[place])

    def _has_zero(self, step: Instruction, result: int, name: str) -> bool:
        """A product with 0 is 0: an entropy bonus whose coefficient is 0, and its gradient.

        So it is also where the other factor is not finite, and the eager step's is NaN.
        """
        factors = step.args[:1] if name == "aten::div.Tensor" else step.args
        if not any(self._is_zero(x) for x in factors):
            return False
        self._known[result] = torch.zeros(self._shapes[result], dtype=self._dtypes[result])
        return True

    def _adds_zero(self, step: Instruction, result: int) -> bool:
        """A sum with 0 is the other one."""
        first, second = step.args
        if not (isinstance(first, Slot) and self._is_zero(second)):
            return False
        if self._kind(first.place) != self._kind(result):
            return False
        self._same[result] = first.place
        return True

    def _kind(self, place: int) -> tuple[tuple[int, ...], torch.dtype]:
        return self._shapes[place], self._dtypes[place]

    def _is_zero(self, value: Any) -> bool:
        if isinstance(value, Slot):
            return value.place in self._known and not self._known[value.place].any()
        return isinstance(value, int | float) and value == 0

    def _view(self, step: Instruction, result: int) -> bool:
        """A view of the shape that is there already is the tensor itself."""
        source = step.args[0].place
        if self._shapes[source] == self._shapes[result]:
            self._same[result] = source
            return True
        if source in self._turned:
            self._keep(step._replace(operator=aten.reshape.default))
            return True
        sums = self._made(source, "aten::sum.dim_IntList")
        if sums is None or sums.args[1:] != ([0], True):
            return False
        if self._shapes[source] != (1, *self._shapes[result]):
            return False
        args = (sums.args[0], [0], False)
        self._keep(step._replace(operator=sums.operator, args=args, kwargs=sums.kwargs))
        return True  # no dimension is kept only to be dropped

    def _transpose(self, step: Instruction, result: int) -> bool:
        """Turned twice is not turned."""
        source = step.args[0].place
        made = self._made(source, "aten::t")
        if made is not None:
            self._same[result] = made.args[0].place
            return True
        if source in self._turned:
            self._turned.add(result)
        return False

    def _tanh(self, step: Instruction, result: int) -> bool:
        """tanh x = 2 sigmoid(2 x) - 1; the layer before it doubles x at no cost."""
        source = step.args[0].place
        if self._dtypes[source] != torch.float32:
            return False
        layer = self._made(source, "aten::addmm")
        if layer is not None and not layer.kwargs and self._uses[source] == 1:
            twice = {"beta": 2, "alpha": 2}
            doubled = self._new(layer.operator, layer.args, like=source, kwargs=twice)
        else:
            doubled = self._new(aten.mul.Tensor, (step.args[0], 2), like=source)
        half = self._new(aten.sigmoid.default, (Slot(doubled),), like=source)
        one = self._constant(torch.tensor(-1.0))
        self._keep(step._replace(operator=aten.add.Tensor, args=(Slot(one), Slot(half)),
                                 kwargs={"alpha": 2}))  # fmt: skip
        return True

    def _thin_product(self, step: Instruction, result: int) -> bool:
        """A' B with few columns in B, as (B' A)'."""
        left, right = (x.place for x in step.args)
        turned = self._made(left, "aten::t")
        if not self._may_turn(result):
            return False
        if turned is None or self._shapes[right][1] >= min(FEW_COLUMNS, self._shapes[left][0]):
            return False
        across = self._new(aten.t.default, (Slot(right),), shape=self._shapes[right][::-1],
                           like=right)  # fmt: skip
        product = self._new(aten.mm.default, (Slot(across), turned.args[0]),
                            shape=self._shapes[result][::-1], like=result)  # fmt: skip
        back = self._new(aten.t.default, (Slot(product),), shape=self._shapes[result], like=result)
        self._same[result] = back
        self._turned.add(back)
        return True

    def _may_turn(self, place: int, is_turned: bool = True) -> bool:
        """Whether all who read a matrix by columns do so in any layout, and hand none on."""
        for step in self._readers[place]:
            name, result = step.operator.name(), step.results[0]
            if name == "aten::t" and result is not None:
                if not self._may_turn(result, not is_turned):
                    return False
            elif is_turned and name != "aten::mm":
                flat = name in FLATTENS and result is not None and len(self._shapes[result]) == 1
                if not flat:
                    return False
        return True

    def _dot(self, step: Instruction, result: int) -> bool:
        """sum(a b) of two vectors."""
        made = self._made(step.args[0].place, "aten::mul.Tensor")
        if made is None or step.kwargs or not all(isinstance(x, Slot) for x in made.args):
            return False
        first, second = (x.place for x in made.args)
        shapes = self._shapes[first], self._shapes[second]
        alike = shapes[0] == shapes[1] and self._dtypes[first] == self._dtypes[second]
        if not alike or len(shapes[0]) != 1 or shapes[0][0] > DOT_ROWS:
            return False
        if not self._dtypes[first].is_floating_point:
            return False
        self._keep(step._replace(operator=aten.dot.default, args=made.args))
        return True

    def _unexpanded(self, step: Instruction, result: int) -> bool:
        """A product spreads its factors by itself."""
        if not all(isinstance(x, Slot) for x in step.args):
            return False
        for i, factor in enumerate(step.args):
            other = step.args[1 - i].place
            made = self._made(factor.place, "aten::expand")
            if made is None or self._kind(other) != self._kind(result):
                continue  # the factor's shape or dtype was that of the product
            args = list(step.args)
            args[i] = made.args[0]
            self._keep(step._replace(args=tuple(args)))
            return True
        return False

    def _first_power(self, step: Instruction, result: int) -> bool:
        """x^1, of which the gradient of a square is made."""
        source, exponent = step.args
        if exponent != 1 or self._dtypes[source.place] != self._dtypes[result]:
            return False
        self._same[result] = source.place
        return True

    def _made(self, place: int, name: str) -> Instruction | None:
        """The instruction that made what lies at ``place``, if it is one of that operator."""
        if place not in self._maker:
            return None
        step = self._kept[self._maker[place]]
        return step if step.operator.name() == name else None

    def _new(
        self, operator: Any, args: tuple[Any, ...], like: int, shape: Any = None, kwargs: Any = None
    ) -> int:
        """Put one more instruction on the tape; return the place of its result."""
        kwargs = kwargs or {}
        key = _hashable((operator, args, kwargs))
        if key in self._seen:
            return self._seen[key]
        place, self._next = self._next, self._next + 1
        self._shapes[place] = self._shapes[like] if shape is None else shape
        self._dtypes[place] = self._dtypes[like]
        self._keep(Instruction(operator, args, kwargs, (place,), False))
        self._seen[key] = place
        return place

    def _constant(self, value: Tensor) -> int:
        for place, known in self._known.items():
            if known.dtype == value.dtype and known.shape == value.shape and known.equal(value):
                return place
        place, self._next = self._next, self._next + 1
        self._known[place], self._shapes[place] = value, tuple(value.shape)
        self._dtypes[place] = value.dtype
        return place

    def _keep(self, step: Instruction) -> None:
        for place in step.results:
            if place is not None:
                self._maker[place] = len(self._kept)
        self._kept.append(step)

    def _now(self, value: Any) -> Any:
        """Arguments with the places of today."""
        return filled(value, _Places(self._same))


class _Places(dict[int, Slot]):
    """Every place's slot: that of the tensor it is the same as."""

    def __missing__(self, place: int) -> Slot:
        return Slot(place)

    def __init__(self, same: dict[int, int]) -> None:
        super().__init__({place: Slot(other) for place, other in same.items()})


def _without_unused(tape: Tape) -> Tape:
    """Leave out instructions whose results nobody reads."""
    wanted, kept = set(tape.results), list[Instruction]()
    for step in reversed(tape.instructions):
        results = {place for place in step.results if place is not None}
        writes = not results or any(place in tape.written for place in results)
        if results & wanted or writes:
            wanted |= set(_slots((step.args, step.kwargs)))
            kept.append(step)
    return dataclasses.replace(tape, instructions=kept[::-1])


def _slots(value: Any) -> list[int]:
    """Every place that arguments name."""
    if isinstance(value, Slot):
        return [value.place]
    if isinstance(value, list | tuple):
        return [place for each in value for place in _slots(each)]
    if isinstance(value, dict):
        return [place for each in value.values() for place in _slots(each)]
    return []


def _hashable(value: Any) -> Hashable:
    """Arguments as a key; 1, 1.0 and True are three."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(x) for x in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(x)) for key, x in value.items())
    return type(value), value

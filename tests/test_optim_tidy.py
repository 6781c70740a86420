"""The tape rewritten: each rule fires where it may and nowhere else, and the function stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear, mse_loss

from test_optim_engines import agent_of, trained
from upslope.optim import replay
from upslope.optim.tape import Tape, record
from upslope.optim.tidy import DOT_ROWS, FEW_COLUMNS, tidied

Function = Callable[..., tuple[Tensor, ...]]
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-12}
F32, F64 = torch.float32, torch.float64


def tensors(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]
    return [x.to(dtype) if dtype.is_floating_point else (5 * x).to(dtype) for x in drawn]


def recorded(function: Function, arguments: Sequence[Tensor]) -> Tape:
    """The tape of a function of tensors of their own."""
    _, tape = record(function, [x.detach() for x in arguments])
    assert isinstance(tape, Tape), tape
    return tape


def operators(tape: Tape) -> str:
    """Names of its operators in order, an overload's own name left out."""
    return " ".join(
        step.operator.name().removeprefix("aten::").partition(".")[0] for step in tape.instructions
    )


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def short_of(function: Function, *arguments: Sequence[Tensor]) -> tuple[Tape, Tape]:
    """The tape of the first arguments and the tidied one, which agrees for all of them."""
    tape = recorded(function, arguments[0])
    short = tidied(tape)
    for each in arguments:
        expected = function(*[x.detach() for x in each])
        dtype = next((x.dtype for x in each if x.dtype in CLOSE), F64)
        assert_same(short(*each, *short.constants), expected, CLOSE[dtype])
    return tape, short


def gradient_of(loss: Callable[..., Tensor]) -> Function:
    """A scalar and its gradient in every argument."""

    def function(*arguments: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in arguments]
        with torch.enable_grad():
            value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return function


ROWS = (64, 6)
FIRES: dict[str, tuple[Function, list[tuple[int, ...]], str, str]] = {
    "what was there already": (
        lambda a: (a.exp() + a.exp(),), [(6, 3)],
        "exp exp add", "exp add",
    ),
    "what nobody reads": (
        lambda a: (a.exp(), a + 1)[1:], [(6, 3)],
        "exp add", "add",
    ),
    "a view of the same shape": (
        lambda a: (a.view(6, 3) + 1,), [(6, 3)],
        "view add", "add",
    ),
    "an expansion to the same shape": (
        lambda a: (a.expand(6, 3) + 1,), [(6, 3)],
        "expand add", "add",
    ),
    "turned twice": (
        lambda a, b: (a.t().t() @ b.t(),), [(6, 3), (4, 3)],
        "t t t mm", "t mm",
    ),
    "turned four times": (
        lambda a: (a.t().t().t().t() + 1,), [(6, 3)],
        "t t t t add", "add",
    ),
    "a product with few columns": (
        lambda a, b: (a.t() @ b,), [ROWS, (64, 5)],
        "t mm", "t mm t",
    ),
    "the same, turned by who reads it": (
        lambda a, b: ((a.t() @ b).t().sigmoid(),), [ROWS, (64, 5)],
        "t mm t sigmoid", "t mm sigmoid",
    ),
    "the same, flattened": (
        lambda a, b: ((a.t() @ b).view(-1),), [ROWS, (64, 5)],
        "t mm view", "t mm t reshape",
    ),
    "a sum of products": (
        lambda a, b: ((a * b).sum(),), [(64,), (64,)],
        "mul sum", "dot",
    ),
    "the longest sum of products": (
        lambda a, b: ((a * b).sum(),), [(DOT_ROWS,), (DOT_ROWS,)],
        "mul sum", "dot",
    ),
    "a first power": (
        lambda a: (a.pow(1).exp(),), [(6, 3)],
        "pow exp", "exp",
    ),
    "a factor spread before a product": (
        lambda a, b: (a.expand(6, 3) * b,), [(3,), (6, 3)],
        "expand mul", "mul",
    ),
    "the second factor spread": (
        lambda a, b: (b * a.expand(6, 3),), [(3,), (6, 3)],
        "expand mul", "mul",
    ),
    "a dimension kept to be dropped": (
        lambda a: (a.sum(0, keepdim=True).view(3),), [(6, 3)],
        "sum view", "sum",
    ),
    "nothing times a tensor": (
        lambda a: ((torch.zeros_like(a) * a).exp(),), [(6, 3)],
        "zeros_like mul exp", "exp",
    ),
    "a tensor times the number 0": (
        lambda a: ((a * 0.0).exp(),), [(6, 3)],
        "mul exp", "exp",
    ),
    "nothing by a tensor": (
        lambda a: ((torch.zeros_like(a) / a).exp(),), [(6, 3)],
        "zeros_like div exp", "exp",
    ),
    "nothing added": (
        lambda a: ((a + torch.zeros_like(a)).exp(),), [(6, 3)],
        "zeros_like add exp", "exp",
    ),
    "nothing taken away": (
        lambda a: ((a - torch.zeros_like(a)).exp(),), [(6, 3)],
        "zeros_like sub exp", "exp",
    ),
    "what hangs on shapes alone": (
        lambda a: (a * -torch.ones_like(a).unsqueeze(0).expand(2, 6, 3),), [(6, 3)],
        "ones_like unsqueeze expand neg mul", "mul",
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("rule", FIRES)
def test_a_rule_fires(rule: str, dtype: torch.dtype) -> None:
    function, shapes, before, after = FIRES[rule]
    tape, short = short_of(function, tensors(shapes, dtype), tensors(shapes, dtype, seed=1))
    assert (operators(tape), operators(short)) == (before, after)


LAYER = [(6, 3), (4, 3), (4,)]


def test_tanh_is_a_sigmoid_in_single_precision() -> None:
    """The layer before it doubles at no cost; without one it takes an operator."""
    both = tensors(LAYER, F32), tensors(LAYER, F32, seed=1)
    tape, short = short_of(lambda x, w, b: (linear(x, w, b).tanh(),), *both)
    assert (operators(tape), operators(short)) == ("t addmm tanh", "t addmm sigmoid add")
    alone = tensors([(6, 3)], F32), tensors([(6, 3)], F32, seed=1)
    tape, short = short_of(lambda x: (x.tanh(),), *alone)
    assert (operators(tape), operators(short)) == ("tanh", "mul sigmoid add")
    assert len(short.constants) == 1, "-1"
    tape, short = short_of(lambda x: (x.tanh(), x.exp().tanh()), *alone)
    assert len(short.constants) == 1, "the same -1"


def test_the_gradient_of_a_tanh_layer_needs_its_output_alone() -> None:
    both = tensors(LAYER, F32), tensors(LAYER, F32, seed=1)
    loss = gradient_of(lambda x, w, b: mse_loss(linear(x, w, b).tanh(), x.new_zeros(6, 4)))
    tape, short = short_of(loss, *both)
    assert "sigmoid" in operators(short)
    assert "tanh_backward" in operators(short), "tanh's own"
    assert len(short.instructions) < len(tape.instructions)


def test_nothing_is_left_of_a_bonus_that_counts_nothing() -> None:
    """A coefficient that is 0 leaves no operator, nor does its gradient."""

    def loss(x: Tensor) -> Tensor:
        return x.square().sum() + 0.0 * (x.exp() * x.sin()).sum()

    both = tensors([(6,)], F64), tensors([(6,)], F64, seed=1)
    tape, short = short_of(gradient_of(loss), *both)
    assert {"exp", "sin", "cos"} <= set(operators(tape).split())
    assert not {"exp", "sin", "cos"} & set(operators(short).split())


# Where no rule may fire


def writes(x: Tensor) -> tuple[Tensor, ...]:
    first, second = x.exp(), x.exp()
    first.add_(1)
    return first, second


def writes_through_a_view(x: Tensor) -> tuple[Tensor, ...]:
    first, second = x.exp(), x.exp()
    first[0].mul_(3)
    return first, second


def writes_into_nothing(x: Tensor) -> tuple[Tensor, ...]:
    nothing = torch.zeros_like(x)
    nothing[0] = x[1]
    return nothing * x, nothing + x


def writes_between_reads(x: Tensor) -> tuple[Tensor, ...]:
    doubled = x * 2
    before = doubled.exp()
    doubled.add_(1)
    return before, doubled.exp()


def writes_into_its_view(x: Tensor) -> tuple[Tensor, ...]:
    doubled = x * 2
    view = doubled.view(6, 3)
    view.add_(1)
    return doubled, view.t().t()


def writes_into_many(x: Tensor) -> tuple[Tensor, ...]:
    """An operator that returns nothing of what it has written."""
    several = [x * 2, x * 3]
    torch._foreach_add_(several, 1.0)
    return tuple(several)


STAYS: dict[str, tuple[Function, list[tuple[int, ...]], torch.dtype]] = {
    "written": (writes, [(6, 3)], F64),
    "written through a view": (writes_through_a_view, [(6, 3)], F64),
    "a zero that is written": (writes_into_nothing, [(6, 3)], F64),
    "written between two reads": (writes_between_reads, [(6, 3)], F64),
    "a view that is written": (writes_into_its_view, [(6, 3)], F64),
    "many written at once": (writes_into_many, [(6, 3)], F64),
    "tanh in double precision": (lambda x, w, b: (linear(x, w, b).tanh(),), LAYER, F64),
    "many columns": (lambda a, b: (a.t() @ b,), [(64, 20), (64, FEW_COLUMNS)], F64),
    "as many columns as rows": (lambda a, b: (a.t() @ b,), [(64, 5), (64, 5)], F64),
    "a left factor that is not turned": (lambda a, b: (a @ b,), [(6, 64), (64, 3)], F64),
    "a factor without the full shape": (
        lambda a, b: (a.expand(6, 3) * b,), [(6, 1), (3,)], F64,
    ),
    "sums over a dimension": (lambda a, b: ((a * b).sum(0),), [(6, 3), (6, 3)], F64),
    "a sum of one dimension, named": (lambda a, b: ((a * b).sum(0),), [(6,), (6,)], F64),
    "sums of products of matrices": (lambda a, b: ((a * b).sum(),), [(6, 3), (6, 3)], F64),
    "sums of a long product": (
        lambda a, b: ((a * b).sum(),), [(DOT_ROWS + 1,), (DOT_ROWS + 1,)], F64,
    ),
    "sums of a spread product": (lambda a, b: ((a * b).sum(),), [(6,), (1,)], F64),
    "sums in another dtype": (lambda a, b: ((a * b).sum(dtype=F64),), [(6,), (6,)], F32),
    "integers": (lambda a, b: ((a * b).sum(),), [(6,), (6,)], torch.int64),
    "a power that changes the dtype": (lambda a: (a.pow(1.0) * 2,), [(6,)], torch.int64),
    "a second power": (lambda a: (a.pow(2),), [(6,)], F64),
    "a view of another shape": (lambda a: (a.view(3, 6) + 1,), [(6, 3)], F64),
    "a sum of rows read again": (
        lambda a: (a.sum(1, keepdim=True).view(1, 6),), [(6, 3)], F64,
    ),
    "a sum over the last dimension": (lambda a: (a.sum(2).view(6),), [(1, 6, 3)], F64),
    "a sum in another shape": (
        lambda a: (a.sum(0, keepdim=True).view(2, 3),), [(4, 6)], F64,
    ),
    "numbers that are equal and of two kinds": (lambda a: (a + 1, a + 1.0), [(6,)], F64),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_a_tape_stays_as_it_is(case: str) -> None:
    function, shapes, dtype = STAYS[case]
    tape, short = short_of(function, tensors(shapes, dtype), tensors(shapes, dtype, seed=1))
    assert operators(short) == operators(tape)


def test_a_zero_that_is_an_argument_may_move() -> None:
    nothing, something = [torch.zeros(6), torch.ones(6)], tensors([(6,), (6,)], F32)
    tape, short = short_of(lambda a, b: (a * b, b + a), nothing, something)
    assert operators(short) == operators(tape) == "mul add"


def test_what_is_read_from_outside_may_move() -> None:
    outside = torch.zeros(6)
    tape = recorded(lambda a: (a * outside, a + outside), [torch.ones(6)])
    short = tidied(tape)
    assert operators(short) == operators(tape) == "mul add"
    outside.fill_(2)
    assert [x.tolist() for x in short(torch.ones(6), *short.constants)] == [[2.0] * 6, [3.0] * 6]


def layers(how: str) -> Function:
    """A layer before tanh that must keep its numbers, or is none that can double them."""

    def function(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        turned = w.t()
        layer = torch.addmm(b, x, turned, **({"alpha": 0.5} if how == "alpha" else {}))
        if how == "read again":
            return layer.tanh(), layer.exp()
        if how == "returned":
            return layer.tanh(), layer
        if how == "read by its view":
            view = layer.view(6, 4)
            return view.tanh(), view.exp()
        if how == "made again before":
            again = torch.addmm(b, x, turned)
            return layer.tanh(), again.exp()
        if how == "made again after":
            return layer.tanh(), torch.addmm(b, x, turned).exp()
        if how == "read by what adds nothing":
            same = layer + torch.zeros_like(layer)
            return same.tanh(), same.exp()
        return (layer.tanh(),)

    return function


@pytest.mark.parametrize(
    "how",
    ["alpha", "read again", "returned", "read by its view", "read by what adds nothing",
     "made again before", "made again after"],
)  # fmt: skip
def test_a_layer_keeps_its_numbers_for_others(how: str) -> None:
    _, short = short_of(layers(how), tensors(LAYER, F32), tensors(LAYER, F32, seed=1))
    assert "sigmoid" in operators(short)
    if how in ("alpha", "read again", "returned"):
        assert operators(short).split().count("addmm") == 1, "no second layer beside it"


MIXED: dict[str, tuple[Function, list[Tensor]]] = {
    "an integer and a zero": (
        lambda a, b: (a + torch.zeros_like(b),), [torch.arange(3), torch.ones(3)],
    ),
    "single precision and a double zero": (
        lambda a, b: (a + torch.zeros_like(b),), [torch.ones(3), torch.ones(3, dtype=F64)],
    ),
    "a number spread in double precision": (
        lambda a, b: (a.expand(3) * b,), [torch.tensor(2.0, dtype=F64), torch.ones(3)],
    ),
    "a sum in double precision": (
        lambda a: (a.sum(0, keepdim=True, dtype=F64).view(3),), [torch.ones(6, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXED)
def test_no_dtype_is_lost(case: str) -> None:
    function, arguments = MIXED[case]
    short_of(function, arguments)


TURNED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expanded": lambda m, w: m.expand(2, 6, 5),
    "twice it, flattened": lambda m, w: (2 * m).view(-1),
    "added to another, flattened": lambda m, w: (m + w).view(-1),
    "another added to it, flattened": lambda m, w: (w + m).view(-1),
    "strided": lambda m, w: m.as_strided((30,), (1,)),
    "read in other strides": lambda m, w: m.as_strided((2, 3), (5, 1), 4),
    "one more dimension, flattened": lambda m, w: m.unsqueeze(0).view(-1),
    "turned, doubled, flattened": lambda m, w: (2 * m.t()).reshape(-1),
    "turned and back, doubled, flattened": lambda m, w: (2 * m.t().t()).view(-1),
    "one more dimension, doubled, flattened": lambda m, w: (2 * m.view(1, 6, 5)).view(-1),
}


@pytest.mark.parametrize("then", TURNED)
def test_a_product_that_lies_by_columns_is_read_as_if_it_did_not(then: str) -> None:
    shapes = [ROWS, (64, 5), (6, 5)]

    def function(a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return (TURNED[then](a.t() @ b, w),)

    short_of(function, tensors(shapes, F64), tensors(shapes, F64, seed=1))


def test_a_product_made_twice_may_lie_by_columns_for_one_reader_alone() -> None:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        turned = a.t()
        return (turned @ b).view(-1), (2 * (turned @ b)).view(-1)

    shapes = [ROWS, (64, 5)]
    short_of(function, tensors(shapes, F64), tensors(shapes, F64, seed=1))


# Whatever is composed


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "square": lambda x: 0.2 * x.square(),
    "first power": lambda x: x.pow(1),
    "same view": lambda x: x.view(x.shape),
    "flat": lambda x: x.reshape(-1).view(x.shape),
    "turned twice": lambda x: x.t().t(),
    "nothing of it": lambda x: 0.0 * x,
    "nothing added": lambda x: x + torch.zeros_like(x),
    "centred": lambda x: x - x.mean(0, keepdim=True).expand(x.shape),
    "shares": lambda x: x / x.square().sum().clamp(min=1.0),
    "its column sums": lambda x: x * (0.1 * x.sum(0, keepdim=True)).view(-1).expand(x.shape),
    "its length": lambda x: x * ((x[:, 0] * x[:, 1]).sum() * 0.1).tanh(),
    "gram": lambda x: (x @ (x.t() @ x)).mul(0.05).tanh(),
    "written": lambda x: (x * 1.5).add_(0.1),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y.tanh(),
    "least": lambda x, y: torch.where(x <= y, x, y),
    "product": lambda x, y: (x @ (y.t() @ x)).mul(0.05).tanh(),
}
STEPS = st.one_of(
    st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 9)),
    st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("layer"), st.integers(0, 9)),
    st.tuples(st.just("layer, tanh"), st.integers(0, 9)),
)
SHAPES = [(9, 3), (9, 3), (3, 3), (3,)]


def composed(steps: list[tuple[Any, ...]]) -> Callable[..., Tensor]:
    """A scalar made of matrices ``[9, 3]``, each from earlier ones, and of one layer's weights."""

    def loss(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        made = [x, y]
        for name, *places in steps:
            given = [made[place % len(made)] for place in places]
            if name in UNARY:
                made.append(UNARY[name](*given))
            elif name in BINARY:
                made.append(BINARY[name](*given))
            else:
                inner = linear(*given, w, b)
                made.append(inner.tanh() if name == "layer, tanh" else inner)
        return sum(((each * x).mean() for each in made), w.square().sum() + b.sum())

    return loss


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@given(steps=st.lists(STEPS, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_compositions_and_their_gradients(dtype: torch.dtype, steps: list[tuple[Any, ...]]) -> None:
    function = gradient_of(composed(steps))
    tape = recorded(function, tensors(SHAPES, dtype))
    short = tidied(tape)
    for seed in (0, 1):
        arguments = tensors(SHAPES, dtype, seed)
        expected = function(*[x.detach() for x in arguments])
        scale = max(1.0, *(float(x.abs().max()) for x in expected))
        found = short(*arguments, *short.constants)
        # a sum of rounding errors: 30 operators at most lie behind each other
        assert_same(found, expected, 30 * scale * torch.finfo(dtype).eps * 4)


# Whole gradient steps

WHOLE = [
    (algorithm, kind)
    for algorithm in ("ppo", "a2c", "vpg", "trpo")
    for kind in ("categorical", "gaussian")
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("algorithm", "kind"), WHOLE)
def test_a_whole_step_keeps_its_numbers(
    algorithm: str, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every optimiser's step, with the weights it was recorded at and with others."""
    seen: list[tuple[Sequence[Tensor], Tape]] = []

    def watched(step: Function, arguments: Sequence[Tensor]) -> Any:
        results, tape = record(step, arguments)
        assert isinstance(tape, Tape)
        seen.append((arguments, tape))
        return results, tape

    monkeypatch.setattr(replay, "record", watched)
    agent = agent_of(algorithm, kind, dtype=dtype)
    n_optimizers = len(agent.training.learner.optimizers)
    trained(agent, "tape", least=replay.EAGER_STEPS + 1)
    assert len(seen) == n_optimizers
    for arguments, tape in seen:
        short = tidied(tape)
        assert len(short.instructions) < len(tape.instructions)
        known = Tape.from_json(json.loads(json.dumps(short.to_json())))
        for moved in (1.0, 0.7):
            given = [(x.detach() * (moved if i == 0 else 1)) for i, x in enumerate(arguments)]
            expected = tape(*given, *tape.constants)
            found = short(*given, *short.constants)
            # Adam divides by moments: a metric's unit of rounding, not a weight's, decides
            assert_same(found, expected, 1e-12 if dtype == "float64" else 1e-5)
            again = known(*given, *short.constants)
            assert all(torch.equal(one, two) for one, two in zip(again, found, strict=True))

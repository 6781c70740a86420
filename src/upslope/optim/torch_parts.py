"""Every private or deprecated part of torch that the fast engines use, and nothing else.

Each is looked up when it is needed. Where one is gone, :class:`Unavailable` is raised, and the
gradient step runs on the next engine down: ``eager`` needs none of them. Nothing here imports
``torch._dynamo`` or ``torch._inductor`` but the functions that build and load a compiled file.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
Loop = Callable[
    [list[Tensor], list[Tensor], list[Tensor]], tuple[list[Tensor], Tensor]
]  # state, what all steps share, columns [n, size, ...] -> state, metrics [n, M]
Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]  # operator, args, kwargs, what it returned


class Unavailable(Exception):
    """An engine cannot be used here; the text says why, without a full stop."""


def part(path: str) -> Any:
    """Return what ``module:name.name`` of torch names.

    Raises:
        Unavailable: if this torch has no such thing.
    """
    module, _, names = path.partition(":")
    try:
        found = import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"torch {torch.__version__} has no {path.replace(':', '.')}") from error
    return found


def watch(seen: Callable[[Call], None]) -> Any:
    """Return a context in which every operator that torch runs, backward included, is told.

    The hook asks torch not to wrap it for the compiler, which would be imported only for that.
    """
    mode: Any = part("torch.utils._python_dispatch:TorchDispatchMode")

    class Watch(mode):  # type: ignore[misc]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = operator(*args, **(kwargs or {}))
            seen((operator, args, kwargs or {}, result))
            return result

    return Watch()


def written(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that a call of an operator writes into."""
    try:
        schema = operator._schema
        wanted = [
            (i, argument.name)
            for i, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
    except AttributeError as error:
        raise Unavailable(f"torch {torch.__version__} does not show its schemas") from error
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in wanted]


def depends_on_more(operator: Any, args: Sequence[Any]) -> str | None:
    """Say in what way the result's numbers or shape hang on more than the arguments' shapes."""
    tag = part("torch:Tag")
    tags = set(operator.tags)
    if operator.name().startswith("aten::index.") and not any(
        x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    ):
        return None  # of integers: as many rows as there are integers
    if tag.nondeterministic_seeded in tags:
        return f"it draws random numbers ({operator})"
    if tag.dynamic_output_shape in tags or tag.data_dependent_output in tags:
        return f"what it does depends on the data ({operator})"
    return None


def traceable(operator: Any, kept: Sequence[bool]) -> Callable[..., Any]:
    """Return an operator in a form that can be traced: most are already.

    Lists of booleans (which results a backward is to compute) cannot be, but in a call of a
    function in TorchScript's own language they can.

    Args:
        operator: an overload, as :func:`watch` told it.
        kept: which of its results are tensors; the others are None.
    """
    arguments = operator._schema.arguments
    kinds = [str(argument.type).replace("SymInt", "int") for argument in arguments]
    if "List[bool]" not in kinds:
        return operator  # type: ignore[no-any-return]
    names = [argument.name for argument in arguments]
    given = ", ".join(f"{name}_: {kind}" for name, kind in zip(names, kinds, strict=True))
    results = [f"r{i}" for i in range(len(kept))]
    wanted = [result for result, keep in zip(results, kept, strict=True) if keep]
    namespace, _, name = operator.name().partition(".")[0].partition("::")
    source = (
        f"def run({given}):\n"
        f"    {', '.join(results)} = torch.ops.{namespace}.{name}"
        f"({', '.join(name + '_' for name in names)})\n"
        f"    return ({', '.join(wanted)},)\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = part("torch.jit:CompilationUnit")(source).run

    def with_gaps(*args: Any) -> tuple[Any, ...]:
        found = iter(run(*args))
        return tuple(next(found) if keep else None for keep in kept)

    return with_gaps


def script(function: Function, examples: Sequence[Tensor]) -> Function:
    """Return ``function`` as a graph that TorchScript's interpreter runs: no Python, no compiler.

    Args:
        function: tensors to a tuple of tensors, without gradient, by operators alone.
        examples: arguments of the right shapes.
    """
    trace = part("torch.jit:trace")

    def plain(*tensors: Tensor) -> tuple[Tensor, ...]:  # it names what it traces
        return function(*tensors)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # its deprecation
        traced: Function = trace(plain, tuple(examples), check_trace=False)
        with ready_at_once():
            traced(*examples)
    return traced


@contextlib.contextmanager
def ready_at_once() -> Iterator[None]:
    """Let TorchScript optimise what is run first in the block there and then.

    By itself it watches the first run and optimises in the second, which takes as long as a hundred
    gradient steps. Where torch has no such switch, so be it.
    """
    try:
        switch = part("torch._C:_jit_set_profiling_executor")
    except Unavailable:
        yield
        return
    before = switch(False)
    try:
        yield
    finally:
        switch(before)


def loop(step: Function, n_state: int, n_numbers: int, n_inputs: int, n_arguments: int) -> Loop:
    """Return ``step`` once a minibatch, as one function in TorchScript's own language.

    Args:
        step: from :func:`script`: state, numbers, a minibatch's rows and constants to state and
            metrics.
        n_state: tensors that go from one step to the next.
        n_numbers: tensors after them that all steps share.
        n_inputs: all tensors that it takes.
        n_arguments: of these without the constants, which come last.
    """
    state = ", ".join(f"s{i}" for i in range(n_state))
    columns = [f"c{i}" for i in range(n_arguments - n_state - n_numbers)]
    shared = [f"x{i}" for i in range(n_numbers + n_inputs - n_arguments)]
    given = [state, *shared[:n_numbers], *(f"{c}[i]" for c in columns), *shared[n_numbers:]]
    source = (
        "def loop(state: List[Tensor], shared: List[Tensor], columns: List[Tensor]):\n"
        f"    {state}, = state\n"
        f"    {', '.join(shared)}, = shared\n"
        f"    {', '.join(columns)}, = [torch.unbind(column) for column in columns]\n"
        "    record: List[Tensor] = []\n"
        "    for i in range(len(c0)):\n"
        f"        {state}, metrics = step({', '.join(given)})\n"
        "        record.append(metrics)\n"
        f"    return [{state}], torch.stack(record)\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return part("torch.jit:CompilationUnit")(source).loop  # type: ignore[no-any-return]


def while_loop(
    goes_on: Callable[..., Tensor],
    body: Callable[..., tuple[Tensor, ...]],
    carried: tuple[Tensor, ...],
    given: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Repeat ``carried = body(*carried, *given)`` while ``goes_on`` says so, when exported."""
    loop = part("torch._higher_order_ops.while_loop:while_loop_op")
    return loop(goes_on, body, carried, given)  # type: ignore[no-any-return]


def compile_package(module: torch.nn.Module, examples: Sequence[Tensor], path: str) -> None:
    """Compile a module for arguments of these shapes into an AOTInductor package at ``path``."""
    build = part("torch._inductor:aoti_compile_and_package")
    with torch.no_grad():
        exported = torch.export.export(module, tuple(examples), strict=False)
        build(exported, package_path=path)


def load_package(path: str) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """Load a package into this process; the first way imports nothing, the second Inductor.

    The file is native code: it must be one that this user built.

    Raises:
        Unavailable: if this torch has neither way, or the file is no package.
    """
    try:
        return _loaded(path)
    except RuntimeError as error:
        raise Unavailable(f"{path} cannot be loaded: {error}") from error


def _loaded(path: str) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    try:
        loader = part("torch._C:_aoti.AOTIModelPackageLoader")
        return loader(path, "model", False, 1, -1).run  # type: ignore[no-any-return]
    except (Unavailable, TypeError):  # torch 2.6 takes no more than the name
        loaded = part("torch._inductor:aoti_load_package")(path)
        return lambda tensors: loaded(*tensors)

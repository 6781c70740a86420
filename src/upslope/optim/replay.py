"""The tape engine: a recorded gradient step, replayed by TorchScript's interpreter without Python.

All minibatches of an update are one call, a loop over the tape. It is ready some hundredths of a
second after the step was recorded, and needs neither a compiler nor ``torch._dynamo``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from upslope.optim import torch_parts
from upslope.optim.minibatches import Columns, Minibatches, Steps
from upslope.optim.tape import Tape, numbers_agree, record
from upslope.optim.tidy import tidied
from upslope.optim.torch_parts import Loop, Unavailable
from upslope.policies.memory import Past

EAGER_STEPS = 4  # of one shape, before one is recorded: a shape that does not come again never is
MOST_TAPES = 16  # that one gradient step keeps, of as many shapes

State = tuple[Tensor, ...]
Stop = Callable[[Tensor], bool]  # told a step's metrics before it is taken


class PureStep(Protocol):
    """A gradient step as a function of tensors, and the numbers it takes.

    ``kind`` names the shapes of its arguments, in every process alike.
    """

    numbers: list[Tensor]
    past: Past | None
    kind: str

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]: ...


class Taken(NamedTuple):
    """Where the steps led, the metrics ``[n, M]`` that were seen, and how many steps it was."""

    state: State
    metrics: Tensor
    steps: int


def run_eagerly(
    step: PureStep, state: State, columns: Columns, minibatches: Minibatches, stop: Stop | None
) -> Taken:
    """Take a step a minibatch by calling the step itself; those before the one ``stop`` refuses."""
    history: list[Tensor] = []
    for rows, past in columns.minibatches(minibatches):
        step.past = past
        *after, metrics = step(*state, *step.numbers, *rows)
        history.append(metrics)
        if stop is not None and stop(metrics):
            return Taken(state, torch.stack(history), len(history) - 1)
        state = tuple(after)
    return Taken(state, torch.stack(history), len(history))


class TapeEngine:
    """Runs pure steps by tape, each once it has run ``EAGER_STEPS`` times with one key.

    The recorded tape is held against the step on the next minibatch before it is trusted.

    Args:
        give_up: told why, where a step cannot be replayed; it then runs eagerly for good.

    ``seen`` says how many steps of each kind were taken, up to the first that was replayed, the one
    used last at the end. Where it comes from the process that this one goes on from, the same steps
    are replayed here, and the same kinds forgotten.
    """

    def __init__(self, give_up: Callable[[str], None]) -> None:
        self._give_up = give_up
        self._replays: dict[Hashable, _Replay] = {}
        self.seen: dict[str, int] = {}
        self._before: dict[str, int] = {}  # steps of another process

    def go_on_from(self, seen: Mapping[str, int]) -> None:
        """Take up what ``seen`` said in another process."""
        self.seen, self._before = dict(seen), dict(seen)

    def run(
        self,
        key: Hashable,
        step: PureStep,
        state: State,
        columns: Columns,
        minibatches: Minibatches,
        stop: Stop | None,
    ) -> Taken:
        """Take a step a minibatch; whatever may change what the step does is in ``key``."""
        replay = self._replay(key, step.kind)
        try:
            return self._run(replay, step, state, columns, minibatches, stop)
        finally:
            self.seen[step.kind] = replay.calls

    def _replay(self, key: Hashable, kind: str) -> _Replay:
        """The replay of a key, the one used last at the end; of too many the oldest is dropped."""
        before = self._before.pop(kind, 0)
        replay = self._replays.pop(key, None) or _Replay(self._give_up, kind, before)
        self._replays[key] = replay
        self.seen[kind] = self.seen.pop(kind, 0)
        if len(self.seen) > MOST_TAPES:
            self._forget(next(iter(self.seen)))
        if len(self._replays) > MOST_TAPES:  # of one kind, where a parameter was exchanged
            del self._replays[next(iter(self._replays))]
        return replay

    def _forget(self, kind: str) -> None:
        """Drop what is known of a kind, here and in the process before."""
        del self.seen[kind]
        self._before.pop(kind, None)
        self._replays = {key: x for key, x in self._replays.items() if x.kind != kind}

    def _run(
        self,
        replay: _Replay,
        step: PureStep,
        state: State,
        columns: Columns,
        minibatches: Minibatches,
        stop: Stop | None,
    ) -> Taken:
        taken, history = 0, list[Tensor]()
        for steps in columns.chunks(minibatches):
            for some in replay.in_runs(steps):
                after, metrics = replay.take(step, state, some)
                at = stops_at(metrics, stop)
                if at is not None:  # what was taken beyond is taken back
                    state = replay.take(step, state, some.part(0, at))[0] if at else state
                    history.append(metrics[: at + 1])
                    return Taken(state, torch.cat(history), taken + at)
                state, taken = after, taken + len(some)
                history.append(metrics)
        return Taken(state, torch.cat(history) if len(history) > 1 else history[0], taken)


class _Replay:
    """One step's way from running eagerly over a recording to its replay.

    ``calls`` counts the steps until it is proven, ``seen`` those that another process took.
    """

    def __init__(self, give_up: Callable[[str], None], kind: str, seen: int) -> None:
        self._give_up, self.kind, self.calls = give_up, kind, seen
        self._was_proven = seen > EAGER_STEPS
        self._is_refused = self._is_proven = False
        self._loop: Loop | None = None
        self._tape: Tape | None = None

    def in_runs(self, steps: Steps) -> Iterator[Steps]:
        """Cut steps into those taken one by one, while the tape is not trusted, and the others."""
        at = 0
        while at < len(steps):
            n = len(steps) - at if self._is_proven else 1
            yield steps.part(at, n)
            at += n

    def take(self, step: PureStep, state: State, steps: Steps) -> tuple[State, Tensor]:
        """Take the steps; return the state after them and their metrics ``[n, M]``."""
        if self._is_proven:
            return self._replayed(step, state, steps)
        arguments = (*state, *step.numbers, *(column[0] for column in steps.columns))
        self.calls += not self._was_proven
        if self._is_refused or self.calls < EAGER_STEPS:
            *after, metrics = step(*arguments)
        elif self.calls == EAGER_STEPS:
            *after, metrics = self._recorded(step, arguments, len(state))
        else:
            if self._loop is None:  # it was recorded in the process that this one goes on from
                self._recorded(step, arguments, len(state))
            *after, metrics = step(*arguments)
            if self._loop is not None:
                with torch_parts.ready_at_once():
                    found, seen = self._replayed(step, state, steps)
                if self._prove((*after, metrics), (*found, seen[0])) and self._was_proven:
                    return found, seen
        return tuple(after), metrics[None]

    def _replayed(self, step: PureStep, state: State, steps: Steps) -> tuple[State, Tensor]:
        assert self._loop is not None
        assert self._tape is not None
        constants = [x.detach() for x in self._tape.constants]
        with torch.inference_mode():
            after, metrics = self._loop(list(state), [*step.numbers, *constants], steps.columns)
        return tuple(after), metrics

    def _recorded(
        self, step: PureStep, arguments: Sequence[Tensor], n_state: int
    ) -> tuple[Tensor, ...]:
        """Run the step while recording it, and make its replay."""
        copies = [x.detach() for x in arguments]  # tensors of their own, known by their identity
        try:
            results, tape = record(step, copies)
        except Unavailable as reason:
            self._refuse(str(reason))
            return step(*arguments)
        try:
            if isinstance(tape, Unavailable):
                raise tape
            self._tape = tidied(tape)
            examples = [*copies, *(x.detach() for x in self._tape.constants)]
            one = torch_parts.script(self._tape.traceable(), examples)
            counts = n_state, len(step.numbers), len(examples)
            self._loop = torch_parts.loop(one, *counts, n_arguments=len(arguments))
        except Unavailable as reason:
            self._refuse(str(reason))
        except RuntimeError as error:  # an operator that TorchScript does not know
            self._refuse(str(error).strip().partition("\n")[0])
        return results

    def _prove(self, expected: Sequence[Tensor], replayed: Sequence[Tensor]) -> bool:
        self._is_proven = numbers_agree(expected, replayed)
        if not self._is_proven:
            self._refuse("its replay gave other numbers: it reads something from outside")
        return self._is_proven

    def _refuse(self, why: str) -> None:
        self._is_refused, self._loop = True, None
        self._give_up(why)


def stops_at(metrics: Tensor, stop: Stop | None) -> int | None:
    """The first step that ``stop`` refuses, of those with metrics ``[n, M]``."""
    if stop is None:
        return None
    return next((i for i, row in enumerate(metrics) if stop(row)), None)

"""A model file's self-test: a few stored observations, and the numbers a policy gives for them.

It shows that a network is rebuilt as it was, in another version or on another machine. With memory
the observations are one sequence, in which an episode begins twice. Where choices can be masked,
each row has a mask that forbids one value of every choice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import first_line
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Past
from upslope.policies.observations import part_of
from upslope.runs.safetensors_header import Refused
from upslope.spaces import Path, assemble, choice_sizes, paths
from upslope.trees import Tree, leaves, map_tree, stack

ROWS = 8
TOLERANCE = 1e-4  # of the largest number, or of 1 where all are smaller
PREFIX = "self_test."
GIVEN, GAVE = ("observations", "begins", "masks"), ("outputs", "values", "log_probs")
_FOREIGN = "it was not written by this library as it is"
_ESCAPES = str.maketrans({"~": "~0", "/": "~1"})  # as in a JSON pointer (RFC 6901)


def make_self_test(
    policy: ActorCritic, observations: Tree | None
) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Return what the header says of the self-test, and its tensors.

    A part of a Dict or Tuple has its path in the tensor's name.

    Args:
        policy: its numbers now are those that it will be held to.
        observations: raw, ``[B, ...]``; eight of them are taken. Without any, or where the policy
            makes no number of them, samples of the space stand in.

    Raises:
        Refused: the policy gives numbers that are not finite.
    """
    if (
        policy.device.type != "cpu"
    ):  # where it is loaded: a GPU rounds more coarsely, and files move
        policy = copy.deepcopy(policy).cpu()
    tried = [observations, None] if observations is not None else [None]
    for candidate in tried:
        given = _given(policy, _samples(policy) if candidate is None else candidate)
        gave = _gave(policy, given)
        if all(bool(numbers.isfinite().all()) for numbers in gave.values()):
            break
    else:
        raise Refused("the policy gives numbers that are not finite, and could not be loaded")
    rows = given.pop("observations")
    stored = {
        PREFIX + _named(path): part_of(rows, path) for path in paths(policy.observation_space)
    }
    stored |= {PREFIX + name: tensor for name, tensor in (given | gave).items()}
    return {"given": ["observations", *given], "gave": list(gave)}, stored


def check_self_test(policy: ActorCritic, said: Any, stored: Mapping[str, Tensor]) -> None:
    """Hold a policy to the numbers that it once gave.

    Args:
        policy: as rebuilt.
        said: the header's words on the self-test.
        stored: the tensors whose names begin with ``self_test.``.

    Raises:
        Refused: it gives other numbers, or the self-test is not whole.
    """
    given, expected = _stored_parts(policy, said, dict(stored))
    try:
        now = _gave(policy, given)
    except Exception as error:  # a layer may raise anything at observations it was not made for
        raise Refused(
            f"its stored observations cannot be given to its policy ({type(error).__name__}: "
            f"{first_line(error)})",
            _FOREIGN,
        ) from error
    for name, value in expected.items():
        if value.shape != now[name].shape or value.dtype != now[name].dtype:
            raise Refused(f"its stored {name} are not of {len(now[name])} observations", _FOREIGN)
        gap = (now[name] - value).abs().max() / value.abs().max().clamp(min=1)
        if not gap <= TOLERANCE:
            raise Refused(
                f"it gives other {name} here than when it was saved (relative gap "
                f"{float(gap):.1e}): its network is not rebuilt as it was",
                "give the same features factory and library versions",
            )


def stored_name(stored: Mapping[str, Tensor], path: Path) -> str:
    """The name under which the observations of a part are stored.

    Format 1 did not escape the slashes in its keys.
    """
    name = PREFIX + _named(path)
    return name if name in stored else PREFIX + "/".join(["observations", *map(str, path)])


def _samples(policy: ActorCritic) -> Tree:
    space = copy.deepcopy(policy.observation_space)  # the user's own keeps its stream
    space.seed(0)
    return stack([space.sample() for _ in range(ROWS)])


def _given(policy: ActorCritic, observations: Tree) -> dict[str, Any]:
    """What the policy is asked: raw observations, where episodes begin, what is allowed."""
    n = len(leaves(observations)[0])
    # A sequence needs several steps, and there may be but one environment.
    index = np.arange(ROWS) % n if policy.has_memory else np.arange(min(n, ROWS))
    given = {"observations": map_tree(lambda x: torch.from_numpy(x[index]), observations)}
    if policy.has_memory:
        given["begins"] = torch.arange(ROWS) % 5 == 0
    if policy.actions.n_mask:
        given["masks"] = torch.from_numpy(_masks(policy, len(index)))
    return given


def _masks(policy: ActorCritic, rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Row i forbids value i of each choice (modulo its size), where there is more than one."""
    pieces = [
        (np.arange(n) != np.arange(rows)[:, None] % n) | (n == 1)
        for n in choice_sizes(policy.action_space)
    ]
    return np.concatenate(pieces, axis=1)


def _gave(policy: ActorCritic, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Outputs ``[N, n]``, values ``[N]``, and log-probabilities ``[N]`` of the best actions."""
    rows, begins, masks = (
        map_tree(lambda x: x.to(policy.device), given[name]) if name in given else None
        for name in GIVEN
    )
    with torch.no_grad():
        inputs = policy.prepare(rows)
        past = None if begins is None else Past(begins, policy.blank_state(1))
        outputs = policy.outputs(inputs, past)[0]
        mode = policy.actions.mode(
            outputs.cpu().numpy(), None if masks is None else masks.cpu().numpy()
        )
        actions = map_tree(lambda x: torch.as_tensor(x, device=policy.device), mode)
        log_probs = policy.actions.distribution(outputs, masks).log_prob(actions)
        return {"outputs": outputs, "values": policy.values(inputs, past), "log_probs": log_probs}


def _stored_parts(
    policy: ActorCritic, said: Any, stored: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take apart what was stored, and see that nothing lacks and nothing is left over."""
    if not (
        isinstance(said, dict)
        and said.keys() == {"given", "gave"}
        and all(isinstance(names, list) for names in said.values())
        and {"observations"} <= set(map(str, said["given"])) <= set(GIVEN)
        and {"outputs", "values"} <= set(map(str, said["gave"])) <= set(GAVE)
    ):
        raise Refused("its header does not say what its self-test holds", _FOREIGN)
    try:
        rows = assemble(
            policy.observation_space, lambda path: stored.pop(stored_name(stored, path))
        )
        given = {n: stored.pop(PREFIX + n) for n in said["given"] if n != "observations"}
        expected = {n: stored.pop(PREFIX + n) for n in said["gave"]}
    except KeyError:
        raise Refused("it lacks some of its stored observations and outputs", _FOREIGN) from None
    if stored:
        raise Refused(f"it has the surplus tensor {next(iter(stored))!r:.80}", _FOREIGN)
    _check_rows(policy, rows, given)
    return {"observations": rows, **given}, expected


def _named(path: Path) -> str:
    return "/".join(["observations", *(str(step).translate(_ESCAPES) for step in path)])


def _check_rows(policy: ActorCritic, rows: Tree, given: Mapping[str, Tensor]) -> None:
    """See that the stored observations, at most eight, have the shapes of their space."""
    space = policy.observation_space
    n = len(leaves(rows)[0]) if leaves(rows)[0].ndim else 0
    if not 1 <= n <= ROWS:
        raise Refused(f"it stores {n} observations, not 1 to {ROWS}", _FOREIGN)
    for path in paths(space):
        shape = (n, *(part_of(space, path).shape or ()))
        if part_of(rows, path).shape != shape:
            raise Refused("its stored observations do not have the shape of its space", _FOREIGN)
    wanted = {"begins": (n,), "masks": (n, policy.actions.n_mask)}
    for name, tensor in given.items():
        if tensor.shape != wanted[name] or tensor.dtype != torch.bool:
            raise Refused(f"its stored {name} are not of {n} observations", _FOREIGN)

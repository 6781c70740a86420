"""The model file: safetensors whose ``__metadata__`` carries a JSON header, all of it hashed.

Layout: the length N of the JSON (8 bytes, little-endian); N bytes of ASCII JSON that begin with
``{"__metadata__":{"header_sha256":"`` and the hash, then ``"upslope"``, the caller's header as JSON
text, then the safetensors table of tensors; then the bytes of the tensors. Any safetensors library
can read the weights. ``header_sha256`` is taken over the first 8 + N bytes with its 64 digits as
zeros; ``tensors_sha256``, inside the header, over names, dtypes, shapes and bytes: safetensors has
no checksum of its own and loads a flipped bit as a different weight.

The hashes find accidents, not forgeries: what keeps a hostile file harmless is that nothing here is
unpickled or evaluated and that every size is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from upslope.errors import ModelFileError, first_line
from upslope.runs.durable import cause, replace_file
from upslope.runs.safetensors_header import (
    Head,
    Refused,
    check_tensors,
    parse_head,
    read_head,
    sealed_head,
)

if TYPE_CHECKING:
    import torch


def write_model(
    path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write ``header`` and ``tensors`` to ``path``: the whole new file or, on failure, the old one.

    Missing parent folders are made. Equal contents give equal bytes. Tensors may live on any
    device, share memory and be non-contiguous; they come back as separate contiguous CPU tensors.

    Args:
        path: where the file goes; what is there is replaced in one step.
        header: JSON values under string keys; infinities and NaN must come as strings. ``format``,
            ``upslope_version`` and ``tensors_sha256`` are facts about the file and are set here.
        tensors: dense tensors by name; bool, uint8, int8 to int64, bfloat16, float16 to float64.

    Raises:
        ModelFileError: the contents cannot be stored, or the disk refuses; the sentence says
            whether the old file is unchanged (always, except when only the folder's sync failed).
    """
    try:
        table, data = _tensor_section(tensors)
        head = sealed_head(header, table, data)
        parse_head(head, len(head) + len(data))  # what could not be read is not written
    except Refused as refused:
        raise ModelFileError(
            f"cannot write model file {os.fspath(path)!r}: {refused.reason}; nothing was written"
        ) from refused
    replace_file(Path(path), [head, data], "model file")


def read_model(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the header and the tensors of ``path``, once both hashes have been verified.

    Raises:
        ModelFileError: the file is missing, foreign, damaged or from a newer format.
    """
    with _reading(path) as (file, size):
        raw = read_head(file, size)
        head = parse_head(raw, size)
        data = file.read(size - len(raw))
        check_tensors(head, data)
        tensors = _load_tensors(head, raw + data)
    return head.header, tensors


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of ``path``, once its own hash has been verified; needs no torch.

    The tensors are not read: their hash goes unchecked, but the length of the file is checked.

    Raises:
        ModelFileError: the file is missing, foreign, cut short, from a newer format, or its header
            is damaged.
    """
    with _reading(path) as (file, size):
        return parse_head(read_head(file, size), size).header


def _tensor_section(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, Any], memoryview]:
    """Let safetensors lay out the tensors; return its table and the bytes that it describes."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save

    copies = {}
    for name, tensor in tensors.items():
        if name == "__metadata__":
            raise Refused("'__metadata__' cannot be the name of a tensor")
        if not isinstance(tensor, torch.Tensor):
            raise Refused(f"{name!r} is a {type(tensor).__name__}, not a tensor")
        try:
            copies[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        except RuntimeError as error:
            raise Refused(f"tensor {name!r} cannot be copied ({first_line(error)})") from error
    try:
        raw = memoryview(save(copies))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Refused(f"safetensors refuses the tensors ({first_line(error)})") from error
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(bytes(raw[8:start])), raw[start:]


def _load_tensors(head: Head, raw: bytes) -> dict[str, torch.Tensor]:
    """Let safetensors make tensors of the verified bytes, in the order of the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(raw)
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise Refused(f"safetensors refuses it ({first_line(error)})") from error
    return {entry.name: tensors[entry.name] for entry in head.entries}


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """Open the regular file ``path``, give it with its size, and say refusals in one sentence."""
    try:
        with _open_regular(path) as file:
            yield file, os.fstat(file.fileno()).st_size
    except Refused as refused:
        raise ModelFileError(
            f"cannot read model file {os.fspath(path)!r}: {refused.reason}; {refused.remedy}"
        ) from refused
    except OSError as error:
        raise ModelFileError(
            f"cannot read model file {os.fspath(path)!r}: {cause(error)}; check the path and"
            " whether you may read it"
        ) from error


def _open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open ``path`` without waiting for a pipe's writer; refuse all but regular files."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if os.path.isdir(path):
            raise Refused("it is a folder", "give a file that upslope saved")
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError as error:
        raise Refused("there is no such file", "check the path") from error
    except ValueError as error:
        raise Refused(f"this is no path ({first_line(error)})", "check the path") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Refused("it is a device, pipe or socket", "give a file that upslope saved")
    return file

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
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from upslope.errors import ModelFileError

if TYPE_CHECKING:
    import torch

FORMAT = 1
MAX_FILE_BYTES = 8 * 2**30
MAX_HEADER_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_DIMS = 64
TEMPORARY_SUFFIX = ".upslope-tmp"  # what a killed write leaves behind: `.<random>.upslope-tmp`

# Format n -> the function that turns a header of format n into one of format n + 1.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "F32": 4, "I64": 8, "F64": 8,
}  # fmt: skip
_MAGIC = b'{"__metadata__":{"header_sha256":"'
_DIGEST_AT = 8 + len(_MAGIC)
_DIGEST_END = _DIGEST_AT + 64


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
        head = _sealed_head(header, table, data)
        _parse_head(head, len(head) + len(data))  # what could not be read is not written
    except _Refused as refused:
        raise ModelFileError(
            f"cannot write model file {os.fspath(path)!r}: {refused.reason}; nothing was written"
        ) from refused
    _replace_file(Path(path), [head, data])


def read_model(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the header and the tensors of ``path``, once both hashes have been verified.

    Raises:
        ModelFileError: the file is missing, foreign, damaged or from a newer format.
    """
    with _reading(path) as (file, size):
        raw = _read_head(file, size)
        head = _parse_head(raw, size)
        data = file.read(size - len(raw))
        _check_tensors(head, data)
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
        return _parse_head(_read_head(file, size), size).header


class _Refused(Exception):
    """Why a file cannot be read or contents cannot be written, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "use another copy of it") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class _Entry(NamedTuple):
    """One row of the table of tensors; ``begin`` and ``end`` count from the end of the head."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Head(NamedTuple):
    """What the first 8 + N bytes say: the header, and the tensors in the order of their bytes."""

    header: dict[str, Any]
    entries: list[_Entry]


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
            raise _Refused("'__metadata__' cannot be the name of a tensor")
        if not isinstance(tensor, torch.Tensor):
            raise _Refused(f"{name!r} is a {type(tensor).__name__}, not a tensor")
        try:
            copies[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        except RuntimeError as error:
            raise _Refused(f"tensor {name!r} cannot be copied ({_first_line(error)})") from error
    try:
        raw = memoryview(save(copies))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _Refused(f"safetensors refuses the tensors ({_first_line(error)})") from error
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(bytes(raw[8:start])), raw[start:]


def _sealed_head(header: Mapping[str, Any], table: dict[str, Any], data: memoryview) -> bytes:
    """Return length and JSON, padded to 8 bytes as safetensors does, with both hashes in place."""
    facts = {
        "format": FORMAT,
        "upslope_version": _version(),
        "tensors_sha256": _tensors_sha256(_entries(table), data),
    }
    for key, value in header.items():
        if not isinstance(key, str):
            raise _Refused(f"header key {key!r} is not a string")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _Refused(
                f"header field {key!r} is not JSON ({_first_line(error)}; infinities and NaN go"
                " in as strings)"
            ) from error
    metadata = {"header_sha256": "0" * 64, "upslope": json.dumps({**facts, **header, **facts})}
    text = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    blank = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(blank).hexdigest().encode("ascii")
    return blank[:_DIGEST_AT] + digest + blank[_DIGEST_END:]


def _version() -> str:
    """Return the version of the installed upslope, ``"unknown"`` in a bare source tree."""
    try:
        return importlib.metadata.version("upslope")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _replace_file(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Put ``parts`` at ``path`` by a synced temporary file beside it and one rename."""
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:  # not tempfile: the model keeps the mode of the umask
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | ValueError):  # ValueError: a path with a null character
            needed = sum(len(part) for part in parts)
            raise ModelFileError(
                f"cannot write model file {str(path)!r} ({needed} bytes needed, {_free(path)}):"
                f" {_cause(error)}; make room or save somewhere else, what was there is unchanged"
            ) from error
        raise
    try:
        _sync_directory(path.parent)
    except OSError as error:
        raise ModelFileError(
            f"model file {str(path)!r} is written but its folder cannot be synced to disk:"
            f" {_cause(error)}; save again, a power cut could bring back what was there before"
        ) from error


def _free(path: Path) -> str:
    """Say how much room the disk of ``path`` has, asking its nearest folder that exists."""
    for folder in path.parents:
        with contextlib.suppress(OSError, ValueError):
            return f"{shutil.disk_usage(folder).free} free"
    return "free space unknown"


def _cause(error: Exception) -> str:
    """Return what the system says about ``error``, without the paths that OSError adds to it."""
    return (isinstance(error, OSError) and error.strerror) or _first_line(error)


def _first_line(error: Exception) -> str:
    """Return the first line of ``error``, short enough to stand inside a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut, if the file system can promise that."""
    if os.name == "nt":  # Windows opens no directories
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """Open the regular file ``path``, give it with its size, and say refusals in one sentence."""
    try:
        with _open_regular(path) as file:
            yield file, os.fstat(file.fileno()).st_size
    except _Refused as refused:
        raise ModelFileError(
            f"cannot read model file {os.fspath(path)!r}: {refused.reason}; {refused.remedy}"
        ) from refused
    except OSError as error:
        raise ModelFileError(
            f"cannot read model file {os.fspath(path)!r}: {_cause(error)}; check the path and"
            " whether you may read it"
        ) from error


def _open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open ``path`` without waiting for a pipe's writer; refuse all but regular files."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if os.path.isdir(path):
            raise _Refused("it is a folder", "give a file that upslope saved")
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError as error:
        raise _Refused("there is no such file", "check the path") from error
    except ValueError as error:
        raise _Refused(f"this is no path ({_first_line(error)})", "check the path") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _Refused("it is a device, pipe or socket", "give a file that upslope saved")
    return file


def _read_head(file: BinaryIO, size: int) -> bytes:
    """Return the first 8 + N bytes after checking their beginning, every size and their hash."""
    start = file.read(_DIGEST_AT)
    if not start.startswith(_MAGIC, 8):
        raise _foreign(start)
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _Refused(f"its header claims {length} bytes, the most is {MAX_HEADER_BYTES}")
    if not _DIGEST_END <= 8 + length <= size:
        raise _Refused(f"its header claims {length} bytes and the whole file has {size}")
    head = start + file.read(8 + length - len(start))
    written = head[_DIGEST_AT:_DIGEST_END]
    actual = hashlib.sha256(head[:_DIGEST_AT] + b"0" * 64 + head[_DIGEST_END:]).hexdigest()
    if written != actual.encode("ascii"):
        shown = written.decode("ascii", "replace")
        raise _Refused(f"its header is damaged, SHA-256 {actual} where {shown!r} is expected")
    return head


def _foreign(start: bytes) -> _Refused:
    """Say what a file that begins with ``start``, and not as a model file does, seems to be."""
    if not start:
        return _Refused("it is empty")
    if start.startswith(b"PK"):
        what = "it is a zip archive, as Stable-Baselines3 and torch.save write them"
    elif start[8:9] == b"{":
        what = "it is a safetensors file without upslope's header, or its first bytes are damaged"
    elif re.match(rb"\x80[\x02-\x05]", start):
        what = "it is a Python pickle, which could run code, and upslope opens none"
    else:
        what = "it does not begin as a safetensors file of upslope does"
    return _Refused(what, "give a file that upslope saved")


def _parse_head(raw: bytes, size: int) -> _Head:
    """Return what the head ``raw`` of a file of ``size`` bytes says; refuse any other layout."""
    if size > MAX_FILE_BYTES:
        raise _Refused(f"it takes {size} bytes, the most is {MAX_FILE_BYTES}")
    try:
        text = raw[8:].decode("ascii")
    except UnicodeDecodeError as error:
        raise _Refused("its header is not ASCII") from error
    table = _strict_json(text)
    metadata = table.pop("__metadata__") if isinstance(table, dict) else None
    if not isinstance(metadata, dict) or metadata.keys() != {"header_sha256", "upslope"}:
        raise _Refused("its metadata holds other keys than header_sha256 and upslope")
    if not isinstance(metadata["upslope"], str):
        raise _Refused("its upslope metadata is not text")
    header = _strict_json(metadata["upslope"])
    if not isinstance(header, dict):
        raise _Refused("its upslope metadata is not a JSON object")
    header = _migrated(header)
    if not isinstance(header.get("tensors_sha256"), str):
        raise _Refused("its header has no hash of the tensors")
    entries = _entries(table)
    _check_ranges(entries, size - len(raw))
    return _Head(header, entries)


def _strict_json(text: str) -> Any:
    """Parse JSON that is bounded in depth, has no key twice and only finite numbers."""
    if len(text) > MAX_HEADER_BYTES:
        raise _Refused(f"its header takes {len(text)} bytes, the most is {MAX_HEADER_BYTES}")
    _check_depth(text)
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except ValueError as error:
        raise _Refused(f"its header is not JSON ({_first_line(error)})") from error


def _check_depth(text: str) -> None:
    """Refuse JSON nested deeper than MAX_DEPTH, in one pass, before a recursive parser sees it."""
    depth = 0
    in_string = False
    for match in re.finditer(r'\\.|["\[\]{}]', text, re.DOTALL):
        token = match.group()
        if token == '"':
            in_string = not in_string
        elif not in_string and token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _Refused(f"its header nests deeper than {MAX_DEPTH} levels")
        elif not in_string and token in "]}":
            depth -= 1


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of ``pairs``; refuse a key that comes twice, which parsers read differently."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _Refused(f"its header has the key {key!r:.80} twice")
        result[key] = value
    return result


def _finite(number: str) -> float:
    """Parse a JSON float; refuse NaN, the infinities and what overflows to them."""
    value = float(number)
    if not math.isfinite(value):
        raise _Refused(f"its header has the number {number:.80}, which is not finite")
    return value


def _migrated(header: dict[str, Any]) -> dict[str, Any]:
    """Return ``header`` as the current FORMAT has it; refuse formats from the future."""
    written = header.get("format")
    if type(written) is not int or written < 1:
        raise _Refused(f"its format {written!r:.80} is not a whole number from 1")
    if written > FORMAT:
        raise _Refused(
            f"it was written by upslope {header.get('upslope_version')!s:.40} (format {written})"
            f" and this is upslope {_version()}, which reads up to format {FORMAT}",
            "upgrade upslope",
        )
    for number in range(written, FORMAT):
        if number not in MIGRATIONS:
            raise _Refused(
                f"it has format {written}, which upslope {_version()} no longer reads",
                "read it with an older upslope",
            )
        header = {**MIGRATIONS[number](header), "format": number + 1}
    return header


def _entries(table: dict[str, Any]) -> list[_Entry]:
    """Return the rows of a safetensors table in the order of their bytes, each checked alone."""
    entries = [_entry(name, row) for name, row in table.items()]
    return sorted(entries, key=lambda entry: (entry.begin, entry.end))


def _entry(name: str, row: Any) -> _Entry:
    """Check one row: known dtype, whole non-negative numbers, and a shape that fills its bytes."""
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Refused(f"tensor {name!r:.80} has other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _Refused(f"tensor {name!r:.80} has the dtype {dtype!r:.80}, which is not stored here")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise _Refused(f"tensor {name!r:.80} has the impossible shape {shape!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _Refused(f"tensor {name!r:.80} has the impossible offsets {offsets!r:.80}")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _Refused(
            f"tensor {name!r:.80} of {dtype} and shape {shape!r:.80} does not fill its bytes"
            f" {begin} to {end}"
        )
    return _Entry(name, dtype, tuple(shape), begin, end)


def _are_counts(values: Any) -> bool:
    """Tell whether ``values`` is a list of whole numbers from 0 to 2**63 - 1 (no booleans)."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _check_ranges(entries: list[_Entry], data_bytes: int) -> None:
    """Check that the tensors follow each other without gap or overlap up to the end of the file."""
    expected = 0
    for entry in entries:
        if entry.begin != expected:
            raise _Refused(
                f"tensor {entry.name!r:.80} begins at byte {entry.begin} of the data where"
                f" {expected} is expected"
            )
        expected = entry.end
    if expected != data_bytes:
        raise _Refused(f"its tensors take {expected} bytes and the file has {data_bytes} for them")


def _check_tensors(head: _Head, data: bytes) -> None:
    """Check the hash of the tensors against the header's."""
    expected = head.header["tensors_sha256"]
    actual = _tensors_sha256(head.entries, memoryview(data))
    if actual != expected:
        raise _Refused(
            f"its weights are damaged, SHA-256 {actual} where {expected!r:.80} is expected"
        )


def _tensors_sha256(entries: list[_Entry], data: memoryview) -> str:
    """Hash names, dtypes, shapes and bytes in the order of the names, whatever the layout."""
    ordered = sorted(entries)
    labels = [[entry.name, entry.dtype, entry.shape] for entry in ordered]
    digest = hashlib.sha256(json.dumps(labels).encode("ascii"))
    for entry in ordered:
        digest.update(data[entry.begin : entry.end])
    return digest.hexdigest()


def _load_tensors(head: _Head, raw: bytes) -> dict[str, torch.Tensor]:
    """Let safetensors make tensors of the verified bytes, in the order of the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(raw)
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise _Refused(f"safetensors refuses it ({_first_line(error)})") from error
    return {entry.name: tensors[entry.name] for entry in head.entries}

"""The head of a model file: how it is made, parsed and hashed (layout: ``model_file.py``).

Nothing here needs torch, opens a file or trusts a number before it is checked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from upslope.errors import first_line
from upslope.runs.migrations import FORMAT, MIGRATIONS

MAX_FILE_BYTES = 8 * 2**30
MAX_HEADER_BYTES = 2 * 2**20  # parsed, the worst JSON takes about 30 times its bytes
MAX_DEPTH = 64
MAX_CONTAINERS = 100_000  # lists and objects: three for each tensor, few for the rest
MAX_DIMS = 64
MAX_TENSORS = 2**14

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # closed or not: never tried twice
_STEPS = bytes.maketrans(b"[{]}", b"\2\2\0\0")  # a level up or down, plus one
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_MAGIC = b'{"__metadata__":{"header_sha256":"'
_DIGEST_AT = 8 + len(_MAGIC)
_DIGEST_END = _DIGEST_AT + 64


class Refused(Exception):
    """Why a file cannot be read or contents cannot be written, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "use another copy of it") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Entry(NamedTuple):
    """One row of the table of tensors; ``begin`` and ``end`` count from the end of the head."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Head(NamedTuple):
    """What the first 8 + N bytes say: the header, and the tensors in the order of their bytes."""

    header: dict[str, Any]
    entries: list[Entry]


def sealed_head(header: Mapping[str, Any], table: dict[str, Any], data: memoryview) -> bytes:
    """Return length and JSON, padded to 8 bytes as safetensors does, with both hashes in place."""
    facts = {
        "format": FORMAT,
        "upslope_version": _version(),
        "tensors_sha256": _tensors_sha256(_entries(table), data),
    }
    for key, value in header.items():
        if not isinstance(key, str):
            raise Refused(f"header key {key!r} is not a string")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(
                f"header field {key!r} is not JSON ({first_line(error)}; infinities and NaN go"
                " in as strings)"
            ) from error
    metadata = {"header_sha256": "0" * 64, "upslope": json.dumps({**facts, **header, **facts})}
    text = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    blank = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(blank).hexdigest().encode("ascii")
    return blank[:_DIGEST_AT] + digest + blank[_DIGEST_END:]


def plainly(text: Any) -> str:
    """Return a value from a file so that it can stand in a sentence: short, on one line."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:80])


def _version() -> str:
    """Return the version of the installed upslope, ``"unknown"`` in a bare source tree."""
    try:
        return importlib.metadata.version("upslope")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def read_head(file: BinaryIO, size: int) -> bytes:
    """Return the first 8 + N bytes after checking their beginning, every size and their hash."""
    start = file.read(_DIGEST_AT)
    if not start.startswith(_MAGIC, 8):
        raise _foreign(start)
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise Refused(f"its header claims {length} bytes, the most is {MAX_HEADER_BYTES}")
    if not _DIGEST_END <= 8 + length <= size:
        raise Refused(f"its header claims {length} bytes and the whole file has {size}")
    head = start + file.read(8 + length - len(start))
    written = head[_DIGEST_AT:_DIGEST_END]
    actual = hashlib.sha256(head[:_DIGEST_AT] + b"0" * 64 + head[_DIGEST_END:]).hexdigest()
    if written != actual.encode("ascii"):
        shown = written.decode("ascii", "replace")
        raise Refused(f"its header is damaged, SHA-256 {actual} where {shown!r} is expected")
    return head


def _foreign(start: bytes) -> Refused:
    """Say what a file that begins with ``start``, and not as a model file does, seems to be."""
    if not start:
        return Refused("it is empty")
    if start.startswith(b"PK"):
        what = "it is a zip archive, as Stable-Baselines3 and torch.save write them"
    elif start[8:9] == b"{":
        what = "it is a safetensors file without upslope's header, or its first bytes are damaged"
    elif re.match(rb"\x80[\x02-\x05]", start):
        what = "it is a Python pickle, which could run code, and upslope opens none"
    else:
        what = "it does not begin as a safetensors file of upslope does"
    return Refused(what, "give a file that upslope saved")


def parse_head(raw: bytes, size: int) -> Head:
    """Return what the head ``raw`` of a file of ``size`` bytes says; refuse any other layout."""
    if size > MAX_FILE_BYTES:
        raise Refused(f"it takes {size} bytes, the most is {MAX_FILE_BYTES}")
    try:
        text = raw[8:].decode("ascii")
    except UnicodeDecodeError as error:
        raise Refused("its header is not ASCII") from error
    table = _strict_json(text)
    metadata = table.pop("__metadata__") if isinstance(table, dict) else None
    if not isinstance(metadata, dict) or metadata.keys() != {"header_sha256", "upslope"}:
        raise Refused("its metadata holds other keys than header_sha256 and upslope")
    if not isinstance(metadata["upslope"], str):
        raise Refused("its upslope metadata is not text")
    header = _strict_json(metadata["upslope"])
    if not isinstance(header, dict):
        raise Refused("its upslope metadata is not a JSON object")
    header = _migrated(header)
    if not isinstance(header.get("tensors_sha256"), str):
        raise Refused("its header has no hash of the tensors")
    entries = _entries(table)
    _check_ranges(entries, size - len(raw))
    return Head(header, entries)


def _strict_json(text: str) -> Any:
    """Parse JSON that is bounded in depth, has no key twice and only finite numbers."""
    if len(text) > MAX_HEADER_BYTES:
        raise Refused(f"its header takes {len(text)} bytes, the most is {MAX_HEADER_BYTES}")
    _check_brackets(text)
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except ValueError as error:
        raise Refused(f"its header is not JSON ({first_line(error)})") from error


def _check_brackets(text: str) -> None:
    """Refuse JSON of too many levels or containers, before a recursive parser makes any of them."""
    import numpy as np  # here: what only asks for the version needs none of it

    brackets = _STRING.sub("", text).encode("utf-8", "replace").translate(_STEPS, _NO_BRACKETS)
    levels = np.cumsum(np.frombuffer(brackets, np.uint8).astype(np.int32) - 1)
    if levels.max(initial=0) > MAX_DEPTH:
        raise Refused(f"its header nests deeper than {MAX_DEPTH} levels")
    if len(levels) > 2 * MAX_CONTAINERS:
        raise Refused(f"its header has more than {MAX_CONTAINERS} lists and objects")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of ``pairs``; refuse a key that comes twice, which parsers read differently."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise Refused(f"its header has the key {key!r:.80} twice")
        result[key] = value
    return result


def _finite(number: str) -> float:
    """Parse a JSON float; refuse NaN, the infinities and what overflows to them."""
    value = float(number)
    if not math.isfinite(value):
        raise Refused(f"its header has the number {number:.80}, which is not finite")
    return value


def _migrated(header: dict[str, Any]) -> dict[str, Any]:
    """Return ``header`` as the current FORMAT has it; refuse formats from the future."""
    written = header.get("format")
    if type(written) is not int or written < 1:
        raise Refused(f"its format {written!r:.80} is not a whole number from 1")
    if written > FORMAT:
        raise Refused(
            f"it was written by upslope {plainly(header.get('upslope_version'))} (format"
            f" {plainly(written)})"
            f" and this is upslope {_version()}, which reads up to format {FORMAT}",
            "upgrade upslope",
        )
    for number in range(written, FORMAT):
        if number not in MIGRATIONS:
            raise Refused(
                f"it has format {written}, which upslope {_version()} no longer reads",
                "read it with an older upslope",
            )
        header = {**MIGRATIONS[number](header), "format": number + 1}
    return header


def _entries(table: dict[str, Any]) -> list[Entry]:
    """Return the rows of a safetensors table in the order of their bytes, each checked alone."""
    if len(table) > MAX_TENSORS:
        raise Refused(f"it has {len(table)} tensors, the most is {MAX_TENSORS}")
    entries = [_entry(name, row) for name, row in table.items()]
    return sorted(entries, key=lambda entry: (entry.begin, entry.end))


def _entry(name: str, row: Any) -> Entry:
    """Check one row: known dtype, whole non-negative numbers, and a shape that fills its bytes."""
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"tensor {name!r:.80} has other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise Refused(f"tensor {name!r:.80} has the dtype {dtype!r:.80}, which is not stored here")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise Refused(f"tensor {name!r:.80} has the impossible shape {shape!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise Refused(f"tensor {name!r:.80} has the impossible offsets {offsets!r:.80}")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise Refused(
            f"tensor {name!r:.80} of {dtype} and shape {shape!r:.80} does not fill its bytes"
            f" {begin} to {end}"
        )
    return Entry(name, dtype, tuple(shape), begin, end)


def _are_counts(values: Any) -> bool:
    """Tell whether ``values`` is a list of whole numbers from 0 to 2**63 - 1 (no booleans)."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _check_ranges(entries: list[Entry], data_bytes: int) -> None:
    """Check that the tensors follow each other without gap or overlap up to the end of the file."""
    expected = 0
    for entry in entries:
        if entry.begin != expected:
            raise Refused(
                f"tensor {entry.name!r:.80} begins at byte {entry.begin} of the data where"
                f" {expected} is expected"
            )
        expected = entry.end
    if expected != data_bytes:
        raise Refused(f"its tensors take {expected} bytes and the file has {data_bytes} for them")


def check_tensors(head: Head, data: bytes) -> None:
    """Check the hash of the tensors against the header's."""
    expected = head.header["tensors_sha256"]
    actual = _tensors_sha256(head.entries, memoryview(data))
    if actual != expected:
        raise Refused(
            f"its weights are damaged, SHA-256 {actual} where {expected!r:.80} is expected"
        )


def _tensors_sha256(entries: list[Entry], data: memoryview) -> str:
    """Hash names, dtypes, shapes and bytes in the order of the names, whatever the layout."""
    ordered = sorted(entries)
    labels = [[entry.name, entry.dtype, entry.shape] for entry in ordered]
    digest = hashlib.sha256(json.dumps(labels).encode("ascii"))
    for entry in ordered:
        digest.update(data[entry.begin : entry.end])
    return digest.hexdigest()

"""Files made to be harmful or merely wrong, for what loads a model. None of them is stored."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
FORMAT = 2
MAGIC = b'{"__metadata__":{"header_sha256":"'
ZERO = b"0" * 64


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


class Row(NamedTuple):
    """A tensor as the file has it."""

    dtype: str
    shape: list[int]
    data: bytes


class Parts(NamedTuple):
    """A model taken apart: its header and its tensors."""

    header: dict[str, Any]
    rows: dict[str, Row]


def take_apart(path: Path) -> Parts:
    """Return the parts of a good model file, read by plain means."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:end])
    header = json.loads(table.pop("__metadata__")["upslope"])
    rows = {}
    for name, row in table.items():
        begin, stop = row["data_offsets"]
        rows[name] = Row(row["dtype"], row["shape"], raw[end + begin : end + stop])
    return Parts(header, rows)


def sealed(text: bytes, data: bytes = b"") -> bytes:
    """Return a file of this JSON with the hash that belongs to it."""
    text += b" " * (-len(text) % 8)
    cut = len(MAGIC)
    assert text[:cut] == MAGIC
    assert text[cut : cut + 64] == ZERO
    blank = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank[: 8 + cut] + digest + blank[8 + cut + 64 :] + data


def put_together(parts: Parts, header_text: str | None = None, table: str | None = None) -> bytes:
    """Return the file of these parts, with all hashes right whatever they say."""
    rows, data, at = {}, b"", 0
    for name, row in parts.rows.items():
        rows[name] = {
            "dtype": row.dtype,
            "shape": row.shape,
            "data_offsets": [at, at + len(row.data)],
        }
        data += row.data
        at += len(row.data)
    labels = [[n, parts.rows[n].dtype, parts.rows[n].shape] for n in sorted(parts.rows)]
    digest = hashlib.sha256(json.dumps(labels).encode())
    for name in sorted(parts.rows):
        digest.update(parts.rows[name].data)
    facts = {"format": FORMAT, "upslope_version": "0.1.0", "tensors_sha256": digest.hexdigest()}
    said = json.dumps({**facts, **parts.header, **facts}) if header_text is None else header_text
    rest = json.dumps(rows)[1:-1] if table is None else table
    text = MAGIC + ZERO + b'","upslope":' + json.dumps(said).encode() + b"}"
    return sealed(text + (b"," + rest.encode() if rest else b"") + b"}", data)


def floats(*values: float) -> Row:
    return Row("F32", [len(values)], np.array(values, np.float32).tobytes())


Maker = Callable[[Path, Path], None]  # where the file goes; what must never appear
CRAFTED: dict[str, Maker] = {}
HARMLESS: dict[str, Maker] = {}  # may be loaded: what they name is never looked at


def raw(name: str) -> Callable[[Callable[[Path], bytes]], None]:
    """Declare a file by its bytes, a function of the marker."""

    def declare(make: Callable[[Path], bytes]) -> None:
        CRAFTED[name] = lambda path, marker: (path.write_bytes(make(marker)), None)[1]

    return declare


def base(name: str = "format2_masked_multi") -> Parts:
    return take_apart(GOLDEN / f"{name}.safetensors")


def with_header(
    name: str, harmless: bool = False, model: str = "format2_masked_multi", **changes: Any
) -> None:
    """Declare a model whose header differs in these fields; a dict changes fields of a field."""

    def make(path: Path, marker: Path) -> None:
        parts = base(model)
        header = dict(parts.header)
        for key, value in changes.items():
            header[key] = {**header[key], **value} if key in MERGED else value
        path.write_bytes(put_together(parts._replace(header=header)))

    (HARMLESS if harmless else CRAFTED)[name] = make


def with_rows(name: str, change: Callable[[dict[str, Row]], Any]) -> None:
    """Declare a model whose tensors differ."""

    def make(path: Path, marker: Path) -> None:
        parts = base()
        change(parts.rows)
        path.write_bytes(put_together(parts))

    CRAFTED[name] = make


MERGED = {"config", "environment", "network"}

# Other formats, with a payload for whoever unpickles.

for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    raw(f"pickle_{protocol}")(lambda m, p=protocol: pickle.dumps(Payload(m), protocol=p))


@raw("zip")
def _(marker: Path) -> bytes:
    return zipped({"data.pkl": pickle.dumps(Payload(marker))})


@raw("zip_bomb")
def _(marker: Path) -> bytes:
    return zipped({"data": b"\0" * 50_000_000})


@raw("zip_climbing")
def _(marker: Path) -> bytes:
    return zipped({"../../escaped": b"x", "/tmp/escaped": b"x"})


@raw("torch_zip")
def _(marker: Path) -> bytes:
    return torch_saved(Payload(marker))


@raw("torch_legacy")
def _(marker: Path) -> bytes:
    return torch_saved(Payload(marker), _use_new_zipfile_serialization=False)


@raw("tar")
def _(marker: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"))
    return file.getvalue()


@raw("gzip")
def _(marker: Path) -> bytes:
    return gzip.compress(pickle.dumps(Payload(marker)))


@raw("npy")
def _(marker: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return file.getvalue()


raw("empty")(lambda _: b"")
raw("one_byte")(lambda _: b"\0")
raw("shell_script")(lambda m: f"#!/bin/sh\ntouch {m}\n".encode())
raw("python_source")(lambda m: f"import os; os.mknod({str(m)!r})\n".encode())
raw("yaml")(lambda m: f'!!python/object/apply:os.mknod ["{m}"]\n'.encode())
raw("bare_safetensors")(lambda _: save({"x": torch.ones(2)}))


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def torch_saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


# Sizes that lie.

for length in (0, 1, 97, 2**24, 2**31, 2**62, 2**63, 2**64 - 8, 2**64 - 1):
    raw(f"header_of_{length}")(lambda _, n=length: n.to_bytes(8, "little") + MAGIC + ZERO * 4)


def sparse(name: str, begin: bytes, size: int) -> None:
    def make(path: Path, marker: Path) -> None:
        path.write_bytes(begin)
        os.truncate(path, size)

    CRAFTED[name] = make


sparse("header_of_100_MB", (100 * 2**20).to_bytes(8, "little") + MAGIC + ZERO, 101 * 2**20)
sparse("tail_of_9_GB", put_together(Parts({}, {})), 9 * 2**30)

# JSON that is too much, or none.

LARGE = 2 * 2**20 - 2000
DEEP = {"header": None, "brackets": "[", "objects": '{"a":'}


def header_text(name: str, text: Callable[[], str]) -> None:
    CRAFTED[name] = lambda path, marker: (
        path.write_bytes(put_together(Parts({}, {}), header_text=text())),
        None,
    )[1]


def table_text(name: str, text: Callable[[], str]) -> None:
    CRAFTED[name] = lambda path, marker: (
        path.write_bytes(put_together(Parts({}, {}), table=text())),
        None,
    )[1]


FACTS = '"format":2,"upslope_version":"1","tensors_sha256":"0"'
header_text("json_deep_arrays", lambda: "[" * LARGE)
header_text("json_deep_objects", lambda: '{"":' * (LARGE // 8))
header_text("json_deep_behind_a_string", lambda: f'{{{FACTS},"x":"' + "[" * LARGE)
header_text("json_escapes_without_end", lambda: '"' + "\\" * (LARGE // 4))
header_text("json_quotes_without_end", lambda: '"' + '\\"' * (LARGE // 8))
header_text("json_many_arrays", lambda: f'{{{FACTS},"x":[' + "[]," * (LARGE // 3) + "0]}")
header_text("json_many_objects", lambda: f'{{{FACTS},"x":[' + "{}," * (LARGE // 3) + "0]}")
header_text("json_many_floats", lambda: f'{{{FACTS},"x":[' + "1e1," * (LARGE // 4) + "0]}")
header_text("json_many_keys", lambda: f"{{{FACTS}," + many_keys() + "}")
header_text("json_a_number_of_4000_digits", lambda: f'{{{FACTS},"x":{"9" * 4000}}}')
header_text("json_a_number_of_a_million_digits", lambda: f'{{{FACTS},"x":{"9" * 1_000_000}}}')
header_text("json_nan", lambda: f'{{{FACTS},"x":NaN}}')
header_text("json_infinity", lambda: f'{{{FACTS},"x":-Infinity}}')
header_text("json_overflow", lambda: f'{{{FACTS},"x":1e999}}')
header_text("json_twice", lambda: f'{{{FACTS},"x":1,"x":2}}')
header_text("json_a_list", lambda: "[]")
header_text("json_none", lambda: "__import__('os').system('true')")
header_text("json_newer", lambda: '{"format":3,"upslope_version":"9.9\\n\\u001b[2J"}')
header_text("json_format_0", lambda: '{"format":0}')
header_text("json_format_true", lambda: '{"format":true}')
header_text("json_format_huge", lambda: f'{{"format":{"9" * 4000},"upslope_version":{{}}}}')
header_text("json_nothing_else", lambda: f"{{{FACTS}}}")
table_text("table_deep", lambda: '"x":' + "[" * LARGE)
table_text("table_twice", lambda: ",".join([row("x", "U8", [0], 0, 0)] * 2))
table_text("table_metadata_twice", lambda: '"__metadata__":{}')
table_text("table_of_many", lambda: ",".join(row(f"{i}", "U8", [0], 0, 0) for i in range(40_000)))
table_text("table_not_ascii", lambda: row("ü", "U8", [0], 0, 0))
table_text("table_dtype", lambda: row("x", "O", [1], 0, 0))
table_text("table_shape_negative", lambda: row("x", "F32", [-1], 0, 0))
table_text("table_shape_huge", lambda: row("x", "F32", [10**9, 10**9], 0, 0))
table_text("table_shape_overflow", lambda: row("x", "U8", [2**32, 2**32], 0, 0))
table_text("table_shape_zero_times_huge", lambda: row("x", "F64", [0, 2**62, 2**62], 0, 0))
table_text("table_shape_long", lambda: row("x", "F32", [1] * 500_000, 0, 4))
table_text("table_behind_the_end", lambda: row("x", "F32", [2**30], 0, 2**32))
table_text("table_offsets_backwards", lambda: row("x", "F32", [1], 4, 0))
table_text("table_offsets_negative", lambda: row("x", "F32", [1], -4, 0))


def many_keys() -> str:
    return ",".join(f'"{i:05x}":1' for i in range(LARGE // 12))


def row(name: str, dtype: str, shape: list[int], begin: int, end: int) -> str:
    said = json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})
    return f"{json.dumps(name, ensure_ascii=False)}:{said}"


# Tensors that are not the policy's.

HEAD = "actor_head.weight"
with_rows("tensor_missing", lambda rows: rows.pop(HEAD))
with_rows("tensor_extra", lambda rows: rows.update(extra=floats(1)))
with_rows("tensor_of_one_name_more", lambda rows: rows.update({"../../etc/passwd": floats(1)}))
with_rows("tensor_of_an_absolute_name", lambda rows: rows.update({"/etc/passwd": floats(1)}))
with_rows("tensor_of_a_null_name", lambda rows: rows.update({"a\0b": floats(1)}))
with_rows("tensor_of_a_name_with_escapes", lambda rows: rows.update({"\x1b[2J\n": floats(1)}))
with_rows("tensor_of_zero_size", lambda rows: rows.update({HEAD: Row("F32", [0, 8], b"")}))
with_rows("tensor_transposed", lambda rows: rows.update({HEAD: transposed(rows[HEAD])}))
with_rows("tensor_of_float64", lambda rows: rows.update({HEAD: widened(rows[HEAD])}))
with_rows("tensor_of_int32", lambda rows: rows.update({HEAD: rows[HEAD]._replace(dtype="I32")}))
with_rows("weights_nan", lambda rows: rows.update({HEAD: filled(rows[HEAD], np.nan)}))
with_rows("weights_inf", lambda rows: rows.update({HEAD: filled(rows[HEAD], np.inf)}))
with_rows("weights_others", lambda rows: rows.update({HEAD: filled(rows[HEAD], 0.5)}))
for part in ("observations", "masks", "outputs", "values", "log_probs"):
    with_rows(f"self_test_without_{part}", lambda rows, p=part: rows.pop(f"self_test.{p}"))
    with_rows(
        f"self_test_of_no_{part}",
        lambda rows, p=part: rows.update({f"self_test.{p}": none_of(rows[f"self_test.{p}"])}),
    )
with_rows("self_test_huge", lambda rows: rows.update({n: repeated(rows[n], 20_000) for n in rows
                                                     if n.startswith("self_test.")}))  # fmt: skip
with_rows("self_test_of_pickles", lambda rows: rows.update({"self_test.code": pickled_row()}))
with_rows("self_test_nan", lambda rows: rows.update(
    {"self_test.outputs": filled(rows["self_test.outputs"], np.nan)}))  # fmt: skip


def transposed(row: Row) -> Row:
    return row._replace(shape=row.shape[::-1])


def widened(row: Row) -> Row:
    return Row("F64", row.shape, np.frombuffer(row.data, np.float32).astype(np.float64).tobytes())


def filled(row: Row, value: float) -> Row:
    numbers = np.full(len(row.data) // 4, value, np.float32)
    return row._replace(data=numbers.tobytes())


def none_of(row: Row) -> Row:
    return row._replace(shape=[0, *row.shape[1:]], data=b"")


def repeated(row: Row, times: int) -> Row:
    return row._replace(shape=[row.shape[0] * times, *row.shape[1:]], data=row.data * times)


def pickled_row() -> Row:
    data = pickle.dumps(Payload(Path("marker")))
    return Row("U8", [len(data)], data)


# Headers that describe something else.

WHOLE = {"dtype": "int64"}
SPACES: dict[str, Any] = {
    "discrete_huge": {"type": "Discrete", "n": 2**62, "start": 0, **WHOLE},
    "discrete_beyond": {"type": "Discrete", "n": 10**30, "start": 0, **WHOLE},
    "discrete_negative": {"type": "Discrete", "n": -1, "start": 0, **WHOLE},
    "discrete_float": {"type": "Discrete", "n": 2.0, "start": 0, **WHOLE},
    "discrete_true": {"type": "Discrete", "n": True, "start": 0, **WHOLE},
    "discrete_objects": {"type": "Discrete", "n": 2, "start": 0, "dtype": "O"},
    "box_huge": {"type": "Box", "shape": [10**6, 10**6], "dtype": "float32", "low": [0],
                 "high": [1]},
    "box_beyond": {"type": "Box", "shape": [2**62] * 30, "dtype": "uint8", "low": [0], "high": [1]},
    "box_negative": {"type": "Box", "shape": [-5], "dtype": "float32", "low": [0], "high": [1]},
    "box_long_shape": {"type": "Box", "shape": [1] * 99, "dtype": "uint8", "low": [0], "high": [1]},
    "box_objects": {"type": "Box", "shape": [3], "dtype": "O", "low": [0], "high": [1]},
    "box_wide_text": {"type": "Box", "shape": [3], "dtype": "S999999999", "low": [0], "high": [1]},
    "box_wide_void": {"type": "Box", "shape": [3], "dtype": "V999999999", "low": [0], "high": [1]},
    "box_records": {"type": "Box", "shape": [3], "dtype": "f4,f4", "low": [0], "high": [1]},
    "box_code": {"type": "Box", "shape": [3], "dtype": "float32", "low": ["__import__('os')"],
                 "high": [1]},
    "box_nan": {"type": "Box", "shape": [3], "dtype": "float32", "low": ["nan"], "high": ["nan"]},
    "box_short": {"type": "Box", "shape": [3], "dtype": "float32", "low": [0, 1], "high": [1]},
    "box_no_bounds": {"type": "Box", "shape": [3], "dtype": "float32", "low": [], "high": []},
    "box_crossed": {"type": "Box", "shape": [3], "dtype": "float32", "low": [2], "high": [1]},
    "multi_discrete_huge": {"type": "MultiDiscrete", "nvec": [2**40, 3], "start": [0, 0], **WHOLE},
    "multi_discrete_padded": {"type": "MultiDiscrete", "nvec": [1] * 9000 + [9000],
                              "start": [0] * 9001, **WHOLE},
    "multi_discrete_ragged": {"type": "MultiDiscrete", "nvec": [2, [3]], "start": [0, 0], **WHOLE},
    "multi_discrete_text": {"type": "MultiDiscrete", "nvec": ["x"], "start": [0], **WHOLE},
    "multi_binary_huge": {"type": "MultiBinary", "n": 10**12},
    "multi_binary_matrix": {"type": "MultiBinary", "n": [10**6, 10**6]},
    "dict_wide": {"type": "Dict", "spaces": [
        [str(i), {"type": "Discrete", "n": 2, "start": 0, **WHOLE}] for i in range(30_000)]},
    "dict_empty": {"type": "Dict", "spaces": []},
    "dict_keys": {"type": "Dict", "spaces": [[["a"], {"type": "MultiBinary", "n": 2}]]},
    "dict_pairs": {"type": "Dict", "spaces": [["a"]]},
    "tuple_wide": {"type": "Tuple", "spaces": [{"type": "MultiBinary", "n": 1}] * 30_000},
    "unknown": {"type": "Graph"},
    "code": {"type": "os.system", "command": "true"},
    "type_list": {"type": ["Box"]},
    "nothing": {},
    "text": "Discrete(2)",
}  # fmt: skip
for said, description in SPACES.items():
    with_header(f"observations_{said}", observation_space=description)
    with_header(f"actions_{said}", action_space=description)


def nested_space(depth: int) -> dict[str, Any]:
    space: dict[str, Any] = {"type": "MultiBinary", "n": 2}
    for _ in range(depth):
        space = {"type": "Tuple", "spaces": [space]}
    return space


with_header("observations_nested", observation_space=nested_space(25))
CONFIGS: dict[str, Any] = {
    "units_billion": {"net_arch": {"pi": [10**9], "vf": [10**9]}},
    "units_65536": {"net_arch": {"pi": [65536, 65536], "vf": [65536, 65536]}},
    "layers_many": {"net_arch": {"pi": [8] * 500_000, "vf": [8]}},
    "layers_64": {"net_arch": {"pi": [64] * 64, "vf": [64] * 64}},
    "units_text": {"net_arch": "__import__('os')"},
    "memory": {"memory": "lstm", "memory_size": 8192},
    "memory_text": {"memory": "os.system"},
    "envs_billion": {"n_envs": 10**9},
    "envs_text": {"n_envs": "8"},
    "steps": {"n_steps": 10**18},
    "gamma": {"gamma": 7},
    "seed": {"seed": -1},
    "activation": {"activation_fn": "os.system"},
    "dtype": {"dtype": "object"},
    "device": {"device": "cuda; import os"},
    "faults": {"on_env_error": "restart:" + "9" * 5000},
    "schedule": {"learning_rate": "lin_" + "9" * 5000},
    "callable_without_a_name": {"learning_rate": {"callable": {}}, "gamma": {"callable": []},
                                "n_envs": -1},
    "normalised": {"norm_obs": True, "norm_reward": True},
}  # fmt: skip
for said, settings in CONFIGS.items():
    with_header(f"config_{said}", config=settings)
with_header("features_units_65536", model="format2_squashed_features",
            config={"net_arch": {"pi": [65536, 65536], "vf": [65536, 65536]}})  # fmt: skip
with_header("features_memory", model="format2_squashed_features",
            config={"memory": "lstm", "memory_size": 8192})  # fmt: skip
with_header("image_huge", observation_space={
    "type": "Box", "shape": [20_000, 20_000, 3], "dtype": "uint8",
    "low": [0], "high": [255]})  # fmt: skip
with_header("algorithm_unknown", algorithm="os.system")
with_header("algorithm_list", algorithm=["ppo"])
with_header("environment_list", environment={"id": ["CartPole-v1"]})
with_header("environment_lines", environment={"name": "x\n\x1b[2Jdone"})
with_header("environment_name_of_a_megabyte", environment={"name": "x" * 1_500_000})
with_header("environment_not_sure", environment={"is_registered": "yes"})
with_header("features_list", network={"features": ["os", "system"]})
with_header("features_lines", network={"features": "x\ny"})
with_header("evaluation_text", evaluation="cos\nsystem\n(S'true'\ntR.")
with_header("evaluation_list", evaluation=[[[1e300]]])
with_header("self_test_says_nothing", self_test={})
with_header("self_test_says_code", self_test={"given": ["observations", "eval"], "gave": ["x"]})
with_header("self_test_says_objects", self_test={"given": [{}], "gave": [[]]})
for field in base().header:
    if field not in ("format", "upslope_version", "tensors_sha256", "versions"):
        text = pickle.dumps(Payload(Path("marker")), protocol=0).decode("latin-1")

        def pickled(path: Path, marker: Path, field: str = field) -> None:
            parts = base()
            code = pickle.dumps(Payload(marker), protocol=0).decode("latin-1")
            header = {**parts.header, field: code}
            path.write_bytes(put_together(parts._replace(header=header)))

        CRAFTED[f"pickle_in_{field}"] = pickled

# Names of what could be run: the weights are loaded, the names are left alone.

REGISTERED = {"is_registered": True}
with_header("names_a_module", True, environment={"id": "trap:Trap-v0", "name": "trap:Trap-v0",
                                                 **REGISTERED})  # fmt: skip
with_header("names_a_file", True, environment={"id": "trap.py:make", "name": "trap.py:make",
                                               **REGISTERED})  # fmt: skip
for prefix in ("ALE/", "MiniGrid-", "dm_control/"):
    for name in (f"{prefix}trap.py:make", f"{prefix}trap:Trap-v0"):
        with_header(f"names_{prefix[:3]}_{name[-4:]}", True,
                    environment={"id": name, "name": name, **REGISTERED})  # fmt: skip
with_header("names_kwargs", True, environment={"id": "CartPole-v1", "name": "CartPole-v1",
            **REGISTERED}, config={"env_kwargs": {"xml_file": "../../trap.xml"}})  # fmt: skip
with_header("names_a_callable", True, config={"learning_rate": {"callable": "os.system"}})
with_header("names_unknown_settings", True, config={"__class__": "os.system", "hook": "eval"})
with_header("names_an_evaluation", True, evaluation={"sampled": "garbage", "mean": [1, {}]})


def paths(folder: Path) -> Iterator[tuple[str, Path]]:
    """Make things that are no regular files of ours, and give their names."""
    link = folder / "link_to_passwd"
    link.symlink_to("/etc/passwd")
    yield "link", link
    dangling = folder / "dangling"
    dangling.symlink_to(folder / "nowhere")
    yield "dangling", dangling
    loop = folder / "loop"
    loop.symlink_to(loop)
    yield "loop", loop
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    yield "pipe", pipe
    server = socket.socket(socket.AF_UNIX)
    os.chdir(folder)  # the names of sockets are short
    server.bind("socket")
    server.close()
    yield "socket", folder / "socket"
    yield "device", Path("/dev/zero")
    yield "folder", folder
    yield "missing", folder / "missing"
    yield "null", Path("a\0b")


def good_models() -> list[Path]:
    """Return the models that mutations start from."""
    return sorted(GOLDEN.glob("*.safetensors"))


def assert_read_by_plain_safetensors(path: Path) -> None:
    """The tools here make files that are sound but for what they plant."""
    assert load_file(path)

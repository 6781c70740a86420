"""Damaged, foreign and hostile model files: refused in a sentence, in no time, and nothing is run.

Crafted files (`hostile_files.py`) are loaded by a process of their own that is watched: by an audit
hook for whatever is imported, run, unpickled or opened, by the clock, and by its peak of memory.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import numpy as np
import pytest
from hostile_files import CRAFTED, GOLDEN, HARMLESS, Parts, good_models, put_together, take_apart

import upslope
from upslope.errors import ConfigError, ModelFileError
from upslope.runs.model_file import read_model

SECONDS, MEGABYTES = 1.0, 200.0
TRAP = "from pathlib import Path\nPath({marker!r}).touch()\n"
TRAPS = ["trap.py", "ALE/trap.py", "MiniGrid-trap.py", "dm_control/trap.py"]
NO_FILES = ["link", "dangling", "loop", "pipe", "socket", "device", "folder", "missing", "null"]


class Watched:
    """What came of every crafted file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, folder / "marker"
        self.paths: dict[str, str] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        for trap in TRAPS:
            (self.folder / trap).parent.mkdir(exist_ok=True)
            (self.folder / trap).write_text(TRAP.format(marker=str(self.marker)))
        for name, make in (CRAFTED | HARMLESS).items():
            path = self.folder / f"{name}.safetensors"
            make(path, self.marker)
            self.paths[name] = str(path)
        self.paths |= {name: str(path) for name, path in hostile_files.paths(self.folder)}
        CRAFTED["pickle_4"](self.folder / "canary", self.folder / "sprung")
        self.paths["canary"] = str(self.folder / "canary")  # the one file that is unpickled
        self.results = run_child(self.folder, self.paths)


def run_child(folder: Path, paths: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Have a process of its own load files, and return what it wrote down."""
    here = Path(__file__).parent
    modules = [*filter(None, [os.environ.get("PYTHONPATH")]), str(here.parent / "runs")]
    listed = folder / "files.json"
    listed.write_text(json.dumps(list(paths.items())))
    done = subprocess.run(
        [sys.executable, str(here / "hostile_child.py"), str(listed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(modules), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["name"]: result for result in results}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    before = os.getcwd()
    made = Watched(tmp_path_factory.mktemp("hostile"))
    try:
        made.run()
    finally:
        os.chdir(before)
    return made


def test_there_are_enough_of_them() -> None:
    assert len(CRAFTED) >= 200
    assert len(HARMLESS) >= 12


@pytest.mark.parametrize("name", [*CRAFTED, *NO_FILES])
def test_crafted_file_is_refused(watched: Watched, name: str) -> None:
    result = watched.results[name]
    assert result["raised"] == "ModelFileError", result["words"]
    assert repr(watched.paths[name]) in result["words"]
    assert result["words"].isprintable()  # one line, and nothing that moves a terminal's cursor
    assert len(result["words"]) < 700
    assert_bounded(result)
    assert not watched.marker.exists()


@pytest.mark.parametrize("name", HARMLESS)
def test_names_in_a_file_are_left_alone(watched: Watched, name: str) -> None:
    """The weights are good and load, without the environment; nothing looks at what is named."""
    result = watched.results[name]
    assert result["raised"] is None, result["words"]
    assert_bounded(result)
    assert not watched.marker.exists()


def assert_bounded(result: dict[str, Any]) -> None:
    assert result["events"] == []
    assert result["seconds"] < SECONDS
    assert result["megabytes"] < MEGABYTES


def test_the_watch_sees_what_is_unpickled(watched: Watched) -> None:
    """Or else the tests above could not fail."""
    assert (watched.folder / "sprung").exists()
    events = watched.results["canary"]["events"]
    assert any(event.startswith("pickle.find_class") for event in events)


def test_the_traps_would_spring(watched: Watched, tmp_path: Path) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text(TRAP.format(marker=str(tmp_path / "marker")))
    with pytest.raises(ConfigError):
        upslope.load(
            watched.paths["names_a_file"], env=f"{trap}:make"
        )  # the user names it: it runs
    assert (tmp_path / "marker").exists()


def test_what_is_put_together_again_is_the_good_model(tmp_path: Path) -> None:
    """Or else the crafted files would be refused for another reason than the one planted."""
    for model in good_models():
        parts = take_apart(model)
        header = parts.header
        if header["format"] == hostile_files.FORMAT and header["network"]["features"] is None:
            (tmp_path / "again").write_bytes(put_together(parts))
            upslope.load(tmp_path / "again")


class TestCommandLine:
    @pytest.mark.parametrize("command", ["eval", "play"])
    @pytest.mark.parametrize(
        "name",
        [
            *("pickle_4", "torch_zip", "empty", "header_of_100_MB", "json_deep_arrays"),
            *("json_newer", "tensor_missing", "weights_nan", "weights_others", "tensor_extra"),
            *("actions_discrete_huge", "observations_box_huge", "config_units_65536"),
            *("environment_lines", "features_list", "self_test_huge", "pickle_in_config"),
        ],
    )
    def test_exit_5_and_one_sentence(
        self, here: Path, refused: Callable[..., str], command: str, name: str
    ) -> None:
        CRAFTED[name](here / "m.safetensors", here / "marker")
        assert "m.safetensors" in refused(command, "m.safetensors", code=5)
        assert not (here / "marker").exists()

    @pytest.mark.parametrize("command", ["eval", "play"])
    def test_in_a_run_directory(
        self, here: Path, refused: Callable[..., str], command: str
    ) -> None:
        (here / "run").mkdir()
        CRAFTED["pickle_4"](here / "run" / "model.safetensors", here / "marker")
        assert "Python pickle" in refused(command, "run", code=5)
        assert not (here / "marker").exists()

    @pytest.mark.parametrize("name", ["names_a_file", "names_ALE_make", "names_kwargs"])
    def test_a_named_environment_must_be_typed(
        self, here: Path, refused: Callable[..., str], name: str
    ) -> None:
        HARMLESS[name](here / "m.safetensors", here / "marker")
        (here / "ALE").mkdir()
        for trap in ("trap.py", "ALE/trap.py"):
            (here / trap).write_text(TRAP.format(marker="marker"))
        assert "add --env" in refused("eval", "m.safetensors", code=2)
        assert not (here / "marker").exists()


Damage = Callable[[np.random.Generator, bytes], bytes]


def flip_a_bit(rng: np.random.Generator, raw: bytes) -> bytes:
    return flipped(raw, [int(rng.integers(len(raw) * 8))])


def flip_bits(rng: np.random.Generator, raw: bytes) -> bytes:
    return flipped(raw, rng.integers(len(raw) * 8, size=int(rng.integers(2, 40))).tolist())


def flip_a_bit_of_the_head(rng: np.random.Generator, raw: bytes) -> bytes:
    return flipped(raw, [int(rng.integers(120 * 8))])


def flip_a_bit_everywhere_alike(rng: np.random.Generator, raw: bytes) -> bytes:
    return bytes(byte ^ (1 << int(rng.integers(8))) for byte in raw)


def flipped(raw: bytes, bits: list[int]) -> bytes:
    changed = bytearray(raw)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def other_bytes(rng: np.random.Generator, raw: bytes) -> bytes:
    begin, end = a_range(rng, raw)
    return raw[:begin] + rng.bytes(end - begin) + raw[end:]


def zeros(rng: np.random.Generator, raw: bytes) -> bytes:
    begin, end = a_range(rng, raw)
    return raw[:begin] + b"\0" * (end - begin) + raw[end:]


def cut_short(rng: np.random.Generator, raw: bytes) -> bytes:
    return raw[: int(rng.integers(len(raw)))]


def cut_in_front(rng: np.random.Generator, raw: bytes) -> bytes:
    return raw[int(rng.integers(1, len(raw))) :]


def cut_out(rng: np.random.Generator, raw: bytes) -> bytes:
    begin, end = a_range(rng, raw)
    return raw[:begin] + raw[end:]


def put_in(rng: np.random.Generator, raw: bytes) -> bytes:
    at = int(rng.integers(len(raw) + 1))
    return raw[:at] + rng.bytes(int(rng.integers(1, 64))) + raw[at:]


def double(rng: np.random.Generator, raw: bytes) -> bytes:
    begin, end = a_range(rng, raw)
    return raw[:end] + raw[begin:]


def swap(rng: np.random.Generator, raw: bytes) -> bytes:
    one, two, three, four = sorted(rng.integers(0, len(raw) + 1, 4).tolist())
    return raw[:one] + raw[three:four] + raw[two:three] + raw[one:two] + raw[four:]


def reverse(rng: np.random.Generator, raw: bytes) -> bytes:
    begin, end = a_range(rng, raw)
    return raw[:begin] + raw[begin:end][::-1] + raw[end:]


def graft(rng: np.random.Generator, raw: bytes) -> bytes:
    """The beginning of one model and the rest of another."""
    models = good_models()
    other = models[int(rng.integers(len(models)))].read_bytes()
    at = int(rng.integers(len(raw)))
    return raw[:at] + other[at:]


def a_range(rng: np.random.Generator, raw: bytes) -> tuple[int, int]:
    begin = int(rng.integers(len(raw)))
    return begin, min(len(raw), begin + int(rng.integers(1, 400)))


DAMAGES: list[Damage] = [
    *(flip_a_bit, flip_bits, flip_a_bit_of_the_head, flip_a_bit_everywhere_alike, other_bytes),
    *(zeros, cut_short, cut_in_front, cut_out, put_in, double, swap, reverse, graft),
]


class TestDamage:
    """Seeded damage to good models: accepted only where it changed no byte."""

    @pytest.mark.parametrize(
        "files", [1_500, pytest.param(12_000, marks=pytest.mark.slow)], ids=["quick", "long"]
    )
    def test_none_is_accepted(self, tmp_path: Path, files: int) -> None:
        rng = np.random.default_rng(files)
        models = [path.read_bytes() for path in good_models()]
        path, tried, unchanged = tmp_path / "damaged.safetensors", 0, 0
        while tried < files:
            raw = models[tried % len(models)]
            damaged = DAMAGES[tried // len(models) % len(DAMAGES)](rng, raw)
            tried += 1
            path.write_bytes(damaged)
            if damaged in models:
                unchanged += 1
                read_model(path)
                continue
            with pytest.raises(ModelFileError) as caught:
                read_model(path)
            words = str(caught.value)
            assert repr(str(path)) in words
            assert words.isprintable()
        assert unchanged < files / 20  # the damage does damage

    @pytest.mark.parametrize("model", good_models(), ids=lambda path: path.stem)
    def test_words_name_hashes_or_sizes(self, tmp_path: Path, model: Path) -> None:
        raw = model.read_bytes()
        head = 8 + int.from_bytes(raw[:8], "little")
        path = tmp_path / "damaged.safetensors"
        for damaged, words in (
            (flipped(raw, [2400]), r"header is damaged, SHA-256 [0-9a-f]{64} where '[0-9a-f]{64}"),
            (flipped(raw, [8 * head]), r"weights are damaged, SHA-256 [0-9a-f]{64} where '\w"),
            (raw[:-1], r"tensors take \d+ bytes and the file has \d+ for them"),
            (raw[: head - 1], r"header claims \d+ bytes and the whole file has \d+"),
        ):  # fmt: skip
            path.write_bytes(damaged)
            with pytest.raises(ModelFileError, match=words):
                upslope.load(path)


HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1.5, 2**62, 10**40, 1e300, "", "os.system", "x\n\x1b[2J", "9" * 5000),
    *([], {}, [[]], {"a": {}}, ["x"] * 50, {"callable": "os.system"}, {"type": "Discrete", "n": 2}),
    {"type": "Box", "shape": [10**5, 10**5], "dtype": "float64", "low": [0], "high": [1]},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in JSON."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(where for key, item in items for where in places(item, (*path, key)))]


def with_one_changed(header: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the header with a value exchanged, dropped or added somewhere in it."""
    changed = copy.deepcopy(header)
    known = [where for where in places(changed) if where]
    *parents, last = known[int(rng.integers(len(known)))]
    inside: Any = changed
    for key in parents:
        inside = inside[key]
    hostile = HOSTILE[int(rng.integers(len(HOSTILE)))]
    what = rng.integers(4)
    if what == 0:
        del inside[last]
    elif what == 1 and isinstance(inside, dict):
        inside["extra"] = hostile
    else:
        inside[last] = hostile
    return changed


def loaded_or_refused(path: Path) -> upslope.Agent | None:
    """Load a file, or see that it is refused as it should be."""
    refusal: ModelFileError | ConfigError
    try:
        return upslope.load(path)
    except ModelFileError as error:
        refusal = error
    except ConfigError as error:  # the header names a factory, which the user must give
        refusal = error
        if "features factory" not in str(error):
            raise
    if str(path) not in str(refusal) or not str(refusal).isprintable():
        pytest.fail(str(refusal))
    return None


@pytest.mark.parametrize(
    "files", [250, pytest.param(6_000, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_headers_with_right_hashes_and_wrong_values(tmp_path: Path, files: int) -> None:
    """Whatever a header says, the file is refused in a sentence or holds the very same policy."""
    rng = np.random.default_rng(files)
    names = ["ppo_cartpole", "format2_lstm_dict", "format2_gru_beta", "format2_masked_multi"]
    models = [take_apart(GOLDEN / f"{name}.safetensors") for name in names]
    path, loaded = tmp_path / "m.safetensors", 0
    for number in range(files):
        parts = models[number % len(models)]
        header = with_one_changed(parts.header, rng)
        path.write_bytes(put_together(Parts(header, parts.rows)))
        agent = loaded_or_refused(path)
        if agent is not None:
            loaded += 1
            for name, tensor in agent.policy.state_dict().items():
                assert tensor.numpy().tobytes() == parts.rows[name].data
    assert files / 10 < loaded < files

"""The model file: what is written comes back exactly, and nothing else is ever read as a model."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from upslope.errors import ModelFileError
from upslope.runs import durable, model_file, safetensors_header
from upslope.runs.model_file import read_header, read_model, write_model

HEADER = {
    "algorithm": "ppo",
    "config": {"gamma": 0.99, "n_envs": 8, "target_kl": None, "anneal": True},
    "observation_space": {"low": ["-inf", -1.5], "high": ["inf", 1.5], "name": 'Größe "x"\\n'},
}
TENSORS = {
    "pi.weight": torch.tensor([[1.0, -2.0, 3.5], [0.25, 7.0, -0.0]]),
    "count": torch.tensor(12345, dtype=torch.int64),
    "mask": torch.tensor([True, False, True]),
}
MAGIC = b'{"__metadata__":{"header_sha256":"'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def good(path: Path) -> bytes:
    write_model(path, HEADER, TENSORS)
    return path.read_bytes()


def refusal(path: Path, read: Callable[[Path], object] = read_model) -> str:
    """Read ``path``, which must be refused in one sentence that names it; return the sentence."""
    with pytest.raises(ModelFileError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "Errno" not in message
    assert caught.value.exit_code == 5
    return message


def head_length(raw: bytes) -> int:
    return 8 + int.from_bytes(raw[:8], "little")


def sealed(text: bytes, data: bytes = b"") -> bytes:
    """Return a correctly hashed file of the JSON ``text``: MAGIC, 64 digits, anything."""
    assert text.startswith(MAGIC)
    cut = len(MAGIC)
    blank = len(text).to_bytes(8, "little") + text[:cut] + b"0" * 64 + text[cut + 64 :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank[: 8 + cut] + digest + blank[8 + cut + 64 :] + data


def forged(table: str, header: str | None = None, data: bytes = b"", extra: str = "") -> bytes:
    """Return a correctly hashed file with this JSON as the rows of the table and as the header."""
    if header is None:
        header = json.dumps({"format": 2, "tensors_sha256": "0" * 64})
    metadata = f'"{"0" * 64}","upslope":{json.dumps(header)}{extra}}}'
    rows = f",{table}" if table else ""
    return sealed(MAGIC[:-1] + metadata.encode() + rows.encode() + b"}", data)


class TestRoundTrip:
    @pytest.mark.parametrize(
        "dtype",
        [
            torch.bool,
            torch.uint8,
            torch.int8,
            torch.int16,
            torch.int32,
            torch.int64,
            torch.bfloat16,
            torch.float16,
            torch.float32,
            torch.float64,
        ],
        ids=str,
    )
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
    def test_dtype_and_shape(self, path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(7)
        tensor = (torch.randn(shape, generator=generator, dtype=torch.float64) * 50).to(dtype)
        write_model(path, {}, {"one": tensor, "two": tensor[..., None]})
        back = read_model(path)[1]
        assert back["one"].dtype == dtype
        assert back["one"].shape == shape
        assert torch.equal(back["one"], tensor)
        assert torch.equal(back["two"], tensor[..., None])

    def test_header(self, path: Path, good: bytes) -> None:
        header, tensors = read_model(path)
        assert {key: header[key] for key in HEADER} == HEADER
        assert set(header) - set(HEADER) == {"format", "upslope_version", "tensors_sha256"}
        assert header["format"] == safetensors_header.FORMAT
        assert len(header["tensors_sha256"]) == 64
        assert set(tensors) == set(TENSORS)
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)

    def test_bits_of_special_floats(self, path: Path) -> None:
        bits = torch.tensor([0x7FC00001, 0x7F800000, 1, 0], dtype=torch.int32)
        bits = torch.cat([bits, bits | torch.tensor(-(2**31), dtype=torch.int32)])
        write_model(path, {}, {"x": bits.view(torch.float32)})
        assert torch.equal(read_model(path)[1]["x"].view(torch.int32), bits)

    def test_views_shared_memory_and_gradients(self, path: Path) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        tensors = {
            "transposed": base.T,
            "strided": base[:, ::2],
            "expanded": base[0, 0].expand(2, 5),
            "tied": base,
            "tied again": base,
            "trained": torch.nn.Parameter(base),
        }
        write_model(path, {}, tensors)
        back = read_model(path)[1]
        assert all(torch.equal(back[name], tensors[name]) for name in tensors)
        assert not any(tensor.requires_grad for tensor in back.values())
        back["tied"].zero_()  # what comes back can be written to, and shares nothing
        assert torch.equal(back["tied again"], base)

    def test_no_tensors(self, path: Path) -> None:
        write_model(path, {"note": "empty"}, {})
        header, tensors = read_model(path)
        assert header["note"] == "empty"
        assert tensors == {}

    def test_names(self, path: Path) -> None:
        tensors = {name: torch.ones(1) for name in ['a"b\\', "größe", "../x", "", "a\nb", "\x7f"]}
        write_model(path, {}, tensors)
        assert set(read_model(path)[1]) == set(tensors)

    def test_read_model_can_be_written_again(self, path: Path, good: bytes) -> None:
        header, tensors = read_model(path)
        write_model(path, {**header, "format": 99, "tensors_sha256": "stale"}, tensors)
        assert read_model(path)[0] == header

    def test_equal_contents_give_equal_bytes(self, path: Path, good: bytes) -> None:
        write_model(path, HEADER, dict(reversed(TENSORS.items())))
        assert path.read_bytes() == good

    def test_hash_is_of_names_shapes_and_dtypes_too(self, path: Path) -> None:
        zeros = torch.zeros(4, dtype=torch.int32)
        variants = [
            {"a": zeros},
            {"b": zeros},
            {"a": zeros.reshape(2, 2)},
            {"a": zeros.float()},
            {"a": zeros + 1},
        ]
        hashes = set()
        for tensors in variants:
            write_model(path, {}, tensors)
            hashes.add(read_header(path)["tensors_sha256"])
        assert len(hashes) == len(variants)

    def test_hash_spelled_out(self, path: Path) -> None:
        wide, narrow = torch.tensor([1.0, 2.0]), torch.tensor([[3]], dtype=torch.uint8)
        write_model(path, {}, {"b wide": wide, "a narrow": narrow})
        assert list(read_model(path)[1]) == [
            "b wide",
            "a narrow",
        ]  # the layout has wide types first
        labels = b'[["a narrow", "U8", [1, 1]], ["b wide", "F32", [2]]]'
        expected = hashlib.sha256(labels + b"\x03" + b"\0\0\x80\x3f\0\0\0\x40").hexdigest()
        assert read_header(path)["tensors_sha256"] == expected

    def test_plain_safetensors_reads_the_weights(self, path: Path, good: bytes) -> None:
        plain = load_file(path)
        assert all(torch.equal(plain[name], TENSORS[name]) for name in TENSORS)
        assert head_length(good) % 8 == 0

    def test_parent_folders_are_made_and_mode_follows_umask(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folders" / ("n" * 250)
        previous = os.umask(0o027)
        try:
            write_model(path, HEADER, TENSORS)
        finally:
            os.umask(previous)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    def test_text_path(self, path: Path) -> None:
        write_model(str(path), HEADER, TENSORS)
        assert read_header(str(path)) == read_model(str(path))[0]


class TestReadHeader:
    def test_equals_the_header_of_read_model(self, path: Path, good: bytes) -> None:
        assert read_header(path) == read_model(path)[0]

    def test_needs_neither_torch_nor_the_tensors(self, path: Path, good: bytes) -> None:
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        program = (
            "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\n"
            "from upslope.runs.model_file import read_header\n"
            "print(read_header(sys.argv[1])['algorithm'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == "ppo", done.stderr
        assert "weights are damaged" in refusal(path)


class TestDamage:
    def test_every_flipped_bit_is_refused(self, path: Path, good: bytes) -> None:
        head = head_length(good)
        for position in range(len(good)):
            for bit in range(8):
                damaged = bytearray(good)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                message = refusal(path)
                if position < head:
                    refusal(path, read_header)
                else:
                    assert "weights are damaged, SHA-256" in message

    def test_every_truncation_is_refused(self, path: Path, good: bytes) -> None:
        for size in range(len(good)):
            path.write_bytes(good[:size])
            refusal(path)
            refusal(path, read_header)

    @pytest.mark.parametrize("tail", [b"\0", b" ", b"\0" * 8, b"PK\x05\x06"], ids=repr)
    def test_bytes_behind_the_end_are_refused(self, path: Path, good: bytes, tail: bytes) -> None:
        path.write_bytes(good + tail)
        assert "for them" in refusal(path)
        refusal(path, read_header)

    def test_header_hash_is_shown(self, path: Path, good: bytes) -> None:
        path.write_bytes(good.replace(b"0.99", b"0.98"))
        message = refusal(path)
        expected = good[8 + len(MAGIC) :][:64].decode()
        assert "its header is damaged, SHA-256" in message
        assert expected in message

    def test_swapped_tensors_are_refused(self, path: Path) -> None:
        write_model(path, {}, {"one": torch.ones(2), "two": torch.zeros(2)})
        raw = path.read_bytes()
        text = raw[8 : head_length(raw)]
        swapped = text.replace(b'"one"', b'"xxx"').replace(b'"two"', b'"one"')
        swapped = swapped.replace(b'"xxx"', b'"two"')
        path.write_bytes(sealed(swapped, raw[head_length(raw) :]))
        assert "weights are damaged" in refusal(path)

    @settings(
        max_examples=300,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_random_edits_are_refused(self, path: Path, good: bytes, data: st.DataObject) -> None:
        raw = good
        for _ in range(data.draw(st.integers(1, 3))):
            begin = data.draw(st.integers(0, len(raw)))
            end = data.draw(st.integers(begin, min(len(raw), begin + 20)))
            raw = raw[:begin] + data.draw(st.binary(max_size=20)) + raw[end:]
        path.write_bytes(raw)
        if raw == good:
            read_model(path)
        else:
            refusal(path)


class TestForeignFiles:
    def test_missing(self, path: Path) -> None:
        assert "there is no such file" in refusal(path)

    def test_folder(self, tmp_path: Path) -> None:
        assert "it is a folder" in refusal(tmp_path)

    def test_empty(self, path: Path) -> None:
        path.touch()
        assert "it is empty" in refusal(path)

    def test_folder_in_the_path_is_a_file(self, path: Path) -> None:
        path.touch()
        assert "Not a directory" in refusal(path / "model")

    def test_null_character_in_the_path(self) -> None:
        with pytest.raises(ModelFileError, match="null"):
            read_model("a\0b")
        with pytest.raises(ModelFileError, match="null"):
            write_model("a\0b", HEADER, TENSORS)

    def test_pipe_is_refused_without_waiting(self, path: Path) -> None:
        os.mkfifo(path)
        messages: list[str] = []
        thread = threading.Thread(target=lambda: messages.append(refusal(path)), daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert messages
        assert "device, pipe or socket" in messages[0]

    def test_device(self) -> None:
        assert "device, pipe or socket" in refusal(Path("/dev/zero"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_unreadable(self, path: Path, good: bytes) -> None:
        path.chmod(0)
        assert "Permission denied" in refusal(path)

    def test_zip(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", '{"policy_class": "ActorCriticPolicy"}')
        assert "it is a zip archive, as Stable-Baselines3" in refusal(path)

    def test_torch_save(self, path: Path) -> None:
        torch.save(TENSORS, path)
        assert "it is a zip archive" in refusal(path)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle_is_not_run(self, path: Path, protocol: int) -> None:
        marker = path.with_suffix(".ran")
        path.write_bytes(pickle.dumps(Touch(str(marker)), protocol=protocol))
        message = refusal(path)
        assert ("Python pickle" in message) == (protocol >= 2)
        assert not marker.exists()

    def test_safetensors_without_our_header(self, path: Path) -> None:
        save_file(TENSORS, path, metadata={"format": "pt"})
        assert "safetensors file without upslope's header" in refusal(path)
        refusal(path, read_header)

    @settings(
        max_examples=200,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(raw=st.binary(max_size=300))
    def test_random_bytes(self, path: Path, raw: bytes) -> None:
        path.write_bytes(raw)
        refusal(path)


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (self.path,)


class TestHostileFiles:
    """Files with correct hashes, as someone who means harm would make them."""

    def test_the_forger_can_make_a_good_file(self, path: Path, good: bytes) -> None:
        path.write_bytes(sealed(good[8 : head_length(good)], good[head_length(good) :]))
        read_model(path)
        path.write_bytes(forged(""))
        assert read_header(path)["format"] == safetensors_header.FORMAT

    @pytest.mark.parametrize(
        ("row", "data_bytes", "why"),
        [
            ('{"dtype":"F31","shape":[1],"data_offsets":[0,4]}', 4, "dtype 'F31'"),
            ('{"dtype":"C64","shape":[1],"data_offsets":[0,8]}', 8, "dtype 'C64'"),
            ('{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}', 4, "dtype"),
            ('{"dtype":null,"shape":[1],"data_offsets":[0,4]}', 4, "dtype None"),
            ('{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}', 4, "shape"),
            ('{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}', 4, "shape"),
            ('{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}', 4, "shape"),
            ('{"dtype":"F32","shape":[true],"data_offsets":[0,4]}', 4, "shape"),
            ('{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}', 4, "shape"),
            ('{"dtype":"F32","shape":1,"data_offsets":[0,4]}', 4, "shape"),
            ('{"dtype":"F32","shape":null,"data_offsets":[0,4]}', 4, "shape"),
            ('{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}', 0, "shape"),
            (f'{{"dtype":"F32","shape":{[1] * 65},"data_offsets":[0,4]}}', 4, "shape"),
            ('{"dtype":"F32","shape":[2],"data_offsets":[0,4]}', 4, "does not fill"),
            ('{"dtype":"F64","shape":[1],"data_offsets":[0,4]}', 4, "does not fill"),
            ('{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}', 4, "not fill"),
            ('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}', 0, "not fill"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[4,0]}', 4, "does not fill"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[0]}', 4, "offsets"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}', 4, "offsets"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}', 4, "offsets"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[0.0,4.0]}', 4, "offsets"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[false,4]}', 4, "offsets"),
            ('{"dtype":"F32","shape":[1],"data_offsets":{"0":0,"1":4}}', 4, "offsets"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[4,8]}', 8, "begins at byte 4"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', 5, "the file has 5"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', 3, "the file has 3"),
            ('{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}', 4, "other keys"),
            ('{"dtype":"F32","shape":[1]}', 4, "other keys"),
            ("[]", 0, "other keys"),
            ("null", 0, "other keys"),
            ('"F32"', 0, "other keys"),
        ],
    )
    def test_bad_row(self, path: Path, row: str, data_bytes: int, why: str) -> None:
        path.write_bytes(forged(f'"x":{row}', data=b"\0" * data_bytes))
        assert why in refusal(path)
        assert why in refusal(path, read_header)

    @pytest.mark.parametrize(
        ("ranges", "why"),
        [
            ([(0, 8), (4, 12)], "begins at byte 4 of the data where 8"),
            ([(0, 4), (8, 12)], "begins at byte 8 of the data where 4"),
            ([(0, 12), (0, 12)], "begins at byte 0 of the data where 12"),
            ([(0, 4), (4, 8)], "take 8 bytes and the file has 12"),
        ],
        ids=["overlap", "gap", "twice", "short"],
    )
    def test_bad_ranges(self, path: Path, ranges: list[tuple[int, int]], why: str) -> None:
        rows = ",".join(
            f'"t{i}":{{"dtype":"U8","shape":[{end - begin}],"data_offsets":[{begin},{end}]}}'
            for i, (begin, end) in enumerate(ranges)
        )
        path.write_bytes(forged(rows, data=b"\0" * 12))
        assert why in refusal(path)

    def test_duplicate_keys(self, path: Path) -> None:
        row = '"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
        files = [
            forged(f"{row},{row}"),
            forged(row.replace('"shape":[0]', '"shape":[0],"shape":[0]')),
            forged("", header='{"format":1,"format":1,"tensors_sha256":""}'),
            forged("", extra=',"upslope":"{}"'),
            forged('"__metadata__":{}'),
        ]
        for raw in files:
            path.write_bytes(raw)
            assert "twice" in refusal(path)

    @pytest.mark.parametrize("extra", [',"format":"pt"', ',"x":1'])
    def test_unknown_metadata(self, path: Path, extra: str) -> None:
        path.write_bytes(forged("", extra=extra))
        assert "other keys than header_sha256 and upslope" in refusal(path)

    @pytest.mark.parametrize("metadata", [b'"}}', b'","upslope":{}}}', b'","upslope":null}}'])
    def test_missing_or_wrong_metadata(self, path: Path, metadata: bytes) -> None:
        path.write_bytes(sealed(MAGIC + b"0" * 64 + metadata))
        assert "metadata" in refusal(path)

    @pytest.mark.parametrize("opening", ["[", '{"a":'])
    @pytest.mark.parametrize("depth", [65, 5_000, 200_000])
    def test_deep_nesting(self, path: Path, opening: str, depth: int) -> None:
        for raw in (forged(f'"x":{opening * depth}'), forged("", header=opening * depth)):
            path.write_bytes(raw)
            assert "nests deeper than 64 levels" in refusal(path)

    def test_brackets_in_strings_are_not_depth(self, path: Path) -> None:
        header = {"note": '"\\[[' * 200, "deep": json.loads("[" * 63 + "]" * 63)}
        header["wide"] = [[], {}] * 100
        write_model(path, header, {})
        assert read_header(path)["note"] == header["note"]

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
    def test_numbers_that_are_not_finite(self, path: Path, number: str) -> None:
        header = f'{{"format":1,"tensors_sha256":"","x":[{number}]}}'
        path.write_bytes(forged("", header=header))
        assert "not finite" in refusal(path)

    @pytest.mark.parametrize(
        ("header", "why"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            ('{"format":1} x', "not JSON"),
            ("9" * 5000, "not JSON"),
            ("__import__('os')", "not JSON"),
            ("[]", "not a JSON object"),
            ("1", "not a JSON object"),
            ('{"tensors_sha256":""}', "format None"),
            ('{"format":0}', "format 0 is not a whole number"),
            ('{"format":true}', "format True"),
            ('{"format":1.0}', "format 1.0"),
            ('{"format":"1"}', "format '1'"),
            ('{"format":1}', "no hash of the tensors"),
            ('{"format":1,"tensors_sha256":null}', "no hash of the tensors"),
        ],
    )
    def test_bad_header(self, path: Path, header: str, why: str) -> None:
        path.write_bytes(forged("", header=header))
        assert why in refusal(path)

    def test_header_that_is_not_ascii(self, path: Path) -> None:
        path.write_bytes(forged('"ü":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'))
        assert "not ASCII" in refusal(path)

    def test_length_field_is_checked_before_memory_is_taken(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claims = [2**24 + 1, 2**30, 2**62, 2**64 - 1, 2**64 - 8]
        asked: list[int] = []
        monkeypatch.setattr(model_file.os, "fdopen", lambda fd, mode: Recorder(fd, asked))
        for claim in claims:
            path.write_bytes(claim.to_bytes(8, "little") + MAGIC + b"0" * 200)
            assert f"claims {claim} bytes" in refusal(path)
        assert len(asked) == len(claims)
        assert max(asked) < 1000

    @pytest.mark.parametrize("length", [0, 1, 8, 97, 5_000])
    def test_length_field_does_not_fit(self, path: Path, good: bytes, length: int) -> None:
        path.write_bytes(length.to_bytes(8, "little") + good[8:])
        assert f"claims {length} bytes and the whole file has {len(good)}" in refusal(path)

    def test_caps(self, path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(safetensors_header, "MAX_FILE_BYTES", len(good))
        monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", head_length(good) - 8)
        read_model(path)
        monkeypatch.setattr(safetensors_header, "MAX_FILE_BYTES", len(good) - 1)
        assert f"the most is {len(good) - 1}" in refusal(path)
        with pytest.raises(ModelFileError, match="the most is"):
            write_model(path, HEADER, TENSORS)
        monkeypatch.setattr(safetensors_header, "MAX_FILE_BYTES", len(good))
        monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", head_length(good) - 9)
        assert "its header claims" in refusal(path)
        with pytest.raises(ModelFileError, match="the most is"):
            write_model(path, HEADER, TENSORS)
        assert path.read_bytes() == good

    def test_what_only_safetensors_refuses(self, path: Path) -> None:
        row = {"dtype": "F64", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}
        labels = json.dumps([["x", row["dtype"], row["shape"]]])
        tensors_sha256 = hashlib.sha256(labels.encode()).hexdigest()
        header = json.dumps({"format": 1, "tensors_sha256": tensors_sha256})
        path.write_bytes(forged(f'"x":{json.dumps(row)}', header=header))
        assert "safetensors refuses it" in refusal(path)

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def test_any_json_is_read_or_refused(self, path: Path, data: st.DataObject) -> None:
        small = st.integers(-2, 9) | st.integers() | st.booleans() | st.text() | st.none()
        value = st.recursive(
            small | st.floats(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
            max_leaves=8,
        )
        row = st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BOOL", "BF16"]) | value,
                "shape": st.lists(st.integers(0, 3), max_size=3) | value,
                "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | value,
            }
        )
        rows = data.draw(st.dictionaries(st.text(max_size=4), row | value, max_size=3))
        extras = data.draw(st.dictionaries(st.text(max_size=4), value, max_size=3))
        header = json.dumps({"format": 1, "tensors_sha256": "", **extras})
        table = json.dumps(rows)[1:-1]
        path.write_bytes(forged(table, header=header, data=data.draw(st.binary(max_size=16))))
        try:
            read_header(path)
        except ModelFileError:
            refusal(path)


class Recorder(io.FileIO):
    """A file that notes how many bytes each read asks for."""

    def __init__(self, descriptor: int, asked: list[int]) -> None:
        super().__init__(descriptor)
        self.asked = asked

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked.append(-1 if size is None else size)
        return super().read(size) or b""


class TestFormats:
    def test_newer(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        present = safetensors_header.FORMAT
        monkeypatch.setattr(safetensors_header, "FORMAT", present + 2)
        monkeypatch.setattr(safetensors_header, "_version", lambda: "9.8.7")
        write_model(path, HEADER, TENSORS)
        monkeypatch.setattr(safetensors_header, "FORMAT", present)
        monkeypatch.setattr(safetensors_header, "_version", lambda: "1.0.0")
        expected = (
            f"written by upslope 9.8.7 (format {present + 2}) and this is upslope 1.0.0, which"
            f" reads up to format {present}; upgrade upslope"
        )
        assert expected in refusal(path)
        assert expected in refusal(path, read_header)

    def test_newer_with_rows_of_another_kind(self, path: Path) -> None:
        path.write_bytes(forged('"x":{"dtype":"F4"}', header='{"format":3}'))
        assert "upgrade upslope" in refusal(path)

    def test_damaged_newer_file_is_called_damaged(self, path: Path) -> None:
        raw = forged("", header='{"format":3,"tensors_sha256":""}')
        path.write_bytes(raw.replace(b":3,", b":4,"))
        assert "its header is damaged" in refusal(path)

    def test_older_is_migrated_step_by_step(
        self, path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        present = safetensors_header.FORMAT
        monkeypatch.setattr(safetensors_header, "FORMAT", present + 2)
        steps = {
            present: lambda header: {**header, "trail": ["one"]},
            present + 1: lambda header: {**header, "trail": [*header["trail"], "two"]},
        }
        monkeypatch.setattr(safetensors_header, "MIGRATIONS", steps)
        header, tensors = read_model(path)
        assert header["trail"] == ["one", "two"]
        assert header["format"] == present + 2
        assert set(tensors) == set(TENSORS)

    def test_older_without_a_migration(
        self, path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(safetensors_header, "FORMAT", safetensors_header.FORMAT + 1)
        assert "has format 2, which upslope" in refusal(path)


class TestRefusedContents:
    @pytest.mark.parametrize(
        ("header", "why"),
        [
            ({"bounds": {"high": [float("inf")]}}, "field 'bounds' is not JSON"),
            ({"x": float("nan")}, "field 'x' is not JSON"),
            ({"x": torch.ones(1)}, "field 'x' is not JSON"),
            ({"x": 10**5000}, "field 'x' is not JSON"),
            ({1: "x"}, "header key 1 is not a string"),
            ({"x": {1: "a", "1": "b"}}, "key '1' twice"),
            ({"x": json.loads("[" * 64 + "]" * 64)}, "nests deeper than 64"),
        ],
        ids=["inf", "nan", "tensor", "long", "key", "twice", "deep"],
    )
    def test_header(self, path: Path, good: bytes, header: dict[Any, Any], why: str) -> None:
        with pytest.raises(ModelFileError, match=f"{why}.*nothing was written") as caught:
            write_model(path, header, TENSORS)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == good
        assert os.listdir(path.parent) == [path.name]

    def test_header_that_contains_itself(self, path: Path) -> None:
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(ModelFileError, match="Circular"):
            write_model(path, {"x": loop}, {})

    def test_header_nested_beyond_the_stack(self, path: Path) -> None:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(ModelFileError, match="field 'x' is not JSON"):
            write_model(path, {"x": deep}, {})

    @pytest.mark.parametrize(
        ("name", "make", "why"),
        [
            ("x", lambda: [1.0], "is a list, not a tensor"),
            ("x", lambda: torch.ones(1, dtype=torch.complex64), "dtype 'C64'"),
            ("x", lambda: torch.ones(1, dtype=torch.complex128), "safetensors refuses"),
            ("x", lambda: torch.eye(2).to_sparse(), "cannot be copied|safetensors refuses"),
            ("x", lambda: torch.ones(1, device="meta"), "cannot be copied"),
            ("__metadata__", lambda: torch.ones(1), "cannot be the name"),
            (7, lambda: torch.ones(1), "safetensors refuses"),
            ("\ud800", lambda: torch.ones(1), "safetensors refuses"),
        ],
    )
    def test_tensor(self, path: Path, good: bytes, name: Any, make: Any, why: str) -> None:
        with pytest.raises(ModelFileError, match=f"({why}).*nothing was written"):
            write_model(path, HEADER, {name: make()})
        assert path.read_bytes() == good


class TestFailedWrites:
    """Whatever the disk does, the old file stays and no temporary file is left."""

    @pytest.fixture
    def unharmed(self, path: Path, good: bytes) -> Iterator[None]:
        yield
        assert path.read_bytes() == good
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.usefixtures("unharmed")
    @pytest.mark.parametrize("call", ["replace", "fsync"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
    def test_system_call_fails(
        self, path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch, call: str, code: int
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(model_file.os, call, fail)
        with pytest.raises(ModelFileError) as caught:
            write_model(path, HEADER, TENSORS)
        message = str(caught.value)
        assert f"({len(good)} bytes needed, " in message
        assert " free)" in message
        assert os.strerror(code) in message
        assert str(path) in message

    @pytest.mark.usefixtures("unharmed")
    def test_file_size_limit(self, path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(ModelFileError, match="File too large"):
                write_model(path, HEADER, {"large": torch.zeros(100_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)

    @pytest.mark.usefixtures("unharmed")
    def test_interrupt(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(model_file.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_model(path, {"note": "new"}, {})

    def test_folder_is_synced_after_the_rename(
        self, path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        sync, replace = os.fsync, os.replace

        def note_sync(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            order.append("sync folder" if is_folder else "sync file")
            sync(descriptor)

        def note_replace(source: Path, target: Path) -> None:
            order.append("replace")
            assert Path(source).parent == Path(target).parent
            assert Path(source).name.endswith(durable.TEMPORARY_SUFFIX)
            assert Path(source).read_bytes() == good
            replace(source, target)

        monkeypatch.setattr(model_file.os, "fsync", note_sync)
        monkeypatch.setattr(model_file.os, "replace", note_replace)
        write_model(path, HEADER, TENSORS)
        assert order == ["sync file", "replace", "sync folder"]

    @pytest.mark.parametrize(("code", "raises"), [(errno.EIO, True), (errno.EINVAL, False)])
    def test_folder_sync_fails(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raises: bool
    ) -> None:
        sync = os.fsync

        def fail_for_folders(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(code, os.strerror(code))
            sync(descriptor)

        monkeypatch.setattr(model_file.os, "fsync", fail_for_folders)
        if raises:
            with pytest.raises(ModelFileError, match="is written but its folder cannot be synced"):
                write_model(path, HEADER, TENSORS)
        else:
            write_model(path, HEADER, TENSORS)
        read_model(path)
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize("name", ["n" * 300, "folder", "file/model"])
    def test_impossible_target(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(ModelFileError, match=r"cannot write .* bytes needed, .*free"):
            write_model(tmp_path / name, HEADER, TENSORS)
        assert sorted(os.listdir(tmp_path)) == ["file", "folder"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_unwritable_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(ModelFileError, match="Permission denied"):
            write_model(tmp_path / "model", HEADER, TENSORS)

    def test_link_is_replaced_and_its_target_kept(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_text("mine")
        link = tmp_path / "link"
        link.symlink_to(target)
        write_model(link, HEADER, TENSORS)
        assert target.read_text() == "mine"
        assert not link.is_symlink()
        read_model(link)


def test_safetensors_itself_has_no_checksum() -> None:
    """The reason for the hashes; should this ever fail, safetensors has gained one."""
    from safetensors.torch import load

    raw = bytearray(save({"x": torch.ones(2)}))
    raw[-1] ^= 1
    assert not torch.equal(load(bytes(raw))["x"], torch.ones(2))

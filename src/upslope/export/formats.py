"""A traced policy as the bytes of a file, ONNX or torch's .pt2, and such bytes as a function."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import ConfigError, first_line
from upslope.export.graph import PolicyGraph

Arrays = dict[str, NDArray[Any]]
METADATA = "upslope"  # the key in an ONNX file; in a .pt2 the extra file `upslope.json`


def trace(graph: PolicyGraph, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """Return the program of a graph, for batches of any size.

    Args:
        graph: of a policy on the CPU.
        inputs: two rows or more by name; their numbers do not matter.

    Raises:
        ConfigError: if a features module of the user's does what cannot be traced.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in inputs}
    try:
        with _quiet():
            program = torch.export.export(
                graph, (dict(inputs),), dynamic_shapes=(shapes,), strict=True
            )
    except Exception as error:  # whatever a user's module raises while it is traced
        raise ConfigError(
            f"this policy cannot be traced ({type(error).__name__}: {first_line(error)}); "
            "its features module must be tensor operations alone, for any number of rows"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def to_torch(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """Return the bytes of a ``.pt2`` file."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={f"{METADATA}.json": json.dumps(metadata)})
    return file.getvalue()


def to_onnx(
    program: torch.export.ExportedProgram, graph: PolicyGraph, metadata: Mapping[str, Any]
) -> bytes:
    """Return the bytes of an ONNX file whose first axis is called ``batch`` everywhere.

    Raises:
        ConfigError: if the extra is missing, or ONNX lacks an operation.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--format onnx needs {package}: run pip install 'upslope[onnx]'")
    try:
        with _quiet():
            made = torch.onnx.export(
                program, dynamo=True, verbose=False,
                input_names=graph.inputs, output_names=graph.outputs,
            )  # fmt: skip
    except Exception as error:
        raise ConfigError(
            f"this policy cannot be written as ONNX ({type(error).__name__}: "
            f"{first_line(error)}); write it with --format torch"
        ) from error
    assert made is not None
    proto: Any = made.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:], proto.graph.metadata_props[:]
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(metadata)
    return bytes(proto.SerializeToString(deterministic=True))


def run_torch(data: bytes) -> Callable[[Arrays], Arrays]:
    """Return the function that the bytes of a ``.pt2`` file written just now are."""
    with _quiet():
        module: Any = torch.export.load(io.BytesIO(data)).module()

    def call(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = module({name: torch.from_numpy(x) for name, x in inputs.items()})
        return {name: x.numpy() for name, x in outputs.items()}

    return call


def run_onnx(data: bytes) -> Callable[[Arrays], Arrays] | None:
    """Return the function that the bytes of an ONNX file are; None without onnxruntime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own inside, which say nothing about the policy."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""Nothing in src can unpickle or evaluate: read off the syntax trees of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent.parent / "src"

# Modules that make objects, and so run code, from bytes.
UNPICKLING = {
    "pickle", "_pickle", "cPickle", "pickletools", "cloudpickle", "dill", "marshal", "shelve",
    "joblib", "jsonpickle", "copyreg",
}  # fmt: skip
EVALUATING = {"eval", "exec", "compile", "__import__", "execfile"}  # as built-in functions
# Functions that unpickle or evaluate, by the end of their dotted name.
FORBIDDEN = {
    "torch.load", "torch.jit.load", "torch.jit.CompilationUnit", "torch.package.PackageImporter",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.export.load",
    "torch._inductor.aoti_load_package", "torch._C._aoti.AOTIModelPackageLoader",
    "numpy.fromregex", "pandas.read_pickle", "code.interact", "builtins.eval", "builtins.exec",
    "runpy.run_path", "runpy.run_module", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
}  # fmt: skip

# What of these there is, file by file, and why nothing from a stranger reaches it.
ALLOWED = {
    # Source text that the library writes itself, out of the schemas of torch's own operators and
    # the numbers of arguments it recorded: TorchScript that replays a gradient step.
    ("upslope/optim/torch_parts.py", "torch.jit.CompilationUnit"): 2,
    # A gradient step that this machine compiled, from the user's own cache folder: machine code,
    # no model, and never a path that a file names.
    ("upslope/optim/torch_parts.py", "torch._C._aoti.AOTIModelPackageLoader"): 1,
    ("upslope/optim/torch_parts.py", "torch._inductor.aoti_load_package"): 1,
    # Bytes that this very process has just exported, to compare what they compute.
    ("upslope/export/formats.py", "torch.export.load"): 1,
}


def suspects(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything in a file that could unpickle or evaluate."""
    names = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if is_unpickling(a.name))
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = is_unpickling(node.module or "")
            yield from ((node.lineno, w) for w in whole if found or w in FORBIDDEN)
        elif isinstance(node, ast.Attribute):
            name = dotted(node, names)
            if name in FORBIDDEN or is_unpickling(name):
                yield node.lineno, name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Names of what is imported when it is used: "torch.jit:CompilationUnit".
            name = node.value.replace(":", ".")
            if name in FORBIDDEN or (" " not in name and is_unpickling(name)):
                yield node.lineno, name
        elif isinstance(node, ast.Call):
            yield from suspicious_call(node, names)


def suspicious_call(node: ast.Call, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield calls of eval and its like, and those that ask for unpickling or a YAML loader."""
    if isinstance(node.func, ast.Name) and node.func.id in EVALUATING - names.keys():
        yield node.lineno, node.func.id
    for keyword in node.keywords:
        value = getattr(keyword.value, "value", "not a constant")
        if keyword.arg == "allow_pickle" and value is not False:
            yield node.lineno, "allow_pickle"
        if keyword.arg == "weights_only" and value is not True:
            yield node.lineno, "weights_only"
        if keyword.arg == "Loader" and dotted(keyword.value, names) != "yaml.SafeLoader":
            yield node.lineno, "yaml Loader"


def is_unpickling(module: str) -> bool:
    return module.split(".")[0] in UNPICKLING


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for: np is numpy."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return the dotted name of an attribute, its first part spelled out; '' of anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return ""


def found_in(folder: Path) -> dict[tuple[str, str], list[int]]:
    """Return file and name of every suspect, with its lines."""
    found: dict[tuple[str, str], list[int]] = {}
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, name in suspects(tree):
            found.setdefault((path.relative_to(folder).as_posix(), name), []).append(line)
    return found


def test_nothing_but_what_is_allowed() -> None:
    found = found_in(SRC)
    assert {where: len(lines) for where, lines in found.items()} == ALLOWED, found
    assert len(list(SRC.rglob("*.py"))) > 90


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from cloudpickle import loads as l",
        "import dill.source",
        "import marshal",
        "import joblib",
        "import shelve",
        "eval('1')",
        "exec(text)",
        "compile(text, 'f', 'exec')",
        "__import__('os')",
        "import builtins\nbuiltins.eval('1')",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "from torch import load",
        "from torch import jit\njit.load(path)",
        "import torch\ntorch.jit.load(path)",
        "import torch\ntorch.hub.load(a, b)",
        "import torch\ntorch.export.load(path)",
        "part('torch:load')(path)",
        "importlib.import_module('pickle')",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy\nnumpy.load(path, allow_pickle=wanted)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "import yaml\nyaml.parse(text, Loader=yaml.UnsafeLoader)",
        "from yaml import full_load",
        "def f():\n    from runpy import run_path",
    ],
)
def test_a_planted_call_is_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "planted.py").write_text(code)
    assert found_in(tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        "module.eval()",
        "import re\nre.compile('x')",
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nyaml.parse(text, Loader=yaml.SafeLoader)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "from upslope.agent import load\nload(path)",
        "words = 'it is a Python pickle, which could run code'",
        "from safetensors.torch import load\nload(raw)",
        "self.compile(x)",
    ],
)
def test_what_only_looks_so_is_not(tmp_path: Path, code: str) -> None:
    (tmp_path / "planted.py").write_text(code)
    assert not found_in(tmp_path)


def test_numpy_does_not_unpickle_unasked(tmp_path: Path) -> None:
    """The reason why a plain numpy.load is allowed."""
    import numpy as np

    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(tmp_path / "x.npy")

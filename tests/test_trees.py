"""Trees of arrays: a bare array is one, and structure, order and dtype survive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upslope.trees import concatenate, flatten_time, leaves, map_tree, stack, to_torch

CPU = torch.device("cpu")


def example(offset: int = 0) -> dict[str, object]:
    """A dict that holds an array and a tuple of an array and a dict."""
    return {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3) + offset,
        "a": (np.array([1, 2]) + offset, {"deep": np.array([True, False])}),
    }


def test_map_tree_keeps_the_structure() -> None:
    mapped = map_tree(lambda x: x.shape, example())
    assert mapped == {"b": (2, 3), "a": ((2,), {"deep": (2,)})}
    assert list(mapped) == ["b", "a"]
    assert map_tree(lambda x: x + 1, 4) == 5


def test_map_tree_joins_corresponding_leaves() -> None:
    reordered = {key: example(10)[key] for key in ("a", "b")}
    gaps = map_tree(
        lambda x, y, z: (y - x if x.dtype != bool else x) * 1 + 0 * z,
        example(),
        reordered,
        example(),
    )
    assert (gaps["b"] == 10).all()
    assert (gaps["a"][0] == 10).all()
    assert map_tree(lambda x, y: x - y, (5, 3), (1, 2)) == (4, 1)


def test_map_tree_refuses_trees_of_another_structure() -> None:
    with pytest.raises(ValueError, match="shorter"):
        map_tree(lambda x, y: x, (1, 2), (1,))
    with pytest.raises(KeyError):
        map_tree(lambda x, y: x, {"a": 1}, {"b": 1})


def test_map_tree_leaves_its_inputs_alone() -> None:
    tree = example()
    map_tree(lambda x: x * 0, tree)
    for before, after in zip(leaves(example()), leaves(tree), strict=True):
        np.testing.assert_array_equal(before, after)


def test_leaves_come_in_the_order_of_the_tree() -> None:
    assert [x.dtype.kind for x in leaves(example())] == ["f", "i", "b"]
    assert leaves(7) == [7]
    assert leaves(()) == []
    assert leaves(((1, 2), {"x": 3, "a": 4})) == [1, 2, 3, 4]


def test_stack_adds_a_first_axis() -> None:
    stacked = stack([example(0), example(10), example(20)])
    assert [x.shape for x in leaves(stacked)] == [(3, 2, 3), (3, 2), (3, 2)]
    assert stacked["a"][0].tolist() == [[1, 2], [11, 12], [21, 22]]
    assert stack([np.zeros(2), np.ones(2)]).tolist() == [[0, 0], [1, 1]]


def test_concatenate_joins_the_first_axis() -> None:
    trees = [to_torch(example(offset), CPU) for offset in (0, 10)]
    joined = concatenate(trees)
    assert [x.shape[0] for x in leaves(joined)] == [4, 4, 4]
    assert joined["a"][0].tolist() == [1, 2, 11, 12]


def test_to_torch_keeps_dtypes_and_copies_nothing() -> None:
    tree = example()
    tensors = to_torch(tree, CPU)
    assert [x.dtype for x in leaves(tensors)] == [torch.float32, torch.int64, torch.bool]
    for array, tensor in zip(leaves(tree), leaves(tensors), strict=True):
        assert tensor.tolist() == array.tolist()
        assert tensor.data_ptr() == array.ctypes.data
    strided = np.arange(6).reshape(2, 3).T
    assert to_torch(strided, CPU).tolist() == strided.tolist()


def test_to_torch_keeps_the_shape_of_a_number() -> None:
    assert to_torch(np.array(3.0), CPU).shape == ()


def test_flatten_time_merges_the_first_two_axes_row_by_row() -> None:
    tree = {"obs": torch.arange(24).reshape(3, 2, 4), "reward": (torch.arange(6).reshape(3, 2),)}
    flat = flatten_time(tree)
    assert flat["obs"].shape == (6, 4)
    assert flat["reward"][0].tolist() == [0, 1, 2, 3, 4, 5]
    t, b = 2, 1
    assert torch.equal(flat["obs"][t * 2 + b], tree["obs"][t, b])

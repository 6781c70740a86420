"""Observation spaces: what is a picture, how parts are read, and networks no one here wrote."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from upslope.errors import ConfigError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.encoders import Encoder, ImageReader, convolutions
from upslope.policies.observations import image_layout, stays_bytes
from upslope.trees import map_tree

F64 = torch.float64
PAIR = Discrete(2)


def picture(*shape: int, dtype: Any = np.uint8) -> Box:
    return Box(0, 255 if dtype == np.uint8 else 1, shape, dtype)


def encoder_of(space: gym.Space[Any], cnn: str = "auto") -> Encoder:
    return Encoder(space, cnn, True, torch.Generator().manual_seed(0), F64)


@pytest.mark.parametrize(
    ("space", "channels", "size"),
    [
        (picture(210, 160, 3), 3, (210, 160)),  # a screen
        (picture(4, 84, 84), 4, (84, 84)),  # stacked grey frames
        (picture(84, 84, 4), 4, (84, 84)),
        (picture(7, 7, 3), 3, (7, 7)),  # MiniGrid
        (picture(10, 10, 6, dtype=np.float32), 6, (10, 10)),
        (picture(8, 8, 12), 12, (8, 8)),  # more channels than pixels: the odd axis out
        (picture(12, 8, 8), 12, (8, 8)),
        (picture(84, 84), 1, (84, 84)),
        (picture(4, 64, 48, 3), 12, (64, 48)),  # a stack of coloured frames
        (picture(4, 3, 64, 48), 12, (64, 48)),
        (picture(6, 6, 6), 6, (6, 6)),
    ],
    ids=str,
)
def test_pictures_and_their_channels_are_found(
    space: Box, channels: int, size: tuple[int, int]
) -> None:
    layout = image_layout(space)
    assert layout is not None
    assert (layout.channels, layout.height, layout.width) == (channels, *size)
    array = np.arange(np.prod(space.shape)).reshape(space.shape)
    placed = np.transpose(array, layout.permutation).reshape(channels, *size)
    row, column = size[0] - 1, 1
    if space.shape == (210, 160, 3):
        assert (placed[:, row, column] == array[row, column]).all()
    if space.shape == (4, 84, 84):
        assert (placed[:, row, column] == array[:, row, column]).all()
    if space.shape == (4, 64, 48, 3):
        assert (placed[:, row, column] == array[:, row, column].reshape(-1)).all()


@pytest.mark.parametrize(
    "space",
    [picture(4, 4, 3), picture(12, 12), picture(84), Box(-1, 1, (4, 60)), Box(0, 1, (2, 8, 8, 3))],
    ids=str,
)
def test_other_boxes_are_vectors(space: Box) -> None:
    assert image_layout(space) is None


class TestSizeRule:
    def test_the_kernels_of_mnih_need_36_pixels(self) -> None:
        large, small = picture(36, 50, 3), picture(35, 50, 3)
        kernels = [
            [m.kernel_size[0] for m in encoder_of(s).modules() if isinstance(m, nn.Conv2d)]
            for s in (large, small)
        ]
        assert kernels == [[8, 4, 3], [3, 3, 3]]
        with pytest.raises(ConfigError, match="at least 36 x 36 pixels, not 35 x 50"):
            encoder_of(small, "nature")

    @pytest.mark.parametrize("cnn", ["small", "impala", "auto"])
    @pytest.mark.parametrize("side", [5, 7, 16, 35, 64])
    def test_every_size_has_a_network(self, cnn: str, side: int) -> None:
        encoder = encoder_of(picture(side, side + 1, 3), cnn)
        images = torch.randint(0, 256, (2, side, side + 1, 3), dtype=torch.uint8)
        out = encoder(images)
        assert out.shape == (2, encoder.width)
        assert out.isfinite().all()

    def test_impala_has_fifteen_convolutions(self) -> None:
        """Espeholt et al. 2018, figure 3: three blocks of 1 + 2 x 2, widths 16, 32, 32."""
        layers = [m for m in encoder_of(picture(84, 84, 4), "impala").modules()]
        convs = [m.out_channels for m in layers if isinstance(m, nn.Conv2d)]
        assert convs == [16] * 5 + [32] * 10


@pytest.mark.parity
def test_nature_is_that_of_stable_baselines() -> None:
    space = picture(4, 84, 84)
    ours = encoder_of(space)
    theirs = NatureCNN(space, features_dim=512).double()
    mine, peer = list(ours.parameters()), list(theirs.parameters())
    assert [p.shape for p in mine] == [p.shape for p in peer]
    with torch.no_grad():
        for one, other in zip(mine, peer, strict=True):
            other.copy_(one)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), np.uint8))
    torch.testing.assert_close(ours(images), theirs(images.double() / 255), rtol=0, atol=1e-12)


def test_channels_last_and_first_give_the_same_features() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 44, 3), np.uint8))
    last, first = encoder_of(picture(40, 44, 3)), encoder_of(picture(3, 40, 44))
    torch.testing.assert_close(last(images), first(images.permute(0, 3, 1, 2)))


def test_images_are_encoded_in_pieces_without_a_gradient() -> None:
    layout = image_layout(picture(7, 7, 3))
    assert layout is not None
    generator = torch.Generator().manual_seed(0)
    reader = ImageReader(layout, "auto", True, generator, F64)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (600, 7, 7, 3), np.uint8))
    largest = []
    reader.convolutions.register_forward_pre_hook(lambda _, x: largest.append(len(x[0])))
    with torch.no_grad():
        pieces = reader(images)
    assert max(largest) <= 256
    torch.testing.assert_close(pieces, reader(images).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ortho_init", [True, False])
def test_initial_weights_hang_on_the_generator_alone(ortho_init: bool) -> None:
    layout = image_layout(picture(40, 40, 3))
    assert layout is not None
    torch.manual_seed(0)
    before = torch.get_rng_state()
    nets = [
        convolutions(layout, "auto", ortho_init, torch.Generator().manual_seed(s), F64)[0]
        for s in (1, 1, 2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    weights = [nn.utils.parameters_to_vector(net.parameters()) for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class TestChoices:
    def test_discrete_is_one_hot_from_its_start(self) -> None:
        encoder = encoder_of(Discrete(4, start=-2))
        assert encoder(torch.tensor([-2, 1])).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]

    def test_multi_discrete_is_one_one_hot_after_the_other(self) -> None:
        encoder = encoder_of(MultiDiscrete([[2], [3]], start=[[0], [5]]))
        seen = torch.tensor([[[1], [5]], [[0], [7]]])
        assert encoder(seen).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]

    def test_bits_are_bits(self) -> None:
        encoder = encoder_of(MultiBinary((2, 2)))
        seen = torch.tensor([[[1, 0], [0, 1]]], dtype=torch.int8)
        assert encoder(seen).tolist() == [[1, 0, 0, 1]]


class TestTrees:
    SPACE = Dict(
        far=Box(-np.inf, np.inf, (2,)),
        here=Tuple((Discrete(3), Dict(eye=picture(40, 40, 3), legs=Box(-1, 1, (2, 2))))),
        action_mask=MultiBinary(2),
    )

    def rows(self, n: int, seed: int = 0) -> Any:
        self.SPACE.seed(seed)
        samples = [self.SPACE.sample() for _ in range(n)]
        return map_tree(lambda *x: torch.from_numpy(np.stack(x)), *samples)

    def test_parts_lie_side_by_side_and_the_mask_is_no_feature(self) -> None:
        encoder = encoder_of(self.SPACE)
        assert [path[-1] for path in encoder.paths] == ["far", 0, "eye", "legs"]
        assert encoder.width == 2 + 3 + 512 + 4
        policy = ActorCritic(self.SPACE, PAIR, dtype="float64")
        rows = self.rows(5)
        with torch.no_grad():
            before = policy.value(rows)
            rows["action_mask"] = 1 - rows["action_mask"]
            assert torch.equal(before, policy.value(rows))
            rows["here"][1]["legs"] += 1
            assert not torch.equal(before, policy.value(rows))

    def test_normalising_is_of_numbers_each_part_by_itself(self) -> None:
        policy = ActorCritic(self.SPACE, PAIR, norm_obs=True, dtype="float64")
        assert policy.obs_normalizer is not None
        rows = self.rows(500)
        policy.obs_normalizer.update(rows)
        inputs = policy.prepare(rows)
        for part, axis in ((inputs["far"], (0,)), (inputs["here"][1]["legs"], (0,))):
            assert part.mean(axis).abs().max() < 1e-10
            assert (part.std(axis, correction=0) - 1).abs().max() < 1e-3
        assert torch.equal(inputs["here"][0], rows["here"][0])
        assert inputs["here"][1]["eye"].dtype == torch.uint8

    def test_large_images_stay_bytes_small_ones_become_numbers(self) -> None:
        assert stays_bytes(picture(36, 36, 3))
        assert not stays_bytes(picture(35, 36, 3))
        assert not stays_bytes(picture(36, 36, 3, dtype=np.float32))
        policy = ActorCritic(picture(7, 7, 3), PAIR)
        seen = torch.full((1, 7, 7, 3), 51, dtype=torch.uint8)
        assert policy.prepare(seen).unique().tolist() == [pytest.approx(0.2)]


def test_a_factory_sees_the_whole_tree() -> None:
    """A user's features module is tried on samples of the space, and given what it asks for."""

    class Both(nn.Module):
        def forward(self, obs: Any) -> Any:
            return torch.cat([obs["a"], obs["b"].float().unsqueeze(-1)], -1)

    space = Dict(a=Box(-1, 1, (3,)), b=Discrete(4))
    policy = ActorCritic(space, PAIR, features=lambda _: Both())
    assert policy.actor[1].in_features == 4
    policy.value({"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.int64)})

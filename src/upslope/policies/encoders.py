"""Observations to features: the layers between an observation space and the heads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from upslope.errors import ConfigError
from upslope.policies.observations import ImageLayout, image_layout, part_of, parts
from upslope.spaces import Path
from upslope.trees import Tree, map_tree

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
FeaturesFactory = Callable[[gym.Space[Any]], nn.Module]
CHUNK = 256  # images encoded at a time where no gradient is wanted: bounds the memory of a rollout


def linear(
    inputs: int, outputs: int, gain: float | None, generator: torch.Generator, dtype: torch.dtype
) -> nn.Linear:
    """Return a layer initialised from ``generator`` alone.

    Its weights are orthogonal with ``gain``, or follow torch's own rule where that is ``None``.
    """
    layer = nn.Linear(inputs, outputs, device="meta", dtype=dtype)
    _initialise(layer, gain, generator)
    return layer


def _initialise(
    layer: nn.Linear | nn.Conv2d, gain: float | None, generator: torch.Generator
) -> None:
    """Give values to a layer that was made on the meta device, without any.

    Torch's own initialisation would draw from the global generator, and its ``to_empty`` imports
    sympy.
    """
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
    with torch.no_grad():
        bias: Any = layer.bias
        if gain is None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            layer.weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        else:
            nn.init.orthogonal_(layer.weight, gain, generator=generator)
            bias.zero_()


def mlp(
    inputs: int,
    widths: Sequence[int],
    activation: str,
    ortho_init: bool,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> nn.Sequential:
    """Return layers ``inputs -> widths[0] -> ... -> widths[-1]``, an activation after each."""
    layers: list[nn.Module] = []
    for width in widths:
        gain = math.sqrt(2) if ortho_init else None
        layers += [linear(inputs, width, gain, generator, dtype), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """All parts of an observation, each read in its own way, side by side: ``[N, width]``.

    Vectors are flattened, choices become one-hot vectors, images go through a convolutional network
    (:func:`convolutions`).

    Args:
        space: any space of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple.
        cnn: "auto", "nature", "impala" or "small".
        ortho_init, generator, dtype: as in :func:`linear`.

    Raises:
        UnsupportedSpaceError: if no network here reads a part.
        ConfigError: if ``cnn`` does not fit the size of an image.
    """

    def __init__(
        self,
        space: gym.Space[Any],
        cnn: str,
        ortho_init: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.paths: list[Path] = []
        readers: list[VectorReader | ChoiceReader | ImageReader] = []
        for path, part in parts(space):
            self.paths.append(path)
            layout = image_layout(part)
            if layout is not None:
                readers.append(ImageReader(layout, cnn, ortho_init, generator, dtype))
            elif isinstance(part, gym.spaces.Box):
                readers.append(VectorReader(part))
            else:
                readers.append(ChoiceReader(part, dtype))
        self.readers = nn.ModuleList(readers)
        self.width = sum(reader.width for reader in readers)

    def forward(self, inputs: Tree) -> Tensor:
        """Prepared observations ``[N, ...]`` to features ``[N, width]``."""
        read = [
            reader(part_of(inputs, path))
            for path, reader in zip(self.paths, self.readers, strict=True)
        ]
        return read[0] if len(read) == 1 else torch.cat(read, -1)


class VectorReader(nn.Module):
    """Numbers of any shape in one row."""

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__()
        self.width = int(np.prod(space.shape, dtype=int))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[N, width]``."""
        return x.reshape(len(x), self.width)


class ChoiceReader(nn.Module):
    """A one-hot vector for each choice of Discrete and MultiDiscrete; the bits of MultiBinary."""

    first: Tensor
    values: Tensor

    def __init__(self, space: gym.Space[Any], dtype: torch.dtype) -> None:
        super().__init__()
        if isinstance(space, gym.spaces.MultiBinary):
            sizes, start = np.full(int(np.prod(space.shape, dtype=int)), 1), np.array(1)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            sizes, start = space.nvec.reshape(-1), space.start.reshape(-1)
        else:
            assert isinstance(space, gym.spaces.Discrete)
            sizes, start = np.array([int(space.n)]), np.array([int(space.start)])
        self.width = int(sizes.sum())
        start = np.broadcast_to(start, sizes.shape)
        # Which choice each output looks at, and the value of it that turns the output on.
        first = np.repeat(np.arange(len(sizes)), sizes)
        values = np.concatenate([b + np.arange(n) for b, n in zip(start, sizes, strict=True)])
        self.register_buffer("first", torch.from_numpy(first), persistent=False)
        self.register_buffer("values", torch.from_numpy(values), persistent=False)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Integers ``[N, ...]`` to zeros and ones ``[N, width]``."""
        return (x.reshape(len(x), -1)[:, self.first] == self.values).to(self.dtype)


class ImageReader(nn.Module):
    """A picture, channels first or last, through convolutions; bytes are divided by 255 here."""

    def __init__(
        self,
        layout: ImageLayout,
        cnn: str,
        ortho_init: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.layout, self.dtype = layout, dtype
        self.convolutions, self.width = convolutions(layout, cnn, ortho_init, generator, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, ...]`` to features ``[N, width]``."""
        if not torch.is_grad_enabled() and len(x) > CHUNK:
            return torch.cat([self._encode(images) for images in x.split(CHUNK)])  # type: ignore[no-untyped-call]
        return self._encode(x)

    def _encode(self, x: Tensor) -> Tensor:
        _, channels, height, width = self.layout
        x = x.permute(0, *(axis + 1 for axis in self.layout.permutation))
        scale = 1 / 255 if x.dtype == torch.uint8 else 1.0
        x = x.reshape(len(x), channels, height, width)
        x = x.to(self.dtype, memory_format=torch.channels_last) * scale  # faster on a CPU
        return self.convolutions(x)  # type: ignore[no-any-return]


def convolutions(
    layout: ImageLayout,
    cnn: str,
    ortho_init: bool,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> tuple[nn.Sequential, int]:
    """Return a convolutional network ``[N, C, H, W] -> [N, width]``, and its width.

    ``nature`` is that of Mnih et al. 2015 (32 8x8/4, 64 4x4/2, 64 3x3, 512 features), ``impala``
    the residual one of Espeholt et al. 2018 (16, 32, 32 channels, 256 features), ``small`` three
    3 x 3 layers (16, 32, 64 channels, 128 features) of stride 2 while a side is longer than 8.
    ``auto`` is ``nature`` for images of at least 36 pixels a side, else ``small``.

    Raises:
        ConfigError: if an image is too small for ``nature``.
    """
    kind = ("nature" if layout.is_large else "small") if cnn == "auto" else cnn
    if kind == "nature" and not layout.is_large:
        raise ConfigError(
            f"cnn=nature needs images of at least 36 x 36 pixels, not {layout.height} x "
            f"{layout.width}: leave cnn at auto, or set cnn=small"
        )
    gain = math.sqrt(2) if ortho_init else None

    def conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int = 0) -> nn.Conv2d:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, device="meta", dtype=dtype)
        _initialise(layer, gain, generator)
        return layer

    layers: list[nn.Module] = []
    channels, features = layout.channels, 512
    if kind == "nature":
        for outputs, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            layers += [conv(channels, outputs, kernel, stride), nn.ReLU()]
            channels = outputs
    elif kind == "small":
        features, side = 128, min(layout.height, layout.width)
        for outputs in (16, 32, 64):
            stride = 2 if side > 8 else 1
            layers += [conv(channels, outputs, 3, stride, 1), nn.ReLU()]
            channels, side = outputs, -(-side // stride)
    else:
        features = 256
        for outputs in (16, 32, 32):
            layers += [conv(channels, outputs, 3, 1, 1), nn.MaxPool2d(3, 2, 1)]
            layers += [
                Residual(*(conv(outputs, outputs, 3, 1, 1) for _ in range(2))) for _ in range(2)
            ]
            channels = outputs
        layers.append(nn.ReLU())
    layers.append(nn.Flatten())
    with torch.no_grad():
        blank = torch.zeros(1, layout.channels, layout.height, layout.width, dtype=dtype)
        flat = nn.Sequential(*layers)(blank).shape[1]
    dense = linear(flat, features, gain, generator, dtype)
    return nn.Sequential(*layers, dense, nn.ReLU()), features


class Residual(nn.Module):
    """x + two convolutions of it, each after a ReLU (Espeholt et al. 2018, figure 3)."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return x + self.second(self.first(x.relu()).relu())  # type: ignore[no-any-return]


def user_features(
    factory: FeaturesFactory,
    space: gym.Space[Any],
    seed: int,
    dtype: torch.dtype,
    prepare: Callable[[Tree], Tree],
) -> tuple[nn.Module, int]:
    """Return the module of a user's ``factory(observation_space)``, and its width.

    The factory runs under a seeded global RNG, which is then put back as it was.

    Raises:
        ConfigError: if it is no module, does not give ``[N, features]``, or behaves differently in
            train and eval mode (dropout, batch statistics), which would move the policy between
            collecting and updating.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - inside fork_rng: a user's module reads no other
        module = factory(space)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"policy={factory!r} returned {type(module).__name__}, not a torch.nn.Module: "
            "return the features module"
        )
    module = module.to(dtype)
    probe = prepare(_probe(space, seed))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        training, evaluating = module.train()(probe), module.eval()(probe)
    if not isinstance(training, Tensor) or training.ndim != 2 or len(training) != 4:
        raise ConfigError(
            f"policy={factory!r} must map [N, {space.shape}] observations to [N, features]: "
            "flatten its output"
        )
    if not torch.equal(training, evaluating):
        raise ConfigError(
            f"policy={factory!r} gives other outputs in train mode than in eval mode: remove "
            "dropout and batch normalisation, the ratio of new to old probabilities would not "
            "start at 1"
        )
    return module, training.shape[1]


def _probe(space: gym.Space[Any], seed: int) -> Tree:
    """Four observations to try a module on: ``[4, ...]`` tensors."""
    if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f":
        noise = np.random.default_rng(seed).normal(size=(4, *space.shape))
        return torch.from_numpy(noise)
    space = copy.deepcopy(space)  # the environment's own keeps its stream
    space.seed(seed)
    samples = [space.sample() for _ in range(4)]
    return map_tree(lambda *rows: torch.from_numpy(np.stack(rows)), samples[0], *samples[1:])

"""The same networks in PyTorch, only for comparison; pytorch_training.py trains them.

Written in the usual way of PyTorch, with separate resampling and convolutions. Modules have the
names of the Flax ones, so that variables are copied by name. Feature maps are [B, C, H, W] in
channels-last memory.
"""

from collections.abc import Callable
from functools import partial

import jax
import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util
from torch import Tensor, nn

from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.models.architectures import ARCHITECTURES

Weights = dict[str, Tensor]
Conv1x1 = partial(nn.Conv2d, kernel_size=1)
Conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1)


# ---- Networks. ---------------------------------------------------------------------------------


class BatchNorm(nn.Module):
    def __init__(self, features: int, classes: int, decay: float, epsilon: float):
        super().__init__()
        shape = (classes, features) if classes else (features,)
        self.scale, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.moments = nn.BatchNorm2d(features, epsilon, momentum=1 - decay, affine=False)
        self.classes = classes

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, bias = self.scale, self.bias
        if self.classes:
            scale, bias = F.embedding(labels, scale), F.embedding(labels, bias)
        scale, bias = (table.to(x.dtype)[..., None, None] for table in (scale, bias))
        return self.moments(x) * scale + bias


class SelfAttention(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        inner, outer = max(features // 8, 1), max(features // 2, 1)
        self.query = Conv1x1(features, inner, bias=False)
        self.key = Conv1x1(features, inner, bias=False)
        self.value = Conv1x1(features, outer, bias=False)
        self.output = Conv1x1(outer, features, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        def positions(y: Tensor) -> Tensor:  # [B, C, H, W] → [B, HW, C], no copy in channels last
            return y.permute(0, 2, 3, 1).flatten(1, 2)

        query = positions(self.query(x))
        key = positions(F.max_pool2d(self.key(x), 2))
        value = positions(F.max_pool2d(self.value(x), 2))
        if x.is_cuda:
            o = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:  # faster on a CPU
            o = torch.softmax(query @ key.transpose(1, 2), -1) @ value
        o = o.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return x + self.gamma * self.output(o)


class UpBlock(nn.Module):
    def __init__(self, inputs: int, features: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(features)
        self.conv1, self.conv2 = Conv3x3(inputs, features), Conv3x3(features, features)
        self.skip = Conv1x1(inputs, features)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, labels)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, labels)))
        return h + F.interpolate(self.skip(x), scale_factor=2)


class Generator(nn.Module):
    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        model, norm = config.model, config.batch_norm
        arch = ARCHITECTURES[model.architecture][config.dataset.image_size]
        first, *widths = (model.generator_width * multiple for multiple in arch.generator)
        classes = config.dataset.num_classes if model.conditioning == 'projection' else 0
        self.start, self.blocks, inputs = arch.start, len(widths), first
        self.dense = nn.Linear(model.z_dim, arch.start**2 * first)
        for number, width in enumerate(widths, start=1):
            block_norm = partial(BatchNorm, classes=classes, decay=norm.decay, epsilon=norm.epsilon)
            self.add_module(f'block{number}', UpBlock(inputs, width, block_norm))
            size, inputs = arch.start * 2**number, width
            if size in model.generator_attention:
                self.add_module(f'attention{size}', SelfAttention(width))
        self.norm = BatchNorm(inputs, 0, norm.last_decay, norm.epsilon)
        self.conv = Conv3x3(inputs, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z [B, z_dim], labels [B] → images float32 [B, 3, S, S] in [-1, 1]."""
        x = self.dense(z).view(len(z), self.start, self.start, -1).permute(0, 3, 1, 2)
        for number in range(1, self.blocks + 1):
            x = getattr(self, f'block{number}')(x, labels)
            if hasattr(self, f'attention{x.shape[2]}'):
                x = getattr(self, f'attention{x.shape[2]}')(x)
        return torch.tanh(self.conv(F.relu(self.norm(x, labels))).float())


class DownBlock(nn.Module):
    def __init__(self, inputs: int, features: int, first: bool, down: bool):
        super().__init__()
        self.first, self.down = first, down
        self.conv1, self.conv2 = Conv3x3(inputs, features), Conv3x3(features, features)
        if down or inputs != features:
            self.skip = Conv1x1(inputs, features)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (self.skip(x) if hasattr(self, 'skip') else x)


class Discriminator(nn.Module):
    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        model, size, inputs = config.model, config.dataset.image_size, 3
        arch = ARCHITECTURES[model.architecture][size]
        self.blocks = len(arch.discriminator)
        for number, multiple in enumerate(arch.discriminator, start=1):
            width, down = model.discriminator_width * multiple, number <= arch.downs
            block = DownBlock(inputs, width, first=number == 1, down=down)
            self.add_module(f'block{number}', block)
            size, inputs = size // 2 if down else size, width
            if down and size in model.discriminator_attention:
                self.add_module(f'attention{size}', SelfAttention(width))
        self.dense = nn.Linear(inputs, 1)
        if model.conditioning == 'projection':
            self.embed = nn.Embedding(config.dataset.num_classes, inputs)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Images [B, 3, S, S], labels [B] → logits float32 [B]."""
        for number in range(1, self.blocks + 1):
            block = getattr(self, f'block{number}')
            x = block(x)
            if block.down and hasattr(self, f'attention{x.shape[2]}'):
                x = getattr(self, f'attention{x.shape[2]}')(x)
        with torch.autocast(x.device.type, enabled=False):
            h = F.relu(x).float().sum((2, 3))
            logits = self.dense(h)[:, 0]
            return logits + (self.embed(labels) * h).sum(-1) if hasattr(self, 'embed') else logits


# ---- Spectral normalisation. -------------------------------------------------------------------


def normalise(parameters: Weights, vectors: Weights, epsilon: float) -> tuple[Weights, Weights]:
    """Divides weights by their σ from one power iteration; returns the next vectors u too."""
    weights, after = dict(parameters), {}
    for name, u in vectors.items():
        weight = parameters[name]
        matrix = weight.movedim(1, -1).flatten(1)  # [out, in], no copy in channels last
        with torch.no_grad():
            v = _unit(u @ matrix, epsilon)
            u = _unit(matrix @ v, epsilon)
        weights[name], after[name] = weight / (u @ (matrix @ v)), u
    return weights, after


def _unit(vector: Tensor, epsilon: float) -> Tensor:
    return vector / (torch.linalg.vector_norm(vector) + epsilon)


# ---- Variables of the JAX networks. ------------------------------------------------------------


def load(network: nn.Module, variables: models.Variables) -> Weights:
    """Copies parameters into a network of the same configuration and returns the vectors u."""
    ours = {_name(path): _to_torch(path, value) for path, value in _flat(variables['params'])}
    theirs = dict(network.named_parameters())
    shapes = [{name: tuple(w.shape) for name, w in side.items()} for side in (ours, theirs)]
    if different := shapes[0].items() ^ shapes[1].items():
        raise UserError(
            'The PyTorch peer does not have the networks of this configuration (for example, '
            f'{min(different)[0]} differs): leave out --peer.'
        )
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])
    return {
        _name(path[:-1]): torch.tensor(np.asarray(value)).to(next(network.parameters()).device)
        for path, value in _flat(variables['spectral_stats'])
        if path[-1] == 'u'
    }


def _flat(tree: models.Variables) -> list[tuple[tuple[str, ...], jax.Array]]:
    return list(traverse_util.flatten_dict(tree).items())


def _name(path: tuple[str, ...]) -> str:
    last = 'weight' if path[-1] in ('kernel', 'embedding') else path[-1]
    return '.'.join((*path[:-1], last))


def _to_torch(path: tuple[str, ...], value: jax.Array) -> Tensor:
    tensor = torch.tensor(np.asarray(value))
    if path[-1] != 'kernel':
        return tensor
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T

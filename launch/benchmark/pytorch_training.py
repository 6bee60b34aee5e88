"""The training step of the PyTorch peer, and a check that both compute the same function.

Written as a PyTorch user would for speed: channels last, torch.compile, one pass over real and
generated images, weights normalised once per update, fused Adam, autocast for bfloat16.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from launch.benchmark import hardware, measure
from launch.benchmark.pytorch_networks import Discriminator, Generator, load, normalise
from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.state import TrainState, create_state

TOLERANCE = 1e-4


class Loss(NamedTuple):
    """As `sagan_jax.losses.Loss`, without `rejection`."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES = {
    'hinge': Loss(
        discriminator=lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        generator=lambda fake: -fake.mean(),
    ),
    'non_saturating': Loss(
        discriminator=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        generator=lambda fake: F.softplus(-fake).mean(),
    ),
}


def check_same_function(config: ml_collections.ConfigDict, state: TrainState) -> None:
    """Compares both networks in float32 on the same variables, z, labels and images.

    Gammas, biases and the tables of batch norm are perturbed first, because their initial constants
    would hide differences.

    Raises:
      UserError: if an image or a logit differs by more than 1e-4, relative to the largest one if
        that is above 1.
    """
    config = config.copy_and_resolve_references()
    config.dtype, batch = 'float32', min(config.batch_size, 8)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, config.model.z_dim)).astype(np.float32)
    labels = rng.integers(0, max(config.dataset.num_classes, 1), batch)
    size = config.dataset.image_size
    images = rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    epsilon, device = config.spectral_norm.epsilon, torch_device()

    def ours(network, variables, inputs):
        with jax.default_matmul_precision('highest'):
            apply = jax.jit(
                lambda variables, *args: network.apply(
                    network.normalise(variables)[0], *args, train=True
                )[0]
            )
            return np.asarray(apply(variables, inputs, labels))

    def theirs(network, variables, inputs):
        weights, _ = normalise(dict(network.named_parameters()), load(network, variables), epsilon)
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            inputs, on_device = (torch.tensor(array).to(device) for array in (inputs, labels))
            return functional_call(network, weights, (inputs, on_device)).cpu().numpy()

    torch.backends.cuda.matmul.allow_tf32 = False
    generator, discriminator = models.create(config)
    g, d = (_perturbed(variables, rng) for variables in (state.generator, state.discriminator))
    their_images = theirs(_create(Generator, config), g, z).transpose(0, 2, 3, 1)
    their_logits = theirs(_create(Discriminator, config), d, images.transpose(0, 3, 1, 2))
    differences = {
        'images': _difference(ours(generator, g, z), their_images),
        'logits': _difference(ours(discriminator, d, images), their_logits),
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise UserError(
                f'The PyTorch peer does not compute the same function, its {name} differ by '
                f'{difference:.1e}: leave out --peer.'
            )


def _perturbed(variables: models.Variables, rng: np.random.Generator) -> models.Variables:
    def perturb(path, value):
        if path[-1].key in ('kernel', 'embedding'):
            return value
        return value + 0.3 * rng.standard_normal(value.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(perturb, variables['params'])
    return variables | {'params': params}


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(1, np.abs(ours).max()))


def torch_device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def _create(
    network: type[Generator | Discriminator], config: ml_collections.ConfigDict
) -> torch.nn.Module:
    return network(config).to(torch_device(), memory_format=torch.channels_last)


def create_train_step(
    config: ml_collections.ConfigDict, state: TrainState
) -> Callable[[np.ndarray, np.ndarray], None]:
    """Builds `train_step(images, labels)`, which starts from the variables of a JAX state.

    One call runs `steps_per_call` steps (S). Images are uint8 [S·D·B, H, W, 3] and labels int32
    [S·D·B], on the host. It does not wait for the device.
    """
    device = torch_device()
    torch._dynamo.reset()  # after steps of other batch sizes, shapes would become dynamic
    torch.set_num_threads(hardware.cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    batch, classes = config.batch_size, max(config.dataset.num_classes, 1)
    epsilon, loss = config.spectral_norm.epsilon, LOSSES[config.loss]
    generator, discriminator = _create(Generator, config), _create(Discriminator, config)
    g_vectors = load(generator, state.generator)
    d_vectors = load(discriminator, state.discriminator)
    g_parameters, d_parameters = (
        dict(network.named_parameters()) for network in (generator, discriminator)
    )
    average = [parameter.detach().clone() for parameter in g_parameters.values()]
    opt = config.optimizer
    g_optimizer, d_optimizer = (
        torch.optim.Adam(parameters.values(), rate, (opt.b1, opt.b2), opt.epsilon, fused=True)
        for parameters, rate in (
            (g_parameters, opt.generator_lr),
            (d_parameters, opt.discriminator_lr),
        )
    )

    def run(network, weights, inputs, labels):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == 'bfloat16'):
            return functional_call(network, weights, (inputs, labels))

    def advance(vectors, after):
        for name, u in after.items():
            vectors[name].copy_(u)

    @torch.compile
    def generator_weights():
        weights, after = normalise(g_parameters, g_vectors, epsilon)
        advance(g_vectors, after)
        return weights

    @torch.compile
    def discriminator_loss(weights, images, labels, z, fake_labels):
        images = images.permute(0, 3, 1, 2).float() * (2 / 255) - 1
        if config.dataset.flip:
            mirrored = torch.rand(len(images), device=device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        with torch.no_grad():
            fakes = run(generator, weights, z, fake_labels)
        joint, joint_labels = torch.cat([images, fakes]), torch.cat([labels, fake_labels])
        own_weights, after = normalise(d_parameters, d_vectors, epsilon)
        advance(d_vectors, after)
        real, fake = run(discriminator, own_weights, joint, joint_labels).chunk(2)
        return loss.discriminator(real, fake)

    @torch.compile
    def generator_loss(weights, z, labels):
        with torch.no_grad():
            d_weights, _ = normalise(d_parameters, d_vectors, epsilon)
        fake = run(discriminator, d_weights, run(generator, weights, z, labels), labels)
        return loss.generator(fake)

    def noise():
        z = torch.randn(batch, config.model.z_dim, device=device)
        return z, torch.randint(classes, (batch,), device=device)

    def update(optimizer, loss):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def step(batches):
        weights = generator_weights()
        fixed = {name: weight.detach() for name, weight in weights.items()}
        for images, labels in batches:
            update(
                d_optimizer,
                discriminator_loss(fixed, images.to(device), labels.to(device), *noise()),
            )
        update(g_optimizer, generator_loss(weights, *noise()))
        torch._foreach_lerp_(average, list(g_parameters.values()), 1 - config.ema.decay)

    def train_step(images, labels):
        parts = [torch.from_numpy(array).split(batch) for array in (images, labels)]
        batches, updates = list(zip(*parts, strict=True)), config.discriminator_steps
        for first in range(0, len(batches), updates):
            step(batches[first : first + updates])

    return train_step


def training(config: ml_collections.ConfigDict) -> measure.Timed:
    """The peer's training step on one device, from the same initial variables, after the check."""
    torch.cuda.empty_cache()  # from other rows; does nothing without a GPU
    state = create_state(config)
    check_same_function(config, state)
    start = time.perf_counter()
    train_step = create_train_step(config, state)
    images, labels = measure.random_batch(config)

    def run(calls):
        for _ in range(calls):
            train_step(images, labels)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    first_call_start = time.perf_counter()
    run(1)
    end = time.perf_counter()
    return measure.Timed(run, end - first_call_start, end - start)

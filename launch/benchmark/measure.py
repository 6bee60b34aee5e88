"""Costs and timings of a training step and related operations, on random input."""

import collections
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from launch.benchmark import hardware
from sagan_jax import models, sampling
from sagan_jax.errors import UserError
from sagan_jax.game import Metrics
from sagan_jax.metrics import features, in_domain, inception
from sagan_jax.models.architectures import ARCHITECTURES, generator_resolutions
from sagan_jax.models.attention import SelfAttention
from sagan_jax.state import TrainState, create_state
from sagan_jax.system.replicas import replicate
from sagan_jax.system.streaming import on_devices, rows_at_a_time
from sagan_jax.train_step import create_gathering_train_step, create_train_step

T = TypeVar('T')


class Timed(NamedTuple):
    """A function to be timed.

    Attributes:
      run: `run(calls)` makes that many calls and waits for the last one.
      first_call_seconds: the time of the first call, with compilation.
      total_seconds: the same including the creation of the parameters.
    """

    run: Callable[[int], None]
    first_call_seconds: float
    total_seconds: float


# ---- Costs, without running. -------------------------------------------------------------------


def gflop_per_image(config: ml_collections.ConfigDict) -> float:
    """GFLOP of a training step per real image, from XLA's cost analysis of the whole batch.

    Counts the additions and multiplications of the forward and backward passes of both networks,
    of normalisation and of the optimiser, in the program for an accelerator before XLA optimises
    it. Recomputation and accumulation are not counted: they compute the same function. Updates by
    R1 alone are not counted either.
    """
    config = config.copy_and_resolve_references()
    config.steps_per_call = config.gradient_accumulation = 1
    config.r1_weight = 0.0
    config.model.attention_query_block = 0
    try:
        cpu = jax.devices('cpu')[:1]  # without loops, whose body XLA counts only once
    except RuntimeError as error:
        raise UserError('There is no CPU to count costs on: add cpu to JAX_PLATFORMS.') from error
    images, labels = batch_shapes(config)
    state = jax.eval_shape(lambda: create_state(config))
    traced = jax.jit(create_train_step(config, cpu)).trace(state, images, labels)
    cost = traced.lower(lowering_platforms=('cuda',)).cost_analysis()
    return cost['flops'] / images_per_step(config) / 1e9


def parameter_counts(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """The numbers of parameters of the generator and of the discriminator."""
    generator, discriminator = (
        models.count_parameters(jax.eval_shape(network.init, jax.random.key(0)))
        for network in models.create(config)
    )
    return generator, discriminator


def images_per_step(config: ml_collections.ConfigDict) -> int:
    """The real images per step, which the images/s of a training run count too."""
    return config.batch_size * config.discriminator_steps


def batch_shapes(
    config: ml_collections.ConfigDict,
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the images and labels of one call of the train step."""
    count, size = config.steps_per_call * images_per_step(config), config.dataset.image_size
    return (
        jax.ShapeDtypeStruct((count, size, size, 3), np.uint8),
        jax.ShapeDtypeStruct((count,), np.int32),
    )


# ---- Timing. -----------------------------------------------------------------------------------


def time_in_turns(
    runs: Sequence[Callable[[int], None]], windows: int, window_seconds: float
) -> np.ndarray:
    """Times several functions in turns, A B A B ….

    A window has about as many calls as fill `window_seconds`, according to a first round that is
    not counted. After a window of another function, one more call is not counted. So caches, and
    memory that the system reclaimed, are as in training, where nothing else runs in between.

    Returns:
      Seconds per call, float64 [len(runs), windows].
    """
    counts = [_calls_that_fill(window_seconds, run) for run in runs]
    seconds = np.empty((windows, len(runs)))
    for window in seconds:
        for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
            if len(runs) > 1:
                run(1)
            window[i] = _seconds(run, count) / count
    return seconds.T


def _calls_that_fill(window_seconds: float, run: Callable[[int], None]) -> int:
    """The calls that fill a window. Tries more and more, as the first ones may be read ahead."""
    calls = 1
    while (seconds := _seconds(run, calls)) < window_seconds / 4:
        calls *= 2
    return max(1, round(calls * window_seconds / seconds))


def cores_of_others(measured: Callable[[], T]) -> tuple[T, float | None]:
    """Calls `measured`; returns its result and the cores that other processes used meanwhile."""
    before, own, start = hardware.busy_cpu_seconds(), time.process_time(), time.perf_counter()
    result = measured()
    after = hardware.busy_cpu_seconds()
    if before is None or after is None:
        return result, None
    others = after - before - (time.process_time() - own)
    return result, max(0.0, others / (time.perf_counter() - start))


def _seconds(run: Callable[[int], None], calls: int) -> float:
    start = time.perf_counter()
    run(calls)
    return time.perf_counter() - start


def random_batch(config: ml_collections.ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 and labels int32 for one call of the train step."""
    images, labels = batch_shapes(config)
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, images.shape, images.dtype),
        rng.integers(0, max(config.dataset.num_classes, 1), labels.shape, labels.dtype),
    )


def training(config: ml_collections.ConfigDict, devices: list[jax.Device]) -> Timed:
    """The training step as in the training loop, with another batch from the host in each call.

    With `dataset.on_device` the batch is a choice among images that are on the devices already.
    """
    start = time.perf_counter()
    images, labels = random_batch(config)
    train_step: Callable[..., tuple[TrainState, Metrics]]
    batch: tuple[np.ndarray, ...]
    if config.dataset.on_device:
        train_step = create_gathering_train_step(config, (images, labels), devices)
        batch = (np.random.default_rng(0).permutation(len(labels)).astype(np.int32),)
    else:
        train_step = create_train_step(config, devices)
        batch = images, labels
    state = replicate(create_state(config), devices)

    def run(calls: int) -> None:
        nonlocal state
        in_flight: collections.deque[Metrics] = collections.deque()
        for _ in range(calls):
            state, metrics = train_step(state, *batch)
            in_flight.append(metrics)
            if len(in_flight) > 2:  # as in the training loop
                jax.block_until_ready(in_flight.popleft())
        jax.block_until_ready(state)

    first_call = _seconds(run, 1)
    return Timed(run, first_call, time.perf_counter() - start)


def drawing(config: ml_collections.ConfigDict) -> tuple[Timed, float]:
    """Sampling from a frozen generator, `batch_size` images per call; and the time to freeze it."""
    start = time.perf_counter()
    generator, _ = models.create(config)
    freeze = sampling.create_freeze(config)
    share = -(-config.batch_size // jax.local_device_count())
    sample = sampling.create_sample(generator, config.model.z_dim, share)
    variables = create_state(config).generator
    frozen = jax.block_until_ready(freeze(variables))  # compiles
    freeze_start = time.perf_counter()
    frozen = jax.block_until_ready(freeze(variables))
    freeze_seconds = time.perf_counter() - freeze_start

    def run(calls: int) -> None:
        numbers = np.arange(calls * config.batch_size, dtype=np.int32)
        labels = numbers % max(config.dataset.num_classes, 1)
        for _ in sample(frozen, numbers, labels, sampling.Randomness(np.uint32(0))):
            pass

    first_call = _seconds(run, 1)
    return Timed(run, first_call, time.perf_counter() - start), freeze_seconds


def scoring(config: ml_collections.ConfigDict) -> tuple[Callable[[int], None], str, int]:
    """Generating images and computing their features, `evaluation.batch_size` per device and call.

    The networks have random weights, which does not affect the speed.

    Returns:
      `run(calls)`, which also accumulates the moments of all features; their name; and the images
      of a call.
    """
    settings = config.evaluation
    module: nn.Module
    if settings.features == 'inception':
        module, size, layer = inception.Inception(), inception.SIZE, '2048'
        apply, name = inception.apply, inception.NAME
    else:
        module = in_domain.Classifier(config.dataset.num_classes)
        size, layer = config.dataset.image_size, 'features'
        apply, name = in_domain.apply, in_domain.NAME
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes)
    generator, _ = models.create(config)
    draw = sampling.create_draw(generator, config.seed, config.model.z_dim, settings.round_to_uint8)
    frozen = sampling.create_freeze(config)(create_state(config).generator)
    stream = on_devices(
        lambda variables, asked: apply(variables[1], draw(variables[0], asked)),
        settings.batch_size,
    )
    count = rows_at_a_time(settings.batch_size)

    def run(calls: int) -> None:
        asked = np.zeros((calls * count, 2), np.int32)
        asked[:, 0] = np.arange(len(asked))
        parts = stream((frozen, variables), [asked])
        features.collect(parts, layer, 'logits', len(asked), splits=1, keep=0)

    _seconds(run, 1)  # compiles
    return run, name, count


def reading(config: ml_collections.ConfigDict) -> Timed:
    """The input pipeline alone: the batches of one call, from the configuration's data set."""
    from sagan_jax import data  # imports packages that the rest of the benchmark does not need

    start = time.perf_counter()
    source = data.load(config.dataset, 'train')
    count = config.steps_per_call * images_per_step(config)
    batches = data.batches(source, config.seed, count)

    def run(calls: int) -> None:
        for _ in range(calls):
            next(batches)

    first_call = _seconds(run, 1)
    return Timed(run, first_call, time.perf_counter() - start)


def attention(
    config: ml_collections.ConfigDict, resolution: int
) -> tuple[Callable[[int], None], int, int]:
    """The gradient of a single attention layer of the generator, at a resolution.

    Returns:
      `run(calls)`, the memory of the compiled program in bytes, and the layer's channels.
    """
    arch = ARCHITECTURES[config.model.architecture][config.dataset.image_size]
    widths = dict(zip(generator_resolutions(arch), arch.generator[1:], strict=True))
    if resolution not in widths:
        raise UserError(
            f'The generator has no feature maps of {resolution}×{resolution}: choose --attention '
            f'from {", ".join(map(str, widths))}.'
        )
    channels = widths[resolution] * config.model.generator_width
    layer = SelfAttention(
        jnp.dtype(config.dtype),
        value_divisor=config.model.attention_value_divisor,
        pooling=config.model.attention_pooling,
        query_block=config.model.attention_query_block,
    )
    shape = (config.batch_size, resolution, resolution, channels)
    x = jax.random.normal(jax.random.key(0), shape, config.dtype)
    params = layer.init(jax.random.key(1), x[:1])

    def total(params: models.Variables, x: jax.Array) -> jax.Array:
        return cast(jax.Array, layer.apply(params, x)).astype(jnp.float32).sum()

    compiled = jax.jit(jax.grad(total, (0, 1))).lower(params, x).compile()

    def run(calls: int) -> None:
        for _ in range(calls):
            gradients = compiled(params, x)
        jax.block_until_ready(gradients)

    return run, _program_bytes(compiled.memory_analysis()), channels


# ---- Memory. -----------------------------------------------------------------------------------


def forget_programs() -> None:
    """Frees all compiled programs, so that `largest_program` only finds later ones."""
    gc.collect()
    jax.clear_caches()
    gc.collect()


def largest_program(device: jax.Device) -> Any:
    """The compiled program of a device that needs the most memory, which is the train step."""
    executables = device.client.live_executables()
    return max(executables, key=lambda program: _program_bytes(program.get_compiled_memory_stats()))


def _program_bytes(stats: Any) -> int:
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )


class Memory(TypedDict):
    """Bytes of the largest program, and peaks of the device and of the host; None if unknown."""

    program_bytes: int
    device_peak_bytes: int | None
    host_peak_bytes: int | None


def memory(device: jax.Device) -> Memory:
    """Measures the memory of this process and of a device."""
    stats = device.memory_stats() or {}
    return {
        'program_bytes': _program_bytes(largest_program(device).get_compiled_memory_stats()),
        'device_peak_bytes': stats.get('peak_bytes_in_use'),
        'host_peak_bytes': hardware.host_peak_bytes(),
    }

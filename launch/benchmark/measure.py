"""Costs and timings of a training step and of what surrounds it, on made-up input."""

import collections
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from launch.benchmark import hardware
from sagan_jax import models, sampling
from sagan_jax.errors import UserError
from sagan_jax.metrics import features, in_domain, inception
from sagan_jax.models.architectures import architecture, generator_resolutions
from sagan_jax.models.attention import SelfAttention
from sagan_jax.state import create_state
from sagan_jax.system.replicas import replicate
from sagan_jax.train_step import create_gathering_train_step, create_train_step


class Timed(NamedTuple):
    """Something that runs again and again.

    Attributes:
      run: `run(calls)` makes so many calls and waits for the last.
      first_call_seconds: how long the first call took, compilation included.
      total_seconds: the same from the very beginning, with the making of parameters.
    """

    run: Callable[[int], None]
    first_call_seconds: float
    total_seconds: float


# ---- Costs, without running anything. ----------------------------------------------------------


def gflop_per_image(config: ml_collections.ConfigDict) -> float:
    """GFLOP of a training step for each real image, by XLA's cost analysis of the whole batch.

    Counts the additions and multiplications of the forward and backward passes of both networks,
    of normalisation and of the optimiser, as an accelerator is given them, before XLA optimises.
    Nothing is computed twice in it: of recomputation and accumulation the plain form is counted,
    which is the same function.
    """
    config = config.copy_and_resolve_references()
    config.steps_per_call = config.gradient_accumulation = 1
    config.model.attention_query_block = 0
    try:
        cpu = jax.devices('cpu')[:1]  # there a step has no loops, whose body XLA counts once only
    except RuntimeError as error:
        raise UserError('Costs are counted on the CPU: add cpu to JAX_PLATFORMS.') from error
    images, labels = batch_shapes(config)
    state = jax.eval_shape(lambda: create_state(config))
    traced = jax.jit(create_train_step(config, cpu)).trace(state, images, labels)
    cost = traced.lower(lowering_platforms=('cuda',)).cost_analysis()
    return cost['flops'] / images_per_step(config) / 1e9


def parameter_counts(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """How many parameters G and D have."""
    return tuple(
        models.count_parameters(jax.eval_shape(network.init, jax.random.key(0)))
        for network in models.create(config)
    )


def images_per_step(config: ml_collections.ConfigDict) -> int:
    """The real images that a step takes, which is what a training run counts in images/s too."""
    return config.batch_size * config.discriminator_steps


def batch_shapes(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
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
    """Seconds for each call, float64 [len(runs), windows], taken in turns A B A B ….

    A window is as many calls as fill `window_seconds`, by first ones that are not counted. After
    another run's window comes one more such call: caches, and memory that the system took back
    meanwhile, are as in training, where nothing comes in between.
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
    """Tried with more and more calls: the first ones may only take what was read ahead."""
    calls = 1
    while (seconds := _seconds(run, calls)) < window_seconds / 4:
        calls *= 2
    return max(1, round(calls * window_seconds / seconds))


def cores_of_others(measured: Callable[[], Any]) -> tuple[Any, float | None]:
    """What `measured` returns, and how many cores other processes kept busy meanwhile."""
    before, own, start = hardware.busy_cpu_seconds(), time.process_time(), time.perf_counter()
    result = measured()
    if before is None:
        return result, None
    others = hardware.busy_cpu_seconds() - before - (time.process_time() - own)
    return result, max(0.0, others / (time.perf_counter() - start))


def _seconds(run: Callable[[int], None], calls: int) -> float:
    start = time.perf_counter()
    run(calls)
    return time.perf_counter() - start


def made_up_batch(config: ml_collections.ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 and labels int32 for one call of the train step."""
    images, labels = batch_shapes(config)
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, images.shape, images.dtype),
        rng.integers(0, max(config.dataset.num_classes, 1), labels.shape, labels.dtype),
    )


def training(config: ml_collections.ConfigDict, devices: list[jax.Device]) -> Timed:
    """The training step as the training loop calls it, each time with a batch from the host.

    With `dataset.on_device` that batch is a choice among pictures which the devices have already.
    """
    start = time.perf_counter()
    batch = made_up_batch(config)
    if config.dataset.on_device:
        train_step = create_gathering_train_step(config, batch, devices)
        batch = (np.random.default_rng(0).permutation(len(batch[1])).astype(np.int32),)
    else:
        train_step = create_train_step(config, devices)
    state = replicate(create_state(config), devices)

    def run(calls):
        nonlocal state
        in_flight = collections.deque()
        for _ in range(calls):
            state, metrics = train_step(state, *batch)
            in_flight.append(metrics)
            if len(in_flight) > 2:  # as in the training loop
                jax.block_until_ready(in_flight.popleft())
        jax.block_until_ready(state)

    first_call = _seconds(run, 1)
    return Timed(run, first_call, time.perf_counter() - start)


def drawing(config: ml_collections.ConfigDict) -> tuple[Timed, float]:
    """Sampling from a frozen generator, `batch_size` images a call, and the seconds to freeze."""
    start = time.perf_counter()
    freeze, sample = sampling.create_freeze(config), sampling.create_sampler(config)
    variables = create_state(config).generator
    frozen = jax.block_until_ready(freeze(variables))  # compiles
    freeze_start = time.perf_counter()
    frozen = jax.block_until_ready(freeze(variables))
    freeze_seconds = time.perf_counter() - freeze_start
    labels = np.arange(config.batch_size, dtype=np.int32) % max(config.dataset.num_classes, 1)
    noise = sampling.fixed_noise(config, labels)

    def run(calls):
        for _ in range(calls):
            sample(frozen, noise, labels)

    first_call = _seconds(run, 1)
    return Timed(run, first_call, time.perf_counter() - start), freeze_seconds


def scoring(config: ml_collections.ConfigDict) -> tuple[Callable[[int], None], str]:
    """Drawing and looking at `evaluation.batch_size` images a call, as evaluation does it.

    The networks have made-up weights, which changes no speed. Returns `run(calls)`, which counts
    the moments of all features besides, and the name of the features.
    """
    settings = config.evaluation
    network = inception if settings.features == 'inception' else in_domain
    module, size = {
        'inception': (inception.Inception(), inception.SIZE),
        'in_domain': (in_domain.Classifier(config.dataset.num_classes), config.dataset.image_size),
    }[settings.features]
    layer = '2048' if settings.features == 'inception' else 'features'
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes)
    draw = sampling.create_draw(config)
    frozen = sampling.create_freeze(config)(create_state(config).generator)
    stream = features.on_devices(
        lambda variables, asked: network.apply(variables[1], draw(variables[0], asked)),
        settings.batch_size,
    )

    def run(calls):
        asked = np.zeros((calls * settings.batch_size, 2), np.int32)
        asked[:, 0] = np.arange(len(asked))
        parts = stream((frozen, variables), [asked])
        features.collect(parts, layer, 'logits', len(asked), splits=1, keep=0)

    _seconds(run, 1)  # compiles
    return run, network.NAME


def reading(config: ml_collections.ConfigDict) -> Timed:
    """The input pipeline on its own: the batches of one call, from the configuration's data."""
    from sagan_jax import data  # needs packages that nothing else here does

    start = time.perf_counter()
    source = data.load(config.dataset, 'train')
    count = config.steps_per_call * images_per_step(config)
    batches = data.batches(source, config.seed, count)

    def run(calls):
        for _ in range(calls):
            next(batches)

    first_call = _seconds(run, 1)
    return Timed(run, first_call, time.perf_counter() - start)


def attention(
    config: ml_collections.ConfigDict, resolution: int
) -> tuple[Callable[[int], None], int, int]:
    """The generator's attention layer at a resolution on its own, and its gradient.

    Returns:
      `run(calls)`, the bytes that the compiled program needs, and the layer's channels.
    """
    arch = architecture(config.model.architecture, config.dataset.image_size)
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
    gradient = jax.grad(lambda params, x: layer.apply(params, x).astype(jnp.float32).sum(), (0, 1))
    compiled = jax.jit(gradient).lower(params, x).compile()

    def run(calls):
        for _ in range(calls):
            gradients = compiled(params, x)
        jax.block_until_ready(gradients)

    return run, _program_bytes(compiled.memory_analysis()), channels


# ---- Memory. -----------------------------------------------------------------------------------


def forget_programs() -> None:
    """Frees what was compiled so far, so that only the next programs are found below."""
    gc.collect()
    jax.clear_caches()
    gc.collect()


def largest_program(device: jax.Device) -> Any:
    """Of the programs compiled for a device, the one that needs most memory: the train step."""
    executables = device.client.live_executables()
    return max(executables, key=lambda program: _program_bytes(program.get_compiled_memory_stats()))


def _program_bytes(stats) -> int:
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )


def memory(device: jax.Device) -> dict[str, int | None]:
    """Bytes by name: of the largest program, of the device and of the host at their peaks."""
    stats = device.memory_stats() or {}
    return {
        'program_bytes': _program_bytes(largest_program(device).get_compiled_memory_stats()),
        'device_peak_bytes': stats.get('peak_bytes_in_use'),
        'host_peak_bytes': hardware.host_peak_bytes(),
    }

"""The training step on all devices, and the only place that says pmap.

Outside, the state keeps its plain shapes and the batch is the global one. In the shapes below B is
the global batch, b one device's part of it, D is `discriminator_steps` and S is `steps_per_call`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import ml_collections
import numpy as np
from jax import lax

from sagan_jax import losses, models
from sagan_jax.configuration import checks
from sagan_jax.state import TrainState, create_optimizers
from sagan_jax.system import distributed
from sagan_jax.system.cpu import unrolled_scan
from sagan_jax.system.replicas import AXIS, replicate
from sagan_jax.train_step import Game, Metrics, train_step


def create_train_step(
    config: ml_collections.ConfigDict, devices: list[jax.Device] | None = None
) -> Callable[[TrainState, np.ndarray, np.ndarray], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, images, labels) -> (state, metrics)` over all devices.

    One call runs S steps, each with D batches of B real images.

    Args:
      config: see configuration/defaults.py.
      devices: the devices to run on; by default all, of all processes.

    Returns:
      A function of the state, which is donated; images uint8 [S·D·B, H, W, 3] and labels
      int32 [S·D·B] on the host. One of several processes gives the rows `local_rows` of each. The
      metrics are float32 [S], one value per step: both losses, the mean logit on real and on fake
      images, the norms of both gradients, the largest σ of each network and every gamma.

    Raises:
      UserError: if a number is out of its range (see configuration/checks.py), the batch does not
        divide by the devices and by `gradient_accumulation`, the loss is unknown, or
        `mismatch_weight` is set without a projection or classes.
    """
    devices = devices or distributed.all_devices()
    game = create_game(config, devices)
    run = over_devices(game, devices, lambda state, batch, _: train_step(game, state, *batch))
    return lambda state, images, labels: run(state, (images, labels), None)


def create_train_step_on_device(
    config: ml_collections.ConfigDict,
    dataset: tuple[np.ndarray, np.ndarray],
    devices: list[jax.Device] | None = None,
) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, rows) -> (state, metrics)`, which gathers batches on the devices.

    Each device keeps a copy of the whole `dataset`: images uint8 [N, H, W, 3] and labels
    int32 [N]. `rows` int32 [S·D·B] are indices into it. Otherwise as `create_train_step`.
    """
    devices = devices or distributed.all_devices()
    game = create_game(config, devices)

    def gather_and_train(state, rows, dataset):
        images, labels = dataset
        return train_step(game, state, images[rows], labels[rows])

    run = over_devices(game, devices, gather_and_train)
    dataset = replicate(dataset, local_devices(devices))
    return lambda state, rows: run(state, rows, dataset)


def create_game(config: ml_collections.ConfigDict, devices: list[jax.Device]) -> Game:
    """What `config` means on these devices. Raises UserError, see `create_train_step`."""
    checks.check(config)
    checks.check_batch(config, len(devices))
    axis_name = AXIS if config.batch_norm.cross_replica else None
    return Game(
        config,
        *models.create(config, axis_name),
        *create_optimizers(config),
        loss=losses.get(config.loss),
        local_batch=config.batch_size // len(devices),
        scan=unrolled_scan if devices[0].platform == 'cpu' else lax.scan,
    )


def over_devices(
    game: Game, devices: list[jax.Device], step: Callable
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]:
    """`run(state, batch, dataset)`: S times `step(state, part of the batch, dataset)` a call.

    The state is donated and the same on all devices, and so is `dataset`. The batch's leaves are
    [S·D·B, …] on the host, or the `local_rows` of them.
    """

    def call(state, batch, dataset):  # batch [S, D, b, …]
        return game.scan(lambda state, part: step(state, part, dataset), state, batch)

    run = jax.pmap(
        call,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=0,
    )
    split = partial(shard, game, len(local_devices(devices)))
    return lambda state, batch, dataset: run(state, jax.tree.map(split, batch), dataset)


def shard(game: Game, num_devices: int, array: np.ndarray) -> np.ndarray:
    """[S·D·devices·b, …] → [devices, S, D, b, …], for the devices of this process."""
    config = game.config
    leading = config.steps_per_call, config.discriminator_steps, num_devices, game.local_batch
    return np.moveaxis(array.reshape(*leading, *array.shape[1:]), 2, 0)


def local_devices(devices: list[jax.Device]) -> list[jax.Device]:
    """Those of `devices` that belong to this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def local_rows(config: ml_collections.ConfigDict) -> np.ndarray:
    """Which rows of one call's batches this process's devices take, int [S·D·B / processes]."""
    devices = distributed.all_devices()
    here = [index for index, device in enumerate(devices) if device in jax.local_devices()]
    batches = config.steps_per_call * config.discriminator_steps
    rows = np.arange(batches * config.batch_size).reshape(batches, len(devices), -1)
    return rows[:, here].reshape(-1)

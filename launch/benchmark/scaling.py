"""Predicts the speed of many devices from a model of their communication in a training step.

The batch of each device is constant (weak scaling). A step all-reduces the gradients of both
networks and the moments of every batch norm. The model assumes no overlap with computing, so the
efficiency is a lower bound for devices that reach their bandwidth.
"""

import math
from typing import Any, NamedTuple

import jax
import ml_collections

from launch.benchmark import hardware, measure
from sagan_jax import models

FLOAT32 = 4  # bytes: gradients and moments are float32 whatever the activations are
DEVICE_COUNTS = (8, 64, 512)
ASSUMED_SHARE = 0.3  # of a device's peak, if the step has not been measured


class Interconnect(NamedTuple):
    """A ring of connected devices.

    Attributes:
      name: of the interconnect.
      bandwidth: bytes/s that a device sends, in both directions together.
      latency: seconds per hop.
      device_kind: the kind of the devices, a key of `hardware.PEAKS`.
      assumption: what the bandwidth is based on.
    """

    name: str
    bandwidth: float
    latency: float
    device_kind: str
    assumption: str


INTERCONNECTS = (
    Interconnect(
        'NVLink', 450e9, 3e-6, 'NVIDIA H200', 'NVLink 4, all devices on one switch (a server has 8)'
    ),
    Interconnect('InfiniBand', 50e9, 5e-6, 'NVIDIA H200', 'a 400 Gb/s port for each device'),
    Interconnect('TPU ICI', 90e9, 1e-6, 'TPU v5e', 'one axis of the torus, both directions'),
    Interconnect('Ethernet', 12.5e9, 30e-6, 'NVIDIA H200', '100 Gb/s between neighbours'),
)


class Traffic(NamedTuple):
    """What a device contributes to the all-reduces of one step.

    Attributes:
      gradient_bytes: gradients of all updates of D and of the update of G.
      moment_bytes: moments of all batch norms.
      messages: the number of all-reduces.
    """

    gradient_bytes: int
    moment_bytes: int
    messages: int


def traffic(config: ml_collections.ConfigDict) -> Traffic:
    """Computes the traffic of a step from the parameter counts and the widths of the batch norms.

    With cross-replica moments, the two moments of each channel are reduced in every pass (those of
    G in each update of D and in its own update), and their gradients in every backward pass. With
    moments per device, the running averages are reduced after each pass. With gradient
    accumulation, this happens for each part of the batch.
    """
    d_updates, over_all = config.discriminator_steps, config.batch_norm.cross_replica
    # A discriminator with batch norm takes real and generated images in separate passes.
    passes = (
        d_updates + 1 + over_all,
        4 * d_updates + 2 if over_all else 2 * d_updates,
    )
    updates = 1, d_updates
    sent = Traffic(0, 0, 0)
    for network, count, times in zip(models.create(config), passes, updates, strict=True):
        variables = jax.eval_shape(network.init, jax.random.key(0))
        moments = [leaf.size for leaf in jax.tree.leaves(variables['batch_stats'])]
        count *= config.gradient_accumulation
        sent = Traffic(
            sent.gradient_bytes + FLOAT32 * times * models.count_parameters(variables),
            sent.moment_bytes + FLOAT32 * count * sum(moments),
            sent.messages + times + count * (len(moments) // 2),
        )
    return sent


def all_reduce_seconds(sent: Traffic, interconnect: Interconnect, devices: int) -> float:
    """Seconds that n devices need for the all-reduces of a step.

    Each device sends 2(n - 1)/n of all bytes (a ring). Each message takes 2 log₂ n hops (a tree, as
    for short messages).
    """
    moved = 2 * (devices - 1) / devices * (sent.gradient_bytes + sent.moment_bytes)
    waiting = sent.messages * 2 * math.log2(devices) * interconnect.latency
    return moved / interconnect.bandwidth + waiting


def predictions(
    config: ml_collections.ConfigDict, gflop_per_image: float, share_of_peak: float | None
) -> list[dict[str, Any]]:
    """Predicts a row for each interconnect and number of devices.

    Args:
      config: its `batch_size` is that of each device.
      gflop_per_image: of a training step.
      share_of_peak: the measured share of a device's peak; None assumes `ASSUMED_SHARE`.
    """
    sent = traffic(config)
    share = ASSUMED_SHARE if share_of_peak is None else share_of_peak
    tflop_per_step = gflop_per_image * measure.images_per_step(config) / 1e3
    rows = []
    for interconnect in INTERCONNECTS:
        peak = hardware.listed_peak(interconnect.device_kind, config.dtype)
        assert peak is not None, interconnect.device_kind
        computing = tflop_per_step / (peak * share)
        for devices in DEVICE_COUNTS:
            reducing = all_reduce_seconds(sent, interconnect, devices)
            efficiency = computing / (computing + reducing)
            rows.append(
                {
                    'interconnect': interconnect.name,
                    'assumption': f'{interconnect.name}: {interconnect.assumption}',
                    'gigabytes_per_second': interconnect.bandwidth / 1e9,
                    'latency_seconds': interconnect.latency,
                    'device_kind': interconnect.device_kind,
                    'devices': devices,
                    'share_of_peak': share,
                    **sent._asdict(),
                    'compute_seconds': computing,
                    'all_reduce_seconds': reducing,
                    'efficiency': efficiency,
                    'images_per_second': efficiency
                    * devices
                    * measure.images_per_step(config)
                    / computing,
                }
            )
    return rows

"""A state with a copy on each device: put there, taken from there, compared between them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sagan_jax.system import distributed

AXIS = 'batch'  # of the training step; arrays placed under another name make it compile twice


def replicate(tree: Any, devices: list[jax.Device] | None = None) -> Any:
    """Puts a copy of each array on every device, by default on all of this process."""
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def single_copy(tree: Any) -> Any:
    """One replica of what a train step returned, on one device; valid until the next step."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


@functools.cache
def create_checksums() -> Callable[[Any], np.ndarray]:
    """Builds `checksums(tree) -> sums`, uint32 [devices, leaves]: equal rows for equal replicas.

    Of all devices of all processes, which must all ask; leaves are in the order of
    `jax.tree.leaves`.
    """
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))

    def checksum(leaf):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        # Each number is mixed with its place, one to one, so that a flipped bit always shows.
        mixed = bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        return (mixed ^ (mixed >> 13)).sum(dtype=jnp.uint32)

    def own_checksums(tree):
        return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])[None]

    of_each = jax.jit(
        jax.shard_map(
            own_checksums,
            mesh=mesh,
            in_specs=PartitionSpec(),  # each device takes what it has to be everybody's
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
    )
    return lambda tree: distributed.gather(np.asarray(of_each(tree)))

"""A copy of the state on each device: creating, reading and comparing the copies."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sagan_jax.system import distributed

AXIS = 'batch'  # of the training step; with arrays placed under another name it compiles twice


def replicate(tree: Any, devices: list[jax.Device] | None = None) -> Any:
    """Puts a copy of each array on every device, by default on all devices of this process."""
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def single_copy(tree: Any) -> Any:
    """Returns one replica of a train step's state, on one device. Valid until the next step."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


@functools.cache
def create_checksums() -> Callable[[Any], np.ndarray]:
    """Builds `checksums(tree) -> sums`, uint32 [devices, leaves]: equal rows for equal replicas.

    Covers the devices of all processes, which must all call it. Leaves are in the order of
    `jax.tree.leaves`.
    """
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))

    def checksum(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        # Each element is hashed with its index, one to one, so that a flipped bit always shows.
        mixed = bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        return (mixed ^ (mixed >> 13)).sum(dtype=jnp.uint32)

    def own_checksums(tree):
        return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])[None]

    of_each = jax.jit(
        jax.shard_map(
            own_checksums,
            mesh=mesh,
            in_specs=PartitionSpec(),  # each device assumes that its copy is the replicated value
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
    )
    return lambda tree: distributed.gather(np.asarray(of_each(tree)))

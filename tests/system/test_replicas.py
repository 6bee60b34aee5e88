"""A difference of one bit between replicas is found and located."""

import jax
import numpy as np
import pytest

from sagan_jax.errors import UserError
from sagan_jax.run.health import check_replicas
from sagan_jax.system.replicas import create_checksums, replicate, single_copy

TREE = {
    'count': np.int32(7),
    'kernel': np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    'u': np.array([0.0, -0.0, np.nan], np.float32),
}


def perturbed(tree, name, device, index):
    """The tree on all devices, with the lowest bit of one element flipped on one of them."""
    placed = replicate(tree)
    copies = []
    for shard in placed[name].addressable_shards:
        copy = np.array(shard.data)
        if shard.device.id == device:
            copy.reshape(-1).view(np.uint32)[index] ^= 1
        copies.append(jax.device_put(copy, shard.device))
    leaf = placed[name]
    changed = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, copies)
    return placed | {name: changed}


def test_equal_replicas_have_equal_checksums():
    sums = create_checksums()(replicate(TREE))
    assert sums.shape == (8, 3)
    assert (sums == sums[0]).all()
    copy = single_copy(replicate(TREE))
    for name, leaf in TREE.items():
        np.testing.assert_array_equal(np.asarray(copy[name]), leaf)


@pytest.mark.parametrize(
    ('name', 'device', 'index'), [('kernel', 3, 0), ('kernel', 7, 23), ('u', 1, 1), ('count', 2, 0)]
)
def test_one_bit_on_one_device_is_found_and_named(name, device, index):
    sums = create_checksums()(perturbed(TREE, name, device, index))
    with pytest.raises(UserError, match=rf'{name} differs between device 0 and {device} of 8'):
        check_replicas(5, list(TREE), sums, None)
    differing = np.argwhere(sums != sums[0])
    assert differing.tolist() == [[device, sorted(TREE).index(name)]]


def test_checksums_depend_on_the_order_of_elements():
    swapped = TREE | {'kernel': TREE['kernel'][::-1].copy()}
    assert (create_checksums()(replicate(swapped)) != create_checksums()(replicate(TREE))).any()

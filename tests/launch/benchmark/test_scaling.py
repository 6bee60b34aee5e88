"""The model of communication: bytes against the program of a step, seconds by hand."""

import jax
import numpy as np
import pytest

from launch.benchmark import measure, scaling
from sagan_jax.state import create_state
from sagan_jax.train_step import create_train_step
from tests import tiny


def all_reduced_bytes(config):
    """The bytes of all all-reduces of a step on two devices, from the traced program."""
    state = jax.eval_shape(lambda: create_state(config))
    step = create_train_step(config, jax.devices()[:2])
    jaxpr = jax.make_jaxpr(step)(state, *measure.batch_shapes(config))

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if 'psum' in equation.primitive.name:
                total += sum(var.aval.size * var.aval.dtype.itemsize for var in equation.invars)
            times = equation.params['length'] if equation.primitive.name == 'scan' else 1
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    inner = getattr(inner, 'jaxpr', inner)
                    if hasattr(inner, 'eqns'):
                        total += times * count(inner)
        return total

    return count(jaxpr.jaxpr)


@pytest.mark.parametrize(
    'overrides',
    [
        {},
        {'discriminator_steps': 2},
        {'discriminator_steps': 2, 'batch_norm__cross_replica': False},
        {'gradient_accumulation': 2},
    ],
)
def test_bytes_of_a_step(overrides):
    config = tiny.config(**overrides)
    sent = scaling.traffic(config)
    others = all_reduced_bytes(config) - (sent.gradient_bytes + sent.moment_bytes)
    assert 0 <= others <= 4 * (3 * config.discriminator_steps + 1)  # losses and mean logits


def test_traffic_by_hand():
    sent = scaling.traffic(tiny.config(discriminator_steps=2))
    generator, discriminator = measure.parameter_counts(tiny.config())
    assert sent.gradient_bytes == 4 * (generator + 2 * discriminator)
    # 'pyramid' of width 4: batch norms of 16, 16 | 16, 8 | 8, 4 | 4 channels with two moments each.
    # Two forward passes in D's updates, a forward and a backward pass in G's.
    assert sent.moment_bytes == 4 * 4 * 2 * (16 + 16 + 16 + 8 + 8 + 4 + 4)
    assert sent.messages == 2 + 1 + 4 * 7


def test_seconds_by_hand():
    sent = scaling.Traffic(gradient_bytes=700_000_000, moment_bytes=100_000_000, messages=10)
    ethernet = scaling.Interconnect('Ethernet', 12.5e9, 30e-6, 'NVIDIA H200', '')
    # Each device sends 2 · 7/8 of 0.8 GB, which is 1.4 GB, at 12.5 GB/s; 10 messages of 2 · 3 hops.
    np.testing.assert_allclose(
        scaling.all_reduce_seconds(sent, ethernet, 8), 0.112 + 10 * 6 * 30e-6
    )


def test_efficiency():
    config = tiny.config(batch_size=32)
    rows = scaling.predictions(config, gflop_per_image=85.0, share_of_peak=0.25)
    assert len(rows) == 4 * 3
    by_name = {(row['interconnect'], row['devices']): row for row in rows}
    nvlink = by_name['NVLink', 64]
    computing = 32 * 85e9 / (494.7e12 * 0.25)
    np.testing.assert_allclose(nvlink['compute_seconds'], computing)
    total = computing + nvlink['all_reduce_seconds']
    np.testing.assert_allclose(nvlink['efficiency'], computing / total)
    np.testing.assert_allclose(nvlink['images_per_second'], 64 * 32 / total)
    for name in ('NVLink', 'TPU ICI', 'Ethernet'):
        efficiency = [by_name[name, devices]['efficiency'] for devices in (8, 64, 512)]
        assert efficiency == sorted(efficiency, reverse=True)
    assert by_name['Ethernet', 8]['efficiency'] < by_name['NVLink', 8]['efficiency']

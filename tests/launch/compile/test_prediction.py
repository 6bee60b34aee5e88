"""Predictions from made-up programs: memory, time and batches by hand."""

import math

import jax
import pytest

from launch.compile import devices, kernels, prediction
from launch.compile.program import Program
from sagan_jax.errors import UserError
from sagan_jax.state import state_shapes
from tests import tiny

V5E = devices.parse_target('v5e:1x1')
H100 = devices.parse_target('h100:1')

TEXT = """\
HloModule step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }

ENTRY %main (x: f32[4096,4096]) -> f32[4096,4096] {
  %x = f32[4096,4096]{1,0} parameter(0)
  %product = f32[4096,4096]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(_fun)/while/body/closed_call/jvp(Generator)/dense/dot_general"}, \
backend_config={"estimated_cycles":"3006000"}
  %sum = f32[4096,4096]{1,0} add(%product, %x), backend_config={"estimated_cycles":"1503000"}
  ROOT %tiny = f32[1]{0} negate(%y), backend_config={"estimated_cycles":"15030"}
  %y = f32[1]{0} parameter(1)
}
"""


def kernel(flop=0, size=0, cycles=None):
    return kernels.Kernel('k', 'fusion', '', '', 1, flop, size, cycles, 0)


def row(target=V5E, **changes):
    program = Program(TEXT, 3.0, arguments=2**30, outputs=2**29, aliased=2**28, temporaries=2**27)
    config = tiny.config(**{'batch_size': 16} | changes)
    return config, prediction.predict(config, target, program)


@pytest.mark.parametrize(
    ('name', 'flop_per_cycle'),
    [('v4', 2**18), ('v5e', 2**17), ('v5p', 2**18), ('v6e', 2**19)],
)
def test_the_clock_of_a_tpu_gives_its_peak(name, flop_per_cycle):
    device = devices.DEVICES[name]
    assert device.hertz * flop_per_cycle == pytest.approx(device.peak('bfloat16'))
    assert 1e9 < device.hertz < 2e9


def test_time_on_a_tpu_is_that_of_its_compiler():
    _, found = row(steps_per_call=2)
    # 1.503 GHz, and 4.524 million cycles in a call of two steps.
    assert found['seconds_per_step'] == pytest.approx(4_524_030 / 1.503e9 / 2, rel=1e-3)
    assert found['images_per_second'] == pytest.approx(16 / found['seconds_per_step'])
    days = found['seconds_per_step'] * 1e6 / 24 / 3600
    assert found['days_per_million_steps'] == pytest.approx(days)
    first, second, third = found['expensive_operations']
    assert [first['operation'], second['operation'], third['operation']] == [
        'product', 'sum', 'tiny',
    ]  # fmt: skip
    assert first['source'] == 'jvp(Generator)/dense/dot_general'
    assert first['share'] == pytest.approx(3_006_000 / 4_524_030)
    assert found['limits'] == pytest.approx(
        {
            # 137 GFLOP take 698 µs at the peak, the 201 MB of the product at 819 GB/s 246 µs.
            'products': 3_006_000 / 4_524_030,
            'memory': 1_503_000 / 4_524_030,
            'launches': 15_030 / 4_524_030,
        }
    )
    assert found['limit'] == 'products'


def test_time_on_a_gpu_is_the_largest_of_three_limits():
    device, flop, size = H100.device, 35e9, 80e6
    assert prediction.seconds_of(kernel(flop), device, 'bfloat16') == pytest.approx(
        35e9 / (0.35 * 989.4e12)
    )
    assert prediction.seconds_of(kernel(flop), device, 'float32') == pytest.approx(
        35e9 / (0.35 * 494.7e12)
    )
    assert prediction.seconds_of(kernel(1, size), device, 'float32') == pytest.approx(
        80e6 / (0.8 * 3.352e12)
    )
    assert prediction.seconds_of(kernel(1, 1), device, 'float32') == 3e-6


def test_operations_an_image_are_those_of_its_own_device():
    _, alone = row()
    _, among_four = row(devices.parse_target('v5e:2x2'))
    assert alone['gflop_per_image'] == pytest.approx(2 * 4096**3 / 16 / 1e9)
    assert among_four['gflop_per_image'] == pytest.approx(2 * 4096**3 / 4 / 1e9)
    assert among_four['images_per_second'] == pytest.approx(alone['images_per_second'], rel=0.05)


def test_memory_and_donation():
    config, found = row()
    assert found['program_bytes'] == 2**30 + 2**29 - 2**28 + 2**27
    assert found['fits']
    assert found['usable_bytes'] == 16 * 2**30
    assert found['arrays_not_donated'] == found['state_arrays'] - 2
    _, gpu = row(H100)
    assert gpu['usable_bytes'] == int(0.75 * 84_942_979_072)
    refused = prediction.predict(config, V5E, Program('', 1.0, refused='too large'))
    assert refused['refused'] == 'too large'
    assert 'fits' not in refused


def of_batch(batch, size, fixed=2**30, chips=1):
    return {
        'batch_size': batch,
        'devices': chips,
        'argument_bytes': fixed,
        'program_bytes': size,
        'usable_bytes': 16 * 2**30,
    }


def test_the_largest_batch():
    one = [of_batch(64, 4 * 2**30)]
    prediction.largest_batches(one)
    assert one[0]['largest_batch'] == 320  # 15 GiB at 3 GiB for 64
    two = [of_batch(64, 4 * 2**30), of_batch(256, 13 * 2**30)]
    prediction.largest_batches(two)
    assert [found['largest_batch'] for found in two] == [320, 320]  # 3 GiB for 64 from 1 GiB on
    assert two[0]['largest_batch_from'] == 'a line through batches 64 and 256'
    many = [of_batch(64, 4 * 2**30, chips=7)]
    prediction.largest_batches(many)
    assert many[0]['largest_batch'] == math.floor(320 / 7) * 7
    none = [of_batch(64, 20 * 2**30, fixed=17 * 2**30)]
    prediction.largest_batches(none)
    assert none[0]['largest_batch'] == 0


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('v7:1x1', 'names no known device: choose v4, v5e'),
        ('v5e', 'has no number of devices: try v5e:2x4'),
        ('v5e:2', 'try v5e:2x4'),
        ('v5p:2x2', 'try v5p:2x2x1'),
        ('h100:0', 'try h100:8'),
        ('h100:2x2', 'try h100:8'),
    ],
)
def test_a_target_that_does_not_exist(text, sentence):
    with pytest.raises(UserError, match=sentence):
        devices.parse_target(text)


def test_targets():
    assert devices.parse_target('v5e:2x4').count == 8
    assert devices.parse_target('v5p:2x2x1').shape == (2, 2, 1)
    assert (
        devices.parse_target('h200:8').device.memory > devices.parse_target('h100:8').device.memory
    )


@pytest.mark.parametrize(('target', 'package'), [(V5E, 'libtpu'), (H100, 'jax-cuda12-plugin')])
def test_a_missing_compiler_is_named_with_the_command_that_installs_it(
    target, package, monkeypatch
):
    monkeypatch.setattr(devices, 'version', lambda package: None)
    with pytest.raises(UserError, match=f'{package}.*pip install -r launch/compile/requirements'):
        devices.create_devices(target)


def test_all_arrays_of_the_state_are_counted():
    config, found = row()
    leaves = jax.tree.leaves(state_shapes(config))
    assert found['state_arrays'] == len(leaves)
    assert found['state_bytes'] == sum(4 * leaf.size for leaf in leaves)

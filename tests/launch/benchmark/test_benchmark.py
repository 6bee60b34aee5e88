"""The benchmark: costs against a count by hand, timing, tables, the command and its errors."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.benchmark import hardware, measure, tables, trace
from sagan_jax.errors import UserError
from tests import tiny
from tests.programs import run_python

SMALL = [
    '--config', 'sagan_jax/configuration/defaults.py',
    '--config.batch_size=8',
    '--config.dataset.num_classes=10',
    '--config.model.architecture=pyramid',
    '--config.model.generator_width=4',
    '--config.model.discriminator_width=4',
]  # fmt: skip
# Needed only by the data pipeline and the peer.
BLOCKED = ('tensorflow_datasets', 'grain', 'array_record', 'tensorflow', 'torch')


def run(*arguments):
    """Runs the command without the packages in `BLOCKED`."""
    program = (
        f'import runpy, sys; sys.modules.update(dict.fromkeys({BLOCKED})); '
        f'sys.argv[1:] = {list(map(str, arguments))}; '
        'runpy.run_module("launch.benchmark", run_name="__main__", alter_sys=True)'
    )
    return run_python('-c', program)


# ---- Costs. ------------------------------------------------------------------------------------


def products_by_hand(width, z_dim, whole):
    """Multiply-adds of a forward pass of one image through 'pyramid' networks without attention.

    With `whole`, products with the padding count too. Otherwise an axis of s pixels has 3s - 2
    products with a kernel of three, and 4s - 2 with a kernel between it and an axis twice as long.
    """

    def three(size):  # 3×3 at `size`
        return 9 * size**2 if whole else (3 * size - 2) ** 2

    def resampled(small):  # 3×3 after ×2, or before pooling: computed as 2×2 or 4×4
        return 16 * small**2 if whole else (4 * small - 2) ** 2

    generator = z_dim * 4 * 4 * 4 * width
    for small, inputs, outputs in ((4, 4, 4), (8, 4, 2), (16, 2, 1)):
        inputs, outputs = inputs * width, outputs * width
        generator += resampled(small) * inputs * outputs  # conv1
        generator += three(2 * small) * outputs**2  # conv2
        generator += small**2 * inputs * outputs  # skip
    generator += three(32) * width * 3

    first = three(32) * 3 * width + 16**2 * 3 * width  # conv1 and skip, on the image itself
    discriminator = first + resampled(16) * width**2  # conv2 of block 1
    for small, inputs, outputs in ((8, 1, 2), (4, 2, 4)):
        inputs, outputs = inputs * width, outputs * width
        discriminator += three(2 * small) * inputs * outputs
        discriminator += resampled(small) * outputs**2
        discriminator += small**2 * inputs * outputs
    discriminator += 2 * three(4) * (4 * width) ** 2  # block 4 keeps its resolution
    return generator, discriminator, first


def flop_by_hand(width, z_dim, d_updates, whole):
    """FLOP of a step per image of a batch.

    The gradient with respect to kernels costs as much as the forward pass, and so does the gradient
    with respect to the input. D's update: G without gradients, then D on a real and a fake image
    with both gradients, except that of the images. G's update: G with both, D with that of its
    input only.
    """
    g, d, first = products_by_hand(width, z_dim, whole)
    return 2 * (d_updates * (g + 2 * (3 * d - first)) + 3 * g + 2 * d)


@pytest.mark.parametrize('d_updates', [1, 3])
def test_flop_by_hand(d_updates):
    config = tiny.config(
        batch_size=1024,  # so that operations once per batch are negligible
        discriminator_steps=d_updates,
        model__z_dim=128,
        model__generator_width=64,
        model__discriminator_width=64,
        model__generator_attention=(),
        model__discriminator_attention=(),
    )
    counted = measure.gflop_per_image(config) * 1e9 * d_updates
    assert counted > 0.999 * flop_by_hand(64, 128, d_updates, whole=False)
    # The count by hand has no norms, activations and resampling.
    assert counted < 1.06 * flop_by_hand(64, 128, d_updates, whole=True)


def test_accumulation_and_several_steps_per_call_cost_the_same():
    plain = measure.gflop_per_image(tiny.config(batch_size=8))
    parts = tiny.config(
        batch_size=8, gradient_accumulation=2, steps_per_call=3, model__attention_query_block=64
    )
    assert measure.gflop_per_image(parts) == plain


# ---- Measuring. --------------------------------------------------------------------------------


def test_functions_are_timed_in_turns(monkeypatch):
    log, clock = [], [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])

    def run(name):
        def calls(count):
            clock[0] += 10 if log[-1:] != [name] else count  # the first after another one is slow
            log.append(name)

        return calls

    seconds = measure.time_in_turns([run('a'), run('b')], 3, 0.0)
    assert (
        log == ['a', 'b'] + ['a', 'a', 'b', 'b'] * 3
    )  # the first round and slow calls are not counted
    np.testing.assert_array_equal(seconds, np.ones((2, 3)))


def test_batches_that_were_read_ahead_do_not_affect_the_estimate(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])

    def read(count):  # 10 ms per call, except three that were read ahead
        clock[0] += 1e-6 + 0.01 * max(0, count - max(0, 3 - sum(calls)))
        calls.append(count)

    measure.time_in_turns([read], 1, 0.2)
    assert calls[-1] <= 25


def test_cores_of_other_processes(monkeypatch):
    with subprocess.Popen([sys.executable, '-c', 'while True: pass']) as other:
        _, cores = measure.cores_of_others(lambda: time.sleep(1))
        other.kill()
    assert cores > 0.3  # part of a core, even on a busy machine

    def work():
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        return 7

    monkeypatch.setattr(
        hardware, 'busy_cpu_seconds', lambda: time.process_time() + 1.5 * time.perf_counter()
    )
    result, cores = measure.cores_of_others(work)
    assert result == 7
    assert 1.4 < cores < 1.6  # without its own work


def test_expensive_operations(tmp_path):
    def layers(x):
        with jax.named_scope('layer'):
            return jnp.sort(x @ x, axis=0)

    x = jnp.ones((400, 400))
    compiled = jax.jit(layers).lower(x).compile()

    def run(calls):
        for _ in range(calls):
            jax.block_until_ready(compiled(x))

    rows = trace.expensive_operations(run, str(tmp_path), compiled.runtime_executable(), count=2)
    assert len(rows) == 2
    assert {row['source'].split('/')[1] for row in rows} == {'layer'}
    assert any(row['source'].endswith('/dot_general') for row in rows)
    assert any(row['source'].endswith('/sort') for row in rows)
    assert {row['shape'] for row in rows} == {'f32[400,400]'}
    assert 0 < rows[1]['seconds'] <= rows[0]['seconds']
    assert sum(row['share'] for row in rows) <= 1 + 1e-9


def test_memory_of_the_newest_programs():
    def program_bytes(size):
        measure.forget_programs()
        product = jax.jit(lambda x: x @ x.T)
        product(jnp.ones((size, size)))
        return measure.memory(jax.devices()[0])['program_bytes']

    assert 2 * 4 * 300**2 <= program_bytes(300) < 4 * 4 * 300**2  # x and the product, float32
    assert 2 * 4 * 100**2 <= program_bytes(100) < 4 * 4 * 100**2


def test_attention_needs_less_memory_in_blocks():
    run, plain, channels = measure.attention(tiny.config(), 16)
    assert channels == 8
    assert measure.time_in_turns([run], 1, 0.0).shape == (1, 1)
    blocks = tiny.config(model__attention_query_block=16)
    weights = 8 * (16 * 16) * (8 * 8) * 4  # of 8 images, a float32 for each query and key
    assert measure.attention(blocks, 16)[1] < plain - weights / 2


def test_attention_at_a_resolution_without_feature_maps_is_refused():
    with pytest.raises(UserError, match='no feature maps of 64×64: choose --attention from 8, 16'):
        measure.attention(tiny.config(), 64)


@pytest.mark.parametrize(
    ('kind', 'bfloat16', 'float32'),
    [
        ('NVIDIA H200', 989.4, 494.7),
        ('NVIDIA H100 80GB HBM3', 989.4, 494.7),
        ('NVIDIA H100 PCIe', 756, 378),
        ('NVIDIA A100-SXM4-80GB', 312, 156),
        ('TPU v5 lite', 197, 197),
        ('TPU v5p', 459, 459),
        ('TPU v6 lite', 918, 918),
        ('cpu', None, None),
    ],
)
def test_peaks(kind, bfloat16, float32):
    assert hardware.listed_peak(kind, 'bfloat16') == bfloat16
    assert hardware.listed_peak(kind, 'float32') == float32


# ---- The table. --------------------------------------------------------------------------------


def test_table():
    same = {'image_size': 128, 'attention': [32], 'query_block': 0, 'gflop_per_step': 5000.0}
    counts = {'generator_parameters': 42_078_852, 'discriminator_parameters': 7}
    rows = [
        {'batch_size': 8, 'dtype': 'bfloat16', 'gflop_per_image': 93.456, **same, **counts},
        {'batch_size': 256, 'dtype': 'float32', 'gflop_per_image': 1.0, **same, **counts},
    ]
    assert tables.render('cost', rows).splitlines() == [
        'image  attention  batch     dtype  GFLOP/image  GFLOP/step  parameters G  parameters D',
        '  128         32      8  bfloat16        93.46       5,000    42,078,852             7',
        '  128         32    256   float32         1.00       5,000    42,078,852             7',
    ]


# ---- The command. ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """All sections that need no data, measured once, and the printed output."""
    path = tmp_path_factory.mktemp('benchmark') / 'table.json'
    result = run(
        *SMALL, '--measure=step,sampling,attention,communication', '--devices=1,2', '--windows=3',
        '--window_seconds=0', '--json', path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(path.read_text()), result.stdout


def test_values_of_a_step_are_consistent(measured):
    rows = measured[0]['step']
    assert [row['devices'] for row in rows] == [1, 2]
    for row in rows:
        assert row['batch_size'] == 8
        assert row['dtype'] == 'float32'
        assert row['images_per_second_min'] <= row['images_per_second']
        assert row['images_per_second'] <= row['images_per_second_max']
        np.testing.assert_allclose(row['images_per_second'], 8 * row['steps_per_second'])
        hours = 1e6 / row['steps_per_second'] / 3600
        np.testing.assert_allclose(row['hours_per_million_steps'], hours)
        tflop = row['images_per_second'] * row['gflop_per_image'] / 1000
        np.testing.assert_allclose(row['tflop_per_second'], tflop)
        np.testing.assert_allclose(row['share_of_peak'] * row['peak_tflop_per_second'], tflop)
        assert 'measured' in row['peak_source']
        assert 0 < row['compile_seconds'] < row['first_step_seconds']
        # At least parameters, gradients and Adam's moments.
        assert row['program_bytes'] > 4 * 4 * (8_000 + 8_000)
        assert row['host_peak_bytes'] > row['program_bytes']
        assert 0 <= row['cores_of_others'] <= os.cpu_count() + 0.5
        assert row['device_peak_bytes'] is None  # a CPU has no memory of its own
    # The same computation, with half of the batch on each device.
    assert rows[0]['gflop_per_image'] == rows[1]['gflop_per_image']
    assert rows[1]['program_bytes'] < rows[0]['program_bytes']


def test_the_other_sections(measured):
    (sampling,) = measured[0]['sampling']
    assert sampling['images_per_second_min'] <= sampling['images_per_second']
    assert 0 < sampling['freeze_seconds'] < sampling['first_images_seconds']
    (attention,) = measured[0]['attention']
    assert attention['attention'] == [16]
    assert attention['channels'] == 8
    weights = 8 * (16 * 16) * (8 * 8) * 4  # a float32 for each query and key
    assert attention['program_bytes'] > weights
    assert {row['devices'] for row in measured[0]['communication']} == {8, 64, 512}


def test_machine_and_configuration_are_recorded(measured):
    machine = measured[0]['machine']
    assert machine['platform'] == 'cpu'
    assert machine['device_count'] >= 2
    assert machine['jax'] == jax.__version__
    assert machine['cores'] >= 1
    assert machine['cpu']
    assert measured[0]['config']['model']['generator_width'] == 4
    assert machine['device_kind'] in measured[1]


def test_the_printed_table(measured):
    lines = measured[1].splitlines()
    header = next(line for line in lines if 'images/s' in line)
    rows = lines[lines.index(header) + 1 :][:2]
    assert all(len(row) == len(header) for row in rows)
    assert f'{measured[0]["step"][0]["images_per_second"]:,.1f}' in rows[0]


def test_cost_only_in_every_combination(tmp_path):
    path = tmp_path / 'cost.json'
    flags = ['--dtype=float32,bfloat16', '--attention=none,16', '--json', path]
    result = run(*SMALL, '--cost_only', *flags)
    assert result.returncode == 0, result.stderr
    rows = json.loads(path.read_text())['cost']
    assert [(row['attention'], row['dtype']) for row in rows] == [
        ([], 'float32'),
        ([], 'bfloat16'),
        ([16], 'float32'),
        ([16], 'bfloat16'),
    ]
    assert all(0 < row['gflop_per_image'] < 1 for row in rows)
    assert rows[0]['gflop_per_image'] < rows[2]['gflop_per_image']
    assert 'images_per_second' not in rows[0]


@pytest.mark.parametrize(
    ('arguments', 'parts'),
    [
        ([], ['configs/imagenet128.py']),
        (['--config', 'configs/nowhere.py'], ['configs/nowhere.py']),
        ([*SMALL, '--config.model.depth=3'], ["no key 'depth'"]),
        ([*SMALL, '--batch_size=many'], ['--batch_size', "'many'"]),
        ([*SMALL, '--attention=0'], ['--attention', "'0'"]),
        ([*SMALL, '--dtype=float16', '--cost_only'], ["'float16'", 'bfloat16']),
        ([*SMALL, '--measure=speed'], ["'speed'", 'communication']),
        ([*SMALL, '--measure=step,input', '--cost_only'], ['--cost_only', 'input']),
        ([*SMALL, '--devices=3'], ['batch_size=8', '3 devices']),
        ([*SMALL, '--peer'], ['pip install -r launch/benchmark/pytorch_requirements.txt']),
        ([*SMALL, '--cost_only', '--json=/dev/null/table'], ['/dev/null/table']),
        ([*SMALL, 'more'], ["'more'"]),
    ],
)
def test_mistakes_end_with_one_sentence(arguments, parts):
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert 'Traceback' not in result.stderr
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith('error: ')] == lines[-1:]
    assert lines[-1].endswith('.')
    for part in parts:
        assert part in lines[-1]


def test_help():
    result = run('--help')
    assert 'python -m launch.benchmark --config' in result.stdout
    for flag in ('--batch_size', '--devices', '--dtype', '--json', '--measure', '--profile'):
        assert flag in result.stdout


# ---- The peer, where PyTorch is installed. -----------------------------------------------------


@pytest.mark.parametrize('size', [32, 64])
def test_the_peer_computes_the_same_function(size):
    pytest.importorskip('torch')
    from launch.benchmark import pytorch_training
    from sagan_jax.state import create_state

    architecture = {32: 'pyramid', 64: 'sagan'}[size]
    config = tiny.config(dataset__image_size=size, model__architecture=architecture)
    pytorch_training.check_same_function(config, create_state(config))


def test_a_peer_with_another_function_is_refused(monkeypatch):
    torch = pytest.importorskip('torch')
    from launch.benchmark import pytorch_networks, pytorch_training
    from sagan_jax.state import create_state

    config = tiny.config()
    monkeypatch.setattr(
        pytorch_networks.F, 'avg_pool2d', lambda x, size: torch.nn.functional.max_pool2d(x, size)
    )
    with pytest.raises(UserError, match='logits differ by'):
        pytorch_training.check_same_function(config, create_state(config))

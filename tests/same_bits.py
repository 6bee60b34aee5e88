"""Shows that a change of the code changes no bit of what a run computes.

  python -m tests.same_bits record FILE    # in a checkout of the code before the change
  python -m tests.same_bits compare FILE   # in a checkout of the code after the change

Ten configurations of tiny networks train for three steps on two virtual CPU devices. FILE is an
.npz file. It holds every array of their last states and the metrics of every step, each with the
copies of both devices: `ema/state/generator/params/block1/conv1/kernel` is [devices, …].
`compare` trains again and prints the arrays that differ, with the largest difference. The exit
status is 0 if all arrays are equal, 1 if one differs or is missing, and 2 if FILE was recorded
with another JAX, processor or XLA_FLAGS, where the same code may round differently.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ['JAX_NUM_CPU_DEVICES'] = '2'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import jaxlib
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

import sagan_jax
from sagan_jax.train_step import create_train_step

# Where each layout of the package has them: the later one first.
try:
    from sagan_jax.configuration.defaults import get_config
except ImportError:
    from configs.common import get_config
try:
    from sagan_jax.state import create_state
except ImportError:
    from sagan_jax.train_step import create_state
try:
    from sagan_jax.train_step import create_gathering_train_step
except ImportError:

    def create_gathering_train_step(config, dataset, devices):
        return create_train_step(config, devices, dataset)


STEPS = 3
PICTURES = 40
TINY = {
    # Logits between -1 and 1, where the hinge loss lets gradients of both real and fake images
    # pass. With seed 0 real images change nothing.
    'seed': 23,
    'batch_size': 8,
    'dataset.num_classes': 3,
    'model.architecture': 'pyramid',
    'model.generator_width': 4,
    'model.discriminator_width': 4,
    'model.z_dim': 8,
    'model.generator_attention': (16,),
    'model.discriminator_attention': (16,),
}
CONFIGURATIONS = {
    'projection': {},
    'acgan': {'model.conditioning': 'acgan', 'gradient_accumulation': 2},
    'moments_per_device': {'batch_norm.cross_replica': False},
    'dcgan': {
        'model.architecture': 'dcgan',
        'model.conditioning': 'none',
        'model.initializer': 'normal',
        'model.generator_attention': (),
        'model.discriminator_attention': (),
        'spectral_norm.generator': False,
        'spectral_norm.discriminator': False,
        'loss': 'non_saturating',
        'optimizer.b1': 0.5,
    },
    'residual_block': {'model.attention_block': 'residual'},
    'discriminator_steps': {'discriminator_steps': 5},
    'ema': {'ema.decay': 0.5, 'ema.start_step': 1},
    'flip': {'dataset.flip': True},
    'on_device': {'dataset.on_device': True},
    'bfloat16': {'dtype': 'bfloat16'},
}


def train(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """The metrics of each step and the state after the last, by path."""
    rng = np.random.default_rng(0)
    size = config.dataset.image_size
    images = rng.integers(0, 256, (PICTURES, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, config.dataset.num_classes, PICTURES).astype(np.int32)
    rows_per_step = config.discriminator_steps * config.batch_size
    rows = rng.integers(0, PICTURES, (STEPS, rows_per_step)).astype(np.int32)

    devices = jax.devices()
    if config.dataset.on_device:
        train_step = create_gathering_train_step(config, (images, labels), devices)
        batches = [(step_rows,) for step_rows in rows]
    else:
        train_step = create_train_step(config, devices)
        batches = [(images[step_rows], labels[step_rows]) for step_rows in rows]

    # With the axis name of the train step, which compiles twice otherwise.
    mesh = Mesh(np.array(devices), ('batch',))
    state = open_gammas(create_state(config))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    found = {}
    for step, batch in enumerate(batches):
        state, metrics = train_step(state, *batch)
        found |= by_path(f'step{step}', metrics)
    return found | by_path('state', state)


def open_gammas(state):
    """Adds 0.5 to each gamma: at 0, all gradients inside attention are 0."""

    def open_gamma(path, leaf):
        name = keystr(path, simple=True, separator='/')
        return leaf + 0.5 if name.endswith('/gamma') and '_opt/' not in name else leaf

    return tree_map_with_path(open_gamma, state)


def by_path(prefix: str, tree) -> dict[str, np.ndarray]:
    """Each leaf of a tree as it is on each device, [devices, …]."""
    return {
        f'{prefix}/{keystr(path, simple=True, separator="/")}': on_each_device(leaf)
        for path, leaf in tree_flatten_with_path(tree)[0]
    }


def on_each_device(array: jax.Array) -> np.ndarray:
    """All copies of a replicated array, [devices, …]; raw bits of types that numpy lacks."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    copies = np.stack([shard.data for shard in array.addressable_shards])
    is_numpy = copies.dtype.isbuiltin == 1  # bfloat16 is not
    return copies if is_numpy else copies.view(f'u{copies.itemsize}')


def train_all() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The name and the arrays of each configuration, by path in FILE."""
    for name, changes in CONFIGURATIONS.items():
        config = get_config()
        config.update_from_flattened_dict(TINY | changes)
        yield name, {f'{name}/{path}': array for path, array in train(config).items()}
        jax.clear_caches()


def difference(before: np.ndarray | None, now: np.ndarray | None) -> str:
    """What differs between two arrays, or '' if they are equal bit for bit."""
    if before is None or now is None:
        return 'not in FILE' if before is None else 'only in FILE'
    if (before.dtype, before.shape) != (now.dtype, now.shape):
        return f'{before.dtype} {before.shape} in FILE, {now.dtype} {now.shape} now'
    if before.tobytes() == now.tobytes():
        return ''
    return f'max |difference| {np.abs(np.float64(before) - np.float64(now)).max():.3g}'


def compare(recorded: dict[str, np.ndarray]) -> bool:
    """Prints what differs from `recorded`, and returns whether anything does."""
    different = False
    for name, now in train_all():
        before = {key: recorded.pop(key) for key in list(recorded) if key.startswith(f'{name}/')}
        keys = sorted(before.keys() | now.keys())
        found = {key: difference(before.get(key), now.get(key)) for key in keys}
        found = {key: text for key, text in found.items() if text}
        result = f'{len(found)} differ' if found else 'equal bit for bit'
        print(f'{name}: {len(keys)} arrays, {result}', flush=True)
        for key, text in found.items():
            print(f'  {key}: {text}')
        different |= bool(found)
    for name in sorted({key.split('/')[0] for key in recorded}):
        print(f'{name}: only in FILE')
    return different or bool(recorded)


def environment() -> dict[str, str | int]:
    """What decides, beside the code, how a program is compiled and in which order it adds."""
    instructions = [
        line
        for line in Path('/proc/cpuinfo').read_text().splitlines()
        if line.startswith(('flags', 'Features'))
    ]
    return {
        'jax': jax.__version__,
        'jaxlib': jaxlib.__version__,
        'devices': jax.device_count(),
        'processors': len(os.sched_getaffinity(0)),
        'instructions': hashlib.sha256(instructions[0].encode()).hexdigest()[:8],
        'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('command', choices=('record', 'compare'))
    parser.add_argument('file', type=Path, metavar='FILE')
    arguments = parser.parse_args()

    here = environment()
    print(f'{Path(sagan_jax.__file__).parent}, {here}')
    if arguments.command == 'record':
        arrays = {'environment': np.array(json.dumps(here))}
        for name, found in train_all():
            print(f'{name}: {len(found)} arrays', flush=True)
            arrays |= found
        with arguments.file.open('wb') as file:  # given a name, savez would add a suffix
            np.savez(file, **arrays)
        return 0
    with np.load(arguments.file) as file:
        recorded = dict(file)
    there = json.loads(recorded.pop('environment').item())
    if there != here:
        parser.error(f'{arguments.file} was recorded with {there}: record it again here.')
    return int(compare(recorded))


if __name__ == '__main__':
    sys.exit(main())

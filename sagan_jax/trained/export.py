"""Exports a frozen generator for other programs: `--mode export`."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from sagan_jax import models, sampling
from sagan_jax.errors import UserError
from sagan_jax.evaluation import protocol
from sagan_jax.images import image_grid, save_png
from sagan_jax.run.folder import Row, RunFolder
from sagan_jax.system.files import atomic_path
from sagan_jax.system.records import versions
from sagan_jax.trained.model import Model

PLATFORMS = ('cpu', 'cuda', 'tpu')

_ROWS, _COLUMNS = 10, 8  # of samples.png, one class per row
_MAX_NAMES = 20  # of classes, in the model card
_PATHS = (('dataset', 'data_dir'), ('dataset', 'source_dir'), ('evaluation', 'inception_weights'))


def export(model: Model, workdir: Path, folder: Path) -> None:
    """Writes a generator into a folder, for programs that do not use this package.

    `generator.stablehlo` is `program(model)`, including the weights. `generator.safetensors` holds
    the weights and batch statistics of `model.generator` by path, such as 'params/conv/kernel'.
    `generator.json` describes both. `README.md` is a model card and shows `samples.png`.

    Args:
      model: see `sagan_jax.load`.
      workdir: the run's folder. The card lists its scores of this checkpoint.
      folder: created if it does not exist. Existing files of these names are replaced.

    Raises:
      UserError: if the folder cannot be written.
    """
    labels = sampling.grid_classes(model.config.dataset.num_classes, _ROWS)
    images = model.sample_rows(labels, _COLUMNS)
    weights = flatten_dict(jax.tree.map(np.asarray, model.generator), sep='/')
    scores = RunFolder(workdir).scores(model.step)
    description = describe(model, scores)
    writers = {
        'generator.stablehlo': lambda path: path.write_bytes(program(model).serialize()),
        'generator.safetensors': lambda path: path.write_bytes(save(weights)),
        'generator.json': lambda path: path.write_text(json.dumps(description, indent=2) + '\n'),
        'samples.png': lambda path: save_png(path, image_grid(images, _COLUMNS)),
        'README.md': lambda path: path.write_text(card(model, scores)),
    }
    for name, write in writers.items():
        try:
            with atomic_path(folder / name) as temporary:
                write(temporary)
        except OSError as error:
            raise UserError(
                f'{folder / name} cannot be written ({error.strerror or error}): free disk space, '
                'or choose another --output.'
            ) from error
        print(f'written        {folder / name}')


def program(model: Model) -> jax.export.Exported:
    """Exports the generator as a program for `PLATFORMS` and any batch size, which needs only JAX.

    The program maps z float32 [n, z_dim] and labels int32 [n] to images float32 [n, S, S, 3] in
    [-1, 1].
    """
    generator, _ = model.networks
    (n,) = jax.export.symbolic_shape('n')
    z = jax.ShapeDtypeStruct((n, model.config.model.z_dim), np.float32)
    labels = jax.ShapeDtypeStruct((n,), np.int32)

    @jax.jit
    def generate(z, labels):
        return generator.apply(model.generator, z, labels, train=False)[0]

    return jax.export.export(generate, platforms=PLATFORMS)(z, labels)


def describe(model: Model, scores: list[Row]) -> dict[str, Any]:
    """The content of `generator.json`."""
    config = model.config
    size, classes = config.dataset.image_size, len(model.class_names)
    return {
        'inputs': {
            'z': f'float32 [n, {config.model.z_dim}], standard normal',
            'labels': f'int32 [n], from 0 to {classes - 1}',
        },
        'outputs': {'images': f'float32 [n, {size}, {size}, 3], from -1 to 1'},
        'platforms': PLATFORMS,
        'class_names': model.class_names,
        'step': model.step,
        'checkpoint_sha256': model.sha256,
        'config': _configuration(config),
        'scores': scores,
        'versions': versions(),
    }


def card(model: Model, scores: list[Row]) -> str:
    """The model card, in Markdown."""
    config, names = model.config, model.class_names
    classes = ', '.join(f'{label} {name}' for label, name in enumerate(names))
    if config.model.conditioning == 'none':
        classes = 'none. The program requires labels, but ignores them'
    elif len(names) > _MAX_NAMES:
        classes = f'{len(names):,}, see `generator.json` for their names'
    averaging = f'an average over training with a decay of {config.ema.decay:g}'
    averaged = config.ema.decay and model.step > config.ema.start_step
    values = flatten_dict(_configuration(config), sep='.')
    return _CARD.format(
        data=config.dataset.name,
        size=config.dataset.image_size,
        z_dim=config.model.z_dim,
        num_classes=len(names),
        classes=classes,
        weights=models.count_parameters(model.generator),
        averaging=averaging if averaged else 'those of this step',
        step=model.step,
        batch_size=config.batch_size,
        updates=config.discriminator_steps,
        jax=metadata.version('jax'),
        sha256=model.sha256,
        scores=_score_table(scores),
        config='\n'.join(f'{key}={value}' for key, value in values.items()),
    )


def _configuration(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The configuration without the paths of this machine."""
    values = json.loads(config.to_json())
    for section, key in _PATHS:
        del values[section][key]
    return values


_CARD = """\
# A generator of {size}×{size} images, trained on {data}

![Samples, one class per row](samples.png)

The generator of a Self-Attention GAN (Zhang, Goodfellow, Metaxas and Odena, ICML 2019,
[arXiv:1805.08318](https://arxiv.org/abs/1805.08318)), trained with sagan_jax on the data set
`{data}` for {step:,} steps of {batch_size} images (discriminator updates per step:
{updates}). Its {weights:,} weights are {averaging}. Spectral normalisation is
folded into them, and batch statistics are fixed. The samples are not selected.

Classes: {classes}.

## Use

`pip install jax flatbuffers` with JAX {jax} or later, for a CPU, a CUDA GPU or a TPU:

```python
from pathlib import Path

import numpy as np
from jax import export

program = export.deserialize(Path('generator.stablehlo').read_bytes())
z = np.random.default_rng(0).standard_normal((8, {z_dim}), np.float32)  # any number of rows
labels = np.arange(8, dtype=np.int32) % {num_classes}
images = program.call(z, labels)  # float32 [8, {size}, {size}, 3] in [-1, 1]
pixels = np.round((np.asarray(images) + 1) * 127.5).astype(np.uint8)
```

| file | content |
|---|---|
| `generator.stablehlo` | the program above, with its weights, in the format of `jax.export` |
| `generator.safetensors` | only the weights and batch statistics, by name |
| `generator.json` | inputs, outputs, class names, the configuration, all scores |

## Scores

{scores}

## Configuration

SHA-256 of the generator in the checkpoint of step {step}: `{sha256}`.

```
{config}
```
"""


def _score_table(scores: list[Row]) -> str:
    """The scores with their protocols, as a table in Markdown."""
    if not scores:
        return 'This checkpoint has not been scored.'
    lines = ['| score | value | real images | protocol |', '|---|---|---|---|']
    for row in scores:
        value = f'{row["value"]:.4g}' + (f' ± {row["std"]:.2g}' if 'std' in row else '')
        real = f'{row["real_value"]:.4g}' if 'real_value' in row else '–'
        lines.append(f'| `{row["name"]}` | {value} | {real} | {protocol.main_conditions(row)} |')
    return '\n'.join(lines)

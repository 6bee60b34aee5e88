"""Exports a frozen generator for other programs: `--mode export`."""

import contextlib
import hashlib
import json
import re
import shutil
import string
import uuid
from collections.abc import Iterable, Iterator
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
from sagan_jax.run.entries import Row
from sagan_jax.run.folder import RunFolder
from sagan_jax.system.failures import writing
from sagan_jax.system.files import partial_path
from sagan_jax.system.paths import refuse_file
from sagan_jax.system.records import versions
from sagan_jax.system.untrusted import read_json
from sagan_jax.trained.model import Model

PLATFORMS = ('cpu', 'cuda', 'tpu')

DESCRIPTION = 'generator.json'
FILES = ('generator.stablehlo', 'generator.safetensors', DESCRIPTION, 'samples.png', 'README.md')

_ROWS, _COLUMNS = 10, 8  # of samples.png, one class per row
_MARKUP = ''.join(set(string.punctuation) - set("-,;.'()/+%="))  # which Markdown may read
_MAX_NAMES = 20  # of classes, in the model card
# Keys that describe the networks of a converted model.
_OF_NETWORKS = ('model.', 'batch_norm.epsilon', 'dataset.image_size', 'dataset.num_classes')
_PATHS = (
    ('dataset', 'data_dir'),
    ('dataset', 'source_dir'),
    ('evaluation', 'inception_weights'),
    ('init', 'run'),
)


def export(model: Model, workdir: Path, folder: Path) -> None:
    """Writes a generator into a folder, for programs that do not use this package.

    `generator.stablehlo` is `program(model)`, including the weights. `generator.safetensors` holds
    the weights and batch statistics of `model.generator` by path, such as 'params/conv/kernel'.
    `generator.json` describes both. `README.md` is a model card and shows `samples.png`.

    The files appear together: the folder is renamed into place when all are written.

    Args:
      model: see `sagan_jax.load`.
      workdir: the run's folder. The card lists its scores of this checkpoint.
      folder: created if it does not exist. An earlier export in it is replaced.

    Raises:
      UserError: if the folder holds other files or changed ones, or cannot be written.
    """
    refuse_file(folder)
    _check_folder(folder)
    labels = sampling.grid_classes(model.config.dataset.num_classes, _ROWS)
    images = model.sample_rows(labels, _COLUMNS)
    weights = flatten_dict(jax.tree.map(np.asarray, model.generator), sep='/')
    scores = RunFolder(workdir).scores(model.step)
    text = card(model, scores).encode(errors='replace')
    writers = {
        'generator.stablehlo': lambda path: path.write_bytes(program(model).serialize()),
        'generator.safetensors': lambda path: path.write_bytes(save(weights)),
        'samples.png': lambda path: save_png(path, image_grid(images, _COLUMNS)),
        'README.md': lambda path: path.write_bytes(text),
    }
    with writing(folder, 'another --output'), _renamed_into_place(folder) as temporary:
        for name, write in writers.items():
            write(temporary / name)
        description = describe(model, scores)
        record = description | {'files': _hashes(temporary, writers, description)}
        (temporary / DESCRIPTION).write_text(_as_json(record))
    for name in (*writers, DESCRIPTION):
        print(f'written        {folder / name}')


@contextlib.contextmanager
def _renamed_into_place(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`, which replaces `folder` when the block succeeds.

    If the block raises, the new folder is removed and `folder` is unchanged.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = partial_path(folder)
    old = folder.with_name(f'{folder.name}.old-{uuid.uuid4().hex}')  # stays if this is killed
    try:
        new.mkdir()
        yield new
        _check_folder(folder)  # it may have changed in the meantime
        if folder.exists():
            folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds anything but an export as this program wrote it."""
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f'{folder} cannot be read as a folder ({error.strerror}): choose another --output.'
        ) from error
    others = [path.name for path in found if path.name not in FILES or not path.is_file()]
    others = others or _changed(folder, [path.name for path in found])
    if others:
        raise UserError(
            f'The folder {folder} holds files that this program did not write, or that have '
            f'changed since ({", ".join(sorted(others)[:5])}): choose another --output, or remove '
            'them.'
        )


def _changed(folder: Path, names: list[str]) -> list[str]:
    """Those of `FILES` in a folder that differ from what `generator.json` records of them."""
    try:
        description = read_json(folder / DESCRIPTION)
        written = description.pop('files')
        found = _hashes(folder, names, description)
        return [name for name in names if found[name] != written[name]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return names


def _hashes(folder: Path, names: Iterable[str], description: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file; that of `generator.json` is of the description alone."""
    contents = {name: (folder / name).read_bytes() for name in names if name != DESCRIPTION}
    contents[DESCRIPTION] = _as_json(description).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _as_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + '\n'


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
    } | ({'origin': model.origin} if model.origin else {})


def card(model: Model, scores: list[Row]) -> str:
    """The model card, in Markdown."""
    config, names = model.config, model.class_names
    classes = ', '.join(f'{label} {_escaped(name)}' for label, name in enumerate(names))
    if config.model.conditioning == 'none':
        classes = 'none. The program requires labels, but ignores them'
    elif len(names) > _MAX_NAMES:
        classes = f'{len(names):,}, see `generator.json` for their names'
    values = flatten_dict(_configuration(config), sep='.')
    if model.origin:  # the other keys are of no training that there was
        values = {key: values[key] for key in values if key.startswith(_OF_NETWORKS)}
    return _CARD.format(
        trained=_converted(model.origin) if model.origin else _trained(model),
        source=f'with {model.origin["project"]}'
        if model.origin
        else f'on {_escaped(config.dataset.name)}',
        size=config.dataset.image_size,
        z_dim=config.model.z_dim,
        num_classes=len(names),
        classes=classes,
        step=model.step,
        jax=metadata.version('jax'),
        sha256=model.sha256,
        scores=_score_table(scores),
        config='\n'.join(f'    {key}={_one_line(value)}' for key, value in values.items()),
    )


def _trained(model: Model) -> str:
    """How a run was trained, for the card."""
    config = model.config
    averaging = f'an average over training with a decay of {config.ema.decay:g}'
    averaged = config.ema.decay and model.step > config.ema.start_step
    return _TRAINED.format(
        data=_escaped(config.dataset.name),
        step=model.step,
        batch_size=config.batch_size,
        updates=config.discriminator_steps,
        weights=models.count_parameters(model.generator),
        averaging=averaging if averaged else 'those of this step',
    )


def _converted(origin: dict[str, Any]) -> str:
    """Where a converted model comes from, for the card."""
    files = '; '.join(
        f'{_escaped(file["name"])}, SHA-256 `{file["sha256"]}`' for file in origin['files']
    )
    return _CONVERTED.format(
        project=_escaped(origin['project']),
        files=files,
        networks=_escaped(', '.join(origin['networks'])),
        licence=_escaped(origin['licence']),
    )


def _configuration(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The configuration without the paths of this machine."""
    values = json.loads(config.to_json())
    for section, key in _PATHS:
        del values[section][key]
    return values


_TRAINED = """\
trained with sagan_jax on the data set
{data} for {step:,} steps of {batch_size} images (discriminator updates per step:
{updates}). Its {weights:,} weights are {averaging}."""

_CONVERTED = """\
trained with {project} and
converted with sagan_jax from published files ({files}), of which it has the {networks}. Licence of
the weights: {licence}. The images that it was trained on may have terms of their own."""

_CARD = """\
# A generator of {size}×{size} images, trained {source}

![Samples, one class per row](samples.png)

The generator of a Self-Attention GAN (Zhang, Goodfellow, Metaxas and Odena, ICML 2019,
[arXiv:1805.08318](https://arxiv.org/abs/1805.08318)), {trained} Spectral normalisation is
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

{config}
"""


def _score_table(scores: list[Row]) -> str:
    """The scores with their protocols, as a table in Markdown."""
    if not scores:
        return 'This checkpoint has not been scored.'
    lines = ['| score | value | real images | protocol |', '|---|---|---|---|']
    for row in scores:
        value = f'{row["value"]:.4g}' + (f' ± {row["std"]:.2g}' if 'std' in row else '')
        real = f'{row["real_value"]:.4g}' if 'real_value' in row else '–'
        conditions = _escaped(protocol.main_conditions(row))
        lines.append(f'| {_escaped(row["name"])} | {value} | {real} | {conditions} |')
    return '\n'.join(lines)


def _escaped(text: str) -> str:
    """Text from outside as Markdown that shows it in one line, and nothing else."""
    return re.sub(rf'([{re.escape(_MARKUP)}]|(?<=www)\.)', r'\\\1', _one_line(text))


def _one_line(value: Any) -> str:
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in str(value)).split())

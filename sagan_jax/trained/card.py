"""The model card of an export, with the metadata that the Hugging Face hub reads."""

import json
import math
import re
import string
from typing import Any

from flax.traverse_util import flatten_dict

from sagan_jax import models
from sagan_jax.evaluation import protocol
from sagan_jax.run.entries import Row, score_of
from sagan_jax.trained.model import Model

_MARKUP = ''.join(set(string.punctuation) - set("-,;.'()/+%="))  # which Markdown may read
_MAX_NAMES = 20  # of classes, in the model card
# Keys that describe the networks of a converted model.
_OF_NETWORKS = ('model.', 'batch_norm.epsilon', 'dataset.image_size', 'dataset.num_classes')

_TASK = 'unconditional-image-generation'  # the hub has none for images of classes
_TAGS = ('gan', 'image-generation', 'jax', 'numpy', 'sagan', 'self-attention', 'stablehlo')
_HUB_NAMES = {  # of data sets that TFDS has under other names
    'cifar10': 'uoft-cs/cifar10',
    'cifar100': 'uoft-cs/cifar100',
    'imagenet2012': 'ILSVRC/imagenet-1k',
}


def card(model: Model, description: dict[str, Any]) -> str:
    """The model card of a model and its `export.describe`, in Markdown after a block of YAML."""
    config, names = model.config, model.class_names
    classes = ', '.join(f'{label} {_escaped(name)}' for label, name in enumerate(names))
    if config.model.conditioning == 'none':
        classes = 'none. The program requires labels, but ignores them'
    elif len(names) > _MAX_NAMES:
        classes = f'{len(names):,}, see `generator.json` for their names'
    values = flatten_dict(description['config'], sep='.')
    if model.origin:  # the other keys are of no training that there was
        values = {key: values[key] for key in values if key.startswith(_OF_NETWORKS)}
    return _metadata(model, description) + _CARD.format(
        trained=_converted(model.origin) if model.origin else _trained(model),
        source=f'with {model.origin["project"]}'
        if model.origin
        else f'on {_escaped(config.dataset.name)}',
        size=config.dataset.image_size,
        z_dim=config.model.z_dim,
        num_classes=len(names),
        classes=classes,
        step=model.step,
        jax=description['versions']['jax'],
        date=description['date'],
        sha256=model.sha256,
        scores=_score_table(description['scores']),
        config='\n'.join(f'    {key}={_one_line(value)}' for key, value in values.items()),
    )


def _metadata(model: Model, description: dict[str, Any]) -> str:
    """The block at the top of a card, from which the hub takes tags, data, licence and scores.

    Each value is JSON in a line, which is YAML too.
    """
    lines = {
        'library_name': 'jax',
        'pipeline_tag': _TASK,
        'tags': [*_TAGS],
        'license': description['license'],
    }
    dataset = None if model.origin else _hub_name(model.config.dataset.name)
    if dataset:
        lines['datasets'] = [dataset]
    text = [f'{key}: {_yaml(value)}' for key, value in lines.items()]
    # YAML has no name for a score that is not finite which the hub reads.
    scores = [row for row in description['scores'] if math.isfinite(row['value'])]
    if scores:
        size = model.config.dataset.image_size
        text += ['model-index:', f'- name: SAGAN {size}×{size}', '  results:']
    for row in scores:
        data = {'name': row['data'], 'type': dataset or row['data'], 'split': row['split']}
        metric = {
            'type': score_of(row['name']),
            'name': row['name'],
            'value': float(row['value']),
            'args': {'protocol': protocol.main_conditions(row)},
        }
        text += [
            f'  - task: {_yaml({"type": _TASK})}',
            f'    dataset: {_yaml(data)}',
            '    metrics:',
            f'    - {_yaml(metric)}',
        ]
    return '\n'.join(['---', *text, '---', '', ''])


def _hub_name(dataset: str) -> str | None:
    """The name of a data set on the hub, OWNER/NAME, if it is known to be there."""
    found = re.fullmatch(r'hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/.*)?', dataset, re.ASCII)
    return found[1] if found else _HUB_NAMES.get(dataset)


def _yaml(value: Any) -> str:
    """A value as JSON that YAML reads as the same value."""
    if isinstance(value, float):
        return re.sub(r'^(-?\d+)e', r'\1.0e', repr(value))  # 1e-07 would be text
    if isinstance(value, str):
        return json.dumps(_one_line(value), ensure_ascii=False)
    if isinstance(value, dict):
        return '{' + ', '.join(f'{_yaml(key)}: {_yaml(each)}' for key, each in value.items()) + '}'
    return '[' + ', '.join(map(_yaml, value)) + ']'


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

`generator.py` beside this card computes the images with NumPy alone:

```python
import numpy as np
from generator import generate, program

z = np.random.default_rng(0).standard_normal((8, {z_dim}), np.float32)  # any number of rows
labels = np.arange(8, dtype=np.int32) % {num_classes}
images = generate(z, labels)  # float32 [8, {size}, {size}, 3] in [-1, 1]
pixels = np.round((images + 1) * 127.5).astype(np.uint8)
```

JAX computes them faster, on a CPU, a CUDA GPU or a TPU. `pip install jax flatbuffers`, then:

```python
fast = program()
images = np.asarray(fast(z, labels))
```

The program was exported on {date} with JAX {jax}. That version reads it, and so do all versions of
the six months after it. Newer ones may refuse it: `pip install 'jax=={jax}' flatbuffers`, or call
`generate`, which does not age.

| file | content |
|---|---|
| `generator.py` | the functions above, in NumPy; they read the other files |
| `generator.stablehlo` | the program, with its weights, in the format of `jax.export` |
| `generator.safetensors` | only the weights and batch statistics, by name |
| `generator.json` | inputs, outputs, class names, the configuration, all scores, the date |

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

"""The command that makes a run of published weights."""

import json
import math

from sagan_jax.run.folder import RunFolder
from tests.programs import run_python
from tests.published.test_conversion import GOLDEN, files


def run(*arguments):
    return run_python('-m', 'launch.convert', *arguments)


def count(network):
    """The parameters among the tensors that PyTorch saved."""
    shapes = json.loads((GOLDEN / 'tiny_studiogan_32' / 'info.json').read_text())[network]
    trained = ('weight_orig', 'weight', 'bias', 'sigma')
    names = [key for key in shapes if key.rpartition('.')[2] in trained]
    return sum(math.prod(shapes[key][0]) for key in names)


def test_files_become_a_run(tmp_path):
    generator, discriminator = files('tiny_studiogan_32')
    output, source = tmp_path / 'run', '--config.dataset.source_dir=IMAGES'
    data = ['--config', 'configs/cifar10.py', '--config.dataset.name=image_folder', source]
    result = run(discriminator, '--output', output, *data, generator, '--discriminator_skip=input')
    assert result.returncode == 0, result.stderr
    for line in (
        'project        PyTorch-StudioGAN, step 1,000, RGB',
        f'generator      {count("G"):,} parameters, attention at 16',
        f'discriminator  {count("D"):,} parameters, attention at 16',
        'left out       ',
        'licence        MIT',
        f'written        {output}',
    ):
        assert line in result.stdout
    config = RunFolder(output).config()
    assert config.dataset.source_dir == 'IMAGES'
    assert config.model.discriminator_skip == 'input'
    assert RunFolder(output).checkpoint_steps() == [1000]


def test_mistakes_end_in_one_sentence(tmp_path):
    generator, _ = files('tiny_studiogan_32')
    output = tmp_path / 'run'
    for arguments, sentence in (
        (
            [generator, '--output', output, '--config', 'configs/imagenet128.py'],
            'in 10 classes, but --config',
        ),
        (['--output', output], '0 files were given'),
    ):
        result = run(*arguments)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith('error: ')
        assert sentence in line
    assert not list(tmp_path.iterdir())

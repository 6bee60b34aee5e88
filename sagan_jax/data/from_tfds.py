"""Data sets of TFDS. Some need TensorFlow to be prepared; none needs it to be read."""

import difflib
import importlib.util
import platform
import sys
from collections.abc import Callable

import tensorflow_datasets as tfds

from sagan_jax.errors import UserError
from sagan_jax.system import failures

_NEWEST_PYTHON = (3, 13)  # that TensorFlow has packages for


def find(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set. Prepares nothing. Raises UserError if there is none."""
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ['image_folder', *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(name.split('/')[0], known)
        hint = (
            f'did you mean {" or ".join(close)}' if close else 'is it the name of a TFDS data set'
        )
        raise UserError(f'There is no data set {name}: {hint}?') from error
    except (ValueError, AssertionError) as error:  # a wrong name, configuration or version
        raise UserError(
            f'TFDS cannot open {name} ({_one_line(error)}): check --config.dataset.name.'
        ) from error


def already_prepared(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder | None:
    """TFDS's own builder of a data set, if it has been prepared so that it can be read here."""
    builder = tfds.builder(name, data_dir=data_dir)
    readable = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    return builder if builder.is_prepared() and readable else None


def prepared(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """Prepares a data set as TFDS does. Raises UserError if that fails."""
    builder = make_builder()
    from_tfds = type(builder).__module__.startswith('tensorflow_datasets.')
    try:
        if from_tfds and not importlib.util.find_spec('tensorflow'):
            raise ModuleNotFoundError(name='tensorflow')  # before the download, not after it
        builder.download_and_prepare(
            file_format='array_record',
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except ImportError as error:
        install = (
            how_to_get_tensorflow(sys.platform, platform.machine(), sys.version_info[:2])
            if error.name == 'tensorflow'
            else f'pip install {error.name}'
        )
        raise UserError(
            f'TFDS needs {error.name} to prepare {builder.name}, but not to read it later: '
            f'{install}'
        ) from error
    except Exception as error:
        # No network, no space, manual downloads missing.
        of_download = type(error).__module__.startswith('tensorflow_datasets.core.download')
        expected = of_download or isinstance(error, AssertionError)
        if not expected and not failures.unwritable(error):
            raise
        raise UserError(f'TFDS cannot prepare {builder.name}: {_one_line(error)}') from error
    return builder


def how_to_get_tensorflow(system: str, machine: str, python: tuple[int, ...]) -> str:
    """What installs TensorFlow, or what to do where it has no packages; the end of a sentence.

    Args:
      system: as `sys.platform`.
      machine: as `platform.machine()`.
      python: major and minor version.
    """
    package = {
        ('linux', 'x86_64'): 'tensorflow-cpu',  # half the size, and no other package needs CUDA
        ('linux', 'aarch64'): 'tensorflow',
        ('darwin', 'arm64'): 'tensorflow',
    }.get((system, machine))
    otherwise = (
        'prepare the data set elsewhere and copy it to --config.dataset.data_dir, or choose one '
        'that needs no TensorFlow, such as --config.dataset.name=hf:OWNER/NAME of the Hugging Face '
        'hub.'
    )
    if not package:
        return f'TensorFlow has no package for {system} on {machine}; {otherwise}'
    if python > _NEWEST_PYTHON:
        newest = '.'.join(map(str, _NEWEST_PYTHON))
        return f'pip install {package}, which exists for Python up to {newest} alone; {otherwise}'
    return f'pip install {package}'


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())

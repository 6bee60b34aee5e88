"""Paths that a user gives, and folders named after classes."""

import collections
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from sagan_jax.errors import UserError

_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*:/')
_LONGEST_PART, _LONGEST_PATH = 255, 3800  # bytes; systems allow 4095, and files are put below
_LONGEST_NAME = 200  # bytes of a name that becomes a folder, without a number; systems allow 255


def check_path(path: str, flag: str) -> None:
    """Refuses a path that is not one of this machine, such as gs://bucket/run.

    Args:
      path: what the user gave.
      flag: what the user calls it, such as --output.

    Raises:
      UserError: if the path begins with a scheme, is not Unicode, or is longer than file systems
        allow.
    """
    shown = _shown(path)
    if _SCHEME.match(path):
        raise UserError(f'{flag}={shown} is not a path on this machine: {_how_to_get(path, flag)}.')
    if shown != path or '\0' in path:
        raise UserError(f'{flag}={shown} is not a path in UTF-8: rename the folder or the file.')
    longest = max(len(part.encode()) for part in path.split('/'))
    if (
        longest > _LONGEST_PART
        or len(os.path.abspath(path).encode(errors='replace')) > _LONGEST_PATH
    ):
        raise UserError(
            f'{flag}={shown[:60]}… is too long, since a name has at most {_LONGEST_PART} bytes and '
            f'a path {_LONGEST_PATH}: choose a shorter one.'
        )


def check_data_path(path: str, flag: str) -> None:
    """Refuses a folder in which checkpoints or prepared data could not be read back.

    Orbax, TensorStore and TFDS take the whole path of a file as a pattern or as an address.

    Raises:
      UserError: as `check_path`, or naming the part of the absolute path that cannot be used.
    """
    check_path(path, flag)
    whole = os.path.abspath(os.path.expanduser(path))
    for part in Path(whole).parts:
        if re.search(r'[*?\[\]\\\0]', part) or part.endswith('gs:') or _shown(part) != part:
            raise UserError(
                f'{flag}={path} cannot hold checkpoints or prepared data, which are read by paths '
                f'without *, ?, [, ], \\ and gs:/, because of {_shown(part)!r} in {_shown(whole)}: '
                'choose another folder.'
            )


def refuse_file(folder: Path) -> None:
    """Refuses the name of a file, such as grid.jpg, where a folder would be created.

    Raises:
      UserError: if there is no such folder and the name has an extension that begins with a letter.
    """
    if re.fullmatch(r'\.[A-Za-z]\w*', folder.suffix) and not folder.is_dir():
        raise UserError(
            f'{folder} is not a folder, and {folder.suffix} is not a format that can be written '
            'here: choose another --output, or create the folder first.'
        )


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses a configuration with a path that `check_path` or `check_data_path` refuses."""
    for key, check in (
        ('dataset.source_dir', check_path),
        ('dataset.data_dir', check_data_path),
        ('evaluation.inception_weights', check_path),
        ('init.run', check_data_path),
    ):
        section, _, name = key.partition('.')
        value = config.get(section, {}).get(name)
        if value:
            check(value, f'--config.{key}')


def cache_folder() -> Path:
    """Where downloads and compiled programs are kept: `sagan_jax` in XDG_CACHE_HOME or ~/.cache.

    Raises:
      RuntimeError: if the user has no home.
    """
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'sagan_jax'


def folder_names(names: Sequence[str], reserved: Sequence[str] = ()) -> list[str]:
    """A folder's name for each class: a single part of a path, each different from the others.

    A usual name stays as it is. '~' and the number of the class are added to a name that had to be
    changed, and to names that differ only in case or composition, which some file systems do not
    tell apart. No other folder has a '~'.

    Args:
      names: of the classes, any text.
      reserved: names of other files beside the folders.
    """
    safe = [_safe(name) for name in names]
    taken = collections.Counter(_folded(name) for name in (*safe, *reserved))
    return [
        name if name == asked and taken[_folded(name)] == 1 else f'{name}~{number}'
        for number, (asked, name) in enumerate(zip(names, safe, strict=True))
    ]


def _safe(name: str) -> str:
    """A name without separators, control characters, surrogates, '~' and outer dots and spaces."""
    kept = ''.join(
        '_'
        if character in '/\\~' or unicodedata.category(character) in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')
        else character
        for character in name
    )
    kept = kept.encode()[:_LONGEST_NAME].decode(errors='ignore')
    return re.sub(r'^[. ]|[. ]$|^$', '_', kept)


def _folded(name: str) -> str:
    decomposed = unicodedata.normalize('NFD', name).casefold()
    return unicodedata.normalize('NFD', decomposed)


def _how_to_get(address: str, flag: str) -> str:
    """What to do for a path on this machine with what is at an address."""
    copy = {'gs': 'gcloud storage cp -r', 's3': 'aws s3 cp --recursive'}
    command = copy.get(address.partition('://')[0])
    if command and flag in ('--init', '--config.init.run'):
        once = f'`--mode figures --workdir {_shown(address)}`'
        return f'give it once as {once}, and here the folder that this names'
    of_bucket = f' with `{command} {_shown(address)} FOLDER`' if command else ''
    return f'copy what is there{of_bucket} or mount it, and give the local path'


def _shown(path: str) -> str:
    """The path with bytes that are not UTF-8 replaced."""
    return path.encode(errors='replace').decode()

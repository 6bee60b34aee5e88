"""The parquet files of a data set on the Hugging Face hub, by configuration and split."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sagan_jax.errors import UserError, printable
from sagan_jax.system import hub

PREFIX = 'hf:'

_NAME = re.compile(rf'hf:{hub.NAME}(?:/([^/\\]+))?')
_CONVERTED = 'refs/convert/parquet'  # where the hub puts what it converted to parquet itself
_CONVERTED_PATH = re.compile(r'([^/]+)/([^/]+)/\d+\.parquet')  # configuration and split

# The first that exists is used. Labels of 'test' are often withheld where there is a 'validation'.
_TRAIN_NAMES = ('train', 'training')
_TEST_NAMES = ('validation', 'valid', 'val', 'dev', 'test', 'testing')


class Listing(NamedTuple):
    """The files of a data set."""

    repository: hub.Repository
    config: str  # '' if there is only one, without a name
    splits: dict[str, tuple[str, ...]]  # the files of 'train' and, if there is one, 'test'


def parse(name: str) -> tuple[str, str | None]:
    """The repository and the configuration in 'hf:OWNER/NAME' or 'hf:OWNER/NAME/CONFIG'."""
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(
            f'{name} names no data set of the Hugging Face hub: set '
            '--config.dataset.name=hf:OWNER/NAME or hf:OWNER/NAME/CONFIG.'
        )
    return found[1], found[2]


def find(name: str, revision: str | None) -> Listing:
    """Asks the hub for the files of a data set. Downloads none.

    Data sets that are not in parquet are found where the hub has converted them.

    Args:
      name: as for `parse`.
      revision: a commit, a branch or a tag; None for the newest commit.

    Raises:
      UserError: if there is no such data set, revision or configuration, if there are several
        configurations and `name` has none, if the data set has no parquet files or no training
        images, if it needs a token, or if the hub does not answer.
    """
    owner_and_name, config = parse(name)
    repository = hub.find(owner_and_name, revision or 'main', 'datasets')
    configs = _configs(repository)
    if not configs and not revision:
        try:
            repository = hub.find(owner_and_name, _CONVERTED, 'datasets')
            configs = _configs(repository)
        except hub.MissingRevisionError:
            pass  # the hub has converted nothing
    if not configs:
        raise UserError(
            f'The data set {name} has no parquet files on the hub: choose another, or download it '
            'and give its images as a folder.'
        )
    config = _choose(name, config, configs, _default_configs(repository))
    return Listing(repository, config, _train_and_test(name, configs[config]))


def fetch(listing: Listing, file: str, downloads: Path) -> Path:
    """Downloads a file, once. Raises UserError if that fails."""
    repository = listing.repository
    folder = downloads / 'hf' / hub.folder_name(repository.name, repository.commit)
    path = folder / file.replace('/', '--')
    hub.fetch(repository, file, path, 'check the network')
    return path


Splits = dict[str, list[str]]


def _configs(repository: hub.Repository) -> dict[str, Splits]:
    """The parquet files of each split of each configuration, as the card or the paths say."""
    files = sorted(file for file in repository.files if file.endswith('.parquet'))
    found: dict[str, Splits] = {}
    for entry in _card_configs(repository):
        splits = {
            split: [file for file in files if any(_matches(file, p) for p in patterns)]
            for split, patterns in _patterns(entry.get('data_files'))
        }
        splits = {split: chosen for split, chosen in splits.items() if chosen}
        if splits:
            found[str(entry['config_name'])] = splits
    if found or not files:
        return found
    converted = [_CONVERTED_PATH.fullmatch(file) for file in files]
    for file, parts in zip(files, converted, strict=True):
        if all(converted) and parts:
            config, split = parts[1], parts[2]
        else:
            words = re.split(r'[^A-Za-z]+', file.lower())
            known = [word for word in words if word in (*_TRAIN_NAMES, *_TEST_NAMES)]
            config, split = '', (known or ['train'])[-1]
        found.setdefault(config, {}).setdefault(split, []).append(file)
    return found


def _card_configs(repository: hub.Repository) -> list[Mapping[str, Any]]:
    entries = repository.card.get('configs')
    entries = entries if isinstance(entries, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and 'config_name' in entry]


def _default_configs(repository: hub.Repository) -> list[str]:
    return [
        str(entry['config_name']) for entry in _card_configs(repository) if entry.get('default')
    ]


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """The splits of a configuration with their patterns, in the forms that a card may have."""
    if isinstance(data_files, str):
        return [('train', [data_files])]
    found = []
    for entry in data_files if isinstance(data_files, list) else ():
        if isinstance(entry, dict):
            path = entry.get('path')
            patterns = path if isinstance(path, list) else [path]
            found.append((str(entry.get('split')), [str(pattern) for pattern in patterns]))
        else:
            found.append(('train', [str(entry)]))
    return found


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.removeprefix('./')
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f'{pattern}/*')


def _choose(
    name: str, config: str | None, configs: Mapping[str, Splits], defaults: Sequence[str]
) -> str:
    known = [printable(found) for found in configs]
    if config is not None:
        if '' in configs:
            raise UserError(
                f'The data set {name} has no configurations: set --config.dataset.name to '
                f'{name.removesuffix(f"/{config}")}.'
            )
        if config not in configs:
            raise UserError(
                f'The data set {name} has no configuration {printable(config)}, only '
                f'{", ".join(known)}: set --config.dataset.name=hf:OWNER/NAME/CONFIG.'
            )
        return config
    for candidate in [*defaults, 'default']:
        if candidate in configs:
            return candidate
    if len(configs) > 1:
        raise UserError(
            f'The data set {name} has several configurations, {", ".join(known)}: set '
            f'--config.dataset.name={name}/{known[0]} or another.'
        )
    return next(iter(configs))


def _train_and_test(name: str, splits: Splits) -> dict[str, tuple[str, ...]]:
    if all(split.startswith('partial-') for split in splits):
        raise UserError(
            f'The hub has converted only a part of {name} to parquet: choose another data set, or '
            'download it and give its images as a folder.'
        )
    trains = [split for split in _TRAIN_NAMES if split in splits]
    if not trains and len(splits) == 1:
        trains = list(splits)
    if not trains:
        raise UserError(
            f'The data set {name} has no training images, only {", ".join(map(printable, splits))}'
            ': choose another, or another configuration.'
        )
    tests = [split for split in _TEST_NAMES if split in splits and split not in trains]
    chosen = {'train': splits[trains[0]]} | ({'test': splits[tests[0]]} if tests else {})
    return {split: tuple(files) for split, files in chosen.items()}

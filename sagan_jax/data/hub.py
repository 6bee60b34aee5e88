"""What the Hugging Face hub has of a data set: its parquet files at one revision.

HF_TOKEN gives access to private and gated data sets, and HF_ENDPOINT names another hub, as for
huggingface_hub.
"""

import fnmatch
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sagan_jax.errors import UserError, printable
from sagan_jax.system.download import download, request
from sagan_jax.system.untrusted import parse_json, reason

PREFIX = 'hf:'

_NAME = re.compile(r'hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/([^/\\]+))?')
_CONVERTED = 'refs/convert/parquet'  # where the hub puts what it converted to parquet itself
_CONVERTED_PATH = re.compile(r'([^/]+)/([^/]+)/\d+\.parquet')  # configuration and split
_LARGEST = 2**26  # bytes of an answer about a data set

# The first that exists is used. Labels of 'test' are often withheld where there is a 'validation'.
_TRAIN_NAMES = ('train', 'training')
_TEST_NAMES = ('validation', 'valid', 'val', 'dev', 'test', 'testing')


class HubFile(NamedTuple):
    """A file in a repository of the hub."""

    path: str
    sha256: str | None  # if the hub has it


class Listing(NamedTuple):
    """The files of a data set."""

    repository: str  # OWNER/NAME
    config: str  # '' if there is only one, without a name
    revision: str  # the commit
    splits: dict[str, tuple[HubFile, ...]]  # of 'train' and, if there is one, 'test'
    gated: bool

    @property
    def page(self) -> str:
        return f'{_endpoint()}/datasets/{self.repository}'


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
    repository, config = parse(name)
    info = _ask(repository, revision or 'main')
    configs = _configs(info)
    if not configs and not revision:
        info = _ask(repository, _CONVERTED)
        configs = _configs(info)
    if not configs:
        raise UserError(
            f'The data set {name} has no parquet files on the hub: choose another, or download it '
            'and give its images as a folder.'
        )
    config = _choose(name, config, configs, _default_configs(info))
    splits = _train_and_test(name, configs[config])
    return Listing(repository, config, info['sha'], splits, bool(info.get('gated')))


def fetch(listing: Listing, file: HubFile, downloads: Path) -> Path:
    """Downloads a file, once. Raises UserError if that fails."""
    folder = downloads / 'hf' / f'{listing.repository.replace("/", "--")}@{listing.revision}'
    path = folder / file.path.replace('/', '--')
    url = f'{listing.page}/resolve/{listing.revision}/{urllib.parse.quote(file.path)}'

    def accept(sha256: str) -> None:
        if file.sha256 and sha256 != file.sha256:
            raise UserError(
                f'What {url} sent has the SHA-256 {sha256}, and the hub has {file.sha256} for it: '
                'try again.'
            )

    if path.exists():
        with path.open('rb') as existing:
            sha256 = hashlib.file_digest(existing, 'sha256').hexdigest()
        if file.sha256 in (None, sha256):
            return path
    otherwise = 'check the network'
    if listing.gated:
        otherwise = f'accept the conditions at {listing.page} with the account of HF_TOKEN'
    download(url, path, accept, otherwise, token=_token())
    return path


def _endpoint() -> str:
    return (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')


def _token() -> str | None:
    return os.environ.get('HF_TOKEN') or None


def _ask(repository: str, revision: str) -> dict[str, Any]:
    """What the hub says about a revision of a data set."""
    quoted = urllib.parse.quote(revision, safe='')
    url = f'{_endpoint()}/api/datasets/{repository}/revision/{quoted}?blobs=true'
    page = f'{_endpoint()}/datasets/{repository}'
    try:
        with urllib.request.urlopen(request(url, _token()), timeout=60) as response:
            content = response.read(_LARGEST + 1)
        info = parse_json(content)
        if len(content) > _LARGEST or not re.fullmatch('[0-9a-f]{40}', info['sha']):
            raise ValueError('no commit')
        info['siblings'] = [
            HubFile(str(file['rfilename']), (file.get('lfs') or {}).get('sha256'))
            for file in info['siblings']
        ]
        card = info.get('cardData')
        info['cardData'] = card if isinstance(card, dict) else {}
    except urllib.error.HTTPError as error:
        raise _refused(error, repository, revision, page) from error
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f'The hub does not answer at {url} ({reason(error)}): try again.'
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f'What {url} answers is not about a data set ({reason(error)}): check HF_ENDPOINT.'
        ) from error
    if info.get('gated') and not _token():
        raise UserError(
            f'The data set {repository} is gated: accept its conditions at {page}, and set '
            'HF_TOKEN to a token of your account.'
        )
    return info


def _refused(error: urllib.error.HTTPError, repository: str, revision: str, page: str) -> UserError:
    code = error.headers.get('X-Error-Code')
    if code == 'GatedRepo' or error.code == 403:
        return UserError(
            f'The data set {repository} is gated: accept its conditions at {page}, and set '
            'HF_TOKEN to a token of your account.'
        )
    if code == 'RevisionNotFound':
        if revision == _CONVERTED:
            return UserError(
                f'The data set {repository} has no parquet files on the hub: choose another, or '
                'download it and give its images as a folder.'
            )
        return UserError(
            f'The data set {repository} has no revision {printable(revision)}: set '
            f'--config.dataset.revision to a commit of {page}/commits/main.'
        )
    if error.code in (401, 404):
        return UserError(
            f'The hub has no data set {repository}, or it is private: check '
            '--config.dataset.name=hf:OWNER/NAME, and for a private one set HF_TOKEN.'
        )
    return UserError(f'The hub does not answer about {page} ({error}): try again.')


Splits = dict[str, list[HubFile]]


def _configs(info: Mapping[str, Any]) -> dict[str, Splits]:
    """The parquet files of each split of each configuration, as the card or the paths say."""
    files = sorted(file for file in info['siblings'] if file.path.endswith('.parquet'))
    found: dict[str, Splits] = {}
    for entry in _card_configs(info):
        splits = {
            split: [file for file in files if any(_matches(file.path, p) for p in patterns)]
            for split, patterns in _patterns(entry.get('data_files'))
        }
        splits = {split: chosen for split, chosen in splits.items() if chosen}
        if splits:
            found[str(entry['config_name'])] = splits
    if found or not files:
        return found
    converted = [_CONVERTED_PATH.fullmatch(file.path) for file in files]
    for file, parts in zip(files, converted, strict=True):
        if all(converted) and parts:
            config, split = parts[1], parts[2]
        else:
            words = re.split(r'[^A-Za-z]+', file.path.lower())
            known = [word for word in words if word in (*_TRAIN_NAMES, *_TEST_NAMES)]
            config, split = '', (known or ['train'])[-1]
        found.setdefault(config, {}).setdefault(split, []).append(file)
    return found


def _card_configs(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = info['cardData'].get('configs')
    entries = entries if isinstance(entries, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and 'config_name' in entry]


def _default_configs(info: Mapping[str, Any]) -> list[str]:
    return [str(entry['config_name']) for entry in _card_configs(info) if entry.get('default')]


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


def _train_and_test(name: str, splits: Splits) -> dict[str, tuple[HubFile, ...]]:
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

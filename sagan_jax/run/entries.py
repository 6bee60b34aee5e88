"""What the files of a run's folder hold, and checks of what was read from them."""

import math
import re
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, TypeGuard

from sagan_jax.system.untrusted import parse_json

_NAME = re.compile(r'(?:in_domain_)?(\w+?)\d+k?(?:_train|_test)?')  # see `protocol.row_name`
_LAST_STEP = 2**31 - 1
_LARGEST = 2.0**128  # beyond float32


class Row(TypedDict):
    """A score and its protocol, as `evaluation/<step>.json` holds it."""

    name: str  # see `protocol.row_name`
    value: float
    real_value: NotRequired[float]  # the same score for the real images
    std: NotRequired[float]  # over splits or subsets
    per_class: NotRequired[dict[str, float]]
    splits: NotRequired[int]
    subsets: NotRequired[int]
    subset_size: NotRequired[int]
    k: NotRequired[int]  # neighbours
    step: int
    num_fake: int
    num_real: int
    data: str
    split: str
    image_size: int
    features: NotRequired[str]  # these three are missing if the score is computed from pixels
    features_sha256: NotRequired[str]
    resize: NotRequired[str]
    rounding: str
    labels: str
    ema: float
    batch_statistics: str
    seed: int
    versions: dict[str, str]


_SHOWN = {'name', 'value', 'step', 'num_fake', 'num_real', 'data', 'split'}  # by every reader
_NUMBERS = ('value', 'real_value', 'std', 'ema')
_COUNTS = ('step', 'num_fake', 'num_real', 'splits', 'subsets', 'subset_size', 'k', 'image_size')
_TEXTS = ('name', 'data', 'split', 'features', 'features_sha256', 'resize', 'rounding', 'labels')


def is_row(row: Any) -> TypeGuard[Row]:
    """Whether a JSON value is a row, with at least what every reader of rows needs."""
    return bool(
        isinstance(row, dict)
        and row.keys() >= _SHOWN
        and all(_is_number(row[key]) for key in _NUMBERS if key in row)
        and all(_is_count(row[key]) for key in _COUNTS if key in row)
        and all(isinstance(row[key], str) for key in _TEXTS if key in row)
        and _NAME.fullmatch(row['name'])
        and _is_table(row.get('versions', {}))
        and _is_table(row.get('per_class', {}))
    )


def score_of(name: str) -> str:
    """The score in a row's name: 'fid' for 'in_domain_fid10k_train'."""
    match = _NAME.fullmatch(name)
    assert match, name  # as `is_row` has checked
    return match[1]


def parse_metrics(line: bytes) -> dict[str, float] | None:
    """A line of `metrics.jsonl`; None if it is not whole or holds anything but numbers."""
    try:
        values = parse_json(line)
    except ValueError:
        return None
    if not (isinstance(values, dict) and _is_count(values.get('step'))):
        return None
    return values if all(map(_is_number, values.values())) else None


def wrong_facts(record: Mapping[str, Any], classes: int) -> list[str]:
    """The keys of `config.json`, beside the configuration, whose values are of no use.

    Args:
      record: what `config.json` holds; every key may be missing.
      classes: the number of classes.
    """
    data = record.get('data', {})
    if not isinstance(data, dict):
        return ['data']
    names = data.get('class_names', [''] * classes)
    found = {
        'data.name': isinstance(data.get('name', ''), str),
        'data.count': _is_count(data.get('count', 0)),
        'data.class_names': isinstance(names, list)
        and len(names) == classes
        and all(isinstance(name, str) for name in names),
        'version': isinstance(record.get('version', ''), str),
        'commit': isinstance(record.get('commit') or '', str),
        'versions': _is_table(record.get('versions', {})),
        'init': _is_table(record.get('init', {})),
        'origin': 'origin' not in record or _is_origin(record['origin']),
        'numerics': _is_table(record.get('numerics', {})),
    }
    return [key for key, is_right in found.items() if not is_right]


def _is_origin(value: Any) -> bool:
    """Whether a JSON value is the origin of a converted run, see `conversion.Converted`."""
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), str) for key in ('project', 'colours', 'licence'))
        and all(_are_texts(value.get(key)) for key in ('networks', 'left_out'))
        and isinstance(value.get('files'), list)
        and all(
            isinstance(file, dict)
            and isinstance(file.get('name'), str)
            and isinstance(file.get('sha256'), str)
            for file in value['files']
        )
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_number(value: Any) -> bool:
    if type(value) is float and not math.isfinite(value):
        return True
    return type(value) in (int, float) and abs(value) < _LARGEST


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LAST_STEP


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and not any(isinstance(v, (dict, list)) for v in value.values())

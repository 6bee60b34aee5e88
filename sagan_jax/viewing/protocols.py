"""Titles of scores under several protocols, and the protocols in words."""

from collections.abc import Mapping, Sequence
from typing import Any

_HASH = 12  # characters of a SHA-256


def numbered(names: Sequence[str]) -> list[str]:
    """Titles of scores: their names, numbered if the same name occurs several times."""
    return [
        name if names.count(name) == 1 else f'{name} ({names[: index + 1].count(name)})'
        for index, name in enumerate(names)
    ]


def in_words(
    titles: Sequence[str], protocols: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What the protocols have in common, then what each adds.

    Args:
      titles: of the scores.
      protocols: one for each title; their key 'name' is left out.

    Returns:
      Pairs of a title and its words. The first is 'in common': the keys that at least two
      protocols have, always with the same value. It is left out if there are none.
    """
    keys = dict.fromkeys(key for protocol in protocols for key in protocol if key != 'name')
    shared = {}
    for key in keys:
        values = [protocol[key] for protocol in protocols if key in protocol]
        if len(values) > 1 and all(value == values[0] for value in values):
            shared[key] = values[0]
    found = [('in common', _words(shared))] if shared else []
    for title, protocol in zip(titles, protocols, strict=True):
        own = {key: protocol[key] for key in keys if key in protocol and key not in shared}
        found.append((title, _words(own) or '–'))
    return found


def _words(items: Mapping[str, Any]) -> str:
    shown = {
        key: str(value)[: _HASH if key.endswith('sha256') else None] for key, value in items.items()
    }
    return ', '.join(f'{key.replace("_", " ")} {value}' for key, value in shown.items())

"""When two names are the same."""

import unicodedata


def canonical(name: str) -> str:
    """The one spelling (Unicode NFC) of a name that people or file systems spell in several ways.

    'é' is one character or 'e' with an accent; macOS may return the other one than it was given.
    """
    return unicodedata.normalize('NFC', name)

"""The one exception for mistakes that a user can mend, and how text from outside is shown."""


class UserError(Exception):
    """A mistake of the user's, told in one sentence that names the thing and the mend.

    The command line prints the sentence on standard error, without a traceback, and ends with
    exit status 2, or with another one if the same command may succeed later.
    """

    def __init__(self, sentence: str, status: int = 2):
        super().__init__(sentence)
        self.status = status

    def __str__(self) -> str:
        """The sentence in one line, whatever the names in it contain."""
        return printable(super().__str__())


def printable(text: str) -> str:
    """The text with escapes in place of what cannot be printed in a line."""
    return ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text
    )

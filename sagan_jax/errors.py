"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake of the user's, told in one sentence that names the thing and the mend.

    The command line prints the sentence on standard error, without a traceback, and ends with
    exit status 2.
    """

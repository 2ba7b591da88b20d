"""The one exception that users are meant to see."""


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and what to do.

    Stages print it without a traceback (unless ``--debug`` is given) and exit with code 2.
    """

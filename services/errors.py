"""Errors that end a command.

Exception
└── UserError    the user or the environment can mend it; shown as it is, without a traceback
"""


class UserError(Exception):
    """What went wrong and what to do about it, in clear lines. The command line prints them and exits with code 2."""

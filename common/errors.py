"""The one error that is for the user, and how a file that cannot be written is worded."""


class UserError(Exception):
    """Something the user can mend: a flag, a file, the data. The message names it and says what to do.

    The command lines print it as one sentence on stderr and exit with status 2.
    """


def cannot_write(path: object, reason: str) -> UserError:
    """What to say when a file cannot be written: a full disk, mostly."""
    return UserError(
        f"{path}: cannot be written ({reason}); what was saved before stands; make room or mend the permissions there, then try "
        "again (train.py goes on with --resume)"
    )


def printable(text: object) -> str:
    """A text, such as a path, with escapes for what is no UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()

"""Command lines from dataclasses: every field is a flag with one help sentence; errors of the user become exit status 2."""

import argparse
import dataclasses
import difflib
import errno
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from common import ranks
from common.errors import UserError, cannot_write
from common.runtime import keep_freed_memory

Settings = TypeVar("Settings")
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def flag(default: Any, help: str, choices: Sequence[Any] | None = None, alias: str | None = None) -> Any:
    """A dataclass field that is a command-line flag. alias: another name by which it can be given."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "alias": alias})


class Parser(argparse.ArgumentParser):
    """Says its errors in one sentence and suggests the flag that was meant."""

    def error(self, message: str) -> typing.NoReturn:
        unrecognised = message.removeprefix("unrecognized arguments: ")
        if unrecognised != message:
            message = self._unknown(unrecognised.split()[0].split("=")[0])
        if ranks.first():
            print(f"{self.prog}: {message}; see {self.prog} -h", file=sys.stderr)
        raise SystemExit(2)

    def _unknown(self, word: str) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(word, known, 1)
        return f"unknown flag {word}" + (f"; did you mean {close[0]}?" if close else "")


def parse_flags(settings: type[Settings], description: str, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The flags that were given, by name; what was not given is not there, so that `settings(**flags)` adds the defaults.

    Both `--epoch_prior` and `--epoch-prior` are understood.
    """
    parser = Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(settings):
        kind = next((t for t in typing.get_args(field.type) if t is not type(None)), field.type)
        shown = "" if field.default in (None, False) else f" (default: {field.default})"
        options: dict[str, Any] = {
            "help": field.metadata["help"].replace("%", "%%") + shown,
            "default": argparse.SUPPRESS,
        }
        if kind is bool:
            options["action"] = "store_true"
        else:
            options |= {"type": kind, "choices": field.metadata["choices"]}
            if field.metadata["choices"] is None:
                options["metavar"] = field.name.upper()
        names = [f"--{name}" for name in (field.name, field.metadata["alias"]) if name]
        parser.add_argument(*names, dest=field.name, **options)
    words = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    return vars(parser.parse_args(_with_negative_values(words)))


def _with_negative_values(words: Sequence[str]) -> list[str]:
    """`--window -100:300` as `--window=-100:300`: argparse would take what follows for another flag."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def run_main(main: Callable[[], None]) -> None:
    """Run a CLI: what the user got wrong gets one sentence and status 2, bugs keep their traceback."""
    program = os.path.basename(sys.argv[0])
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are not UTF-8
    try:
        try:
            main()
        except OSError as error:
            if error.errno in NOT_WRITABLE:
                raise cannot_write(error.filename or "a file of the run", error.strerror) from None
            raise
    except UserError as error:
        if ranks.first():
            print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        raise SystemExit(1) from None

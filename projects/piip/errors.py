"""The errors that a user can cause, and how they are told.

Every message names the thing, the value that was given and the remedy, in one sentence or two. Library code
raises one of these classes; command-line tools run under :func:`run_cli`, which prints them without a traceback.
Anything else that escapes is our bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "DownloadError",
    "RendezvousError",
    "SlurmError",
    "StorageError",
    "TemporaryError",
    "UserError",
    "did_you_mean",
    "run_cli",
]


class UserError(Exception):
    """Something given to us cannot be used; the message says what, which value, and what to do."""


class ConfigError(UserError, ValueError):
    """A config, an override or a constructor argument is wrong."""


class DataError(UserError, ValueError):
    """A dataset, an annotation or an image is missing, corrupt or inconsistent."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, unreadable, unsafe or made for another model."""


class DependencyError(UserError, ImportError):
    """A package is missing, broken or does not fit another one."""


class DownloadError(UserError, OSError):
    """A remote file could not be fetched or did not arrive whole."""


class TemporaryError(UserError):
    """Something around a training failed; another attempt may go well without any change."""


class StorageError(TemporaryError, OSError):
    """A disk is full."""


class RendezvousError(TemporaryError, RuntimeError):
    """The processes of a training did not find one another."""


class SlurmError(UserError, RuntimeError):
    """Slurm is not there, or does not answer."""


def did_you_mean(name: str, choices: Iterable[str], count: int = 3) -> str:
    """A hint naming the entries of ``choices`` nearest to ``name``, or an empty string.

    Returns:
        ``" Did you mean 'a' or 'b'?"`` (with the leading space), ready to be appended to a message.
    """
    near = difflib.get_close_matches(name, [str(c) for c in choices], n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def run_cli(main: Callable[[], int | None]) -> None:
    """Runs a command-line entry point and exits with its status.

    A :class:`UserError` is printed as one line on stderr and ends the process with status 2; an interrupt with
    130. All other exceptions propagate with their traceback.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

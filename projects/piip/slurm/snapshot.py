"""The code as it is at submission: a job that waits, or is requeued, does not meet what was edited meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["git_revision", "take_snapshot"]

_PACKAGE = Path(__file__).resolve().parent.parent


def take_snapshot(folder: str | os.PathLike) -> Path:
    """Copies this package to ``<folder>/<hash of its content>/piip``, unless the same code is already there.

    Returns:
        the folder to be put first on the job's PYTHONPATH.
    """
    # The configs are linked from outside of the package, so links are followed.
    walk = os.walk(_PACKAGE, followlinks=True)
    files = sorted(Path(top, name) for top, _, names in walk for name in names if "__pycache__" not in top)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(_PACKAGE)}\0".encode())
        digest.update(file.read_bytes())
    target = Path(folder).resolve() / digest.hexdigest()[:12]
    if not target.exists():
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copytree(_PACKAGE, temporary / "piip", ignore=shutil.ignore_patterns("__pycache__"))
        try:
            temporary.rename(target)
        except OSError:  # somebody else was faster
            shutil.rmtree(temporary)
    return target


def git_revision() -> str | None:
    """The commit of the checkout that the package is in, with ``+changes`` where files differ; None outside of one."""
    # What git would look for outside of the package does not belong to it, e.g. the user's own repository around .venv.
    git = ["git", "-C", str(_PACKAGE)]
    try:
        tracked = subprocess.run([*git, "ls-files", "__init__.py"], capture_output=True, text=True, check=True)
        if not tracked.stdout.strip():
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed.stdout.strip() else "")

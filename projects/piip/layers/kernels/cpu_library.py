"""Builds a C++ file into a library for this machine's processor.

Only the compiler is needed: no headers of Python or torch, so a build takes seconds. Libraries are kept in
the folder of downloads (``PIIP_CACHE``), by source, compiler flags, C library and processor, so that machines and
containers that share a home directory do not take each other's.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from iopath.common.file_io import get_cache_dir

__all__ = ["find_compiler", "library_problem", "load_library"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 120
_problems: dict[Path, str] = {}
# OpenMP's threads are those of torch, which brings the same library; Apple's compiler has none.
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", *([] if sys.platform == "darwin" else ["-fopenmp"])]


@functools.cache
def load_library(source: Path) -> ctypes.CDLL | None:
    """The library of a source file, built first if need be; None where that fails, and then the log says why."""
    try:
        path = _library_path(source)
        if not path.exists():
            _build(source, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        _problems[source] = f"{source.name} could not be built or loaded: {getattr(error, 'stderr', None) or error}"
        logger.warning(_problems[source])
        return None


def library_problem(source: Path) -> str | None:
    """Why :func:`load_library` gives None, or None where it gives a library."""
    return None if load_library(source) else _problems[source]


def find_compiler() -> str | None:
    """A C++ compiler: ``CXX``, g++ or clang++."""
    return next(filter(None, map(shutil.which, [os.environ.get("CXX", ""), "g++", "clang++"])), None)


def _library_path(source: Path) -> Path:
    key = hashlib.sha256(source.read_bytes())
    key.update("\n".join([*_FLAGS, platform.machine(), *platform.libc_ver(), _processor()]).encode())
    return _folder() / f"{source.stem}-{key.hexdigest()[:16]}.so"


def _folder() -> Path:
    """Where libraries are kept.

    Raises:
        PermissionError: where others could have put theirs: without a home directory that can be written to, the folder
            is in the common one of temporary files.
    """
    if cache := os.environ.get("PIIP_CACHE"):
        return Path(cache).expanduser() / "kernels"
    folder = Path(get_cache_dir()) / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_relative_to(tempfile.gettempdir()):
        for place in (folder.parent, folder):
            status = place.stat()
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(f"others may write to {place}; set PIIP_CACHE to a folder of your own")
    return folder


def _processor() -> str:
    """What decides which instructions ``-march=native`` uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _build(source: Path, path: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (CXX, g++, clang++)")
    logger.info(f"Building {source.name} for this processor, once; PIIP_KERNELS=eager would avoid it.")
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may build at once: each into a folder of its own, and the last one's file stays.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *_FLAGS, str(source), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        os.replace(built, path)
    logger.info(f"Built {path} in {time.perf_counter() - start:.0f} s.")

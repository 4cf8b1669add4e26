"""Fetching weight files from web servers and from the Hugging Face hub into one cache.

Every remote file has one place, ``<cache>/<host>/<path>``. It appears there whole and verified or not at all, and
a file put there by hand is taken, which is the remedy on machines without a network.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from ..errors import DownloadError, did_you_mean

__all__ = ["cache_dir", "cached_path", "fetch_from_hub", "fetch_url", "hub_path"]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT_S = 30


def cache_dir() -> Path:
    """The folder of downloaded weights: ``PIIP_CACHE``, else the one that Detectron2's downloads use."""
    own = os.environ.get("PIIP_CACHE")
    return Path(own).expanduser() if own else Path(get_cache_dir())


def cached_path(url: str) -> Path:
    """Where the file of an address lies in the cache, whether it is there yet or not."""
    parts = urlsplit(url)
    path = Path(*_components(url, unquote(parts.path)))
    if parts.query:  # the same path with another query is another file
        path = path.parent / hashlib.sha256(parts.query.encode()).hexdigest()[:8] / path.name
    return cache_dir() / parts.netloc.rpartition("@")[2] / path


def hub_path(repo: str, filename: str) -> Path:
    """The same for a file of a repository on the hub; mirrors share the place of the original."""
    return cache_dir() / "huggingface.co" / repo / Path(*_components(filename, filename))


def fetch_url(url: str) -> str:
    """Downloads a file over HTTP unless it is in the cache.

    The size is checked against ``Content-Length``, the content against the SHA-256 that a ``Repr-Digest`` header or
    the file name (``name-0123abcd.pth``, as torch.hub has it) gives. Processes that ask for the same file at once
    wait for the first one.

    Returns:
        the local path.

    Raises:
        DownloadError: when the file cannot be fetched, or did not arrive as it was sent.
    """
    target = cached_path(url)
    if target.is_file():
        return str(target)
    try:
        with file_lock(str(target)):
            if not target.is_file():
                _download(url, target)
    except (OSError, HTTPException, ValueError) as error:
        raise _failure(url, url, error, target) from error
    return str(target)


def fetch_from_hub(repo: str, filenames: Sequence[str], name: str) -> str:
    """Downloads a file of a Hugging Face repository unless it is in our cache or in the hub library's own.

    ``HF_ENDPOINT`` names a mirror, ``HF_TOKEN`` opens restricted repositories, ``HF_HUB_OFFLINE=1`` forbids the
    network: the hub library's own settings.

    Args:
        repo: ``owner/name``.
        filenames: alternatives, of which the first that the repository has is taken.
        name: what is being fetched, for messages.

    Returns:
        the local path.

    Raises:
        DownloadError: when the file cannot be fetched, or did not arrive as it was sent.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for filename in filenames:
        if (target := hub_path(repo, filename)).is_file():
            return str(target)
        if isinstance(shared := try_to_load_from_cache(repo, filename), str):
            return shared
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    for filename in filenames:
        target, url = hub_path(repo, filename), hf_hub_url(repo, filename, endpoint=endpoint)
        try:
            with file_lock(str(target)):
                if not target.is_file():
                    _download_from_hub(repo, filename, url, endpoint)
            return str(target)
        except Exception as error:  # the hub library lets the errors of its HTTP client through, whichever that is
            absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            if absent and filename != filenames[-1]:
                continue
            hint = _near_files(repo, filename, endpoint) if absent else ""
            raise _failure(name, url, error, target, hint) from error
    raise AssertionError("no file name was given")


def _download(url: str, target: Path) -> None:
    """One request, into a temporary file beside the target."""
    from .. import __version__

    request = urllib.request.Request(url, headers={"User-Agent": f"piip/{__version__}"})
    logger.info("Downloading %s to %s", url, target)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError("it is a web page, not a file; use the address of the file itself")
        size = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            digest, received = hashlib.sha256(), 0
            # disable=None: no bar where stderr is a file.
            progress = tqdm(total=size, unit="B", unit_scale=True, desc=target.name, disable=None, leave=False)
            with os.fdopen(fd, "wb") as f, progress:
                while chunk := response.read(_CHUNK):
                    f.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    progress.update(len(chunk))
            if size is not None and received != size:
                raise DownloadError(f"the transfer broke off after {received} of {size} bytes; try again")
            expected = _expected_sha256(target.name, response.headers)
            if expected and not digest.hexdigest().startswith(expected):
                raise DownloadError(
                    f"its SHA-256 starts with {digest.hexdigest()[: len(expected)]}, not with {expected} as it should"
                )
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise


def _download_from_hub(repo: str, filename: str, url: str, endpoint: str) -> None:
    """Leaves resuming and credentials to the hub library, and adds the check of the content."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download

    target = hub_path(repo, filename)
    # Asked first because this fails at once without a network; the download itself would retry for half a minute.
    metadata = get_hf_file_metadata(url)
    if metadata.commit_hash is None:  # a plain copy of the files on some web server
        _download(url, target)
        return
    logger.info("Downloading %s of %s to %s", filename, repo, target)
    incoming = hub_path(repo, ".incoming")
    path = hf_hub_download(repo, filename, revision=metadata.commit_hash, local_dir=incoming, endpoint=endpoint)
    if re.fullmatch(r"[0-9a-f]{64}", metadata.etag or ""):  # large files are tagged with their SHA-256
        found = _sha256(path)
        if found != metadata.etag:
            os.unlink(path)
            raise DownloadError(f"its SHA-256 is {found[:16]}..., not {metadata.etag[:16]}... as it should be")
    os.replace(path, target)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _expected_sha256(filename: str, headers: Mapping[str, str]) -> str | None:
    """The leading hex digits of the SHA-256 that a header or the name promises."""
    if match := re.search(r"sha-256=:([A-Za-z0-9+/=]+):", headers.get("Repr-Digest", "")):
        return base64.b64decode(match[1]).hex()
    match = re.search(r"-([0-9a-f]{8,64})\.", filename)
    # Eight digits alone are rather a date.
    return match[1] if match and not re.fullmatch(r"(19|20)\d{6}", match[1]) else None


def _components(what: str, path: str) -> list[str]:
    """The parts of a path that may become a path in the cache."""
    parts = [part for part in path.split("/") if part]
    if not parts or any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
        raise DownloadError(f"{what!r} is not the address of a file; check it.")
    return parts


def _near_files(repo: str, filename: str, endpoint: str) -> str:
    """A hint at the files of the repository, where it can be listed; mirrors often cannot."""
    from huggingface_hub import HfApi

    try:
        return did_you_mean(filename, HfApi(endpoint=endpoint).list_repo_files(repo))
    except Exception:  # it is only a hint
        return ""


def _reason(error: BaseException) -> str:
    """The cause of a failed download in a few words."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return "its authors restrict it, so accept their terms on its page and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and HF_TOKEN does not open it"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    elif isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[Errno -?\d+\] ", "", lines[0]).rstrip(".")


def _failure(name: str, url: str, error: BaseException, target: Path, hint: str = "") -> DownloadError:
    source = "" if url == name else f" from {url}"
    return DownloadError(
        f"cannot download {name}{source}: {_reason(error)}; on a machine without network, put the file at {target} "
        f"or give the path of a local copy.{hint}"
    )

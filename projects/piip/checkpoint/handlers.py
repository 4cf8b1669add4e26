"""Addresses of weights: what ``piip://``, ``lsnet://``, ``timm://`` and ``http(s)://`` stand for.

Everything that reads weights calls :func:`resolve`. Detectron2's ``PathManager`` knows the three schemes of ours
too, as soon as this module is imported, so its own checkpointer and tools take the same addresses.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

from ..errors import CheckpointError, DownloadError, did_you_mean
from .download import fetch_from_hub, fetch_url
from .files import is_folder

__all__ = ["INDEX", "SCHEMES", "ReleasedWeights", "register_handlers", "resolve"]

SCHEMES = ("piip://", "lsnet://", "timm://")
INDEX = ".index.json"  # ends the name of the file that lists the parts of a checkpoint in several files

_REPOSITORIES = {"piip://": "OpenGVLab/PIIP", "lsnet://": "jameslahm/lsnet"}
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")


def resolve(uri: str | os.PathLike) -> str:
    """The local file of a path or address, downloaded into the cache when it is not there yet.

    Args:
        uri: a local path, also of a folder with an index of several files, or that a training on several GPUs wrote as
            a checkpoint in parts; ``piip://detection/NAME.pth`` (a file of the
            released PIIP models), ``lsnet://NAME`` (of the released LSNet models), ``timm://model.tag`` (timm's
            pretrained weights), ``http(s)://``, or anything else that Detectron2's ``PathManager`` knows, such as
            ``detectron2://``.

    Returns:
        the path of an existing local file, or of the folder of a checkpoint in parts.

    Raises:
        CheckpointError: when there is no such local file, or the scheme or the model is unknown.
        DownloadError: when the file cannot be fetched.
    """
    uri = os.fspath(uri)
    if uri.startswith(("http://", "https://")):
        return fetch_url(uri)
    if "://" not in uri:
        return _local(uri)
    try:
        path = PathManager.get_local_path(uri)
    except (CheckpointError, DownloadError):
        raise
    except Exception as error:  # of somebody else's handler
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(f"cannot download {uri}: {reason}; give the path of a local copy.") from error
    if path == uri:  # no handler took it
        scheme, known = uri.split("://")[0], [*SCHEMES, "http://", "https://", "detectron2://"]
        raise CheckpointError(
            f"address {uri!r} has the unknown scheme {scheme}://; known are {', '.join(known)} and local paths."
        )
    return path


class ReleasedWeights(PathHandler):
    """iopath handler of ``piip://``, ``lsnet://`` and ``timm://``; read-only."""

    def _get_supported_prefixes(self) -> list[str]:
        return list(SCHEMES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        scheme, name = path.split("://", 1)
        if scheme == "timm":
            return _timm(name, path)
        if not name:
            raise CheckpointError(f"address {path!r} names no file; write {scheme}://NAME.pth.")
        filename = name if name.endswith((*_WEIGHT_FILES, INDEX)) else f"{name}.pth"
        return fetch_from_hub(_REPOSITORIES[f"{scheme}://"], [filename], path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} can only be read, not opened with mode {mode!r}")
        return open(self._get_local_path(path, **kwargs), mode, buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path, **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            return os.path.isfile(self._get_local_path(path, **kwargs))
        except (CheckpointError, DownloadError):
            return False


def register_handlers(manager: PathManagerBase) -> PathManagerBase:
    """Teaches a PathManager our schemes; doing it twice does no harm."""
    manager.register_handler(ReleasedWeights(), allow_override=True)
    return manager


def _timm(name: str, uri: str) -> str:
    """The weight file of a pretrained tag of timm."""
    from timm.models import get_pretrained_cfg, list_pretrained

    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, the tag does not
        cfg = None
    if cfg is None or not cfg.has_weights:
        hint = did_you_mean(name, list_pretrained())
        raise CheckpointError(f"address {uri!r} names no pretrained model of the installed timm.{hint}")
    if cfg.hf_hub_id:
        files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        return fetch_from_hub(cfg.hf_hub_id, files, uri)
    return fetch_url(cfg.url)


def _local(uri: str) -> str:
    path = Path(uri).expanduser()
    if path.is_file():
        return str(path)
    if is_folder(path):
        return str(path)
    if path.is_dir():
        # Of two formats of the same weights, safetensors.
        if indexes := sorted(path.glob(f"*{INDEX}"), key=lambda p: ("safetensors" in p.name, p.name)):
            return str(indexes[-1])
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (*_WEIGHT_FILES, ".pkl"))
        found = f"name one of its files: {', '.join(inside[:5])}" if inside else "it holds no weight files"
        raise CheckpointError(f"checkpoint {uri!r} is a folder; {found}.")
    if not path.parent.is_dir():
        raise CheckpointError(f"checkpoint {uri!r} does not exist, nor does its folder; check the path.")
    hint = did_you_mean(path.name, (p.name for p in path.parent.iterdir()))
    raise CheckpointError(f"checkpoint {uri!r} does not exist; check the path.{hint}")


register_handlers(PathManager)

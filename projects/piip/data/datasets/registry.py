"""One way to enter a dataset into Detectron2's catalogs, safe to repeat."""

from __future__ import annotations

from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import ConfigError

__all__ = ["register"]


def register(name: str, load: partial, **metadata: Any) -> None:
    """Enters ``name`` into ``DatasetCatalog`` and ``MetadataCatalog``; reads no file.

    The same call again changes nothing; a call with other arguments replaces what was registered by it before.

    Args:
        name: of the dataset.
        load: called without arguments, returns the list of dicts in Detectron2's format.
        **metadata: what ``MetadataCatalog.get(name)`` shall answer.

    Raises:
        ConfigError: if somebody else registered a dataset of this name.
    """
    current = DatasetCatalog.data.get(name)
    if current is not None:
        if not isinstance(current, partial) or current.func is not load.func:
            raise ConfigError(f"The dataset name {name!r} is taken by another dataset; choose another name.")
        if (current.args, current.keywords) == (load.args, load.keywords):
            return
        # Metadata refuses changed values, hence a fresh one.
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)

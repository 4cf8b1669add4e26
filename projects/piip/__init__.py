"""PIIP and LSNet for Detectron2: parameter-inverted image pyramids and light large-small networks.

Importing this package is cheap and needs no GPU; names below are loaded on first use. timm, whenever it is imported,
knows the LSNet classifiers by name: ``timm.create_model("lsnet_t")``.
"""

from __future__ import annotations

import importlib
from typing import Any

from .when_imported import when_imported

__version__ = "0.1.0"

_LAZY = {
    "PIIP": "piip.modeling.piip",
    "LazyPredictor": "piip.engine.predictor",
    "model_zoo": None,
    "load_official": "piip.checkpoint",
}

__all__ = ["__version__", *_LAZY]

when_imported("timm.models", lambda: importlib.import_module("piip.timm_models"))


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'piip' has no attribute {name!r}")
    module = _LAZY[name]
    if module is None:
        return importlib.import_module(f"piip.{name}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

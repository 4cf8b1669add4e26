"""Reading LazyConfigs: packaged names, command-line overrides, and the checks before anything is built."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import os
from collections.abc import Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, did_you_mean
from .compiling import check_compile

__all__ = [
    "EPOCH_ITERATIONS",
    "TRAINING_ITERATIONS",
    "apply_overrides",
    "check_config",
    "config_root",
    "find_config",
    "load_config",
    "warmup_epochs",
    "warmup_fraction",
]

# Epochs and images are the source of a schedule, iterations follow from them and the total batch size. As
# interpolations they stay right when the batch changes, in a file or on the command line, and survive saving.
TRAINING_ITERATIONS = "${piip.iterations:${train.epochs},${train.num_images},${dataloader.train.total_batch_size}}"
EPOCH_ITERATIONS = "${piip.iterations:1,${train.num_images},${dataloader.train.total_batch_size}}"


def warmup_fraction(iterations: int) -> str:
    """An interpolation: ``iterations`` as a share of the training; at most half of it, so that short trials work."""
    return f"${{piip.fraction:{iterations},${{train.max_iter}}}}"


def warmup_epochs(epochs: float) -> str:
    """The same for a number of epochs, as a share of ``train.epochs``."""
    return f"${{piip.fraction:{epochs},${{train.epochs}}}}"


def _iterations(epochs: float, num_images: int, batch_size: int) -> int:
    if min(epochs, num_images, batch_size) <= 0:
        raise ConfigError(
            f"train.epochs={epochs}, train.num_images={num_images} and dataloader.train.total_batch_size={batch_size} "
            "must all be positive."
        )
    return max(1, round(epochs * math.ceil(num_images / batch_size)))


def _fraction(part: float, whole: float) -> float:
    return min(part / whole, 0.5)


OmegaConf.register_new_resolver("piip.iterations", _iterations, replace=True)
OmegaConf.register_new_resolver("piip.fraction", _fraction, replace=True)


def config_root() -> Path:
    """The folder of the packaged configs."""
    return Path(__file__).resolve().parent.parent / "configs"


def find_config(name: str) -> str:
    """The path of a config: a file as it is, or else a packaged one by its name below ``configs/``.

    The folder may be left out where only one packaged config has the name.

    Raises:
        ConfigError: when there is neither; names the nearest.
    """
    if os.path.isfile(name):
        return name
    root = config_root()
    for candidate in (name, f"{name}.py"):
        if candidate and (root / candidate).is_file():
            return str(root / candidate)
    packaged = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    namesakes = [p for p in packaged if not p.startswith("common/") and Path(p).stem == name.removesuffix(".py")]
    if len(namesakes) == 1:
        return str(root / namesakes[0])
    beside = [str(p) for p in Path(name or ".").parent.glob("*.py")]
    # File names are compared too, since folders are easily forgotten.
    choices = {**{p: p for p in packaged}, **{Path(p).name: p for p in packaged}, **{p: p for p in beside}}
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(p) for p in dict.fromkeys(choices[n] for n in near))}?" if near else ""
    raise ConfigError(f"config file {name!r} exists neither as a path nor among the packaged configs.{hint}")


def load_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Loads a LazyConfig, completes its ``train`` section and applies overrides.

    Args:
        name: path of a ``.py`` or ``.yaml`` file, or the name of a packaged config.
        overrides: ``key.path=value``, see :func:`apply_overrides`.

    Raises:
        ConfigError: when the file cannot be found or read, or an override does not fit.
    """
    return apply_overrides(_load(find_config(name)), overrides)


def _load(path: str) -> DictConfig:
    """Loads a file and completes its ``train`` section."""
    try:
        cfg = LazyConfig.load(path)
    except ConfigError:
        raise
    except Exception as error:
        # What else a Python file raises is its own affair, and wants its traceback.
        if path.endswith(".py") and not isinstance(error, (SyntaxError, ImportError, ValueError)):
            raise
        raise ConfigError(f"config file {path!r} cannot be read: {error.__cause__ or error}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"config file {path!r} holds a {type(cfg).__name__}, not sections like model and train.")
    complete_train_section(cfg)
    return cfg


def complete_train_section(cfg: DictConfig) -> None:
    """Gives ``cfg.train`` the defaults of ``configs/common/train.py``, so that Detectron2's own configs work too."""
    if not isinstance(cfg.get("train"), DictConfig):
        return  # check_config says so
    defaults = LazyConfig.load(str(config_root() / "common" / "train.py"), "train")
    if "epochs" not in cfg.train:
        # The length is given in iterations; then nothing is counted in epochs.
        for key in ("epochs", "num_images", "max_iter"):
            del defaults[key]
        defaults.eval_period = 0
        defaults.checkpointer.period = 5000
    train = cfg.train
    if "fp16_compression" in (train.get("ddp") or {}):  # what Detectron2 has instead
        train = copy.deepcopy(train)
        if train.ddp.pop("fp16_compression"):
            train.ddp.gradient_compression = "float16"
    cfg.train = OmegaConf.merge(defaults, train)


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Sets values from ``key.path=value`` strings (Hydra's override grammar), in place.

    Keys must exist; items of lists are named by their index (``model.backbone.0.depth=3``). ``+key=value`` adds a
    key. Numbers, truth values and sections can only be replaced by their kind (or null).

    Raises:
        ConfigError: for an override that cannot be parsed, an unknown key (names the nearest), or a value of
            another kind.
    """
    for text in overrides:
        if text.startswith("-"):
            raise ConfigError(f"option {text!r} stands after the overrides; put options before the first key=value.")
        try:
            override = OverridesParser.create().parse_override(text)
            if override.is_sweep_override():
                raise ConfigError(f"override {text!r} lists several values; write a list as key=[a,b].")
            value = override.value()
        except HydraException as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"override {text!r} cannot be read ({reason}); write key.path=value, in quotes where the value has "
                "special characters: \"key='value'\"."
            ) from error
        key = override.key_or_group
        if override.is_delete():
            raise ConfigError(f"override {text!r} deletes a key, which is not supported; set it to null instead.")
        adds = override.is_add() or override.is_force_add()
        if not adds:
            value = _fitting_value(key, _existing(cfg, key), value)
        try:
            OmegaConf.update(cfg, key, value, merge=True)
        except (OmegaConfBaseException, KeyError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(f"override {text!r} does not fit the config: {str(error).splitlines()[0]}") from error
    return cfg


def _children(node: Any) -> list[str] | None:
    if isinstance(node, DictConfig):
        return [str(k) for k in node]
    if isinstance(node, ListConfig):
        return [str(i) for i in range(len(node))]
    return None


def _existing(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key; ConfigError with the nearest keys when it does not exist."""
    node: Any = cfg
    parts = key.split(".")
    for i, part in enumerate(parts):
        parent, children = ".".join(parts[:i]), _children(node)
        if children is None:
            raise ConfigError(f"override key {key!r}: {parent!r} is the value {node!r} and has no keys below it.")
        if part not in children:
            near = difflib.get_close_matches(part, children, n=3, cutoff=0.6)
            candidates = [".".join([*parts[:i], n, *parts[i + 1 :]]) for n in near]
            if not candidates:
                candidates = [k for k in _all_keys(cfg) if k.rpartition(".")[2] == parts[-1]][:3]
            hint = f" Did you mean {' or '.join(map(repr, candidates))}?" if candidates else ""
            has = f"{parent!r} has {', '.join(children)}" if parent else f"there are {', '.join(children)}"
            raise ConfigError(
                f"override key {key!r} does not exist in the config ({has}).{hint} Write +{key}=... to add a new key."
            )
        try:
            node = node[int(part) if isinstance(node, ListConfig) else part]
        except OmegaConfBaseException:
            return None  # "???" or an interpolation that does not resolve yet: any value is welcome
    return node


def _all_keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for child in _children(node) or ():
        keys.append(prefix + child)
        if isinstance(node, DictConfig) and OmegaConf.is_missing(node, child):
            continue
        raw = node._get_node(int(child) if isinstance(node, ListConfig) else child)
        keys += _all_keys(raw, f"{prefix}{child}.")
    return keys


def _fitting_value(key: str, old: Any, new: Any) -> Any:
    """The new value if it is of a kind with the old one; makes whole floats integers and numbers strings."""
    if old is None or new is None or (isinstance(new, str) and "${" in new):
        return new
    wanted = None
    if isinstance(old, bool):
        wanted = None if isinstance(new, bool) else "true or false"
    elif isinstance(old, Number):
        if isinstance(new, (str, bool, dict)):
            wanted = "a number"
        elif isinstance(old, int) and isinstance(new, float) and new.is_integer():
            return int(new)
    elif isinstance(old, DictConfig):
        wanted = None if isinstance(new, dict) else f"a section with the keys {', '.join(map(str, old))}"
    elif isinstance(old, str) and isinstance(new, Number) and not isinstance(new, bool):
        return str(new)
    if wanted:
        raise ConfigError(f"override {key}={new} is of the wrong kind: {key} is {_short(old)} and must be {wanted}.")
    return new


def _short(value: Any) -> str:
    text = "a section" if isinstance(value, DictConfig) else repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def check_config(cfg: DictConfig, eval_only: bool = False) -> None:
    """Checks what can be known before anything is built.

    Raises:
        ConfigError: for a missing section or a value that cannot work.
    """
    needed = ["model", "dataloader", "train", *([] if eval_only else ["optimizer", "lr_multiplier"])]
    missing = [name for name in needed if cfg.get(name) is None]
    if missing:
        old = " It looks like a yacs config of Detectron2, which this tool does not read." if "MODEL" in cfg else ""
        raise ConfigError(f"the config lacks {', '.join(missing)}; a LazyConfig must define {', '.join(needed)}.{old}")
    _check_values(cfg.train, "train")
    _check(cfg.train, "max_iter", int, minimum=1)
    _check(cfg.train, "eval_period", int, minimum=0)
    _check(cfg.train, "log_period", int, minimum=1)
    _check(cfg.train, "checkpointer.period", int, minimum=1)
    _check(cfg.train, "checkpointer.max_to_keep", int, minimum=1, optional=True)
    _check(cfg.train, "seed", int, optional=True)
    _check(cfg.train, "clip_grad.max_norm", Number, above=0)
    _check(cfg.train, "ema.decay", Number, above=0, below=1)
    _check(cfg.train, "report.num_images", int, minimum=1)
    _check(cfg.train, "report.score_threshold", Number, minimum=0, below=1)
    _check(cfg.train, "accumulate", int, minimum=1)
    check_compile("train.compile", cfg.train.compile)
    if cfg.train.compile and cfg.train.parallel == "fsdp":
        raise ConfigError(
            f"train.compile={cfg.train.compile} does not work with a model that is spread (train.parallel=fsdp); use "
            "train.parallel=ddp or train.compile=null."
        )
    _check_choice(cfg.train, "amp.dtype", ["float16", "bfloat16"])
    _check_choice(cfg.train, "parallel", ["ddp", "fsdp"])
    _check_choice(cfg.train, "ddp.gradient_compression", ["float16", "bfloat16"], optional=True)
    if cfg.train.fsdp.replicate != "machines":
        _check(cfg.train, "fsdp.replicate", int, minimum=1)
    known = ["gradient_compression", *list(inspect.signature(DistributedDataParallel).parameters)[1:]]
    for name in cfg.train.ddp:
        if name not in known:
            raise ConfigError(f"train.ddp.{name} is no argument of DistributedDataParallel.{did_you_mean(name, known)}")
    for name in needed:
        _check_values(cfg[name], name)


def _check_values(node: Any, key: str) -> None:
    """All values are there, and all interpolations lead somewhere."""
    for child in _children(node) or ():
        try:
            value = node[int(child) if isinstance(node, ListConfig) else child]
        except OmegaConfBaseException as error:
            reason = error.__cause__ if isinstance(error.__cause__, ConfigError) else str(error).splitlines()[0]
            raise ConfigError(f"{key}.{child} has no value in the config: {reason}") from error
        _check_values(value, f"{key}.{child}")


def _check_choice(train: DictConfig, key: str, choices: list[str], optional: bool = False) -> None:
    value = OmegaConf.select(train, key)
    if value not in choices and not (optional and value is None):
        wanted = " or ".join([*choices, *["null"] * optional])
        raise ConfigError(f"train.{key}={value} must be {wanted}.{did_you_mean(str(value), choices)}")


def _check(
    train: DictConfig,
    key: str,
    kind: type,
    minimum: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    optional: bool = False,
) -> None:
    value = OmegaConf.select(train, key)
    if value is None and optional:
        return
    if isinstance(value, kind) and not isinstance(value, bool) and value >= minimum and above < value < below:
        return
    wanted = ["a whole number" if kind is int else "a number"]
    wanted += [f"at least {minimum}"] * (minimum > -math.inf) + [f"above {above}"] * (above > -math.inf)
    wanted += [f"below {below}"] * (below < math.inf) + ["or null"] * optional
    raise ConfigError(f"train.{key}={value} must be {' '.join(wanted)}.")

"""Evaluation: of one or several datasets, during a training or on its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig
from tabulate import tabulate
from torch import nn

from ..checkpoint.checkpointer import find_checkpoint
from ..errors import CheckpointError, ConfigError
from .build import build_loader, build_model, dataset_names, load_initial_weights
from .compiling import compile_network
from .run_dir import write_json

__all__ = ["EvalTask", "build_tests", "do_test", "evaluate_checkpoint", "metrics_table", "run_tests"]

logger = logging.getLogger(__name__)

EVAL_FILE = "eval.json"


@dataclass(frozen=True)
class EvalTask:
    """A dataset to evaluate on.

    Attributes:
        name: of the dataset.
        loader: of its images; has a length.
        evaluator: one of Detectron2's, or a list of them.
    """

    name: str
    loader: Iterable
    evaluator: Any


def build_tests(cfg: DictConfig) -> list[EvalTask]:
    """The tests of a config: ``dataloader.test`` with ``dataloader.evaluator``, or equally long lists of both.

    Returns:
        an empty list where the config has no evaluator.

    Raises:
        ConfigError: when the lists differ in length.
        DataError: when a dataset is missing or does not suit the model.
    """
    loaders, evaluators = cfg.dataloader.get("test"), cfg.dataloader.get("evaluator")
    if loaders is None or evaluators is None:
        return []
    if not isinstance(loaders, ListConfig):
        loaders, evaluators = [loaders], [evaluators]
    elif not isinstance(evaluators, ListConfig) or len(evaluators) != len(loaders):
        raise ConfigError(
            f"dataloader.test lists {len(loaders)} loaders, so dataloader.evaluator must be a list of as many."
        )
    tests = []
    for i, (loader, evaluator) in enumerate(zip(loaders, evaluators, strict=True)):
        names = dataset_names(loader) or f"test{i}"
        name = names if isinstance(names, str) else "+".join(names)
        tests.append(EvalTask(name, build_loader(cfg, loader, training=False), instantiate(evaluator)))
    return tests


def do_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluates a model on the tests of a config; what Detectron2's training script calls by this name."""
    return run_tests(model, build_tests(cfg))


def run_tests(model: nn.Module, tests: Sequence[EvalTask]) -> dict[str, Any]:
    """Evaluates a model.

    Args:
        model: not wrapped for data-parallel training: processes may have different numbers of images.

    Returns:
        task to metric to value, below the dataset's name where there are several; empty but in the main process.
    """
    results = {test.name: dict(inference_on_dataset(model, test.loader, test.evaluator)) for test in tests}
    if not any(results.values()):
        return {}
    logger.info("Results\n%s", metrics_table(results))
    return next(iter(results.values())) if len(results) == 1 else results


def metrics_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the main metrics, a row for each dataset and task; per-category values are left out."""
    rows = []
    for name, tasks in results.items():
        for task, metrics in tasks.items():
            if not isinstance(metrics, Mapping):
                metrics = {task: metrics}
            rows.append({"dataset": name, "task": task, **{k: v for k, v in metrics.items() if "-" not in k}})
    return tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="github")


def evaluate_checkpoint(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """Evaluates ``train.init_checkpoint`` or, where that is empty, the best or last checkpoint of the output folder.

    The results are also written to ``eval.json`` there.

    Raises:
        CheckpointError: when there is nothing to evaluate, or it cannot be read.
        ConfigError: when the config has no evaluator.
    """
    output_dir = cfg.train.output_dir
    source = cfg.train.init_checkpoint or find_checkpoint(output_dir)
    if not source:
        raise CheckpointError(
            f"nothing to evaluate: train.init_checkpoint is empty and there is no checkpoint in {output_dir!r}; set "
            "train.init_checkpoint=<file or address>."
        )
    tests = build_tests(cfg)
    if not tests:
        raise ConfigError("the config has no dataloader.test with a dataloader.evaluator, so nothing can be evaluated.")
    model = build_model(cfg.model, device)
    logger.info("Evaluating %s", source)
    report = load_initial_weights(model, source)
    if report is not None and (report.missing or report.mismatched):
        logger.warning(
            "%d tensors of the model are not in %s and keep random values, so the results will not be its own.",
            len(report.missing) + len(report.mismatched),
            source,
        )
    compile_network(model.to(device), cfg.train.compile)
    results = run_tests(model, tests)
    if comm.is_main_process():
        write_json(os.path.join(output_dir, EVAL_FILE), {"checkpoint": source, "results": results})
    return results

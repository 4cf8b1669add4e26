"""Training and evaluation as the command line does them: from a config to weights, metrics and pictures."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf

from ..checkpoint.checkpointer import Checkpointer, newest_good_checkpoint
from ..stopping import stop_request
from .build import amp_dtype, build_loader, build_optimizer, pick_device
from .compiling import compile_network
from .config import apply_overrides, check_config, find_config, load_config
from .distributed import launch
from .ema import ModelEMA
from .evaluate import EVAL_FILE, EvalTask, build_tests, evaluate_checkpoint, run_tests
from .hooks import BestCheckpointHook, CheckpointHook, EMAHook, EvalHook, StopHook
from .parallel import check_processes, evaluation, is_spread, led_by_main_process, prepare_model, spreads, wrap
from .run_dir import (
    claim,
    read_json,
    remembered_seed,
    remove_torn_files,
    save_config,
    set_earlier_run_aside,
    write_json,
)
from .seeding import draw_seed, seed_step
from .summary import write_summary
from .trainer import Trainer
from .writers import build_writers, memory_mb

__all__ = ["do_train", "main", "run"]

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Trains or evaluates, in as many processes as asked for.

    Args:
        args: of Detectron2's argument parser: ``config_file``, ``resume``, ``eval_only``, ``num_gpus``,
            ``num_machines``, ``machine_rank``, ``dist_url`` and ``opts`` (overrides).

    Returns:
        the results of the last evaluation, where it ran in this process.

    Raises:
        UserError: for whatever the user can put right.
    """
    # Mistakes in the config are told once, before any process is started.
    cfg = load_config(args.config_file, args.opts or [])
    check_config(cfg, args.eval_only)
    return launch(run, args, use_gpu=pick_device(cfg).type == "cuda")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`main` does in every process."""
    stop_request.listen()
    cfg = load_config(args.config_file)
    written_for = _batch_and_length(cfg)
    apply_overrides(cfg, args.opts or [])
    check_config(cfg, args.eval_only)
    device = pick_device(cfg)
    output_dir = cfg.train.output_dir
    os.makedirs(output_dir, exist_ok=True)
    for name in ("fvcore", "detectron2", "piip"):
        setup_logger(output_dir, distributed_rank=comm.get_rank(), name=name)
    if device.type != torch.device(cfg.train.device).type:
        logger.info("train.device=%s, but this machine has no usable GPU: running on the CPU.", cfg.train.device)
    logger.info(
        "Config %s %s, %d process(es) on %s, torch %s",
        args.config_file,
        " ".join(args.opts or []),
        comm.get_world_size(),
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)",
        torch.__version__,
    )
    if args.eval_only:
        return evaluate_checkpoint(cfg, device)
    _log_schedule(cfg, *written_for)
    return do_train(cfg, device, find_config(args.config_file), resume=args.resume)


def do_train(cfg: DictConfig, device: torch.device, source: str, resume: bool = False) -> dict[str, Any]:
    """Trains the model of a config.

    On a CPU, a training that was killed and resumed ends with the same bits as one that was not.

    Args:
        cfg: complete and checked.
        device: where to compute.
        source: the file that ``cfg`` came from; a copy is kept.
        resume: continue from the newest good checkpoint in ``train.output_dir``, where there is one.

    Returns:
        the results of the last evaluation; empty but in the main process.
    """
    output_dir, main_process = cfg.train.output_dir, comm.is_main_process()
    check_processes(cfg)
    found = newest_good_checkpoint(output_dir, in_parts=spreads(cfg)) if resume else None
    if resume and not found:
        earlier = " (earlier trainings are in its folder 'previous')" if os.path.isdir(f"{output_dir}/previous") else ""
        logger.warning("%s holds no checkpoint to resume from%s: starting at the first iteration.", output_dir, earlier)
    seed = cfg.train.seed = _settle_seed(cfg, found[1] if found else {}, resume)
    if device.type == "cpu":
        # Sums whose order depends on the timing of threads; what has no other way is only warned of.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = cfg.train.cudnn_benchmark

    # Data first: it is what is wrong most often, and checked before anything expensive.
    train_loader = build_loader(cfg, cfg.dataloader.train, training=True)
    tests = build_tests(cfg)

    seed_step(seed, iteration=0, stream=3)
    model, average = prepare_model(cfg, device, found[1] if found else None)
    name, size = type(model).__name__.removeprefix("FSDP"), sum(p.numel() for p in model.parameters())
    logger.info("%s with %.2f M parameters", name, size / 1e6)
    ema = ModelEMA(model, cfg.train.ema.decay, average) if cfg.train.ema.enabled else None
    optimizer = build_optimizer(cfg, model)
    compile_network(model, cfg.train.compile)
    clip = cfg.train.clip_grad
    trainer = Trainer(
        wrap(model, device, cfg.train.ddp),
        train_loader,
        optimizer,
        seed=seed,
        amp_dtype=amp_dtype(cfg, device),
        max_norm=clip.max_norm if clip.enabled else None,
        norm_type=clip.norm_type,
        adaptive=clip.adaptive,
        accumulate=cfg.train.accumulate,
    )
    evaluated = ema.module if ema else model
    checkpointer = _checkpointer(model, output_dir, averaged=ema and ema.module, trainer=trainer)
    best = BestCheckpointHook(checkpointer, cfg.train.best_checkpointer.metric)
    best = best if cfg.train.best_checkpointer.enabled else None
    evaluate = _Evaluation(evaluated, tests, output_dir, trainer, best)
    checkpoints = CheckpointHook(checkpointer, **cfg.train.checkpointer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            EMAHook(ema) if ema else None,
            checkpoints,
            StopHook(checkpoints),
            EvalHook(cfg.train.eval_period, evaluate, checkpoints),
            best,
        ]
    )
    start_iter = 0
    if found:
        checkpointer.resume(*found)
        found = None  # as large as model and optimizer together
        start_iter = trainer.iter + 1
    # All that can be wrong with the config has been met: from here on the folder belongs to this training.
    checkpointer.before_save = claim(output_dir)
    if main_process:
        if not resume and (aside := set_earlier_run_aside(output_dir)):
            logger.info("%s held an earlier training; its files are now in %s.", output_dir, aside)
        remove_torn_files(output_dir)
        save_config(cfg, source, output_dir)
    comm.synchronize()
    if main_process:
        writers = build_writers(output_dir, cfg.train.max_iter, start_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=cfg.train.log_period)])
    trainer.train(start_iter, cfg.train.max_iter)

    if cfg.train.report.enabled:
        with evaluation(evaluated, (), trainer.amp_dtype), led_by_main_process(evaluated):
            if main_process:
                _write_report(cfg, evaluated, tests)
    if main_process:
        write_summary(output_dir, _facts(trainer, best, device), evaluate.results)
    comm.synchronize()
    return evaluate.results


def _checkpointer(model: torch.nn.Module, output_dir: str, **parts: Any) -> Checkpointer:
    if not is_spread(model):
        return Checkpointer(model, output_dir, **parts)
    from ..checkpoint.sharded_checkpointer import ShardedCheckpointer  # needs what older versions of torch lack

    return ShardedCheckpointer(model, output_dir, **parts)


class _Evaluation:
    """What the evaluation hook calls; keeps and writes the last results."""

    def __init__(
        self,
        model: torch.nn.Module,
        tests: list[EvalTask],
        output_dir: str,
        trainer: Trainer,
        best: BestCheckpointHook | None,
    ):
        self.results: dict[str, Any] = {}
        self._model, self._tests, self._output_dir = model, tests, output_dir
        self._trainer, self._best = trainer, best

    def __call__(self) -> dict[str, Any]:
        # In the loop the storage counts from 0, after it the iterations that were done.
        done = min(self._trainer.storage.iter + 1, self._trainer.max_iter)
        path = os.path.join(self._output_dir, EVAL_FILE)
        # A training that was killed after this evaluation, and resumed from the checkpoint before it, has the results.
        known = comm.all_gather(read_json(path) if comm.is_main_process() else None)[0]
        if known and known.get("iterations") == done:
            results = known["results"]
        else:
            # What was trained so far is saved.
            with stop_request.at_once(), evaluation(self._model, self._tests, self._trainer.amp_dtype) as tests:
                results = run_tests(self._model, tests)
            results = comm.all_gather(results)[0]
        self.results = results if comm.is_main_process() else {}
        if self.results:
            write_json(path, {"iterations": done, "results": results})
        if results and self._best:  # of all processes: they may have to write the weights together
            self._best.offer(flatten_results_dict(results), done)
        return self.results


def _settle_seed(cfg: DictConfig, checkpoint: dict[str, Any], resume: bool) -> int:
    """The config's seed, or that of the resumed training, or a new one; the same in all processes."""
    seed, earlier = cfg.train.seed, checkpoint.get("trainer", {}).get("seed")
    if seed is None or seed < 0:  # Detectron2's way to say "any"
        if earlier is None and resume and comm.is_main_process():
            earlier = remembered_seed(cfg.train.output_dir)
        seed = comm.all_gather(draw_seed() if earlier is None else earlier)[0]
    elif earlier not in (None, seed):
        logger.warning(
            "train.seed=%d, but the resumed training began with %d; it goes on with %d.", seed, earlier, seed
        )
    logger.info("Seed %d (train.seed=%d repeats this training)", seed, seed)
    return seed


def _batch_and_length(cfg: DictConfig) -> tuple[int | None, Any]:
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    return batch, OmegaConf.select(cfg, "train.max_iter") if batch else None


def _log_schedule(cfg: DictConfig, old_batch: int | None, old_length: Any) -> None:
    batch, length = _batch_and_length(cfg)
    if batch is None:
        return
    if OmegaConf.is_interpolation(cfg.train, "max_iter"):
        epochs, images = cfg.train.epochs, cfg.train.num_images
        logger.info("%s epochs of %d images, %d at a time: %d iterations", epochs, images, batch, length)
        if batch != old_batch:
            logger.info(
                "The config is written for %s iterations of %s images; the schedule is rescaled, optimizer.lr stays as "
                "it is.", old_length, old_batch,
            )  # fmt: skip
        return
    logger.info("%d iterations of %d images", length, batch)
    if batch != old_batch and length == old_length:
        logger.warning(
            "The config is written for batches of %s images; with %d the %d iterations see %.3g times as many images: "
            "consider changing train.max_iter", old_batch, batch, length, batch / (old_batch or batch),
        )  # fmt: skip


def _facts(trainer: Trainer, best: BestCheckpointHook | None, device: torch.device) -> dict[str, Any]:
    histories = trainer.storage.histories()
    speed = histories["img_per_s"].median(1000) if "img_per_s" in histories else None
    return {
        "iterations": trainer.iter,
        "seconds": trainer.seconds,
        "images_per_second": speed,
        "memory_mb": memory_mb(),
        "device": str(device),
        "processes": comm.get_world_size(),
        "seed": trainer.seed,
        "best_metric": best.metric if best else None,
        "best_value": best.best if best else None,
        "best_iteration": best.iteration if best else None,
    }


def _write_report(cfg: DictConfig, model: torch.nn.Module, tests: list[EvalTask]) -> None:
    if not tests:
        return
    from ..visualization.report import write_report  # draws with matplotlib, which an evaluation need not import

    try:
        write_report(
            cfg.train.output_dir,
            model=model,
            data_loader=tests[0].loader,
            dataset_name=tests[0].name,
            num_images=cfg.train.report.num_images,
            score_threshold=cfg.train.report.score_threshold,
        )
    except Exception:  # the training itself is done and saved; pictures must not make it look failed
        logger.exception("The report could not be written; the training is complete without it.")

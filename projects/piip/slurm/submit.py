"""Sending trainings to a cluster: everything that can be wrong is found before anything is queued."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import LazyConfig
from detectron2.engine import default_argument_parser
from omegaconf import DictConfig, OmegaConf

from ..checkpoint.files import write_atomically
from ..engine.config import check_config, load_config
from ..engine.run_dir import CONFIG, set_earlier_run_aside, write_json
from ..errors import ConfigError, DependencyError
from .job import TrainingJob
from .refusals import explain
from .resources import Resources
from .snapshot import git_revision, take_snapshot
from .status import collect
from .sweep import expand, tag

if TYPE_CHECKING:
    import submitit

__all__ = ["EXECUTORS", "Training", "prepare", "script", "send"]

EXECUTORS = ("slurm", "local", "debug")
FOLDER = "slurm"  # of the jobs, inside the output folder
JOB_FILE = "job.json"


@dataclasses.dataclass(frozen=True)
class Training:
    """A training that can be sent.

    Attributes:
        name: of its job; those of a sweep have the same.
        arguments: of the training tool; the config among them is a copy that nobody edits any more.
        output_dir: absolute.
        overrides: what tells it from the others of its sweep.
    """

    name: str
    arguments: tuple[str, ...]
    output_dir: str
    overrides: tuple[str, ...] = ()


def prepare(
    arguments: Sequence[str],
    resources: Resources,
    *,
    sweeps: Sequence[str] = (),
    name: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    cpu_is_meant: bool = False,
) -> tuple[str, list[Training]]:
    """Checks the trainings of a submission and writes down their configs.

    Args:
        arguments: of ``tools/lazyconfig_train_net.py``.
        resources: what each job asks for.
        sweeps: see :func:`piip.slurm.sweep.expand`; each training gets a folder of its own inside the output folder.
        name: of the jobs; default: the config's.
        overwrite: move an earlier training in an output folder aside and start anew.
        dry_run: change nothing on the disk.
        cpu_is_meant: a job without GPUs is right whatever the config's device.

    Returns:
        the output folder of the submission, and its trainings.

    Raises:
        ConfigError: for whatever is wrong with arguments, config or folders.
    """
    args = _parse(arguments)
    base_cfg = load_config(args.config_file, args.opts)
    base = os.path.abspath(base_cfg.train.output_dir)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name or Path(args.config_file).stem)
    trainings = []
    for overrides in expand(sweeps):
        output_dir = os.path.join(base, tag(overrides)) if overrides else base
        if any(t.output_dir == output_dir for t in trainings):
            raise ConfigError(
                f"two trainings of the sweep would share the folder {output_dir!r}; shorten their values."
            )
        cfg = load_config(args.config_file, [*args.opts, *overrides])
        cfg.train.output_dir = output_dir
        check_config(cfg, args.eval_only)
        _check_processes(cfg, resources, cpu_is_meant)
        if not args.eval_only:
            _check_folder(cfg, output_dir, args.resume, overwrite, base, dry_run)
        file = _freeze(cfg, Path(base, FOLDER, "configs"), stem, dry_run)
        flags = ("--eval-only",) if args.eval_only else ("--resume",)
        trainings.append(Training(stem, ("--config-file", str(file), *flags), output_dir, tuple(overrides)))
    if overwrite and not dry_run:
        for training in trainings:
            set_earlier_run_aside(training.output_dir)
    return base, trainings


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = default_argument_parser()
    args = parser.parse_args(list(arguments))
    for option in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        if getattr(args, option) != parser.get_default(option):
            raise ConfigError(
                f"--{option.replace('_', '-')} is for starting processes by hand; here --nodes and --gpus-per-node say "
                "how many there are."
            )
    if not args.config_file:
        raise ConfigError("no config: write `-- --config-file NAME key=value ...` after the options of the job.")
    return args


def _check_processes(cfg: DictConfig, resources: Resources, cpu_is_meant: bool) -> None:
    if not resources.gpus_per_node and str(cfg.train.device).startswith("cuda") and not cpu_is_meant:
        raise ConfigError(
            f"the job asks for no GPU, but train.device={cfg.train.device}; add --gpus-per-node N, or train.device=cpu."
        )
    if resources.gpus_per_node and str(cfg.train.device).startswith("cpu"):
        raise ConfigError(
            f"the job asks for {resources.gpus_per_node} GPUs, but train.device={cfg.train.device}; leave "
            "--gpus-per-node out (--tasks-per-node N starts N processes), or set train.device=cuda."
        )
    processes = resources.nodes * resources.processes_per_node
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if batch and batch % processes:
        raise ConfigError(
            f"dataloader.train.total_batch_size={batch} cannot be shared equally by the {processes} processes of "
            f"{resources.nodes} node(s); choose a multiple of {processes}."
        )


def _check_folder(cfg: DictConfig, output_dir: str, resume: bool, overwrite: bool, base: str, dry_run: bool) -> None:
    try:
        if not dry_run:
            os.makedirs(output_dir, exist_ok=True)
        path = Path(output_dir)
        with tempfile.TemporaryFile(dir=next(p for p in (path, *path.parents) if p.exists())):
            pass
    except OSError as error:
        raise ConfigError(
            f"train.output_dir={output_dir!r} cannot be written to ({error.strerror}); choose another folder."
        ) from error
    for job in collect(base):
        if job.output_dir == output_dir and job.going_on:
            raise ConfigError(
                f"job {job.job_id} is still training in {output_dir!r} ({job.state}); wait for it, cancel it with "
                f"`tools/submit.py cancel {base}`, or choose another train.output_dir."
            )
    if not os.path.exists(os.path.join(output_dir, "last_checkpoint")) or overwrite:
        return
    if not resume:
        raise ConfigError(
            f"train.output_dir={output_dir!r} holds a training; add --resume after -- to go on with it, --overwrite "
            "before -- to move it aside, or choose another folder."
        )
    if differing := _differing_models(cfg, os.path.join(output_dir, CONFIG)):
        raise ConfigError(
            f"{output_dir!r} holds the training of another model ({'; '.join(differing[:3])}); resume with its config, "
            f"{os.path.join(output_dir, CONFIG)}, or choose another train.output_dir."
        )


def _differing_models(cfg: DictConfig, saved: str) -> list[str]:
    if not os.path.isfile(saved):
        return []
    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(cfg, file := os.path.join(folder, CONFIG))
        new, old = (_flat(OmegaConf.to_container(load_config(path).model)) for path in (file, saved))
    return [f"model.{k} was {old.get(k)}, is {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = {} if isinstance(node, (dict, list)) else {prefix.rstrip("."): node}
    for key, value in items:
        found.update(_flat(value, f"{prefix}{key}."))
    return found


def _freeze(cfg: DictConfig, folder: Path, stem: str, dry_run: bool) -> Path:
    """Writes the resolved config under a name made of its content."""
    with tempfile.TemporaryDirectory() as temporary:
        LazyConfig.save(cfg, file := os.path.join(temporary, CONFIG))
        if not os.path.isfile(file):
            raise ConfigError(
                f"the config {stem!r} holds values that YAML cannot keep, such as functions without a name, so a job "
                "could not be sure to start what was submitted; define them in an importable module."
            )
        content = Path(file).read_bytes()
    target = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.yaml"
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda f: f.write(content))
    return target


def script(base: str, trainings: Sequence[Training], resources: Resources) -> str:
    """The script that sbatch would get."""
    _require_submitit()
    from submitit.slurm.slurm import _make_sbatch_string

    folder = Path(base, FOLDER)
    parameters = _sbatch(trainings, folder, folder / "code" / "HASH-OF-THE-CODE", resources)
    if len(trainings) > 1:
        parameters["map_count"] = len(trainings)
    command = f"{_python(resources)} -u -m submitit.core._submit {shlex.quote(str(folder / '%j'))}"
    return _make_sbatch_string(command=command, folder=folder / "%j", **parameters)


def send(base: str, trainings: Sequence[Training], resources: Resources, executor: str = "slurm") -> list[str]:
    """Submits trainings: one as a job, several as an array; ``job.json`` in each job's folder says what it is.

    Args:
        base: output folder of the submission.
        trainings: of :func:`prepare`, or of an earlier submission.
        resources: what each job asks for.
        executor: ``slurm``; ``local`` for this machine, in the background; ``debug`` for this process, one after the
            other.

    Returns:
        the ids of the jobs.

    Raises:
        DependencyError: without submitit, or without Slurm for the executor slurm.
        SubmissionError: when Slurm refuses; nothing is queued then.
    """
    _require_submitit()
    import submitit

    if executor != "slurm" and resources.nodes > 1:
        raise ConfigError(f"--nodes {resources.nodes} needs Slurm; --executor {executor} knows this machine alone.")
    folder = Path(base, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    code = take_snapshot(folder / "code")
    jobs = [TrainingJob(t.arguments, t.output_dir, str(folder), resources.gpus_per_node) for t in trainings]
    # What Slurm set for a job that submits another one is not for that one; where Slurm's own configuration is, is.
    kept = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
    if executor == "local":
        # It starts as it is called from here. Commands before it would be run by a shell, which passes no signal on.
        kept.update(_environment(code))
    with submitit.helpers.clean_env(), submitit.helpers.environment_variables(**kept):
        runner = _executor(executor, folder, code, trainings, resources)
        if executor == "slurm":
            try:
                with runner.batch():
                    handles = [runner.submit(job) for job in jobs]
            except submitit.core.utils.FailedJobError as error:
                raise explain(str(error), resources) from error
        else:
            handles = [runner.submit(job) for job in jobs]
    revision, now = git_revision(), datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    for handle, training in zip(handles, trainings, strict=True):
        write_json(
            _made(folder / handle.job_id) / JOB_FILE,
            {
                "job_id": handle.job_id,
                "executor": executor,
                **dataclasses.asdict(training),
                "submitted": now,
                "revision": revision,
                "code": str(code),
                "resources": dataclasses.asdict(resources),
                "log": str(handle.paths.stdout),
            },
        )
    if executor == "debug":
        for handle in handles:
            handle.results()
    return [handle.job_id for handle in handles]


def _executor(
    kind: str, folder: Path, code: Path, trainings: Sequence[Training], resources: Resources
) -> submitit.AutoExecutor:
    import submitit

    if kind == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise DependencyError(
            "there is no Slurm here: sbatch and srun are not on the path. Submit from a login node of the cluster, or "
            "use --executor local for this machine."
        )
    options = {"slurm_max_num_timeout": resources.max_timeouts, "local_max_num_timeout": resources.max_timeouts}
    if resources.python:
        options.update(slurm_python=resources.python, local_python=resources.python)
    executor = submitit.AutoExecutor(folder / "%j", cluster=kind, **options)
    if kind == "slurm":
        parameters = _sbatch(trainings, folder, code, resources)
        executor.update_parameters(**{f"slurm_{key}": value for key, value in parameters.items()})
    elif kind == "local":
        executor.update_parameters(
            timeout_min=resources.time,
            tasks_per_node=resources.processes_per_node,
            gpus_per_node=resources.gpus_per_node,
            stderr_to_stdout=True,
        )
    return executor


def _sbatch(trainings: Sequence[Training], folder: Path, code: Path, resources: Resources) -> dict[str, Any]:
    after = f"{_python(resources)} -m piip.slurm.job {shlex.quote(str(folder))} {resources.max_crashes} $status"
    teardown = ["status=$?", after, "exit $status"] if resources.requeue else []
    return resources.sbatch(trainings[0].name, _environment(code), teardown)


def _environment(code: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))}


def _python(resources: Resources) -> str:
    return resources.python or shlex.quote(sys.executable)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _require_submitit() -> None:
    if importlib.util.find_spec("submitit") is None:
        raise DependencyError(
            "submitit is not installed; run `pip install submitit`, or install piip with its extra slurm."
        )

"""The command line of ``tools/submit.py``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UserError
from .refusals import pending_remedy
from .resources import PROFILE_VARIABLE, Resources, minutes, read_profile
from .state import job_states
from .status import collect, failed, format_table
from .submit import EXECUTORS, FOLDER, JOB_FILE, Training, prepare, script, send

__all__ = ["main"]

EXAMPLES = f"""
examples:
  16 GPUs on two machines; the command line after -- is that of tools/lazyconfig_train_net.py:
    %(prog)s --nodes 2 --gpus-per-node 8 --time 48:00:00 --partition P -- --config-file NAME key=value
  see the script first; try the same on this machine; two CPU processes:
    %(prog)s --dry-run --nodes 2 --gpus-per-node 8 -- --config-file NAME
    %(prog)s --executor local --gpus-per-node 1 -- --config-file NAME
    %(prog)s --executor local --tasks-per-node 2 -- --config-file NAME train.device=cpu
  six trainings as one array, two at a time; afterwards:
    %(prog)s --sweep optimizer.lr=1e-4,2e-4 train.seed=0:3 --array-parallelism 2 --gpus-per-node 8 -- --config-file NAME
    %(prog)s status OUTPUT_DIR
    %(prog)s resubmit OUTPUT_DIR
    %(prog)s cancel OUTPUT_DIR

Defaults for a cluster come from ~/.config/piip/slurm.yaml, or the file named by --profile or {PROFILE_VARIABLE}: lines
such as `partition: P`, with the options below as keys.
"""

_TEXT = {
    "partition": "queue", "qos": "quality of service", "account": "to be charged",
    "constraint": "features of the nodes", "exclude": "nodes not to use", "nodelist": "nodes to use",
    "reservation": "to use", "dependency": "such as afterok:ID", "comment": "shown by squeue",
    "mem": "memory per node in GB, or in sbatch's notation",
    "gpu_type": "as the cluster names it", "python": "command that starts Python in the job (default: this one)",
}  # fmt: skip
_NUMBERS = {
    "nodes": "machines (default: 1)", "gpus_per_node": "GPUs, and processes, on each (default: 0, the CPU)",
    "tasks_per_node": "processes on each machine without GPUs (default: 1)",
    "cpus_per_task": "processor cores for each process",
    "signal_delay": "seconds between the warning and the time limit (default: 120)",
    "max_timeouts": "how often a job may reach its time limit (default: 30)",
    "max_crashes": "how often in a row it may fail without a new checkpoint (default: 3)",
    "array_parallelism": "trainings of a sweep at a time (default: 256)",
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Submits, or does what the first word says.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        the exit status.
    """
    commands = {"status": _status, "cancel": _cancel, "resubmit": _resubmit}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[0], arguments[1:])
    return _submit(arguments)


def _submit(arguments: Sequence[str]) -> int:
    options, training = list(arguments), []
    if "--" in options:
        split = options.index("--")
        options, training = options[:split], options[split + 1 :]
    args = _submission_parser().parse_args(options)
    if not training:
        raise ConfigError("nothing to train: write `-- --config-file NAME key=value ...` after the options of the job.")
    resources = _resources(args)
    base, trainings = prepare(
        training,
        resources,
        sweeps=args.sweep,
        name=args.job_name,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        cpu_is_meant=args.executor != "slurm",
    )
    if args.dry_run:
        print(script(base, trainings, resources))
        for t in trainings:
            print(f"# {t.name}: {t.output_dir}")
        return 0
    jobs = send(base, trainings, resources, args.executor)
    _tell(base, trainings, jobs, args.executor)
    return _wait(base) if args.wait else 0


def _submission_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="submit.py",
        usage="%(prog)s [options] -- --config-file NAME [key=value ...]\n"
        "       %(prog)s {status,cancel,resubmit} OUTPUT_DIR",
        description="Sends trainings to a Slurm cluster; preempted, timed-out and crashed jobs go on by themselves.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, hidden = parser.add_argument, argparse.SUPPRESS  # what is not given comes from the profile
    add("--executor", choices=EXECUTORS, default="slurm", help="local: this machine; debug: this process")
    add("--sweep", nargs="+", default=[], metavar="key=a,b", help="train all combinations; key=0:3 means 0,1,2")
    add("--dry-run", action="store_true", help="print the script, submit nothing")
    add("--wait", action="store_true", help="wait for the end; the status is that of the jobs")
    add("--overwrite", action="store_true", help="move an earlier training in the output folder aside")
    add("--job-name", help="default: the config's name")
    add("--profile", help="file with defaults for a cluster")
    add("--time", type=_argument(minutes), default=hidden, help="minutes, HH:MM:SS or D-HH:MM:SS (default: 60)")
    for name, text in _NUMBERS.items():
        add(f"--{name.replace('_', '-')}", type=int, default=hidden, metavar="N", help=text)
    for name, text in _TEXT.items():
        add(f"--{name.replace('_', '-')}", default=hidden, metavar="X", help=text)
    add("--exclusive", action="store_true", default=hidden, help="share no node with other jobs")
    add("--no-requeue", dest="requeue", action="store_false", default=hidden, help="let an interrupted job end")
    add("--setup", action="append", default=hidden, metavar="COMMAND", help="before the training (repeatable)")
    add("--srun-arg", action="append", default=hidden, metavar="ARG", help="of srun: --srun-arg=--label (repeatable)")
    add(
        "--slurm-extra",
        action="append",
        default=hidden,
        metavar="KEY=VALUE",
        help="further option of sbatch (repeatable)",
    )
    return parser


def _argument(read: Any) -> Any:
    def convert(text: str) -> Any:
        try:
            return read(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _resources(args: argparse.Namespace) -> Resources:
    given = {key: value for key, value in vars(args).items() if key in Resources.__dataclass_fields__}
    for key in ("setup", "srun_arg"):
        if key in given:
            given[key] = tuple(given[key])
    if "slurm_extra" in given:
        extra = {}
        for text in given["slurm_extra"]:
            key, equals, value = text.partition("=")
            if not key or key.startswith("-"):
                raise ConfigError(f"--slurm-extra {text!r} must be key=value, as in --slurm-extra nice=100.")
            extra[key] = value if equals else True
        given["slurm_extra"] = extra
    if str(given.get("mem", "")).isdigit() and given["mem"] != "0":
        given["mem"] += "G"
    return Resources(**{**read_profile(args.profile), **given})


def _tell(base: str, trainings: Sequence[Training], jobs: Sequence[str], executor: str) -> None:
    for training, job in zip(trainings, jobs, strict=True):
        print(f"job {job}: {training.name} -> {training.output_dir}")
    if executor == "debug":
        return
    log = Path(base, FOLDER, jobs[0], f"{jobs[0]}_0_log.out")
    print(f"follow with: tail -F {log}")
    if len(jobs) > 1:
        print(f"all of them: {sys.argv[0]} status {base}")
    if executor == "slurm":
        for job, state in job_states(jobs[:1]).items():
            if remedy := pending_remedy(state.reason or ""):
                print(f"warning: job {job} waits for {state.reason}, which may never come: {remedy}.")


def _wait(folder: str, seconds: float = 10.0) -> int:
    """Follows jobs through requeues; Ctrl-C leaves them running."""
    shown = None
    while True:
        jobs = collect(folder)
        if (table := format_table(jobs)) != shown:
            print(shown := table, flush=True)
        if not any(job.going_on for job in jobs):
            return 1 if failed(jobs) else 0
        time.sleep(seconds)


def _folder_parser(command: str, help: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"submit.py {command}", description=help)
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="train.output_dir of the submission")
    return parser


def _jobs(folder: str) -> list[Any]:
    if not (jobs := collect(folder)):
        raise ConfigError(f"{folder!r} holds no jobs of this tool ({os.path.join(folder, FOLDER)}/*/job.json).")
    return jobs


def _status(command: str, arguments: Sequence[str]) -> int:
    args = _folder_parser(command, "Shows the state and the last metrics of every training.").parse_args(arguments)
    print(format_table(_jobs(args.folder)))
    return 0


def _cancel(command: str, arguments: Sequence[str]) -> int:
    args = _folder_parser(command, "Cancels all jobs that are not done; they save first.").parse_args(arguments)
    going_on = [job for job in _jobs(args.folder) if job.going_on]
    for job in going_on:
        if job.executor == "slurm":
            subprocess.run(["scancel", job.job_id], check=True)
        else:
            os.kill(int(job.job_id), 15)
        print(f"cancelled job {job.job_id}: {job.name}")
    if not going_on:
        print("no job was going on")
    return 0


def _resubmit(command: str, arguments: Sequence[str]) -> int:
    text = "Submits the trainings again that have failed; they go on from their last checkpoints, with the code of now."
    args = _folder_parser(command, text).parse_args(arguments)
    notes = [json.loads(Path(job.folder, JOB_FILE).read_text()) for job in failed(_jobs(args.folder))]
    if not notes:
        print("no training has failed")
        return 0
    base = os.path.abspath(args.folder)
    # One array for those that asked for the same.
    for first in [note for i, note in enumerate(notes) if _asked(note) not in map(_asked, notes[:i])]:
        same = [note for note in notes if _asked(note) == _asked(first)]
        trainings = [Training(n["name"], tuple(n["arguments"]), n["output_dir"], tuple(n["overrides"])) for n in same]
        _tell(base, trainings, send(base, trainings, _given(first), first["executor"]), first["executor"])
    return 0


def _asked(note: dict[str, Any]) -> tuple[Any, ...]:
    return note["executor"], note["name"], note["resources"]


def _given(note: dict[str, Any]) -> Resources:
    return Resources(**{k: tuple(v) if isinstance(v, list) else v for k, v in note["resources"].items()})

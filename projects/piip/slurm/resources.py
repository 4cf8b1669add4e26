"""What a job asks the cluster for: options, defaults from a small file of the user, and sbatch's parameters."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean

__all__ = ["PROFILE_VARIABLE", "Resources", "minutes", "read_profile"]

PROFILE_VARIABLE = "PIIP_SLURM_PROFILE"
_PROFILE = "~/.config/piip/slurm.yaml"
_SECONDS_TO_START = 120  # Slurm may warn a minute early, and a job needs some time before it can react


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job asks for; None leaves it to the cluster.

    Attributes:
        nodes: machines.
        gpus_per_node: GPUs, and as many processes, on each of them; 0 computes on the CPU.
        gpu_type: of them, as the cluster names it.
        tasks_per_node: processes on each machine without GPUs.
        cpus_per_task: processor cores of each process, for its data loading.
        mem: memory of each machine in GB, or sbatch's own notation (``500M``, ``0`` for all of it).
        time: minutes.
        signal_delay: seconds between the warning and the end of the time: enough to finish an iteration and to save.
        requeue: let the job go on by itself when it was interrupted.
        max_timeouts: how often it may reach its time limit.
        max_crashes: how often in a row it may fail without having saved anything new.
        array_parallelism: how many jobs of a sweep run at a time.
        setup: shell commands before the training, such as ``module load``.
        python: the command that starts Python there; None: this one.
        srun_arg: further arguments of srun.
        slurm_extra: further options of sbatch, by their long name.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: int = 60
    signal_delay: int = 120
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    dependency: str | None = None
    comment: str | None = None
    exclusive: bool = False
    requeue: bool = True
    max_timeouts: int = 30
    max_crashes: int = 3
    array_parallelism: int = 256
    setup: tuple[str, ...] = ()
    python: str | None = None
    srun_arg: tuple[str, ...] = ()
    slurm_extra: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in {
            "nodes": 1, "gpus_per_node": 0, "time": 1, "signal_delay": 1, "max_timeouts": 0, "max_crashes": 0,
            "array_parallelism": 1,
        }.items():  # fmt: skip
            self._at_least(name, least)
        for name in ("tasks_per_node", "cpus_per_task"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ConfigError(
                f"--tasks-per-node {self.tasks_per_node} does not match --gpus-per-node {self.gpus_per_node}: every "
                "GPU has one process; leave --tasks-per-node out."
            )
        if self.gpu_type and not self.gpus_per_node:
            raise ConfigError(f"--gpu-type {self.gpu_type} needs --gpus-per-node.")
        if self.time * 60 < self.signal_delay + _SECONDS_TO_START:
            raise ConfigError(
                f"--time of {self.time} minutes is too short to save one checkpoint: the job is warned "
                f"{self.signal_delay} s before its end and needs {_SECONDS_TO_START} s before that to start; give it "
                f"at least {-(-(self.signal_delay + _SECONDS_TO_START) // 60)} minutes, or lower --signal-delay."
            )

    def _at_least(self, name: str, least: int) -> None:
        if (value := getattr(self, name)) < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least {least}.")

    @property
    def processes_per_node(self) -> int:
        return self.gpus_per_node or self.tasks_per_node or 1

    def sbatch(self, name: str, environment: Mapping[str, str], teardown: list[str]) -> dict[str, Any]:
        """The parameters for submitit's Slurm executor, in sbatch's own names.

        Args:
            name: of the job.
            environment: variables to be set in the job.
            teardown: shell commands after the training.
        """
        given = {
            key: getattr(self, key)
            for key in ("partition", "qos", "account", "constraint", "exclude", "nodelist", "dependency", "comment")
        }
        given.update(mem=self.mem, cpus_per_task=self.cpus_per_task, exclusive=self.exclusive or None)
        if self.gpu_type:
            given["gres"] = f"gpu:{self.gpu_type}:{self.gpus_per_node}"
        elif self.gpus_per_node:
            given["gpus_per_node"] = self.gpus_per_node
        exports = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
        if self.cpus_per_task:
            exports.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK")  # since 22.05 srun does not take it over
        return {
            **{key: value for key, value in given.items() if value is not None},
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": self.processes_per_node,
            "time": self.time,  # a whole number: submitit computes with it
            "signal_delay_s": self.signal_delay,
            "array_parallelism": self.array_parallelism,
            "stderr_to_stdout": True,
            "setup": [*self.setup, *exports],
            "teardown": teardown,
            # Else the other processes of one that died wait for it until the time limit.
            "srun_args": ["--kill-on-bad-exit=1", *self.srun_arg],
            "additional_parameters": {
                ("requeue" if self.requeue else "no-requeue"): True,
                **({"reservation": self.reservation} if self.reservation else {}),
                **self.slurm_extra,
            },
        }


def minutes(text: str | int) -> int:
    """Whole minutes, rounded up, of a time as sbatch reads it: ``90``, ``MM:SS``, ``HH:MM:SS``, ``D-HH:MM:SS``, ...

    Raises:
        ConfigError: for anything else.
    """
    text = str(text)
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ConfigError(f"--time {text!r} is not a time; write minutes, HH:MM:SS or D-HH:MM:SS.")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # hours first
        hours, mins, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:  # minutes first
        hours, (mins, seconds) = 0, [*numbers, 0][:2]
    return (int(days or 0) * 24 + hours) * 60 + mins + -(-seconds // 60)


def read_profile(path: str | None = None) -> dict[str, Any]:
    """The user's defaults for a cluster: a YAML file with the long options as keys.

    Args:
        path: of the file; else that in the variable PIIP_SLURM_PROFILE, else ``~/.config/piip/slurm.yaml`` where there
            is one.

    Raises:
        ConfigError: for a file that is missing although it was named, that is not YAML, or that has an unknown key.
    """
    named = path or os.environ.get(PROFILE_VARIABLE)
    file = Path(named or _PROFILE).expanduser()
    if not file.is_file():
        if named:
            raise ConfigError(f"profile {named!r} does not exist; check --profile or {PROFILE_VARIABLE}.")
        return {}
    import yaml

    try:
        text = file.read_text()
        content = yaml.safe_load(text) or {}
        as_written = yaml.load(text, yaml.BaseLoader)  # safe, too: nothing but text
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {str(file)!r} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"profile {str(file)!r} must hold lines like 'partition: NAME'.")
    known = [field.name for field in dataclasses.fields(Resources)]
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ConfigError(f"profile {str(file)!r} has the unknown key {key!r}.{did_you_mean(name, known)}")
        # YAML takes 24:00:00 for a number in base 60.
        values[name] = minutes(as_written[key]) if name == "time" else _of_kind(name, value, file)
    return values


def _of_kind(name: str, value: Any, file: Path) -> Any:
    default = Resources.__dataclass_fields__[name].default
    if name in ("setup", "srun_arg"):
        return tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    if name == "slurm_extra":
        wanted, fits = "keys and values", isinstance(value, dict)
    elif isinstance(default, bool):
        wanted, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, int) or name in ("tasks_per_node", "cpus_per_task"):
        wanted, fits = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    else:
        return str(value)
    if not fits:
        raise ConfigError(f"profile {str(file)!r}: {name}={value!r} must be {wanted}.")
    return value

"""What sbatch says when it refuses a job, and what to do about it."""

from __future__ import annotations

from ..errors import UserError
from .resources import Resources

__all__ = ["SubmissionError", "explain", "pending_remedy"]


class SubmissionError(UserError):
    """Slurm refused a job."""


# A part of sbatch's message, and the remedy.
_REMEDIES = {
    "invalid partition": "choose one that `sinfo -s` lists with --partition",
    "invalid account": "choose one that `sacctmgr show associations user=$USER` lists with --account",
    "invalid qos": "choose one that `sacctmgr show qos` lists with --qos",
    "node count specification": "lower --nodes {nodes}; `sinfo -s` lists the nodes of each partition",
    "requested time limit": "lower --time, of {time} minutes; `sinfo -s` lists the limit of each partition",
    "more processors": "lower --cpus-per-task or --gpus-per-node; `sinfo -o '%P %c'` lists the processors of the nodes",
    "memory specification": "lower --mem {mem}; `sinfo -o '%P %m'` lists the memory of the nodes",
    "feature specification": "choose a --constraint that `sinfo -o '%P %f'` lists",
    "node name": "check the names after --exclude and --nodelist; `sinfo -N` lists the nodes",
    "node configuration is not available": (
        "no node has {gpus_per_node} GPUs (of that type), or all that do are excluded; `sinfo -o '%P %G'` lists them"
    ),
    "reservation": "choose one that `scontrol show reservations` lists with --reservation",
    "dependency": "check the job ids after --dependency",
    "unrecognized option": "check --slurm-extra; `sbatch --help` lists the options",
    "wckey": "this cluster has its own workload keys; set one with --slurm-extra wckey=NAME",
    "unable to contact": "Slurm's controller does not answer; try again later, or ask `scontrol ping`",
}

# Reasons for which a job waits for ever on clusters that do not refuse it at once.
_HOPELESS = {
    "PartitionNodeLimit": "lower --nodes",
    "PartitionTimeLimit": "lower --time",
    "PartitionConfig": "lower --cpus-per-task, --mem or --gpus-per-node",
    "BadConstraints": "change --constraint or --gpu-type",
    "AssocGrp": "the account has used up its share",
    "AssocMax": "the account's limit is lower",
    "QOSMax": "the limit of the --qos is lower",
    "QOSGrp": "the users of the --qos have used up its share",
    "JobHeldAdmin": "an administrator holds it",
}


def explain(message: str, asked: Resources) -> SubmissionError:
    """The error for what sbatch said of what it was asked for, in one line, with a remedy where one is known."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in message.strip().splitlines()]
    said = "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "nothing"
    remedy = next((text for part, text in _REMEDIES.items() if part in said.lower()), "see `man sbatch`")
    remedy = remedy.format_map(vars(asked))
    return SubmissionError(f"sbatch refused the job ({said}): {remedy}.")


def pending_remedy(reason: str) -> str | None:
    """What to do about a job that waits for something that will not come; None where waiting is right."""
    return next((text for name, text in _HOPELESS.items() if reason.startswith(name)), None)

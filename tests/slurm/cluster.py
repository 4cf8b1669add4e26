"""A real Slurm of several virtual nodes on this machine: private, without root or system services, gone afterwards.

Every node is a ``slurmd`` with a port of its own, named by a loopback address so that the name resolves everywhere. It
claims more processors and memory than there are, and two GPUs whose device files are ``/dev/null`` and ``/dev/zero``.
Nothing outside the cluster's folder is used or changed, and its ports are free ones: several clusters can coexist.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.processes import end, environment, name_of, parent_of, processes, reap

__all__ = ["SlurmCluster", "missing"]

# Distributions keep the daemons where the path of an ordinary user does not lead.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue", "setpriv")
FINAL = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
StateSaveLocation={root}/state
SlurmdSpoolDir={sockets}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
# A requeued job waits until its old credential has expired, 120 s by default.
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={sockets}/munge,cred_expire=5
# No control groups, no database, no mail, no MPI.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
# Nodes may be larger than the machine that plays them.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# Jobs of the partition "high" preempt those of "main": signal, GraceTime, requeue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
# What cannot run is refused instead of waiting for ever.
EnforcePartLimits=ALL
# Schedules and notices a lost node within seconds, and takes it back when it returns.
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SlurmdTimeout=6
ReturnToService=2
KillWait=5
# Longer than KillWait: else the controller hears too late that a node has ended its tasks, and tells it to once more a
# minute later. By then the tasks may be those of the job's next attempt (120 s old credentials delay it elsewhere).
MessageTimeout=10
JobRequeue=1
# Finished jobs are remembered; numbers begin anywhere, or the results of an earlier cluster could be taken for new.
MinJobAge=3600
FirstJobId={first_job}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=8
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
GPUS = "AutoDetect=off\nName=gpu Type=fake File=/dev/null\nName=gpu Type=fake File=/dev/zero\n"


def missing() -> str | None:
    """Why no Slurm can be started on this machine, and what would help; None where one can."""
    if not os.path.exists("/proc/self/environ"):
        return "no Slurm here: its nodes can only be played on Linux"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"no Slurm here: {', '.join(absent)} not found; `make slurm` installs it" if absent else None


class SlurmCluster:
    """A context manager; the cluster is idle when it is entered.

    Args:
        root: folder for everything that it writes; it is created, and must not hold an earlier cluster.
        nodes: how many there are; their names are in ``nodes``.

    Raises:
        RuntimeError: when a daemon ends or the nodes are not idle in time, with the ends of the logs.
    """

    def __init__(self, root: Path | str, nodes: int = 3):
        self.root = Path(root).resolve()
        self.conf = self.root / "slurm.conf"
        self.nodes = [f"127.0.0.{11 + i}" for i in range(nodes)]
        # Whoever runs the tests within a job has variables that sbatch and srun would take for options.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_", "SRUN_", "PMI"))}
        self.environ = {**clean, "PATH": PATH, "SLURM_CONF": str(self.conf)}
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> SlurmCluster:
        # What outlives the daemon that started it becomes a child of this process, which can wait for it.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        # The path of a socket has at most 107 characters, those of pytest's folders may be as long; and munge wants its
        # folder to be open to all.
        self._sockets = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self._sockets.chmod(0o755)
        try:
            self._configure()
            self._start("munged", "--foreground", *self._munge_files())
            self._until((self._sockets / "munge").exists, "munged is not ready")
            self._start("slurmctld", "-D")
            for node in self.nodes:
                self._start_node(node)
            self._until(self._all_idle, "the nodes are not idle")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    # What tests use.

    def run(self, *command: str, **options: object) -> str:
        """Runs a command with the cluster's environment; returns its output, raises AssertionError if it fails."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str) -> str:
        """Calls sbatch; returns the number of the job."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def job(self, number: str | int) -> dict[str, str]:
        """The fields that ``scontrol show job`` has: JobState, Restarts, NodeList, Reason, ...

        Args:
            number: of a job, or of the member of an array: ``7_0``.
        """
        lines = self.run("scontrol", "-o", "show", "job", str(number)).splitlines()
        assert len(lines) == 1, f"{number} is an array, name one of its members:\n" + "\n".join(lines)
        return dict(re.findall(r"([A-Z][\w/:]*)=(.*?)(?:\s+(?=[A-Z][\w/:]*=)|\s*$)", lines[0]))

    def wait(
        self,
        number: str | int,
        wanted: str | set[str] | Callable[[dict[str, str]], bool] = "COMPLETED",
        timeout: float = 60,
    ) -> dict[str, str]:
        """Waits until a job is in a state.

        Args:
            number: as for :meth:`job`.
            wanted: state, several of them, or a condition on the job's fields.
            timeout: seconds until it gives up. It does so earlier when the job has ended otherwise.

        Returns:
            the job's fields.

        Raises:
            AssertionError: with the logs of controller and job.
        """
        states = {wanted} if isinstance(wanted, str) else wanted
        reached = states if callable(states) else lambda job: job["JobState"] in states
        deadline = time.monotonic() + timeout
        ended = None
        while True:
            job = self.job(number)
            if reached(job):
                return job
            now = time.monotonic()
            # A job that failed with its node is in a final state for a moment, until it is requeued.
            ended = (ended or now) if job["JobState"] in FINAL else None
            if now > deadline or (ended and now - ended > 3):
                raise AssertionError(self._report(number, job, wanted))
            time.sleep(0.1)

    def signal(self, number: str | int, name: str = "USR2") -> None:
        """Sends a signal to all tasks of a job, as Slurm does before it preempts."""
        self.run("scancel", f"--signal={name}", str(number))

    def requeue(self, number: str | int) -> None:
        """Ends a running job without warning and queues it again; it starts some 6 s later."""
        self.run("scontrol", "requeue", str(number))

    def task(self, number: str | int, rank: int) -> int:
        """The process that is the task of this rank of a running job's first step."""
        found = [
            process
            for process in self._processes(SLURM_JOB_ID=str(number), SLURM_STEP_ID="0", SLURM_PROCID=str(rank))
            if name_of(parent_of(process)).startswith("slurmstepd")
        ]
        assert len(found) == 1, f"{len(found)} processes are rank {rank} of job {number}"
        return found[0]

    def stop_node(self, name: str, tasks: bool = True) -> None:
        """Kills a node at once, as a power failure does.

        Args:
            name: one of ``nodes``.
            tasks: whether the jobs' processes on it die as well. Without, the node is merely out of touch: Slurm gives
                its job to others while the old tasks go on.
        """
        daemon = self._daemons.pop(f"slurmd.{name}")
        daemon.kill()
        daemon.wait()
        if tasks:
            end(lambda: self._processes(SLURMD_NODENAME=name))

    def start_node(self, name: str) -> None:
        """Starts a node that was stopped, and waits until Slurm has it back."""
        self._start_node(name)
        self._until(lambda: self._state(name) in {"idle", "mix", "alloc"}, f"{name} is not back")

    def clear(self) -> None:
        """Cancels all jobs and starts all nodes that were stopped: what the next test expects."""
        for name in self.nodes:
            if f"slurmd.{name}" not in self._daemons:
                end(lambda node=name: self._processes(SLURMD_NODENAME=node))  # if it was merely out of touch
                self._start_node(name)
        self._cancel()
        self._until(self._all_idle, "the nodes are not idle")

    # How it works.

    def _configure(self) -> None:
        for folder in ("state", "log"):
            (self.root / folder).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        port, *ports = _free_ports(1 + len(self.nodes))
        nodes = [
            f"NodeName={name} NodeAddr={name} NodeHostname={host} Port={port} CPUs=8 RealMemory=16000 Gres=gpu:fake:2"
            for name, port in zip(self.nodes, ports, strict=True)
        ]
        first_job = random.SystemRandom().randrange(1000, 1_000_000)
        values = {"host": host, "user": self._user, "root": self.root, "sockets": self._sockets}
        self.conf.write_text(CONFIG.format(**values, controller_port=port, first_job=first_job, nodes="\n".join(nodes)))
        (self.root / "gres.conf").write_text(GPUS)
        # slurmd loads a plugin for control groups though nothing uses them; this one starts without a mounted group.
        release = re.findall(r"\d+", self.run("slurmctld", "-V"))
        plugin = "disabled" if [int(number) for number in release[:2]] >= [23, 11] else "cgroup/v1"
        (self.root / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        key = self._sockets / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _munge_files(self) -> list[str]:
        folder = self._sockets
        files = {"key": f"{folder}/munge.key", "pid": f"{folder}/munge.pid", "seed": f"{folder}/munge.seed"}
        files |= {"log": f"{self.root}/log/munged.log"}
        return [f"--socket={folder}/munge", *(f"--{kind}-file={path}" for kind, path in files.items())]

    def _start(self, program: str, *arguments: str, name: str = "", **environ: str) -> None:
        # setpriv: no daemon survives tests that are killed.
        with open(self.root / f"log/{name or program}.out", "a") as output:
            self._daemons[name or program] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", program, *arguments],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _start_node(self, node: str) -> None:
        # The variable, which tasks have anyway, marks slurmd and its slurmstepd as parts of the node.
        self._start("slurmd", "-D", "-N", node, name=f"slurmd.{node}", SLURMD_NODENAME=node)

    def _stop(self) -> None:
        if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
            try:
                self._cancel()
            except (AssertionError, RuntimeError) as error:
                print(error)
        # Nodes first: they take longer when the controller is gone.
        for _, daemon in sorted(self._daemons.items(), key=lambda item: _stop_order(item[0])):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        end(self._processes)
        reap("slurmstepd")
        shutil.rmtree(self._sockets)

    def _cancel(self) -> None:
        """Empties the queue; jobs that ignore the first signal are not waited for."""
        self.run("scancel", "--user", self._user)
        self.run("scancel", "--user", self._user, "--full", "--signal=KILL")
        self._until(lambda: not self.run("squeue", "-h"), "jobs do not end")

    def _state(self, node: str) -> str:
        return self.run("sinfo", "-h", "-p", "main", "-n", node, "-o", "%t").strip()

    def _all_idle(self) -> bool:
        command = ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"]
        # At the start the controller does not answer yet.
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)
        return sorted(done.stdout.splitlines()) == sorted(f"{node} idle" for node in self.nodes)

    def _until(self, reached: Callable[[], bool], otherwise: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            ended = [f"{name} ended with {d.returncode}" for name, d in self._daemons.items() if d.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = sorted(self.root.glob("log/*"))
                raise RuntimeError("\n".join([", ".join(ended) or otherwise, *map(_tail, logs)]))
            time.sleep(0.05)

    def _report(self, number: str | int, job: dict[str, str], wanted: object) -> str:
        what = "what was waited for" if callable(wanted) else wanted
        fields = "\n".join(f"{name}={value}" for name, value in job.items())
        output = Path(job.get("StdOut", ""))
        logs = {output, *output.parent.glob(f"{number}_*.out"), *output.parent.glob(f"{number}_*.err")}
        parts = [f"job {number} is {job['JobState']}, not {what}\n{fields}", _tail(self.root / "log/slurmctld.log")]
        return "\n".join(parts + [_tail(log) for log in sorted(logs)])

    def _processes(self, **variables: str) -> list[int]:
        """What runs on the nodes, their daemons apart, and was started with these variables."""
        wanted = {"SLURM_CONF": str(self.conf), **variables}.items()
        daemons = {daemon.pid for daemon in self._daemons.values()}
        found = {process: environment(process) for process in processes() if process not in daemons}
        return [process for process, e in found.items() if wanted <= e.items() and "SLURMD_NODENAME" in e]


def _stop_order(name: str) -> int:
    return ["slurmd", "slurmctld", "munged"].index(name.partition(".")[0])


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to connections: they stay free while a node is away."""
    draw = random.SystemRandom()
    ports: list[int] = []
    while len(ports) < count:
        port = draw.randrange(10_000, 20_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _tail(path: Path, lines: int = 30) -> str:
    text = path.read_text(errors="replace") if path.is_file() else "(no such file)"
    return "\n".join([f"--- {path}", *text.splitlines()[-lines:]])

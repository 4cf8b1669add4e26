"""Where the processes of a training on several machines find one another, and who is missing when they do not."""

from __future__ import annotations

import datetime
import os
import socket
import time

import torch.distributed as dist

from ..errors import RendezvousError

__all__ = ["meet", "part"]

# Machines of one job start within seconds of each other, but the first import from a busy file system takes minutes.
SECONDS = 300.0


def meet(rank: int, size: int) -> dist.Store:
    """Waits until all processes are there.

    The first one listens at the address in MASTER_ADDR and MASTER_PORT, all others go there. PIIP_HOSTS may name the
    machines, separated by commas, which then appear in the message; PIIP_RENDEZVOUS_SECONDS changes the patience.

    Args:
        rank: of this process.
        size: number of processes.

    Returns:
        the store that the process group is made from.

    Raises:
        RendezvousError: when the first process is not reached, or others have not come; names them.
    """
    seconds = float(os.environ.get("PIIP_RENDEZVOUS_SECONDS", SECONDS))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    here = socket.gethostname()
    try:
        store = dist.TCPStore(
            address, port, is_master=rank == 0, timeout=datetime.timedelta(seconds=seconds), wait_for_workers=False
        )
    except RuntimeError as error:  # DistStoreError, DistNetworkError
        reason = str(error).splitlines()[0]
        if rank == 0:
            raise RendezvousError(
                f"process 0 on {here} cannot listen on port {port} ({reason}); set MASTER_PORT to a free one."
            ) from error
        raise RendezvousError(
            f"process {rank} on {here} did not reach process 0 at {address}:{port} within {seconds:.0f} s ({reason}); "
            f"check that process 0 runs, that {address} is its address as seen from {here}, and that no firewall "
            "closes the port."
        ) from error
    store.set(f"here/{rank}", here)
    deadline = time.monotonic() + seconds
    missing = list(range(size))
    while missing := [r for r in missing if not store.check([f"here/{r}"])]:
        if time.monotonic() > deadline:
            raise RendezvousError(
                f"{size - len(missing)} of {size} processes met at {address}:{port} within {seconds:.0f} s; missing: "
                f"{_names(missing, size)}. Look into their logs, and check that their machines reach {address}."
            )
        time.sleep(0.05)
    return dist.PrefixStore("training", store)


def part(store: dist.Store, rank: int, size: int, seconds: float = 60.0) -> None:
    """Waits until all processes are done: one that leaves early may cut off what another still has to receive.

    Args:
        store: of :func:`meet`.
        rank: of this process.
        size: number of processes.
        seconds: after which it leaves in any case.
    """
    deadline = time.monotonic() + seconds
    try:
        store.set(f"done/{rank}", "")
        while not store.check([f"done/{r}" for r in range(size)]) and time.monotonic() < deadline:
            time.sleep(0.02)
    except RuntimeError:
        pass  # process 0, where the store is, has seen all of them and has left


def _names(ranks: list[int], size: int) -> str:
    hosts = list(filter(None, os.environ.get("PIIP_HOSTS", "").split(",")))
    if not hosts:
        return ", ".join(map(str, ranks))
    share = size // len(hosts)
    return ", ".join(f"{rank} on {hosts[rank // share]}" for rank in ranks)

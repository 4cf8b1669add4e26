"""Stopping a training in an orderly way when a cluster, or whoever started it, sends a signal.

SIGTERM and SIGUSR2 (the warning that submitit asks Slurm for) only leave a note. All processes read it in the same
iteration, write one checkpoint together, and leave. Where nothing would be lost, during start-up and evaluations, a
process leaves at once. This module imports nothing heavy: the handlers must be there before the first signal is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

__all__ = ["SIGNALS", "StopRequest", "Stopped", "stop_request"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Stopped(SystemExit):
    """A signal ended the training; with ``--resume`` it goes on. The exit status is 128 plus the signal's number.

    Attributes:
        together: whether all processes left in the same iteration, so that they may wait for one another.
    """

    def __init__(self, number: int, together: bool):
        super().__init__(128 + number)
        self.together = together


class StopRequest:
    """The note that a signal leaves.

    Attributes:
        received: the numbers of the signals that have come.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._at_once = True
        self._owner: int | None = None

    def listen(self) -> None:
        """Installs the handlers, in the main thread; elsewhere, where Python allows none, it does nothing."""
        if threading.current_thread() is threading.main_thread():
            self._owner = os.getpid()
            for number in SIGNALS:
                signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return bool(self.received)

    @property
    def number(self) -> int:
        """The signal that counts: a warning that asks for a requeue before one that only asks to end."""
        return signal.SIGUSR2 if signal.SIGUSR2 in self.received else self.received[0]

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only leaves its note."""
        yield from self._mode(at_once=False)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises :class:`Stopped`, as does one that came before."""
        yield from self._mode(at_once=True)

    def _mode(self, at_once: bool) -> Iterator[None]:
        before, self._at_once = self._at_once, at_once
        try:
            if at_once and self:
                self._leave()
            yield
        finally:
            self._at_once = before

    def _note(self, number: int, frame: object = None) -> None:
        if os.getpid() != self._owner:
            return  # a process forked from a training, which ends when its parent does
        first = not self
        self.received.append(number)
        if first and self._at_once:
            self._leave()

    def _leave(self) -> None:
        raise Stopped(self.number, together=False)


stop_request = StopRequest()
"""That of this process: a process has one set of signal handlers."""

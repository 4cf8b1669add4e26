"""A training that is asked to stop saves what it did, and one that goes on from there ends with the same bits."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from piip.engine.rendezvous import meet
from piip.errors import RendezvousError
from piip.stopping import Stopped, StopRequest
from tests.engine.running import TINY, TOOL, differences, environment, load, metrics, run_tool, train

WIDE = ["model.width=16000"]
STEPS = "train.max_iter=40"


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGUSR2, 2)])
def test_no_iteration_is_lost(tmp_path: Path, number: int, processes: int) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    train(undisturbed, STEPS, processes=processes)
    draw, stops = random.Random(0), []
    while True:
        # Events are file operations, which fall into start-up, saving and logging.
        limit = {"kill_at_event": draw.randrange(24, 60), "kill_with": number}
        run = train(stopped, STEPS, resume=bool(stops), processes=processes, **limit)
        if run.status == 0:
            break
        found = re.search(rf"Stopped by {signal.Signals(number).name} after iteration (\d+)", run.output)
        stops.append(int(found[1]) if found else max(stops, default=0))
        assert len(stops) < 20
    assert len(set(stops)) >= 2
    assert stops == sorted(stops)
    assert differences(load(stopped / "model_final.pth"), load(undisturbed / "model_final.pth")) == []
    iterations = [line["iteration"] for line in metrics(stopped)]
    assert iterations == sorted(iterations)


def test_a_note_is_read_where_nothing_is_lost() -> None:
    request = StopRequest()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    try:
        request.listen()
        with request.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert request
            signal.raise_signal(signal.SIGUSR2)
            assert request.number == signal.SIGUSR2, "a warning asks for a requeue, so it counts more"
            with pytest.raises(Stopped) as stop, request.at_once():
                pytest.fail("an evaluation has begun although the training was to stop")
        assert stop.value.code == 128 + signal.SIGUSR2
        assert not stop.value.together
        signal.raise_signal(signal.SIGTERM)  # once is enough: what it interrupts may be the saving
    finally:
        signal.signal(signal.SIGTERM, handlers[0])
        signal.signal(signal.SIGUSR2, handlers[1])


def test_outside_the_loop_it_leaves_at_once() -> None:
    request = StopRequest()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        request.listen()
        with pytest.raises(Stopped, match="143"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; a checkpoint of the WIDE training has about 2."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system: run as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_old_checkpoints_not_the_training(small_disk: Path, tmp_path: Path) -> None:
    keep_all = [*WIDE, "train.max_iter=40", "train.checkpointer.max_to_keep=null", "train.eval_period=0"]
    train(tmp_path / "elsewhere", *keep_all)
    needed = sum(f.stat().st_size for f in (tmp_path / "elsewhere").rglob("*") if f.is_file())
    assert needed > 8 * 2**20
    run = train(small_disk, *keep_all)
    assert "no space left for" in run.output
    assert "Removed model_0" in run.output
    assert differences(load(small_disk / "model_final.pth"), load(tmp_path / "elsewhere" / "model_final.pth")) == []


def test_a_disk_without_any_room(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(7 * 2**20))
    run = run_tool("--config-file", TINY, f"train.output_dir={small_disk}", "train.max_iter=8", *WIDE)
    assert run.status == 2, run.output
    assert "The training goes on without this checkpoint" in run.output
    assert "error: no space left for" in run.output
    assert not list(small_disk.glob(".model*"))


def test_whoever_comes_later_owns_the_folder(tmp_path: Path) -> None:
    # The first training sleeps in its second step while the other one does all of its own.
    slow = ["train.max_iter=8", "model.pause=1.0", "train.checkpointer.period=1"]
    command = ["--config-file", TINY, f"train.output_dir={tmp_path}", *slow]
    first = subprocess.Popen(
        [sys.executable, TOOL, *command], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "last_checkpoint").exists():
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    train(tmp_path, "train.max_iter=8", resume=True)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 2, output
    assert "now belongs to another training" in output
    assert "Training finished" not in output


def test_missing_processes_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setenv("PIIP_RENDEZVOUS_SECONDS", "0.3")
    monkeypatch.setenv("PIIP_HOSTS", "node1,node2")
    with pytest.raises(RendezvousError, match=r"1 of 4 processes met .* missing: 1 on node1, 2 on node2, 3 on node2"):
        meet(0, 4)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(RendezvousError, match=r"process 3 on .* did not reach process 0 at 127\.0\.0\.1:1"):
        meet(3, 4)

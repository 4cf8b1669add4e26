"""What all tests share: where they run and what the markers need."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cloudpickle
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # figures go to files; a machine may have no display
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of several processes would wait for one another

# Files whose tests share what takes long: all packaged configs, the recount of their models, models without weights.
_ZOO = {
    *("test_analyze_model.py", "test_complexity.py", "test_published.py", "test_table.py"),
    *("test_belongs.py", "test_recipes.py", "test_recognize.py", "test_zoo.py"),
}


@pytest.fixture(scope="session")
def project() -> Path:
    """The top folder of the project's checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _packaged_configs_are_read_once() -> Iterator[None]:
    """To make one anew from all that it imports takes a fifth of a second; hundreds of tests want one to change."""
    from piip.engine import config

    load = config._load
    read = cache(lambda path: cloudpickle.dumps(load(path)))  # with the functions that a file may define
    packaged = config.config_root().resolve()

    def remembering(path: str) -> object:
        return pickle.loads(read(path)) if Path(path).resolve().is_relative_to(packaged) else load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "_load", remembering)
        yield


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The tests of a file share fixtures, so they run in one process; those that need Slurm share one cluster.
    for item in items:
        group = "zoo" if item.path.name in _ZOO else str(item.path)
        group = "slurm" if item.get_closest_marker("slurm") else group
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    # To look through the modules of torch again and again for what nobody needs took a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and "slow" not in item.config.getoption("markexpr"):
        pytest.skip('takes minutes, or runs again what others cover nearly; make test PYTEST_ARGS="-m slow" runs it')
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here; make test on a machine with a GPU runs it")

"""What all tests share: where they run and what the markers need."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # figures go to files; a machine may have no display


@pytest.fixture(scope="session")
def project() -> Path:
    """The top folder of the project's checkout."""
    return Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slurm") and shutil.which("sbatch") is None:
        pytest.skip("no Slurm here: sbatch is not on the path")
    if item.get_closest_marker("slow") and "slow" not in item.config.getoption("markexpr"):
        pytest.skip('takes minutes; make test PYTEST_ARGS="-m slow" runs it')
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")

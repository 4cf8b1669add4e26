"""The Slurm that these tests share; everything that uses it is marked slurm, and so runs in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import SlurmCluster, missing


@pytest.fixture(scope="session")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(started_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Three idle nodes; this process and those that it starts find them by SLURM_CONF."""
    for name in set(os.environ) - set(started_cluster.environ):
        monkeypatch.delenv(name)
    for name, value in started_cluster.environ.items():
        monkeypatch.setenv(name, value)
    yield started_cluster
    started_cluster.clear()

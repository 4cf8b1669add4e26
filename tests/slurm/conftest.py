"""The Slurm that these tests share; everything that uses it is marked slurm, and so runs in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.engine.running import environment
from tests.slurm.cluster import SlurmCluster, missing


@pytest.fixture(scope="session")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def jobs_find_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Jobs inherit variables: they import the tiny training from here, and take one thread each."""
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment()[name])
    profile = tmp_path_factory.mktemp("profile") / "empty.yaml"
    profile.touch()
    monkeypatch.setenv("PIIP_SLURM_PROFILE", str(profile))  # whatever the user has


@pytest.fixture
def cluster(
    started_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, jobs_find_the_tests: None
) -> Iterator[SlurmCluster]:
    """Three idle nodes; this process and those that it starts find them by SLURM_CONF."""
    for name in set(os.environ) - set(started_cluster.environ):
        if name.startswith(("SLURM", "SBATCH_", "SRUN_", "PMI")):
            monkeypatch.delenv(name)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, started_cluster.environ[name])
    yield started_cluster
    started_cluster.clear()

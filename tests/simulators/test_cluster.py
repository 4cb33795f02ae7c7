"""Tests of a real dask cluster: the same draws, draws that fail, the example."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax.simulators import _pieces

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")

ROOT = Path(sj.__file__).parents[1]
KEY = jax.random.key(0)
PRIOR = sj.make_prior(dist.Normal(0.0, 1.0))


@pytest.fixture(scope="module")
def cluster():
    """Two processes; a task is to blame when a second worker dies of it."""
    failures = {"distributed.scheduler.allowed-failures": 1}
    with pytest.MonkeyPatch.context() as patch, dask.config.set(failures):
        # They find sbijax as this process does.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


def run(function, size, executor=None, **settings):
    simulator = sj.python_simulator(function, **settings)
    return sj.simulate(KEY, PRIOR, simulator, size, executor=executor, progress=False)


def test_draws_are_those_of_local_processes(client):
    def function(rng, theta):
        time.sleep(0.001)
        return {"x": theta + rng.normal(size=3), "process": float(os.getpid())}

    ours, theirs = run(function, 300), run(function, 300, client.get_executor())
    np.testing.assert_array_equal(ours.theta, theirs.theta)
    np.testing.assert_array_equal(ours.x["x"], theirs.x["x"])
    processes = set(np.asarray(theirs.x["process"]).tolist())
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_a_client_is_not_an_executor(client):
    assert _pieces.num_workers_of(client.get_executor()) == 2
    with pytest.raises(TypeError, match=r"give client.get_executor\(\)"):
        run(lambda rng, theta: theta, 5, client)


def test_draws_that_fail_or_hang_are_counted(client):
    def function(rng, theta):
        if theta > 1.4:
            time.sleep(5.0)  # workers are left with a thread that sleeps
        if theta > 1.0:
            raise ValueError("too large")
        return theta

    with pytest.warns(sj.SbijaxWarning, match="ValueError: too large") as log:
        sims = run(function, 40, client.get_executor(), timeout=0.2)
    assert "took longer than timeout=0.2 s" in str(log[0].message)
    np.testing.assert_array_equal(sims.weight == 0.0, sims.theta > 1.0)


def test_draws_that_kill_their_worker_are_counted(client):
    def function(rng, theta):
        if theta > 1.5:
            os._exit(1)
        return theta

    with pytest.warns(sj.SbijaxWarning, match="1 of 12 simulations"):
        sims = run(function, 12, client.get_executor())
    np.testing.assert_array_equal(sims.weight == 0.0, sims.theta > 1.5)


def test_the_example_runs_on_a_cluster_that_is_there(cluster, tmp_path):
    example = ROOT / "notebooks" / "cluster.py"
    command = [sys.executable, example, "--num-simulations", "400", "--store"]
    outputs = []
    for arguments in (
        [tmp_path / "there", "--scheduler", cluster.scheduler_address],
        [tmp_path / "here", "--num-workers", "2"],
    ):
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].endswith("draws of 400 are good\n")
    there, here = (
        sj.open_simulations(tmp_path / name).load() for name in ("there", "here")
    )
    jax.tree.map(np.testing.assert_array_equal, there, here)

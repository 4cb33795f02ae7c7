"""A simulator that is not JAX, on a cluster: dask.distributed.

    python notebooks/cluster.py                        # four processes here
    python notebooks/cluster.py --scheduler ADDRESS    # e.g. tcp://head-node:8786

ADDRESS is that of a scheduler whose workers run elsewhere: start it with
`dask scheduler`, and on each node of the cluster `dask worker ADDRESS --nthreads 1`,
or let dask-jobqueue submit them to SLURM or PBS.  The workers need sbijax,
cloudpickle and what the simulator imports, in the versions of this process.

Draws are written to a folder as they come.  Started again after it was stopped, in
whatever way, this goes on from there; and the draws are the same bits wherever and
by however many workers they were made.
"""

import argparse

import distributed
import jax
import numpy as np
import numpyro.distributions as dist

import sbijax as sj


def gillespie(rng, theta):
    """Births and deaths in a population, counted at 10 times: plain numpy."""
    time, population, counts = 0.0, 20, []
    for until in range(1, 11):
        while True:
            rate = population * (theta["birth"] + theta["death"])
            wait = rng.exponential(1.0 / rate) if rate > 0.0 else np.inf
            if time + wait > until:
                break
            time += wait
            birth = rng.uniform() < theta["birth"] / (theta["birth"] + theta["death"])
            population += 1 if birth else -1
            if population > 10_000:
                raise OverflowError("the population explodes")
        time = float(until)
        counts.append(population)
    return np.array(counts)


def main(arguments=None):
    """Draw simulations on a cluster and say how many there are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scheduler", help="address; by default processes here")
    parser.add_argument("--num-workers", type=int, default=4, help="processes here")
    parser.add_argument("--num-simulations", type=int, default=2000)
    parser.add_argument("--store", default="birth_death", help="folder of the draws")
    options = parser.parse_args(arguments)

    prior = sj.make_prior(
        {"birth": dist.Uniform(0.0, 0.5), "death": dist.Uniform(0.0, 0.5)}
    )
    # A draw that does not end is given up after a minute, with weight 0.
    simulator = sj.python_simulator(gillespie, timeout=60.0)
    cluster = options.scheduler or distributed.LocalCluster(
        n_workers=options.num_workers, threads_per_worker=1, dashboard_address=None
    )
    with distributed.Client(cluster) as client:
        sims = sj.simulate(
            jax.random.key(0),
            prior,
            simulator,
            num_simulations=options.num_simulations,
            executor=client.get_executor(),
            store=options.store,
        )
    if not options.scheduler:
        cluster.close()
    print(f"{int((sims.weight > 0).sum())} draws of {len(sims.weight)} are good")


if __name__ == "__main__":
    main()

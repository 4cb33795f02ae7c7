"""Drawing simulations, and the built-in tasks."""

from sbijax.simulators.callback import in_workers
from sbijax.simulators.drift_diffusion import drift_diffusion
from sbijax.simulators.gaussian_linear import gaussian_linear
from sbijax.simulators.gaussian_mixture import gaussian_mixture
from sbijax.simulators.lotka_volterra import lotka_volterra
from sbijax.simulators.lynx_hare import lynx_hare
from sbijax.simulators.python import PythonSimulator, python_simulator
from sbijax.simulators.simulate import simulate, simulate_batch, simulate_to_store
from sbijax.simulators.slcp import slcp
from sbijax.simulators.store import StoredSimulations, open_simulations
from sbijax.simulators.task import Task
from sbijax.simulators.two_moons import two_moons

__all__ = [
    "PythonSimulator",
    "StoredSimulations",
    "Task",
    "drift_diffusion",
    "gaussian_linear",
    "gaussian_mixture",
    "in_workers",
    "lotka_volterra",
    "lynx_hare",
    "open_simulations",
    "python_simulator",
    "simulate",
    "simulate_batch",
    "simulate_to_store",
    "slcp",
    "two_moons",
]

"""Observations and reference posteriors of sbibm, read from its wheel.

`python -m benchmarks.reference` downloads the wheel `sbibm==1.1.0` (18 MB, MIT
licence) with pip into `benchmarks/.cache/`, checks its hash and prints what is
in it.  Only data files are read, straight from the archive: nothing of sbibm is
installed or imported.

The reference files of gaussian_mixture are right in this version too.  What
1.1.0 mended is the simulator, which used one mixture component for a whole
batch; the posterior of one theta, which the files sample, was not affected.

Reference: Lueckmann, Boelts, Greenberg, Goncalves, Macke, "Benchmarking
Simulation-Based Inference", 2021.
"""

import bz2
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["TASKS", "Reference", "fetch_wheel", "load_reference"]

TASKS = (
    "gaussian_linear",
    "gaussian_linear_uniform",
    "slcp",
    "slcp_distractors",
    "bernoulli_glm",
    "bernoulli_glm_raw",
    "gaussian_mixture",
    "two_moons",
    "sir",
    "lotka_volterra",
)
NUM_OBSERVATIONS = 10

_WHEEL = "sbibm-1.1.0-py2.py3-none-any.whl"
_SHA256 = "12ecc6b4d327b92f9225f08faa6405e4274fb8e75943d86a53157d1b1bcfaf74"
_CACHE = Path(__file__).parent / ".cache"
# Tasks that keep their observations in the folder of another, and the names of these.
_SHARED = {
    "slcp_distractors": ("slcp", "observation_distractors.csv"),
    "bernoulli_glm_raw": ("bernoulli_glm", "observation_raw.csv"),
}
# The names that tasks give their parameters, in order, instead of numbers.
_RATES = {
    "lotka_volterra": ["$\\alpha$", "$\\beta$", "$\\gamma$", "$\\delta$"],
    "sir": ["$\\beta$", "$\\gamma$"],
}


class Reference(NamedTuple):
    """One observation of a task with draws from its exact posterior."""

    theta_true: np.ndarray  # [D], what the observation was simulated with
    x_observed: np.ndarray  # [Dx]
    samples: np.ndarray  # [10000, D]


def load_reference(task_name: str, num_observation: int) -> Reference:
    """Read one observation of a task, and its reference posterior.

    Args:
        task_name: one of `TASKS`.
        num_observation: 1 to 10.

    Returns:
        The reference as float32 arrays, columns in the order of the task.

    Raises:
        ValueError: the number is out of range, or the columns are not in order.
        FileNotFoundError: the wheel has no such task.
    """
    if not 1 <= num_observation <= NUM_OBSERVATIONS:
        raise ValueError(
            f"num_observation must be 1 to {NUM_OBSERVATIONS}, got {num_observation}."
        )
    owner, file = _SHARED.get(task_name, (task_name, "observation.csv"))
    folder = f"sbibm/tasks/{owner}/files/num_observation_{num_observation}"
    with zipfile.ZipFile(fetch_wheel()) as archive:
        if f"{folder}/{file}" not in archive.namelist():
            raise FileNotFoundError(f"{_WHEEL} has no task called {task_name!r}.")
        names = _RATES.get(task_name)
        theta_true = _read_csv(archive, f"{folder}/true_parameters.csv", names)
        x_observed = _read_csv(archive, f"{folder}/{file}", prefix="data")
        samples = _read_csv(
            archive, f"{folder}/reference_posterior_samples.csv.bz2", names
        )
    return Reference(theta_true[0], x_observed[0], samples)


def fetch_wheel() -> Path:
    """Return the path of the wheel, downloaded with pip on the first call.

    Raises:
        ValueError: the file is not the one that was published.
    """
    path = _CACHE / _WHEEL
    if not path.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", f"--dest={_CACHE}", "sbibm==1.1.0"]
        subprocess.run(command, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise ValueError(
            f"{path} has sha256 {digest}, expected {_SHA256}. Delete the file and "
            "run again."
        )
    return path


def _read_csv(
    archive: zipfile.ZipFile,
    path: str,
    names: list[str] | None = None,
    prefix: str = "parameter",
) -> np.ndarray:
    """Rows of a file with these columns, or else with prefix_1, prefix_2, ..."""
    content = archive.read(path)
    if path.endswith(".bz2"):
        content = bz2.decompress(content)
    header = content.split(b"\n", 1)[0].decode().strip().split(",")
    expected = names or [f"{prefix}_{i + 1}" for i in range(len(header))]
    if header != expected:
        raise ValueError(f"the columns of {path} are {header}, expected {expected}.")
    return np.loadtxt(
        io.BytesIO(content), np.float32, delimiter=",", skiprows=1, ndmin=2
    )


def main() -> None:
    """Fetch the wheel and print the shapes of what it holds."""
    print(fetch_wheel())
    for task_name in TASKS:
        references = [load_reference(task_name, k + 1) for k in range(NUM_OBSERVATIONS)]
        shapes = {(r.theta_true.shape, r.x_observed.shape) for r in references}
        sizes = {r.samples.shape for r in references}
        print(f"{task_name:23s} theta, x {shapes}  samples {sizes}")


if __name__ == "__main__":
    main()

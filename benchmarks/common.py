"""What the benchmarks share: fresh processes, scores, rows, theta as a matrix."""

import functools
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import sbijax as sj
from sbijax.base import PyTree

__all__ = ["CLASSIFIERS", "RESULTS", "append_row", "commit", "compile_clock"]
__all__ += ["environment", "format_sd", "means_by", "missing_observations"]
__all__ += ["read_rows", "run_fresh", "score_draws", "spread", "to_matrix"]

RESULTS = Path(__file__).parent / "results"
# Tracing is left out: programs that call others would count theirs twice.
_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def run_fresh(function: Callable[..., Any], *args: Any) -> Any:
    """Call a module-level function in a new process, so that nothing is compiled."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def to_matrix(theta: PyTree) -> np.ndarray:
    """Theta with leaves `[S, ...]` as float32 columns `[S, D]`, in leaf order."""
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(theta)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def score_draws(
    pairs: dict[int, tuple[np.ndarray, np.ndarray]],
    num_workers: int,
    classifier: str = "sklearn",
) -> Iterator[tuple[int, float]]:
    """C2ST of (reference, draws) `[S, D]` of each observation, as they finish."""
    pool, score = _scorers(num_workers), CLASSIFIERS[classifier]
    jobs = {pool.submit(score, *pair): k for k, pair in pairs.items()}
    for job in as_completed(jobs):
        yield jobs[job], job.result()


@functools.cache
def _scorers(num_workers: int) -> ProcessPoolExecutor:
    # Kept from case to case, for they import and compile once.
    return ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))


def _with_sklearn(reference: np.ndarray, draws: np.ndarray) -> float:
    with threadpool_limits(1):
        return float(sj.diagnostics.c2st(reference, draws))


def _compiled(reference: np.ndarray, draws: np.ndarray) -> float:
    return float(sj.diagnostics.c2st_compiled(jax.random.key(1), reference, draws))


# Two programs of one protocol, from different random numbers.
CLASSIFIERS = {"sklearn": _with_sklearn, "compiled": _compiled}


def read_rows(path: Path, **case: Any) -> list[dict[str, Any]]:
    """Rows of a case, such as task="slcp", of a file with one JSON object per line.

    There are none if there is no file.
    """
    if not path.exists():
        return []
    rows = map(json.loads, path.read_text().splitlines())
    return [r for r in rows if all(r[name] == value for name, value in case.items())]


def missing_observations(
    path: Path, observations: Iterable[int], **case: Any
) -> list[int]:
    """Observations of a case, such as task="slcp", seed=0, that have no row yet."""
    done = {row["observation"] for row in read_rows(path, **case)}
    return [k for k in observations if k not in done]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one row to a file with one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def environment() -> dict[str, str]:
    """What a figure depends on besides its seed."""
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def commit() -> str | None:
    """The commit that is checked out, None where there is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def compile_clock() -> Callable[[], float]:
    """Return a function that tells the seconds that compilation took since now."""
    seconds = [0.0]

    def listen(event: str, duration_secs: float, **metadata: str | int) -> None:
        if event in _COMPILE_EVENTS:
            seconds[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: seconds[0]


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Median and range of repeated measurements, as text."""
    values = sorted(values)
    low, high = values[0], values[-1]
    middle = float(np.median(values))
    return f"{middle:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"


def format_sd(values: list[float]) -> str:
    """Standard deviation of some means as text, a dash if there is only one."""
    return f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else "-"


def means_by(rows: list[dict[str, Any]], field: str) -> list[float]:
    """Mean C2ST of the rows with each value of a field, in the order of the values."""
    return [
        float(np.mean([row["c2st"] for row in rows if row[field] == value]))
        for value in sorted({row[field] for row in rows})
    ]

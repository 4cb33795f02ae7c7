"""What every test shares: a headless backend for figures, and key-reuse checks."""

import os
import tempfile
from importlib.metadata import version

import jax
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
# Less time to compile, for programs that run for seconds.
_FLAGS = ["--xla_backend_optimization_level=1"]
_FLAGS += ["--xla_llvm_disable_expensive_passes=true"]
if version("jaxlib").startswith("0.10."):
    # Two thirds of the time to test an estimator; later releases know no such flag.
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])


def pytest_configure(config):
    """Prepare what the workers share: what they compile, for as long as they run.

    Most of the time goes into compiling, and much of it is the same in many tests.
    """
    # The first import of a day writes a file, and fails if another process does so at
    # the same moment.  This one comes before the workers start.
    import arviz  # noqa: F401

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="sbijax-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    jax.config.update(
        "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# A key that is consumed twice is an error in every test.
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop what a file has compiled.

    Programs take memory, and mappings of it, of which Linux allows a process
    65,530: kept to the end they bring the workers down.
    """
    yield
    jax.clear_caches()

"""What every test shares: a headless backend for figures, and key-reuse checks."""

import os

import jax
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

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

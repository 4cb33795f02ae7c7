"""What every test shares: a headless backend for figures, and key-reuse checks."""

import os

import jax

os.environ.setdefault("MPLBACKEND", "Agg")

# A key that is consumed twice is an error in every test.
jax.config.update("jax_debug_key_reuse", True)

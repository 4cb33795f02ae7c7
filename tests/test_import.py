"""`import sbijax` is light, and its public names are complete."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sbijax

SOURCE = Path(sbijax.__file__)
HEAVY = {
    "arviz",
    "blackjax",
    "diffrax",
    "distrax",
    "flax",
    "matplotlib",
    "numpyro",
    "optax",
    "orbax",
    "scipy",
    "sklearn",
    "tensorstore",
    "tqdm",
}


def run_python(program, **environment):
    """Standard output of a program in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=SOURCE.parents[1],
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(program):
    """Top-level names of the modules that a program loads beyond those of jax."""
    listing = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    ours = set(run_python(f"{program}; {listing}").split())
    return ours - set(run_python(f"import jax; {listing}").split())


def declared_names():
    """Names and homes in the `TYPE_CHECKING` block of the package."""
    (block,) = [
        n
        for n in ast.parse(SOURCE.read_text(encoding="utf-8")).body
        if isinstance(n, ast.If)
    ]
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_import_loads_no_heavy_library():
    loaded = loaded_by("import sbijax")
    assert "sbijax" in loaded
    assert not loaded & HEAVY


def test_records_load_no_heavy_library():
    assert not loaded_by("import sbijax; sbijax.Estimator") & HEAVY


def test_loading_is_seen_where_it_happens():
    assert "numpyro" in loaded_by("import sbijax; sbijax.make_prior")


def test_modules_compute_nothing_when_imported():
    # No such platform: the first array that is made at import would raise.
    names = sorted(
        ".".join(("sbijax", *path.relative_to(SOURCE.parent).with_suffix("").parts))
        for path in SOURCE.parent.rglob("*.py")
        if path.name != "__init__.py"
    )
    program = "\n".join(
        [
            "import jax, importlib",
            "before = dict(jax.config.values)",
            f"for name in {names}: importlib.import_module(name)",
            "after = dict(jax.config.values)",
            "print({k for k in before if before[k] != after[k]})",
        ]
    )
    assert run_python(program, JAX_PLATFORMS="none_such").strip() == "set()"


def test_all_is_sorted_and_matches_the_declarations():
    assert sbijax.__all__ == sorted(set(sbijax.__all__))
    assert set(sbijax.__all__) == set(declared_names())


def test_dir_lists_the_public_names():
    assert set(dir(sbijax)) == set(sbijax.__all__)


@pytest.mark.parametrize("name", sbijax.__all__)
def test_public_name_is_that_of_its_home(name):
    value, home = getattr(sbijax, name), declared_names()[name]
    if home == "sbijax":
        assert value is importlib.import_module(f"sbijax.{name}")
    else:
        assert value is getattr(importlib.import_module(home), name)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'sbijax' has no attribute 'make_mpe'"):
        _ = sbijax.make_mpe

"""Who may import whom: packages of sbijax, and the homes of other libraries."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sbijax

ROOT = Path(sbijax.__file__).parent

# what every package of sbijax may import
COMMON = {"base", "checks", "data", "noise"}

# package -> packages of sbijax it may import, besides itself and the common ones
LAYERS = {
    "checks": set(),
    "base": set(),
    "data": set(),
    "noise": set(),
    "_quantiles": {"densities"},
    "priors": {"_quantiles"},
    "networks": set(),
    "densities": {"networks"},
    "losses": set(),
    "samplers": set(),
    "abc": {"networks", "samplers"},
    "training": set(),
    "estimators": {"abc", "losses", "densities", "networks", "samplers", "priors"},
    "inference": set(),
    "learned": set(),
    "online": {"training", "simulators"},
    "sequential": {"training", "inference", "simulators"},
    "simulators": {"priors", "worker"},
    "diagnostics": set(),
    "plots": set(),
    "io": set(),
    "worker": set(),
}

# library -> packages of sbijax that may import it
HOMES = {
    "arviz": {"plots"},
    "blackjax": {"samplers"},
    "cloudpickle": {"simulators"},
    "diffrax": {"samplers", "simulators"},
    "distrax": {"densities"},
    "flax": {"networks", "densities"},  # densities: masked autoregressive networks
    "jax": set(LAYERS) - {"worker"},  # it would be loaded in every worker
    "matplotlib": {"plots"},
    "numpy": set(LAYERS),
    # simulators: the priors of the tasks; learned: sites of models
    "numpyro": {"priors", "_quantiles", "simulators", "learned"},
    "optax": {"training", "online"},
    "orbax": {"training"},
    "scipy": {"diagnostics", "plots", "_quantiles"},
    "sklearn": {"diagnostics"},
    "tensorstore": {"simulators"},
    "tqdm": {"training", "simulators"},
}

MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))
LAYERED = [m for m in MODULES if m != Path("__init__.py")]


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Full names of all imports of a module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(source: str, package: str) -> list[str]:
    """What a module of `package` imports and should not."""
    found = []
    for name in imported_names(ast.parse(source)):
        top, *rest = name.split(".")
        if top == "sbijax":
            target = rest[0] if rest and rest[0] in LAYERS else "the public names"
            allowed = target in {package} | COMMON | LAYERS[package]
        else:
            allowed = top in sys.stdlib_module_names or package in HOMES.get(top, ())
        if not allowed:
            found.append(name)
    return found


def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", LAYERED, ids=str)
def test_module_imports_only_what_its_layer_may(module):
    package = module.parts[0].removesuffix(".py")
    assert package in LAYERS, f"{package} has no row in LAYERS"
    found = faults((ROOT / module).read_text(encoding="utf-8"), package)
    assert not found, f"{module} may not import {', '.join(found)}"


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from sbijax.base import Array\nimport jax.numpy as jnp", "losses", []),
        ("from sbijax.densities import nsf", "estimators", []),
        ("from sbijax.losses.density import a", "losses", []),
        ("from sbijax.training import fit", "estimators", ["sbijax.training.fit"]),
        ("from sbijax import training", "plots", ["sbijax.training"]),
        ("import sbijax", "plots", ["sbijax"]),
        ("from sbijax import make_npe", "io", ["sbijax.make_npe"]),
        ("def f():\n    import optax", "networks", ["optax"]),
        ("import chex", "base", ["chex"]),
        ("import optax.losses", "training", []),
    ],
)
def test_faults_finds_forbidden_imports(source, package, expected):
    assert faults(source, package) == expected


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_says_what_it_is_and_what_it_exports(module):
    tree = parse(module)
    assert ast.get_docstring(tree), f"{module} has no docstring"
    targets = [n.targets[0] for n in tree.body if isinstance(n, ast.Assign)]
    assert "__all__" in [t.id for t in targets if isinstance(t, ast.Name)]

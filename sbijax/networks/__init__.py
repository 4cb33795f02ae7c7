"""Networks and standardizers: `Network(init, apply)` on one example."""

from sbijax.networks.adapters import flatten, from_nnx
from sbijax.networks.mlp import mlp, resnet
from sbijax.networks.standardize import no_standardizer, robust, zscore

__all__ = [
    "flatten",
    "from_nnx",
    "mlp",
    "no_standardizer",
    "resnet",
    "robust",
    "zscore",
]

"""Networks and standardizers: `Network(init, apply)` on one example."""

from sbijax.networks.adapters import flatten, from_nnx, pretrained
from sbijax.networks.convolution import conv_1d, conv_2d
from sbijax.networks.field import field_resnet, field_transformer
from sbijax.networks.fuse import fuse
from sbijax.networks.mlp import mlp, resnet
from sbijax.networks.recurrent import gru
from sbijax.networks.sets import deep_set
from sbijax.networks.standardize import missing, no_standardizer, pooled, robust, zscore
from sbijax.networks.transformer import transformer

__all__ = [
    "conv_1d",
    "conv_2d",
    "deep_set",
    "field_resnet",
    "field_transformer",
    "flatten",
    "from_nnx",
    "fuse",
    "gru",
    "missing",
    "mlp",
    "no_standardizer",
    "pooled",
    "pretrained",
    "resnet",
    "robust",
    "transformer",
    "zscore",
]

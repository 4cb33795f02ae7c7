"""Assembly of estimators whose posterior noise is carried to by a field."""

from functools import partial

import jax
import jax.numpy as jnp

from sbijax.base import (
    Array,
    DiffusionEstimator,
    Network,
    Params,
    Prior,
    PyTree,
    SolverInfo,
    Standardizer,
    Trials,
)
from sbijax.checks import (
    check_count,
    check_flow_sampler,
    check_network,
    check_record,
)
from sbijax.estimators._latent import make_latent
from sbijax.losses import DiffusionLoss
from sbijax.networks import field_resnet, resnet
from sbijax.networks.linear import to_residual
from sbijax.samplers import FlowSampler, ode
from sbijax.samplers.flow_density import log_density_of_flow
from sbijax.samplers.flow_langevin import ScoreAt
from sbijax.samplers.flow_ode import FieldAt

__all__ = ["diffusion_posterior"]


def diffusion_posterior(
    prior: Prior,
    *,
    loss: DiffusionLoss,
    network: Network | None,
    embedding: Network | None,
    standardizer: Standardizer | None,
    sampler: FlowSampler | None,
) -> DiffusionEstimator:
    """The estimator of one objective; see `make_fmpe` for the arguments."""
    field = field_resnet() if network is None else network
    check_network(field, "network")
    check_record(loss, DiffusionLoss, "loss", "Make one with losses.edm().")
    draw_from: FlowSampler = ode() if sampler is None else sampler
    check_flow_sampler(draw_from)
    of_entries = resnet(64, hidden_size=128, num_blocks=3)
    latent = make_latent(prior, embedding, standardizer, of_entries=of_entries)

    def init_model(key: Array, y: Array, context: Array) -> PyTree:
        return field.init(key, y, y[0], context)

    def field_at(net: PyTree, context: Array) -> FieldAt:
        def at(u: Array, angle: Array) -> Array:
            return field.apply(net, u, jnp.clip(angle, *loss.angles), context)

        return at

    def field_fn(params: Params, u: Array, angle: Array, context: Array) -> Array:
        return field_at(params.net["density"], context)(u, angle)

    def log_q(
        net: PyTree, y: Array, context: Array, probes: Array | None = None
    ) -> Array:
        return log_density_of_flow(field_at(net, context), y, probes)

    def draw(
        net: PyTree, key: Array, context: Array, *, shape: tuple[int, int]
    ) -> tuple[Array, SolverInfo]:
        return draw_from(key, field_at(net, context), shape=shape)

    def estimate_log_prob_fn(
        params: Params, key: Array, theta: PyTree, x: PyTree, *, num_probes: int = 16
    ) -> tuple[Array, Array]:
        num_probes = check_count(num_probes, "num_probes", least=2)
        probes = jax.random.rademacher(key, (num_probes, prior.num_dims), float)

        each = latent.log_prob(partial(log_q, probes=probes))(params, theta, x)
        spread = jnp.std(jnp.where(each > -jnp.inf, each, 0.0), ddof=1)
        return jnp.mean(each), spread / num_probes**0.5

    def score_of_trials_fn(params: Params, x: Trials) -> ScoreAt:
        linear = params.stats.theta

        def see(one: PyTree) -> tuple[Array, Array]:
            """Context, and the residual of a w of 0."""
            context, features = latent.see(params, one)
            return context, to_residual(linear, linear.loc, features)

        contexts, shifts = jax.vmap(see)(x.x)

        def score(w: Array, noise: Array) -> Array:
            angle = jnp.arctan(noise)
            cos, sin = jnp.cos(angle), jnp.sin(angle)

            def of_one(context: Array, shift: Array) -> Array:
                u = cos * (w + shift)
                found = field_at(params.net["density"], context)(u, angle)
                return cos * (cos / sin * found - u)

            each = jax.vmap(of_one)(contexts, shifts)
            return jnp.sum(jnp.where(x.mask[:, None], each, 0.0), axis=0)

        return score

    return DiffusionEstimator(
        init=latent.init(init_model),
        loss=loss(latent.encode, field_fn),
        log_prob=latent.log_prob(log_q),
        sample=latent.sample(draw),
        estimate_log_prob=estimate_log_prob_fn,
        score_of_trials=score_of_trials_fn,
    )

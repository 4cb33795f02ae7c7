"""SLCP with distractors: eight numbers about theta among 92 that are not.

    y ~ SLCP(theta),  y in R^8
    k ~ U{1, ..., 20},  d = m_k + L_k z / sqrt(e),  z ~ N(0, I),  e ~ Exp(1)
    x = (y, d) in a fixed order

so d in R^92 comes from a mixture of 20 Student t distributions with two degrees
of freedom, and the posterior is that of `slcp` given y.

The benchmark keeps m, L and the order in files.  They are what numpy's
`RandomState(42)` draws, up to the last bit of 84 of their 171,120 numbers, and
that stream of numbers never changes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sbijax.base import Array
from sbijax.simulators.slcp import draw_points, log_likelihood_of_points, slcp
from sbijax.simulators.task import Task, task_factory

__all__ = ["distractor_constants", "slcp_distractors"]

_NUM_INFORMATIVE = 8
_NUM_DISTRACTORS = 92
_NUM_COMPONENTS = 20
_SEED = 42
_OBSERVED_DISTRACTORS = (
    *(-10.09448, -12.581524, -18.428486, -47.83357, -81.68816, 29.395075, -75.65134),
    *(-35.693996, 5.237772, 46.813725, -33.984577, 19.562742, -61.497875, 32.517273),
    *(83.55713, -8.37021, 36.280495, -22.893969, 67.27135, 74.251755, -67.9851),
    *(78.22429, 35.331844, -79.734665, -6.868362, -110.25067, -78.32788, -27.125841),
    *(17.018816, 14.431202, 9.588209, -67.01942, 19.187525, 385.10355, -112.102516),
    *(-44.683464, -20.674372, 95.868256, -53.97667, 122.823166, -62.345306),
    *(2.8041465, 118.24041, -42.870472, -111.08592, -45.086143, 3.1666663),
    *(-121.075356, -12.678788, 58.22745, -10.590089, -48.29132, 69.45191, 146.29234),
    *(48.485554, -162.13936, -2.9170897, -62.24843, 54.03682, -22.492027, -21.839827),
    *(62.488945, 80.61907, 49.07796, -19.491358, 12.451546, 23.009779, -27.483328),
    *(115.96121, 128.1089, 36.143417, -87.48924, 61.27503, 80.616554, 167.05466),
    *(-37.90078, 2.7012832, -112.27578, 153.59654, -60.45943, -113.94097, -90.91423),
    *(177.97679, 24.236076, -151.0377, 181.59402, -115.6545, -30.129011, -112.77521),
    *(-88.41149, -2.0567365, 186.3353),
)


@task_factory
def slcp_distractors() -> Task:
    """SLCP with distractors, with theta `[5]` uniform on [-3, 3]^5 and x `[100]`.

    The distribution of the distractors does not depend on theta.  Its density
    cannot be evaluated in floating point: the L_k are so close to singular that
    rounding x to single precision changes log p(x) by thousands.  It is left out:
    `log_likelihood` is the density of x with respect to the Lebesgue measure of
    the eight numbers times the distribution of the distractors.  Ratios between
    thetas, and so posteriors, are those of the usual density.

    Returns:
        The task; `x_observed` is the first observation of the benchmark.

    Example:
        >>> from sbijax.simulators import slcp_distractors
        >>> slcp_distractors().x_observed.shape
        (100,)

    Reference:
        Greenberg, Nonnenmacher and Macke, Automatic posterior transformation
        for likelihood-free inference, 2019; as in Lueckmann et al.,
        Benchmarking simulation-based inference, 2021.
    """
    observed = jnp.asarray(slcp().x_observed)
    distractors = jnp.array(_OBSERVED_DISTRACTORS)
    return Task(
        name="slcp_distractors",
        prior=slcp().prior,
        simulator=_simulator,
        log_likelihood=_log_likelihood,
        x_observed=jnp.concatenate([observed, distractors])[distractor_constants()[2]],
    )


def _simulator(key: Array, theta: Array) -> Array:
    informative_key, distractor_key = jax.random.split(key)
    y = draw_points(informative_key, theta)
    d = _draw_distractors(distractor_key).astype(y.dtype)
    return jnp.concatenate([y, d])[distractor_constants()[2]]


def _log_likelihood(theta: Array, x: Array) -> Array:
    where = np.argsort(distractor_constants()[2])[:_NUM_INFORMATIVE]
    return log_likelihood_of_points(theta, jnp.asarray(x)[where])


def _draw_distractors(key: Array) -> Array:
    """One d `[92]`."""
    component_key, normal_key, scale_key = jax.random.split(key, 3)
    loc, tril, _ = (jnp.asarray(constant) for constant in distractor_constants())
    component = jax.random.randint(component_key, (), 0, _NUM_COMPONENTS)
    z = jax.random.normal(normal_key, (_NUM_DISTRACTORS,), loc.dtype)
    # Never 0, by which z is divided.
    tiny = jnp.finfo(loc.dtype).tiny
    e = -jnp.log(jax.random.uniform(scale_key, (), loc.dtype, minval=tiny))
    # All components in one product: a batch of draws would copy an L_k for each.
    spread = jnp.einsum("kij,j->ki", tril, z, precision="highest")
    return loc[component] + spread[component] / jnp.sqrt(e)


@functools.cache
def distractor_constants() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """m `[20, 92]`, L `[20, 92, 92]` and the order `[100]` in which x takes (y, d)."""
    rng, size = np.random.RandomState(_SEED), _NUM_DISTRACTORS
    loc = 15.0 * rng.normal(size=(_NUM_COMPONENTS, size))
    tril = [
        np.tril(rng.normal(size=(size, size))) + np.diag(np.exp(rng.normal(size=size)))
        for _ in range(_NUM_COMPONENTS)
    ]
    order = rng.permutation(_NUM_INFORMATIVE + size)
    return loc, 3.0 * np.array(tril), order

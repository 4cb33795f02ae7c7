"""The losses of diffusions against numpy, and the paths they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sbijax.base import Params, Simulations, Stats
from sbijax.losses import edm, flow_matching, ve, vp

NUM_ROWS, NUM_DIMS = 64, 3
ALL = {
    "flow_matching": flow_matching(time_exponent=0.0, num_draws=1),
    "near_data": flow_matching(time_exponent=2.0, num_draws=1),
    "edm": edm(num_draws=1),
    "ve": ve(num_draws=1),
    "vp": vp(num_draws=1),
}


def encode(params, theta, x):
    """Y is theta, the context is x."""
    return theta, x


def record(seen):
    """A field that keeps what it is given and answers with zeros."""

    def field(params, u, angle, context):
        jax.debug.callback(
            lambda *row: seen.append([np.asarray(value) for value in row]),
            u,
            angle,
            context,
        )
        return params.net * jnp.ones_like(u)

    return field


def make_batch(weight=None):
    rng = np.random.default_rng(0)
    theta, x = rng.normal(size=(2, NUM_ROWS, NUM_DIMS))
    weight = np.ones(NUM_ROWS) if weight is None else weight
    return Simulations(*(jnp.asarray(a, jnp.float32) for a in (theta, x, weight)))


def make_params(net=0.0):
    example = jax.tree.map(lambda leaf: leaf[0], make_batch())
    return Params(jnp.asarray(net), Stats(example, {}, {}))


def look(loss, batch, net=0.0, seed=0):
    """The loss, and the u, angle and context of every row."""
    seen = []
    value = loss(encode, record(seen))(make_params(net), jax.random.key(seed), batch)
    jax.effects_barrier()
    order = {tuple(row[2].tolist()): row for row in seen}
    rows = [order[tuple(x.tolist())] for x in np.asarray(batch.x)]
    return float(value), np.stack([r[0] for r in rows]), np.array([r[1] for r in rows])


def weight_by_hand(name, angle):
    """What an error of F counts, from the loss of the paper at that angle."""
    cos, sin = np.cos(angle), np.sin(angle)
    if name in ("flow_matching", "near_data"):
        # At t the path t y + (1 - t) e has length r; velocity y - e.
        t = cos / (cos + sin)
        r = np.sqrt(t**2 + (1 - t) ** 2)
        return 1 / r**2
    if name == "edm":
        # lambda c_out^2 with unit variance of the data.
        sigma = np.tan(angle)
        return (sigma**2 + 1) / sigma**2 * sigma**2 / (sigma**2 + 1)
    # sigma^2 |score|^2 is the error of e = sin(phi) u - cos(phi) F.
    return cos**2


@pytest.mark.parametrize("name", ALL)
def test_loss_against_numpy(name):
    rng = np.random.default_rng(1)
    batch = make_batch(rng.uniform(0.5, 2.0, NUM_ROWS))
    value, u, angle = look(ALL[name], batch, net=0.3)
    y, weight = np.asarray(batch.theta, float), np.asarray(batch.weight, float)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    noise = (u - cos * y) / sin
    error = np.mean((0.3 - (sin * y - cos * noise)) ** 2, axis=1)
    each = weight_by_hand(name, angle) * error
    # Where the angle is 1e-4, the noise is known to 1e-3 only.
    np.testing.assert_allclose(value, np.sum(weight * each) / weight.sum(), rtol=2e-3)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "quantile_of"),
    [
        ("flow_matching", lambda a: np.cos(a) / (np.cos(a) + np.sin(a))),
        ("near_data", lambda a: (np.cos(a) / (np.cos(a) + np.sin(a))) ** 3),
        ("edm", lambda a: stats.norm.cdf((np.log(np.tan(a)) + 2.0) / 1.6)),
        ("ve", lambda a: np.log(np.tan(a) / 0.01) / np.log(1000.0)),
        (
            "vp",
            lambda a: (-0.1 + np.sqrt(0.01 + 2 * 9.9 * np.log1p(np.tan(a) ** 2))) / 9.9,
        ),
    ],
)
def test_angles_follow_the_schedule(name, quantile_of):
    # One angle in each of as many equal parts of the distribution as rows.
    _, _, angle = look(ALL[name], make_batch())
    quantile = np.sort(quantile_of(np.asarray(angle, float)))
    place = quantile * NUM_ROWS - np.arange(NUM_ROWS)
    assert np.ptp(place) < 0.05
    assert -0.02 < place.min() < place.max() < 1.02


@pytest.mark.parametrize("name", ALL)
def test_exact_field_is_the_minimum(name):
    # y ~ N(x, 0.3^2): E[sin y - cos e | u] in closed form.
    key = jax.random.key(3)
    x = jnp.ones((4_000, 1))
    theta = x + 0.3 * jax.random.normal(key, x.shape)
    batch = Simulations(theta, x, jnp.ones(len(x)))

    def field(params, u, angle, context):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        gain = (sin * cos * 0.09 - cos * sin) / (cos**2 * 0.09 + sin**2)
        return sin * context + gain * (u - cos * context) + params.net

    loss = ALL[name](encode, field)
    example = jax.tree.map(lambda leaf: leaf[0], batch)

    def at(offset, seed):
        params = Params(jnp.asarray(offset), Stats(example, {}, {}))
        return loss(params, jax.random.key(seed), batch)

    slopes = jax.vmap(jax.grad(at), (None, 0))(0.0, jnp.arange(20))
    assert abs(np.mean(slopes)) < 4 * np.std(slopes) / 20**0.5
    assert np.all(at(0.1, 0) > at(0.0, 0))


def test_more_draws_are_more_angles_and_the_same_mean():
    loss = edm(num_draws=4)
    seen = []
    params, batch = make_params(0.3), make_batch()
    loss(encode, record(seen))(params, jax.random.key(0), batch)
    jax.effects_barrier()
    angle = np.array([row[1] for row in seen], float)
    quantile = np.sort(stats.norm.cdf((np.log(np.tan(angle)) + 2.0) / 1.6))
    assert len(angle) == 4 * NUM_ROWS
    assert np.ptp(quantile * len(angle) - np.arange(len(angle))) < 0.1

    def mean(loss, num_keys):
        keys = jax.random.split(jax.random.key(1), num_keys)
        each = jax.vmap(lambda key: loss(encode, flat)(params, key, batch))(keys)
        return np.mean(each), np.std(each) / num_keys**0.5

    def flat(params, u, angle, context):
        return params.net * jnp.ones_like(u)

    (one, one_error), (four, four_error) = mean(ALL["edm"], 400), mean(loss, 400)
    assert abs(one - four) < 4 * np.hypot(one_error, four_error)
    assert four_error < 0.8 * one_error


@pytest.mark.parametrize(
    ("num_rows", "num_draws"), [(1, 8), (64, 8), (200, 5), (500, 2), (2_000, 2)]
)
def test_draws_of_a_large_batch_are_fewer(num_rows, num_draws):
    batch = jax.tree.map(
        lambda leaf: jnp.resize(leaf, (num_rows, *leaf.shape[1:])), make_batch()
    )

    def field(params, u, angle, context):
        return params.net * u

    def value(loss):
        return loss(encode, field)(make_params(0.3), jax.random.key(0), batch)

    assert value(edm()) == value(edm(num_draws=num_draws))
    assert value(edm()) != value(edm(num_draws=num_draws + 1))


def test_a_batch_without_weight_has_no_loss():
    def field(params, u, angle, context):
        return jnp.ones_like(u)

    loss = edm()(encode, field)
    batch = make_batch(np.zeros(NUM_ROWS))
    assert loss(make_params(), jax.random.key(0), batch) == 0.0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: flow_matching(time_exponent=-1.0), "time_exponent must be above -1"),
        (lambda: flow_matching(min_scale=1.0), "min_scale must be at least 0"),
        (lambda: edm(scale=0.0), "scale must be positive"),
        (lambda: edm(location=np.nan), "location must be a finite number"),
        (lambda: flow_matching(time_exponent=np.inf), "time_exponent must be above"),
        (lambda: edm(num_draws=0), "num_draws must be at least 1"),
        (lambda: ve(min_scale=2.0, max_scale=1.0), "min_scale must be below max_scale"),
        (lambda: ve(min_scale=0.0), "min_scale must be positive"),
        (lambda: vp(min_rate=3.0, max_rate=1.0), "min_rate must be below max_rate"),
    ],
)
def test_bad_numbers_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()

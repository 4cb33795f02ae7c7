"""The exact posteriors that embeddings are scored against, and the runner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sbijax as sj
from benchmarks import embeddings
from benchmarks.common import read_rows, to_matrix
from benchmarks.embedding_tasks import TASKS
from benchmarks.embeddings import Budget, Case

NUM_DRAWS = 10_000
# A difference of two means of so many draws, and a log-ratio of two deviations.
MEAN_ERROR = 4.0 * (2.0 / NUM_DRAWS) ** 0.5
SD_ERROR = 6.0 * NUM_DRAWS**-0.5


def assert_same_moments(draws, mean, sd):
    """Moments of draws `[S, D]`, in units of the standard deviation."""
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=MEAN_ERROR)
    np.testing.assert_allclose(np.log(draws.std(0) / sd), 0.0, atol=SD_ERROR)


def on_grid(draws, half_width=6.0, num_points=21):
    """Points `[N, D]` over what draws cover, and the same as theta."""
    columns = to_matrix(draws)
    half = half_width * columns.std(0)
    axes = np.linspace(columns.mean(0) - half, columns.mean(0) + half, num_points).T
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    leaves, structure = jax.tree.flatten(draws)
    ends = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
    parts = np.split(points.astype(np.float32), ends, axis=1)
    shaped = [
        part.reshape(-1, *leaf.shape[1:])
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return points, jax.tree.unflatten(structure, shaped)


@pytest.mark.parametrize(
    "name",
    [
        "image",
        "set",
        "missing",
        pytest.param("series", marks=pytest.mark.slow),
        pytest.param("several", marks=pytest.mark.slow),
    ],
)
def test_exact_draws_agree_with_a_grid(name):
    task = TASKS[name]()
    # Data from the middle of the prior: its bounds cut no cell of the grid.
    theta = task.prior.from_vector(jnp.zeros(task.prior.num_dims))
    x = task.observe(jax.random.key(1), task.simulator(jax.random.key(2), theta))
    draws, ess = task.sample_exact(jax.random.key(0), x, num_samples=NUM_DRAWS)
    assert ess > 5 * NUM_DRAWS
    points, theta = on_grid(draws)

    def log_posterior(theta):
        prior = task.prior.log_prob(theta)
        both = prior + task.log_likelihood(theta, x)
        return jnp.where(prior > -jnp.inf, both, -jnp.inf)

    log_p = jax.jit(lambda t: jax.lax.map(log_posterior, t, batch_size=1_000))(theta)
    p = np.asarray(jax.nn.softmax(log_p), float)
    mean = p @ points
    sd = (p @ (points - mean) ** 2) ** 0.5
    assert_same_moments(to_matrix(draws), mean, sd)


def test_hidden_entries_do_not_enter_the_likelihood():
    task = TASKS["missing"]()
    x = embeddings.observe(task, 1)
    assert 0.1 < np.mean(np.isnan(x)) < 0.5
    theta = jnp.array([0.1, -0.2, 0.3, 0.4])
    shown = np.flatnonzero(~np.isnan(x))
    alone = sum(
        float(task.log_likelihood(theta, jnp.full(30, jnp.nan).at[i].set(x[i])))
        for i in shown
    )
    np.testing.assert_allclose(task.log_likelihood(theta, x), alone, rtol=1e-5)


def test_observations_are_the_same_for_all_trainings_and_differ():
    task = TASKS["image"]()
    first, again, second = (embeddings.observe(task, k) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)


@pytest.mark.slow
def test_a_small_budget_gives_complete_rows(monkeypatch):
    def small(prior, **parts):
        return sj.make_npe(prior, density=sj.densities.mdn(num_components=1), **parts)

    monkeypatch.setitem(embeddings.METHODS, "npe", small)
    monkeypatch.setattr(
        embeddings, "run_fresh", lambda function, *args: function(*args)
    )
    case, budget = Case("missing", "npe", "task", 3), Budget(200, 40, 20)
    rows = list(embeddings.run_one(case, [1, 4], budget, num_workers=1))
    assert sorted(row["observation"] for row in rows) == [1, 4]
    for row in rows:
        assert embeddings.case_of(row) == case
        assert 0.3 < row["c2st"] <= 1.0
        assert 0.0 <= row["sbc_p_value"] <= 1.0
        assert row["num_simulations"] == 200
    embeddings.print_table(rows)


def test_runner_runs_what_is_missing_only(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    asked = []

    def run(case, observations, budget, num_workers):
        asked.append((case, list(observations), budget.num_simulations))
        for k in observations:
            yield {
                **case._asdict(),
                "observation": k,
                "c2st": 0.5 + 0.01 * k,
                "sbc_p_value": 0.4,
                "train_seconds": 10.0,
            }

    monkeypatch.setattr(embeddings, "run_one", run)
    command = ["--tasks", "set", "missing", "--num-simulations", "300"]
    command += ["--results", str(results)]
    embeddings.main([*command, "--observations", "1", "2"])
    embeddings.main([*command, "--observations", "1", "3", "--embedding", "task"])
    embeddings.main([*command, "--observations", "1", "--embedding", "default"])
    task_cases = [Case(name, "npe", "task", 0) for name in ("set", "missing")]
    assert asked == [
        *((case, [1, 2], 300) for case in task_cases),
        *((case, [3], 300) for case in task_cases),
        (Case("set", "npe", "default", 0), [1], 300),
    ]
    assert len(read_rows(results)) == 7
    table = capsys.readouterr().out.splitlines()
    row = next(line for line in reversed(table) if line.startswith("set      npe    t"))
    assert row.split()[:5] == ["set", "npe", "task", "1", "0.520"]
    assert "(7 rows missing)" in row


@pytest.mark.slow
@pytest.mark.parametrize("name", ["set", "several"])
def test_default_network_reads_sets_as_numbers(name):
    task = TASKS[name]()
    estimator = embeddings.make_estimator(task, "npe", "default")
    keys = jax.random.split(jax.random.key(0), 20)
    theta = jax.vmap(task.prior.sample)(keys)
    x = jax.vmap(task.simulator)(jax.random.split(jax.random.key(1), 20), theta)
    sims = sj.make_simulations(theta, x)
    params = jax.eval_shape(estimator.init, jax.random.key(2), sims)
    names = {
        str(path[0].key)
        for path, _ in jax.tree_util.tree_leaves_with_path(
            params.net["embedding"]["params"]
        )
    }
    assert {"_Join_0", "Dense_0"} < names

"""The runner of the benchmark, and what it renders."""

import jax
import numpy as np
import pytest

import sbijax as sj
from benchmarks import sbibm, sbibm_table
from benchmarks.common import CLASSIFIERS, append_row, read_rows, score_draws
from benchmarks.reference import TASKS, Reference

NUM_DRAWS = 200
OPTIONS = ["--tasks", "gaussian_linear", "--methods", "npe", "--budgets", "600"]


def make_reference(task_name, number):
    """An observation of gaussian_linear with draws from the exact posterior."""
    assert task_name == "gaussian_linear"
    task = sj.simulators.gaussian_linear()
    theta_key, x_key, draw_key = jax.random.split(jax.random.key(number), 3)
    theta = task.prior.sample(theta_key)
    x = task.simulator(x_key, theta)
    # N(0, .1) and N(theta, .1): the posterior is N(x / 2, .05).
    draws = 0.5 * x + np.sqrt(0.05) * jax.random.normal(draw_key, (NUM_DRAWS, 10))
    return Reference(np.asarray(theta), np.asarray(x), np.asarray(draws))


def make_small(task, budget):
    return sj.make_npe(task.prior, density=sj.densities.mdn(num_components=1))


@pytest.fixture
def offline(monkeypatch):
    """No download, a small network, and no process of its own to train it in."""
    monkeypatch.setattr(sbibm, "load_reference", make_reference)
    monkeypatch.setattr(sbibm, "run_fresh", lambda function, *args: function(*args))
    monkeypatch.setitem(sbibm.METHODS, "npe", make_small)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_classifiers_of_the_runner_agree(classifier):
    rng = np.random.default_rng(0)
    reference, draws = rng.normal(size=(2, 500, 2)).astype(np.float32)
    pairs = {1: (reference, draws), 2: (reference, draws + 4.0)}
    scores = dict(score_draws(pairs, 1, classifier))
    assert scores[1] == pytest.approx(0.5, abs=0.06)
    assert scores[2] == pytest.approx(0.995, abs=0.01)  # Phi(4 sqrt(2) / 2) is .998


def test_it_runs_what_is_missing_and_no_more(offline, tmp_path, capsys, monkeypatch):
    path = tmp_path / "rows.jsonl"
    options = [*OPTIONS, "--results", str(path)]
    sbibm.main([*options, "--observations", "1"])
    (first,) = read_rows(path)
    assert first["num_simulations"] == first["budget"] == 600
    assert 0.4 < first["c2st"] <= 1.0
    assert 0.0 < first["train_seconds"]
    assert 0.0 < first["compile_seconds"]
    assert {"sample_seconds", "best_val_loss", "jax", "device", "commit"} <= set(first)
    assert first["val_score"] == pytest.approx(-first["best_val_loss"], abs=0.1)

    sbibm.main([*options, "--observations", "1", "2"])
    rows = read_rows(path)
    assert [row["observation"] for row in rows] == [1, 2]
    assert rows[0] == first
    assert read_rows(path, observation=2, classifier="sklearn") == []
    capsys.readouterr()

    monkeypatch.setattr(sbibm, "run_case", None)  # not called again
    sbibm.main([*options, "--observations", "1", "2"])
    assert "there are 30" in capsys.readouterr().out


@pytest.mark.parametrize("budget", [1_000, 20_000])
def test_abc_spends_its_budget(budget):
    case = sbibm.Case("two_moons", "smc_abc", budget, seed=0)
    task = sj.simulators.two_moons()
    xs = np.asarray(task.x_observed)[None]
    draws, chains, took = sbibm.train_and_draw(case, xs, 100)
    assert draws.shape == (1, 100, 2)
    assert chains == [{}]
    assert took["num_simulations"] == budget

    num_pilots = sbibm._num_pilots(budget)
    estimator = sbibm.METHODS["smc_abc"](task, budget)
    sims = sj.simulate(jax.random.key(0), task.prior, task.simulator, num_pilots)
    params = estimator.init(jax.random.key(1), sims)
    _, info = estimator.sample(params, jax.random.key(2), xs[0], num_samples=100)
    assert 0.9 * budget < num_pilots + int(info.num_simulations) <= budget


def make_rows(task, budget, method, scores, seed=0):
    case = {"task": task, "method": method, "budget": budget, "seed": seed}
    return [
        {**case, "observation": k, "c2st": score}
        for k, score in enumerate(scores, start=1)
    ]


ROWS = [
    *make_rows("slcp", 1_000, "npe", [0.9] * 10),
    *make_rows("slcp", 1_000, "npe", [0.8] * 10, seed=1),
    *make_rows("slcp", 1_000, "npe", [0.1] * 9, seed=2),  # one is missing
    *make_rows("slcp", 1_000, "nle", [0.6, 0.8] * 5),
    *make_rows("slcp", 10_000, "nle", [0.78] * 10),
    *make_rows("two_moons", 10_000, "npe_online", [0.5] * 10),
]


def test_table_has_means_and_ranges_of_whole_seeds():
    lines = sbibm_table.make_table(ROWS).splitlines()
    assert lines[0] == (
        "| task | simulations | nle | npe | best published | best sequential |"
    )
    assert lines[1] == "|---|---|---|---|---|---|"
    ours = ["**0.700** | 0.850 (0.800 to 0.900)", "**0.780** | "]
    assert lines[2:] == [
        f"| slcp | 1,000 | {ours[0]} | 0.946 NLE | 0.921 SNLE |",
        f"| slcp | 10,000 | {ours[1]} | 0.771 NLE | 0.713 SNLE |",
    ]


def test_wins_are_cells_below_the_best_published():
    assert sbibm_table.count_wins(ROWS) == (1, 1, 2)
    rows = [*ROWS, *make_rows("sir", 10_000, "nle", [0.6] * 10)]
    assert sbibm_table.count_wins(rows) == (2, 1, 3)
    assert sbibm_table.count_wins(rows, sbibm_table.SEQUENTIAL) == (1, 1, 3)
    text = sbibm_table.describe_wins(rows)
    assert "2 of 3 cells by our best method, 1 by NPE" in text
    assert text.endswith("for one observation: 1 and 1.")


def test_summary_has_both_methods_beside_the_best_published():
    lines = sbibm_table.make_summary(ROWS).splitlines()
    assert lines[0] == "| task | 1,000 | 10,000 | 100,000 |"
    slcp = next(line for line in lines if line.startswith("| slcp |"))
    assert slcp == ("| slcp | **.850**, **.700**, .946 | -, .780, .771 | -, -, .699 |")
    assert len(lines) == 2 + len(TASKS)


def test_validation_chooses_the_method_of_a_task():
    def scored(task, method, c2st, val_score):
        rows = make_rows(task, 1_000, method, [c2st] * 10)
        return [{**row, "val_score": val_score} for row in rows]

    rows = [
        *scored("slcp", "npe", 0.9, -5.8),
        *scored("slcp", "nle", 0.8, -4.2),
        *scored("sir", "npe", 0.7, 7.5),
        *scored("sir", "nle", 0.6, 7.4),  # better, but not by what is looked at
        *make_rows("sir", 1_000, "nre", [0.5] * 10),  # not scored
        *scored("sir", "npse", 0.5, 9.9)[:9],  # one is missing
    ]
    chosen = sbibm_table.choose_methods(rows, 1_000)
    assert chosen == {"slcp": "nle", "sir": "npe"}
    assert sbibm_table.describe_choice(rows) == (
        "- 1,000 simulations, 2 tasks: mean C2ST 0.750 by the method with the best "
        "`val_score` (nle on slcp, else npe)."
    )
    assert sbibm_table.describe_choice(ROWS) == ""


def test_table_takes_the_place_of_the_last_one():
    first, last = sbibm_table._MARKS
    text = f"before\n{first}\n{last}\nafter"
    once = sbibm_table.replace_table(text, "| new |")
    assert once == f"before\n{first}\n\n| new |\n\n{last}\nafter"
    assert sbibm_table.replace_table(once, "| new |") == once
    with pytest.raises(ValueError, match="once each"):
        sbibm_table.replace_table("no marks", "| new |")


def test_every_task_has_published_figures_that_fall_with_the_budget():
    for known in (sbibm_table.PUBLISHED, sbibm_table.SEQUENTIAL):
        assert set(known) == set(TASKS)
        for cells in known.values():
            scores = [c2st for c2st, _ in cells.values()]
            assert scores == sorted(scores, reverse=True)
            assert all(0.5 < score < 1.0 for score in scores)


def test_figure_has_a_panel_per_task_with_its_lines(tmp_path):
    figure = sbibm_table.draw_figure(ROWS)
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == [
        t.replace("_", " ") for t in TASKS
    ]
    slcp = panels[TASKS.index("slcp")]
    lines = {line.get_label(): line.get_ydata() for line in slcp.get_lines()}
    np.testing.assert_allclose(lines["nle"], [0.70, 0.78])
    np.testing.assert_allclose(lines["best published"], [0.946, 0.771, 0.699])
    np.testing.assert_allclose(lines["best sequential"], [0.921, 0.713, 0.578])
    assert len(lines) == 3, "npe has one number of simulations"


def test_rows_are_kept_one_by_one(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    for row in ROWS[:3]:
        append_row(path, row)
    assert read_rows(path) == ROWS[:3]

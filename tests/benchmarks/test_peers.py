"""The comparison with other packages, as far as it needs none of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

import sbijax as sj
from benchmarks import peer_pipeline, peers
from benchmarks.common import append_row, read_rows
from benchmarks.reference import Reference

CASE = peers.Case("two_moons", "npe", 200, 0)


def make_references():
    task = sj.simulators.two_moons()
    x = np.asarray(task.x_observed)
    return {1: Reference(np.zeros(2), x, np.zeros((100, 2)))}


def fake_row(package, network="default", **values):
    row = {**CASE._asdict(), "package": package, "network": network, "run": "now"}
    times = {"c2st": [0.6, 0.7], "train_seconds": 30.0, "draw_seconds": [1.0, 0.1]}
    return {**row, **times, "test_loss": -1.0, **values}


OURS = fake_row(
    "ours",
    train_seconds=11.0,
    compile_seconds=1.0,
    val_loss=[3.0, 1.0, 2.0, -1.5, -1.6],
    test_loss=-1.4,
)


@pytest.mark.slow
def test_ours_runs_as_a_peer_does(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_pipeline, "NUM_DRAWS", 40)
    monkeypatch.setattr(peer_pipeline, "NUM_BATCH", (3, 5))
    monkeypatch.setattr(peer_pipeline, "NUM_SBC", (2, 4))
    path = tmp_path / "arrays.npz"
    peers.make_arrays(path, CASE, make_references())
    with np.load(path) as arrays:
        data = dict(arrays)
    assert data["theta"].shape == data["x"].shape == (200, 2)
    assert data["test_x"].shape == (2_000, 2)
    assert not np.any(data["theta"][:, None] == data["test_theta"][:50])
    pipeline = peer_pipeline.make_ours("npe", "default", data, 0)
    result, draws = peer_pipeline.run(pipeline, data)
    assert draws.shape == (1, 40, 2)
    assert np.all(np.abs(draws) <= 1.0)
    # The loss is that of a density: below that of the prior, -log(1 / 4).
    assert -4.0 < result["test_loss"] < np.log(4.0)
    assert 0.0 < result["compile_seconds"] < result["train_seconds"]
    assert min(result["val_loss"]) < result["val_loss"][0]
    assert {"batch_seconds", "sbc_seconds"} <= set(result)


def test_a_normal_prior_is_told_to_all(tmp_path):
    path = tmp_path / "arrays.npz"
    case = CASE._replace(task="gaussian_linear")
    peers.make_arrays(path, case, make_references())
    with np.load(path) as arrays:
        theta, scale = arrays["theta"], arrays["scale"]
        assert "low" not in arrays
    assert np.std(theta) == pytest.approx(scale[0], rel=0.1)


@pytest.mark.parametrize(
    ("loss", "epochs"), [(5.0, 1), (1.3, 2), (-1.35, 5), (-2.0, None)]
)
def test_epochs_to_a_loss(loss, epochs):
    assert peers.epochs_to(OURS, loss) == epochs


def test_table_divides_within_a_run():
    late = fake_row("sbi", "nsf", batch_seconds=None, sbc_seconds=2.0)
    away = fake_row("sbijax_pypi", "maf", missing="python3.12 was not found")
    other_run = [{**row, "run": "later"} for row in (OURS, fake_row("sbi", "maf"))]
    other_run[0]["train_seconds"] = 30.0
    lines = peers.make_table([OURS, late, away, *other_run]).splitlines()
    assert lines[2].endswith("| **ours** | 0.650 | -1.40 | 12 | - | - | - | - |")
    # 31 s over 12; to -1.0 it takes 4 of 5 epochs: 1 + .8 * 10 + 1 s.
    assert lines[3].endswith("| 0.650 | -1.00 | 31 | 2.6 | 3.1 | stopped | 2.0 s |")
    assert "python3.12 was not found" in lines[4]
    assert lines[6].split(" | ")[7] == "1"


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "peers.jsonl"
    append_row(path, fake_row("sbi", "maf"))
    seen = []

    def run_case(case, entries, observations, num_workers):
        seen.append((case, entries))
        yield OURS
        yield from (fake_row(*entry) for entry in entries)

    monkeypatch.setattr(peers, "run_case", run_case)
    options = ["--tasks", "two_moons", "--methods", "npe", "--budgets", "200"]
    options += ["--peers", "sbi", "--results", str(path)]
    peers.main(options)
    assert seen == [(CASE, [("sbi", "nsf")])]
    peers.main(options)
    assert len(seen) == 1
    assert len(read_rows(path)) == 3
    assert "| sbi, nsf |" in capsys.readouterr().out


def test_a_python_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "_ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(peers, "load_reference", lambda task, k: make_references()[1])
    monkeypatch.setattr(peers, "_find_python", lambda name: None)
    monkeypatch.setattr(peers, "score_draws", lambda pairs, *_: [(1, 0.5)])
    run = {"test_loss": 0.0}, np.zeros((1, 100, 2))
    monkeypatch.setattr(peers, "run_package", lambda *args: run)
    ours, missing = peers.run_case(CASE, [("sbijax_pypi", "maf")], [1], 1)
    assert ours["c2st"] == [0.5]
    assert missing["missing"] == "python3.12 was not found"


def test_a_python_is_asked_for_its_version(tmp_path, monkeypatch):
    for folder, answer in (("shims", "exit 1"), ("good", "echo Python 3.99.1")):
        (tmp_path / folder).mkdir()
        script = tmp_path / folder / "python3.99"
        script.write_text(f"#!/bin/sh\n{answer}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "shims"), prepend=":")
    assert peers._find_python("python3.99") is None
    monkeypatch.setenv("PEER_PATH", str(tmp_path / "good"))
    assert peers._find_python("python3.99") == str(tmp_path / "good" / "python3.99")


def test_a_package_that_fails_shows_its_last_words(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such network')")
    monkeypatch.setattr(peers, "_SCRIPT", script)
    arrays = tmp_path / "arrays.npz"
    with pytest.raises(RuntimeError, match="(?s)^sbi, nsf ended .*no such network"):
        peers.run_package(Path(sys.executable), "sbi", "nsf", CASE, arrays)

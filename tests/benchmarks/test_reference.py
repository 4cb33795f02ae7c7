"""The reader of reference data, on a wheel made here."""

import bz2
import zipfile

import numpy as np
import pytest

from benchmarks import reference
from benchmarks.reference import TASKS, load_reference
from sbijax import simulators


@pytest.fixture
def write_wheel(tmp_path, monkeypatch):
    """A function that writes a wheel with these files of one observation."""
    path = tmp_path / "sbibm.whl"
    monkeypatch.setattr(reference, "fetch_wheel", lambda: path)

    def write(task, parameters, **observations):
        folder = f"sbibm/tasks/{task}/files/num_observation_1"
        draws = bz2.compress(f"{parameters}\n1,2\n3,4\n".encode())
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{folder}/true_parameters.csv", f"{parameters}\n5,6\n")
            archive.writestr(f"{folder}/reference_posterior_samples.csv.bz2", draws)
            for name, text in observations.items():
                archive.writestr(f"{folder}/{name}.csv", text)

    return write


def test_all_tasks_are_built_in():
    assert len(TASKS) == 10
    assert set(TASKS) < set(simulators.__all__)


def test_parameters_have_numbers_or_the_names_of_their_task(write_wheel):
    write_wheel("sir", "$\\beta$,$\\gamma$", observation="data_1\n7\n")
    read = load_reference("sir", 1)
    np.testing.assert_array_equal(read.theta_true, [5, 6])
    np.testing.assert_array_equal(read.x_observed, [7])
    np.testing.assert_array_equal(read.samples, [[1, 2], [3, 4]])
    write_wheel("two_moons", "parameter_1,parameter_2", observation="data_1\n7\n")
    np.testing.assert_array_equal(load_reference("two_moons", 1).theta_true, [5, 6])


@pytest.mark.parametrize(
    ("task", "parameters", "data"),
    [
        ("sir", "$\\gamma$,$\\beta$", "data_1"),
        ("sir", "parameter_1,parameter_2", "data_1"),
        ("two_moons", "$\\beta$,$\\gamma$", "data_1"),
        ("two_moons", "parameter_2,parameter_1", "data_1"),
        ("two_moons", "parameter_1,parameter_2", "data_2"),
    ],
)
def test_other_columns_are_refused(write_wheel, task, parameters, data):
    write_wheel(task, parameters, observation=f"{data}\n7\n")
    with pytest.raises(ValueError, match="columns of .* expected"):
        load_reference(task, 1)


def test_variants_share_a_folder(write_wheel):
    write_wheel(
        "slcp",
        "parameter_1,parameter_2",
        observation="data_1\n7\n",
        observation_distractors="data_1,data_2\n8,7\n",
    )
    np.testing.assert_array_equal(load_reference("slcp", 1).x_observed, [7])
    with_distractors = load_reference("slcp_distractors", 1)
    np.testing.assert_array_equal(with_distractors.x_observed, [8, 7])
    np.testing.assert_array_equal(with_distractors.theta_true, [5, 6])


def test_unknown_tasks_and_observations_are_refused(write_wheel):
    write_wheel("slcp", "parameter_1,parameter_2", observation="data_1\n7\n")
    with pytest.raises(FileNotFoundError, match="no task called 'three_moons'"):
        load_reference("three_moons", 1)
    with pytest.raises(ValueError, match="must be 1 to 10, got 11"):
        load_reference("slcp", 11)

"""The tables and the figure of `benchmarks.sbibm`, beside the best published figures.

    python -m benchmarks.sbibm_table

renders a table for each classifier into the README of this folder, between its marks,
a summary into that of the project, and `figures/sbibm.png`, both of the compiled one.
Published figures are means over the same 10 observations, with the same classifier, of
methods that simulate from the prior only; for each cell it is the best of all methods.

Reference:
    Lueckmann, Boelts, Greenberg, Goncalves, Macke, "Benchmarking simulation-based
    inference", 2021.
    Wildberger et al., "Flow matching for scalable simulation-based inference", 2023.
    Miller, Weniger, Forre, "Contrastive neural ratio estimation", 2022.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, read_rows
from benchmarks.reference import NUM_OBSERVATIONS, TASKS
from sbijax.plots._style import CYCLE, INK, grid_figure, tidy

__all__ = [
    "PUBLISHED",
    "SEQUENTIAL",
    "draw_figure",
    "main",
    "make_table",
    "print_table",
]

README = Path(__file__).with_name("README.md")
PROJECT_README = README.parents[1] / "README.md"
FIGURES = README.with_name("figures")
_MARKS = ("<!-- table of sbibm -->", "<!-- end of table -->")


Known = dict[str, dict[int, tuple[float, str]]]


def _by_budget(cells: dict[str, tuple[tuple[float, str], ...]]) -> Known:
    """A score and its method for each task and number of simulations."""
    return {
        task: dict(zip((1_000, 10_000, 100_000), of_task, strict=True))
        for task, of_task in cells.items()
    }


# C2ST and method at 1,000, 10,000 and 100,000 simulations: the best of those that draw
# them from the prior, and of those that draw them anew near one observation.
PUBLISHED = _by_budget(
    {
        "gaussian_linear": ((0.563, "FMPE"), (0.536, "FMPE"), (0.504, "FMPE")),
        "gaussian_linear_uniform": ((0.629, "FMPE"), (0.548, "NLE"), (0.506, "NLE")),
        "gaussian_mixture": ((0.716, "NPE"), (0.615, "NPE"), (0.540, "FMPE")),
        "two_moons": ((0.700, "NRE-C"), (0.592, "NRE-C"), (0.530, "FMPE")),
        "slcp": ((0.946, "NLE"), (0.771, "NLE"), (0.699, "NLE")),
        "slcp_distractors": ((0.966, "FMPE"), (0.937, "FMPE"), (0.735, "FMPE")),
        "bernoulli_glm": ((0.740, "NLE"), (0.605, "NLE"), (0.533, "FMPE")),
        "bernoulli_glm_raw": ((0.870, "NLE"), (0.598, "FMPE"), (0.531, "FMPE")),
        "sir": ((0.761, "NLE"), (0.680, "NPE"), (0.585, "NPE")),
        "lotka_volterra": ((0.994, "NLE"), (0.956, "NLE"), (0.942, "FMPE")),
    }
)
SEQUENTIAL = _by_budget(
    {
        "gaussian_linear": ((0.628, "SNLE"), (0.536, "SNRE"), (0.507, "SNPE")),
        "gaussian_linear_uniform": ((0.631, "SNPE"), (0.527, "SNPE"), (0.507, "SNPE")),
        "gaussian_mixture": ((0.669, "SNPE"), (0.551, "SNPE"), (0.531, "SNRE")),
        "two_moons": ((0.607, "TSNPE"), (0.518, "TSNPE"), (0.514, "TSNPE")),
        "slcp": ((0.921, "SNLE"), (0.713, "SNLE"), (0.578, "SNLE")),
        "slcp_distractors": ((0.978, "SNPE"), (0.931, "SNPE"), (0.766, "SNRE")),
        "bernoulli_glm": ((0.634, "SNLE"), (0.553, "SNLE"), (0.522, "SNLE")),
        "bernoulli_glm_raw": ((0.880, "SNRE"), (0.658, "SNPE"), (0.552, "SNRE")),
        "sir": ((0.575, "TSNPE"), (0.507, "TSNPE"), (0.507, "TSNPE")),
        "lotka_volterra": ((0.909, "SNLE"), (0.738, "SNLE"), (0.681, "SNVI")),
    }
)
_TITLES = {
    "compiled": "Scored by `c2st_compiled`",
    "sklearn": "Scored by scikit-learn's classifier",
}
_ONLINE = "npe_online"  # sees more than its budget

Cells = dict[tuple[str, int, str], list[float]]


def mean_by_cell(rows: list[dict[str, Any]]) -> Cells:
    """Means over the 10 observations for each seed of (task, budget, method).

    Seeds of which observations are missing are left out.
    """
    scores: dict[tuple[str, int, str], dict[int, dict[int, float]]] = {}
    for row in rows:
        cell = scores.setdefault((row["task"], row["budget"], row["method"]), {})
        cell.setdefault(row["seed"], {})[row["observation"]] = row["c2st"]
    means = {
        cell: [
            float(np.mean(list(by_observation.values())))
            for by_observation in seeds.values()
            if len(by_observation) == NUM_OBSERVATIONS
        ]
        for cell, seeds in scores.items()
    }
    return {cell: values for cell, values in means.items() if values}


def make_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per task and budget, a column per method, the best in bold."""
    cells = mean_by_cell(rows)
    methods = sorted({method for *_, method in cells if method != _ONLINE})
    lines = [
        "| task | simulations | "
        + " | ".join([*methods, "best published", "best sequential"])
        + " |",
        "|---|---|" + "---|" * (len(methods) + 2),
    ]
    for task in TASKS:
        for budget in sorted({b for t, b, _ in cells if t == task}):
            values = {m: cells.get((task, budget, m)) for m in methods}
            means = {m: float(np.mean(v)) for m, v in values.items() if v}
            if not means:
                continue
            best = min(means, key=lambda m: means[m])
            texts = [_format(values[m], m == best) for m in methods]
            for known in (PUBLISHED, SEQUENTIAL):
                cell = known[task].get(budget)
                texts.append("{:.3f} {}".format(*cell) if cell else "")
            lines.append(f"| {task} | {budget:,} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def make_summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per task, and NPE, NLE and the best published for each budget.

    Below the best published is bold.
    """
    cells = mean_by_cell(rows)
    budgets = tuple(PUBLISHED[TASKS[0]])
    lines = [
        "| task | " + " | ".join(f"{budget:,}" for budget in budgets) + " |",
        "|---|" + "---|" * len(budgets),
    ]
    for task in TASKS:
        texts = []
        for budget in budgets:
            published = PUBLISHED[task][budget][0]
            ours = [cells.get((task, budget, method)) for method in ("npe", "nle")]
            numbers = [
                f"**{_short(v)}**" if v and np.mean(v) < published else _short(v)
                for v in ours
            ]
            texts.append(", ".join([*numbers, _short([published])]))
        lines.append(f"| {task} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _short(values: list[float] | None) -> str:
    return f"{np.mean(values):.3f}".removeprefix("0") if values else "-"


def _format(values: list[float] | None, bold: bool) -> str:
    if not values:
        return ""
    text = f"{np.mean(values):.3f}"
    if len(values) > 1:
        text += f" ({min(values):.3f} to {max(values):.3f})"
    return f"**{text}**" if bold else text


def count_wins(
    rows: list[dict[str, Any]], known: Known = PUBLISHED
) -> tuple[int, int, int]:
    """Cells where the best method, and NPE, are below what is known; all measured."""
    cells = mean_by_cell(rows)
    best_wins = npe_wins = measured = 0
    for task, budgets in known.items():
        for budget, (published, _) in budgets.items():
            means = {
                m: np.mean(values)
                for (t, b, m), values in cells.items()
                if (t, b) == (task, budget) and m != _ONLINE
            }
            measured += bool(means)
            best_wins += bool(means) and min(means.values()) < published
            npe_wins += means.get("npe", np.inf) < published
    return best_wins, npe_wins, measured


def choose_methods(rows: list[dict[str, Any]], budget: int) -> dict[str, str]:
    """For each task the method with the highest score on the validation set.

    A method counts where its score is known for a seed of all observations.
    """
    cells = mean_by_cell(rows)
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        task, method = row["task"], row["method"]
        if (task, budget, method) in cells and row["budget"] == budget:
            if "val_score" in row and method != _ONLINE:
                of_task = scores.setdefault(task, {})
                of_task.setdefault(method, []).append(row["val_score"])
    return {
        task: max(of_task, key=lambda m: np.mean(of_task[m]))
        for task, of_task in scores.items()
    }


def describe_choice(rows: list[dict[str, Any]]) -> str:
    """Mean C2ST over the tasks, of the method that validation chooses for each."""
    cells = mean_by_cell(rows)
    lines = []
    for budget in sorted({row["budget"] for row in rows}):
        chosen = choose_methods(rows, budget)
        if not chosen:
            continue
        means = [np.mean(cells[task, budget, m]) for task, m in chosen.items()]
        others = {task: m for task, m in chosen.items() if m != "npe"}
        names = ", ".join(f"{m} on {task}" for task, m in others.items())
        lines.append(
            f"{budget:,} simulations, {len(chosen)} tasks: mean C2ST "
            f"{np.mean(means):.3f} by the method with the best `val_score` "
            f"({names or 'npe everywhere'}{', else npe' if names else ''})."
        )
    return "\n".join(f"- {line}" for line in lines)


def describe_wins(rows: list[dict[str, Any]]) -> str:
    """How many cells are better than published, as a sentence."""
    best_wins, npe_wins, measured = count_wins(rows)
    best_sequential, npe_sequential, _ = count_wins(rows, SEQUENTIAL)
    return (
        f"Below the best published C2ST: {best_wins} of {measured} cells by our best "
        f"method, {npe_wins} by NPE; there are {sum(map(len, PUBLISHED.values()))}. "
        "Below the best published of a sequential method, which simulates anew for one "
        f"observation: {best_sequential} and {npe_sequential}."
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the table, and how many cells are better than published."""
    print(f"{make_table(rows)}\n\n{describe_wins(rows)}")


def replace_table(text: str, table: str) -> str:
    """Put tables between the marks of a text, in place of what is there.

    Raises:
        ValueError: the text has no marks, or more than one pair.
    """
    first, last = _MARKS
    if text.count(first) != 1 or text.count(last) != 1:
        raise ValueError(f"expected {first!r} and {last!r} once each in the text.")
    before, rest = text.split(first)
    return f"{before}{first}\n\n{table}\n\n{last}{rest.split(last)[1]}"


def draw_figure(rows: list[dict[str, Any]]) -> Figure:
    """C2ST against the number of simulations, a panel per task.

    Methods that have one number of simulations in each task make no line.
    """
    cells = mean_by_cell(rows)
    num_budgets = Counter((task, method) for task, _, method in cells)
    methods = sorted({m for (_, m), num in num_budgets.items() if num > 1} - {_ONLINE})
    figure, panels = grid_figure(len(TASKS), max_columns=5)
    for axes, task in zip(panels, TASKS, strict=True):
        for known, label, line in (
            (PUBLISHED[task], "best published", "--"),
            (SEQUENTIAL[task], "best sequential", ":"),
        ):
            scores = [c2st for c2st, _ in known.values()]
            axes.plot(
                list(known), scores, color=INK, ls=line, linewidth=1.0, label=label
            )
        looks = [(color, marker) for marker in "os^" for color in CYCLE]
        for method, (color, marker) in zip(methods, looks, strict=False):
            budgets = sorted(b for t, b, m in cells if (t, m) == (task, method))
            means = [np.mean(cells[task, budget, method]) for budget in budgets]
            axes.plot(
                budgets, means, color=color, marker=marker, markersize=3, label=method
            )
        axes.set_xscale("log")
        axes.set_ylim(0.48, 1.02)
        axes.set_title(task.replace("_", " "), fontsize=9)
        tidy(axes)
    for axes in panels[::5]:
        axes.set_ylabel("C2ST")
    for axes in panels[-5:]:
        axes.set_xlabel("simulations")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=9, frameon=False)
    return figure


def main() -> None:
    """Write and print the tables, and write the figure."""
    by_classifier = {
        classifier: read_rows(RESULTS / "sbibm.jsonl", classifier=classifier)
        for classifier in _TITLES
    }
    text = "\n\n".join(
        f"{_TITLES[classifier]}:\n\n{make_table(rows)}\n\n{describe_wins(rows)}"
        f"\n\n{describe_choice(rows)}".rstrip()
        for classifier, rows in by_classifier.items()
    )
    print(text)
    README.write_text(replace_table(README.read_text(), text))
    summary = make_summary(by_classifier["compiled"])
    PROJECT_README.write_text(replace_table(PROJECT_README.read_text(), summary))
    FIGURES.mkdir(exist_ok=True)
    figure = draw_figure(by_classifier["compiled"])
    figure.savefig(FIGURES / "sbibm.png", dpi=144)


if __name__ == "__main__":
    main()

"""Calibration results in a form that people and JSON files can hold."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sbijax.diagnostics.coverage import coverage
from sbijax.diagnostics.sbc import SBCResult

__all__ = ["sbc_summary", "sbc_table"]

_SIGNIFICANT = 0.05
_Floats = npt.NDArray[np.float64]


def sbc_summary(
    result: SBCResult, *, levels: tuple[float, ...] = (0.5, 0.9)
) -> dict[str, Any]:
    """Collect the findings of `sbc` by parameter name, ready for JSON.

    The reading of a column is `ok` unless its p-value, adjusted for the number
    of columns, is below 0.05.  Otherwise it names the plainest fault: posterior
    `too low`, `too high`, `too narrow` or `too wide`; for the log-density
    `overconfident` or `underconfident`; `not uniform` if none of them stands
    out.

    Args:
        result: ranks and tests from `sbc`.
        levels: nominal levels of the coverage to list.

    Returns:
        Plain numbers and strings: `num_replicates`, `num_samples`,
        `num_invalid`, `global_p_value`, and by name `p_values`, `readings` and
        `coverage` (nominal level -> empirical share), where the row of
        `log_prob` is called `highest density`.

    Example:
        >>> import numpy as np
        >>> from sbijax.diagnostics import sbc_result
        >>> narrow = np.repeat([0, 50, 99], [40, 20, 40])[:, None]
        >>> result = sbc_result(narrow, ("alpha",), num_samples=99)
        >>> sbc_summary(result)["readings"]
        {'alpha': 'too narrow'}
    """
    covered = coverage(result, levels=levels)
    by_level = [f"{level:g}" for level in covered.nominal]
    shares = covered.empirical.T.tolist()
    return {
        "num_replicates": len(result.ranks),
        "num_samples": int(result.num_samples),
        "num_invalid": int(result.num_invalid),
        "global_p_value": float(result.global_p_value),
        "p_values": dict(zip(result.names, result.p_values.tolist(), strict=True)),
        "readings": dict(zip(result.names, _readings(result), strict=True)),
        "coverage": {
            name: dict(zip(by_level, share, strict=True))
            for name, share in zip(covered.names, shares, strict=True)
        },
    }


def sbc_table(result: SBCResult, *, levels: tuple[float, ...] = (0.5, 0.9)) -> str:
    """Lay out the findings of `sbc` as a text table.

    Args:
        result: ranks and tests from `sbc`.
        levels: nominal levels of the coverage to list.

    Returns:
        One line per parameter under a line with the overall finding.

    Example:
        >>> import numpy as np
        >>> from sbijax.diagnostics import sbc_result
        >>> result = sbc_result(np.arange(100)[:, None], ("alpha",), 99)
        >>> print(sbc_table(result))
        SBC of 100 replicates x 99 draws: global p-value 1
                 p-value     50 %     90 %  reading
        alpha          1    0.500    0.900  ok
    """
    facts = sbc_summary(result, levels=levels)
    width = max(map(len, result.names))
    percents = "".join(f"{f'{100 * level:g} %':>9}" for level in levels)
    lines = [
        f"SBC of {facts['num_replicates']:,} replicates x "
        f"{facts['num_samples']:,} draws: global p-value "
        f"{facts['global_p_value']:.2g}",
        f"{'':{width}}  {'p-value':>9}{percents}  reading",
    ]
    shares = [list(by_level.values()) for by_level in facts["coverage"].values()]
    blank = " " * 9 * len(levels)
    for row, name in enumerate(result.names):
        covered = (
            "".join(f"{c:>9.3f}" for c in shares[row]) if row < len(shares) else blank
        )
        p_value = f"{facts['p_values'][name]:>9.2g}"
        lines.append(f"{name:{width}}  {p_value}{covered}  {facts['readings'][name]}")
    return "\n".join(lines)


def _readings(result: SBCResult) -> list[str]:
    shift, spread = _deviations(result.ranks, result.num_samples)
    adjusted = result.p_values * len(result.p_values)
    readings = []
    for column, (p, a, b) in enumerate(zip(adjusted, shift, spread, strict=True)):
        if p >= _SIGNIFICANT:
            readings.append("ok")
        elif max(abs(a), abs(b)) < 2.0:
            readings.append("not uniform")
        elif column >= result.num_parameters:
            readings.append("overconfident" if a < 0 else "underconfident")
        elif abs(a) > abs(b):
            readings.append("too low" if a > 0 else "too high")
        else:
            readings.append("too narrow" if b > 0 else "too wide")
    return readings


def _deviations(
    ranks: npt.NDArray[np.int64], num_samples: int
) -> tuple[_Floats, _Floats]:
    """Mean and variance of the ranks as z-scores under uniformity, each [P]."""
    centred = np.arange(num_samples + 1) - num_samples / 2
    root = np.sqrt(len(ranks))
    deviations = ranks - num_samples / 2
    shift = deviations.mean(axis=0) / centred.std() * root
    squares = centred**2
    excess = (deviations**2).mean(axis=0) - squares.mean()
    scale = squares.std()
    spread = excess / scale * root if scale > 0 else np.zeros_like(excess)
    return shift, spread

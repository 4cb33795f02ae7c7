"""The Python blocks of README.md run as they stand, one after the other."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def python_lines(text):
    """The Python blocks of a Markdown text; every other line is left blank.

    So a traceback names the line of the text that failed.
    """
    lines = [""] * text.count("\n")
    for block in FENCE.finditer(text):
        start = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


def test_python_lines_keep_their_numbers():
    text = "# T\n```bash\nls\n```\n```python\na = 1\nb = a\n```\n\n```python\nb\n```\n"
    code = python_lines(text).split("\n")
    assert [i for i, line in enumerate(code, 1) if line] == [6, 7, 11]
    assert code[5:7] == text.split("\n")[5:7]


def test_readme_runs(tmp_path, monkeypatch):
    code = python_lines(README.read_text(encoding="utf-8"))
    assert code.strip(), "README.md has no ```python block"
    monkeypatch.chdir(tmp_path)
    exec(compile(code, README, "exec"), {"__name__": "__main__"})

from pathlib import Path

import pytest

from tools.prose import check

WORDS = {"anew": "again", "is no(?! longer)": "is not a"}

MARKDOWN = """# Title

Text that is right,
and a line that asks anew.

- in a list, what is
  no answer

```sh
echo anew   # and `anew`
```

It is no longer there: `anew`, ``is no``.
"""

PYTHON = '''"""Module: counts anew."""

ANEW = "anew"  # a string that says anew
anew = f"anew {ANEW}"
LIMIT = 1
"""What is
no limit, but is no longer missing.
"""


def function():
    """Name ``anew`` and `anew` in code."""
    # Here there is
    # no more to say.
    return """anew"""
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(MARKDOWN)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(PYTHON)
    (tmp_path / "package" / "clean.py").write_text('"""Counts again."""\n')
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "module.py").write_text(PYTHON)
    return tmp_path


def test_words_are_found_in_prose_only(root: Path) -> None:
    assert list(check(root, WORDS, [])) == [
        "README.md:4: “anew”: again",
        "README.md:6: “is no”: is not a",
        "package/module.py:1: “anew”: again",
        "package/module.py:3: “anew”: again",
        "package/module.py:6: “is no”: is not a",
        "package/module.py:13: “is no”: is not a",
    ]


@pytest.mark.parametrize("entry", ["package", "package/module.py"])
def test_listed_files_are_left_out(root: Path, entry: str) -> None:
    assert [line.partition(":")[0] for line in check(root, WORDS, [entry])] == ["README.md"] * 2


@pytest.mark.parametrize("entry", ["package/clean.py", "package/gone.py", "gone"])
def test_a_listed_file_that_is_clean_is_an_error(root: Path, entry: str) -> None:
    *_, last = check(root, WORDS, ["README.md", "package/module.py", entry])
    assert last == f"{entry}: has no rejected word; remove it from “unconverted” in prose.toml"

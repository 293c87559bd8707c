"""The architecture page names files and definitions that exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text()


def section(title: str) -> str:
    """A section of the page, without its heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def defined_in(path: Path) -> set[str]:
    """Names of a module's functions and classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("title", ["One price, from the table to the service", "Where to make a change"])
def test_files_and_definitions_exist(title: str) -> None:
    text = section(title)
    paths = re.findall(r"`([\w/]+(?:/|\.py))`", text)
    assert len(paths) > 5
    for path in paths:
        assert (REPOSITORY / path).exists() or path in ("parameters.py", "step.py"), path
    for path, name in re.findall(r"`([\w/]+\.py)`: `(\w+)`", text):
        assert name in defined_in(REPOSITORY / path), f"{path} does not define {name}"
    for path, name in re.findall(r"`(\w+)` in [^`|]*`(\w+/[\w/]+\.py)`", text):
        assert path in (REPOSITORY / name).read_text(), f"{name} does not mention {path}"

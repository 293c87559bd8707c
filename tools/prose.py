"""Check comments, docstrings and Markdown for the words that prose.toml rejects: `python tools/prose.py`."""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

_REPOSITORY = Path(__file__).resolve().parents[1]
_WORDS = Path(__file__).with_suffix(".toml")
_CODE = re.compile(r"``?[^`]+``?")


class Prose:
    """The prose of a file, on the lines where the file has it."""

    def __init__(self, lines: int) -> None:
        self._lines = [""] * (lines + 1)

    def add(self, first: int, text: str) -> None:
        """Add text that starts on a line, counted from 1. Code in backticks is left out."""
        text = _CODE.sub(lambda code: "`" + "\n" * code[0].count("\n"), text)
        for number, line in enumerate(text.split("\n"), first - 1):
            self._lines[number] += f" {line.strip()}"

    def __str__(self) -> str:
        return "\n".join(self._lines)


def python_prose(source: str) -> Prose:
    """Return the comments and docstrings of Python source, those of attributes included."""
    prose = Prose(source.count("\n") + 1)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                prose.add(node.lineno, text)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            prose.add(token.start[0], token.string.lstrip("#"))
    return prose


def markdown_prose(source: str) -> Prose:
    """Return the paragraphs, headings, lists and tables of a Markdown page, without its code blocks."""
    prose = Prose(source.count("\n") + 1)
    for token in MarkdownIt().enable("table").parse(source):
        if token.type == "inline" and token.map:
            prose.add(token.map[0] + 1, token.content)
    return prose


_READERS = {".py": python_prose, ".md": markdown_prose}


def findings(path: Path, words: dict[str, str]) -> Iterator[str]:
    """Yield a line for each rejected word of a file: the line's number, the word, what to write instead."""
    prose = str(_READERS[path.suffix](path.read_text(encoding="utf-8")))
    for word, instead in words.items():
        pattern = rf"\b(?:{word})\b".replace(" ", r" *[ \n] *")
        for found in re.finditer(pattern, prose, re.IGNORECASE):
            line = prose.count("\n", 0, found.start()) + 1
            yield f"{line}: “{' '.join(found[0].split())}”: {instead}"


def check(root: Path, words: dict[str, str], unconverted: list[str]) -> Iterator[str]:
    """Yield what is wrong below a folder: rejected words, and listed files or folders that have none."""
    clean = set(unconverted)
    for path in sorted(root.glob("*.md")) + sorted(root.glob("[!.]*/**/*.*")):
        if path.suffix not in _READERS:
            continue
        name = path.relative_to(root)
        listed = {entry for entry in unconverted if name.is_relative_to(entry)}
        for finding in findings(path, words):
            clean -= listed
            if not listed:
                yield f"{name}:{finding}"
    for entry in sorted(clean):
        yield f"{entry}: has no rejected word; remove it from “unconverted” in {_WORDS.name}"


def main() -> int:
    """Print what is wrong in the repository; return 1 if anything is."""
    settings = tomllib.loads(_WORDS.read_text(encoding="utf-8"))
    wrong = list(check(_REPOSITORY, settings["words"], settings["unconverted"]))
    print("\n".join(wrong) or "prose: no rejected words")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

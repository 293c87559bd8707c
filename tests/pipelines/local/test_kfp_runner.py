import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from kfp import compiler, dsl

REPOSITORY = Path(__file__).parents[3]


@dsl.component(base_image="example.org/image:1", packages_to_install=[], install_kfp_package=False)
def say(word: str) -> None:
    """Say a word, where this project's packages can be imported."""
    import sys

    import pipelines

    if word == "wrong":
        raise ValueError("this word is wrong")
    print(f"say: {word} {bool(pipelines)} {sys.executable}")


@dsl.pipeline(name="words")
def words(word: str = "hello") -> None:
    """Say a word."""
    say(word=word)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    compiler.Compiler().compile(words, str(tmp_path / "words.yaml"))
    return tmp_path / "words.yaml"


def run(pipeline: Path, word: str, python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
    folder = pipeline.parent
    (folder / "arguments.json").write_text(json.dumps({"word": word}))
    path = os.pathsep.join([str(REPOSITORY), sysconfig.get_paths()["purelib"]])
    return subprocess.run(
        [python, "-m", "pipelines.local.kfp_runner", pipeline, folder / "arguments.json", folder / "root"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_compiled_pipeline_runs_without_a_word_from_kfp_about_its_image(pipeline: Path) -> None:
    ended = run(pipeline, 'it\'s a "word"')
    assert ended.returncode == 0, ended.stderr
    assert 'say: it\'s a "word" True' in ended.stdout
    assert ended.stderr == ""


def test_a_failing_task_fails_it(pipeline: Path) -> None:
    ended = run(pipeline, "wrong")
    assert ended.returncode == 1
    assert "ValueError: this word is wrong" in ended.stdout


def test_python_may_lie_in_a_folder_with_a_space(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my projects" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "python3"):
        (folder / name).symlink_to(Path(sys.executable).resolve())
    ended = run(pipeline, "hello", python=str(folder / "python"))
    assert ended.returncode == 0, ended.stdout
    assert f"say: hello True {folder}" in ended.stdout

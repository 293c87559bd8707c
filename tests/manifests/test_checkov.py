"""checkov finds nothing that is not argued in .checkov.yaml."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.left_out import Missing
from tests.manifests.kustomize import build

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.prove
def test_checkov_is_content(tmp_path: Path) -> None:
    checkov = os.environ.get("CHECKOV") or shutil.which("checkov")
    if checkov is None:
        pytest.skip(Missing.CHECKOV)
    for name in ("overlays/dev", "overlays/production", "components/recurring-run", "components/api-keys"):
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text(yaml.safe_dump_all(build(name)))
    shutil.copy(REPOSITORY / "Dockerfile", tmp_path)
    options = ["--config-file", REPOSITORY / ".checkov.yaml", "--quiet", "--compact", "--skip-download"]
    command = [checkov, "--directory", tmp_path, "--framework", "kubernetes", "dockerfile", *options]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert checked.returncode == 0, checked.stdout + checked.stderr

"""The examples of README and CONTRIBUTING run, and what they point at is there."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import pyro_iresnet

ROOT = Path(__file__).parent.parent
EXAMPLE = re.compile(r"^( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/expressive-power.md", "docs/guides.md")


@pytest.mark.filterwarnings("ignore::pyro_iresnet.diagnostics.KHatWarning")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_examples_of_a_page_run_one_after_the_other(name):
    torch.set_default_dtype(torch.float32)
    examples = EXAMPLE.findall((ROOT / name).read_text())
    assert examples
    names: dict[str, object] = {}
    for i, (indent, code) in enumerate(examples):
        plain = re.sub(f"^{indent}", "", code, flags=re.M)
        exec(compile(plain, f"{name}, example {i}", "exec"), names)


# The examples of docs/sbi.md need the extra sbi: tests/test_sbi.py runs them.
@pytest.mark.parametrize("name", [*DOCUMENTS, "docs/sbi.md", "CHANGELOG.md"])
def test_links_and_pictures_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target


def test_the_public_names_are_there_and_documented():
    for name in pyro_iresnet.__all__:
        assert getattr(pyro_iresnet, name).__doc__, name


def test_constraints_pin_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    pinned = {name.replace("_", "-").lower(): version for name, version in pinned.items()}
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = [entry for group in groups for entry in group]
    names = {re.split(r"[<>=\[]", entry)[0].lower() for entry in asked} - {"pyro-iresnet"}
    assert names <= set(pinned)
    assert pinned["torch"] == "2.13.0"


def test_files_stay_small():
    for path in (ROOT / "pyro_iresnet").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path

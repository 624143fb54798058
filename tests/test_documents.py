"""The examples of every page run, what it points at is there, and every public name has a place."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch

import pyro_iresnet
from pyro_iresnet import diagnostics, testing

ROOT = Path(__file__).parent.parent
EXAMPLE = re.compile(r"^( *)```(python|py)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/index.md",
    "docs/installation.md",
    "docs/expressive-power.md",
    "docs/guides.md",
    "docs/how-to/estimator.md",
    "docs/how-to/solver.md",
    "docs/how-to/context.md",
    "docs/how-to/contraction.md",
    "docs/how-to/save-and-load.md",
    "docs/how-to/migrate.md",
)
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))


def run(name, fences="python"):
    """The examples of a page one after the other, in one namespace."""
    torch.set_default_dtype(torch.float32)
    examples = [e for e in EXAMPLE.findall((ROOT / name).read_text()) if e[1] in fences.split()]
    assert examples
    names: dict[str, object] = {}
    for i, (indent, _, code) in enumerate(examples):
        plain = re.sub(f"^{indent}", "", code, flags=re.M)
        exec(compile(plain, f"{name}, example {i}", "exec"), names)


@pytest.mark.filterwarnings("ignore::pyro_iresnet.diagnostics.KHatWarning")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_examples_of_a_page_run_one_after_the_other(name):
    run(name)


def test_the_examples_beside_normflows_run():
    pytest.importorskip("normflows")
    run("docs/how-to/migrate.md", "python py")


# The examples of docs/sbi.md need the extra sbi: tests/test_sbi.py runs them.
@pytest.mark.parametrize("name", sorted({*DOCUMENTS, *PAGES, "CHANGELOG.md"}))
def test_links_and_pictures_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / name).parent / target).exists(), target


def test_every_page_with_an_example_is_run():
    with_examples = {p for p in PAGES if "```python\n" in (ROOT / p).read_text()}
    assert with_examples - {"docs/sbi.md"} <= set(DOCUMENTS)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = re.findall(r"(\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(f"docs/{page}" for page in named) == PAGES
    notebooks = re.findall(r"(notebooks/\S+\.ipynb)$", navigation, re.MULTILINE)
    assert sorted(notebooks) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("*.ipynb")
    )


RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()
FIGURE = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e[+-]\d+)?(?![\w-])")


def rows_of(heading):
    """The rows of the table below a heading of README, without its head."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [r for r in section.splitlines() if r.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def measured(benchmark):
    """The figures in its section of the results."""
    section = RESULTS.split(f"<!-- {benchmark} -->")[1].split(f"<!-- end of {benchmark} -->")[0]
    return set(FIGURE.findall(section))


def test_what_readme_says_of_other_packages_was_asked():
    rows = rows_of("Beside other packages")
    found = {figure for row in rows for cell in row[1:] for figure in FIGURE.findall(cell)}
    assert len(found) > 20
    assert found <= measured("claims")


@pytest.mark.parametrize("row", rows_of("In figures"), ids=lambda row: row[0][:40])
def test_the_figures_of_readme_are_those_of_the_results(row):
    _, here, beside, name = row
    figures = FIGURE.findall(here + " " + beside)
    assert figures
    assert set(figures) <= measured(name.strip("`"))


def reference():
    """What the pages of the reference have, as a path to import it by."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return [n for page in pages for n in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]


def test_the_reference_has_every_public_name_once():
    found = reference()
    names = {
        *pyro_iresnet.__all__,
        *pyro_iresnet.flows.__all__,
        *pyro_iresnet.guides.__all__,
        *diagnostics.__all__,
        *(name for name in vars(testing) if name.startswith("check_")),
    }
    assert sorted(target.rsplit(".", 1)[-1] for target in found) == sorted(names)
    for target in found:
        module, name = target.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), target


@pytest.mark.parametrize("target", reference())
def test_a_public_docstring_has_an_example_and_says_what_it_raises(target):
    module, name = target.rsplit(".", 1)
    found = getattr(importlib.import_module(module), name)
    assert found.__doc__
    if inspect.isclass(found) and issubclass(found, Exception):
        return
    assert ">>>" in found.__doc__
    if re.search(r"raise \w+Error|check_\w+\(", inspect.getsource(found)):
        assert "Raises:" in found.__doc__


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

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


def measured(benchmark, label, heading=""):
    """The cells behind a label in the section of a benchmark, the first below a heading of it."""
    section = RESULTS.split(f"<!-- {benchmark} -->")[1].split(f"<!-- end of {benchmark} -->")[0]
    for line in section.split(f"### {heading}\n")[1 if heading else 0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] == label:
            return cells[1:]
    raise AssertionError(f"{benchmark} has no row {label}")


def test_what_readme_says_of_other_packages_was_asked():
    rows = rows_of("Beside other packages")
    assert len(rows) > 5
    for label, *said in rows:
        found = measured("claims", label)
        assert [FIGURE.findall(c)[:1] for c in said] == [FIGURE.findall(c)[:1] for c in found]


# Where each figure of README stands: the row and the place in it, of the same benchmark.
PLACES = {
    "log p(x) in training": [
        ("this project, Adaptive(0.15), MeanJacobian()", "", 1),
        ("published, unbiased value", "", 1),
    ],
    "10,000 inversions": [
        ("Anderson(), the default", "checkerboard, float32", 0),
        ("Anderson(), the default", "checkerboard, float32", 4),
        ("normflows, default", "checkerboard, float32", 0),
        ("normflows, default", "checkerboard, float32", 4),
    ],
    "a gradient through 256": [
        (kind, "checkerboard: a gradient through the inverse", place)
        for kind in ("implicit", "unrolled")
        for place in (0, 2)
    ],
    "a training step in the plane": [
        ("this project", "D = 2, 8 blocks of 64-64-64", 0),
        ("this project, compiled", "D = 2, 8 blocks of 64-64-64", 0),
        ("normflows Residual, brute force", "D = 2, 8 blocks of 64-64-64", 0),
    ],
    "the same with 63": [
        ("this project", "D = 63, 8 blocks of 128-128", 0),
        ("this project, compiled", "D = 63, 8 blocks of 128-128", 0),
        ("flowcon iResBlock, unbiased", "D = 63, 8 blocks of 128-128", 0),
    ],
    "the checkerboard to 3.75": [
        ("this project", "checkerboard: seconds to 3.75 nats", 0),
        ("flowcon", "checkerboard: seconds to 3.75 nats", 0),
    ],
    "eight densities": [
        (f"2,000 steps: better than {flow}", "", 0)
        for flow in ("Glow", "Real NVP", "MAF", "normflows")
    ],
    "the same at equal time": [("40 s: better than FFJORD", "", 0)],
    "the same at equal steps": [("2,000 steps: better than spline flow", "", 0)],
    "the checkerboard after": [
        ("checkerboard", "The i-ResNet for 20,000 steps: nats above the entropy", 1)
    ],
    "eight schools": [
        ("AutoIResNet", "eight schools", 0),
        ("spline autoregressive (2) + affine", "eight schools", 0),
    ],
    "Neal's funnel": [("AutoIResNet", "funnel", 0), ("AutoIAFNormal (3)", "funnel", 0)],
}


@pytest.mark.parametrize("row", rows_of("In figures"), ids=lambda row: row[0][:30])
def test_the_figures_of_readme_are_those_of_the_results(row):
    label, here, beside, name = row
    said = FIGURE.findall(f"{here} {beside}".replace("*", ""))
    if label.startswith("NUTS"):
        section = RESULTS.split("<!-- neutra -->")[1]
        found = [
            re.findall(rf"\| {kind} +\| \d .*?\| ([\d.]+) +\| \d+ +\|", section)
            for kind in ("NUTS through AutoIResNet", "NUTS")
        ]
        assert said == [*found[0], *found[1]]
        return
    (places,) = (where for start, where in PLACES.items() if label.startswith(start))
    cells = [measured(name.strip("`"), where, heading)[i] for where, heading, i in places]
    if name == "`toy_densities`":
        assert [said] * len(cells) == [FIGURE.findall(cell) for cell in cells]
    else:
        assert said == [FIGURE.findall(cell)[0] for cell in cells]


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

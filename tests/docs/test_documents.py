"""Pages of the documentation: examples, links, figures and public names."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch

import pyro_iresnet
from pyro_iresnet.options import BlockOptions

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^( *)```(python|py)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/quickstart.md",
    "docs/installation.md",
    "docs/bound.md",
    "docs/expressive-power.md",
    "docs/how-to/guide.md",
    "docs/how-to/options.md",
    "docs/how-to/stack.md",
    "docs/how-to/table.md",
    "docs/how-to/lightning.md",
    "docs/how-to/image.md",
    "docs/how-to/density.md",
    "docs/how-to/estimator.md",
    "docs/how-to/solver.md",
    "docs/how-to/speed.md",
    "docs/how-to/context.md",
    "docs/how-to/contraction.md",
    "docs/how-to/block.md",
    "docs/how-to/save-and-load.md",
    "docs/how-to/migrate.md",
)
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
RESULT_PAGES = sorted(
    str(page.relative_to(ROOT)) for page in (ROOT / "benchmarks" / "results").glob("*.md")
)


def run(name, fences="python"):
    """Run the examples of a page in one namespace."""
    torch.set_default_dtype(torch.float32)
    examples = [e for e in EXAMPLE.findall((ROOT / name).read_text()) if e[1] in fences.split()]
    assert examples
    names: dict[str, object] = {}
    for i, (indent, _, code) in enumerate(examples):
        plain = re.sub(f"^{indent}", "", code, flags=re.M)
        exec(compile(plain, f"{name}, example {i}", "exec"), names)


@pytest.mark.filterwarnings("ignore::pyro_iresnet.diagnostics.KHatWarning")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_runs_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(name)


def test_runs_normflows_examples():
    pytest.importorskip("normflows")
    run("docs/how-to/migrate.md", "python py")


# Examples of docs/how-to/sbi.md need the extra sbi. tests/sbi/test_recipe.py runs the page.
@pytest.mark.parametrize("name", sorted({*DOCUMENTS, *PAGES, *RESULT_PAGES, "CHANGELOG.md"}))
def test_links_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / name).parent / target).exists(), target


def test_covers_pages_with_examples():
    with_examples = {p for p in PAGES if "```python\n" in (ROOT / p).read_text()}
    assert with_examples - {"docs/how-to/sbi.md"} <= set(DOCUMENTS)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 600


def test_package_page_has_absolute_links():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = (ROOT / "README.md").read_text()
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 10
    assert all(target.startswith("https://") for target in targets)
    home = project["project"]["urls"]["Homepage"].removeprefix("https://github.com")
    assert all(home in t for t in targets if "/blob/" in t or "raw." in t)


def test_citation_has_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {pyro_iresnet.__version__}\n" in citation
    assert f"## [{pyro_iresnet.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_troubleshooting_quotes_messages():
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(quoted) >= 20
    code = "".join(path.read_text() for path in (ROOT / "pyro_iresnet").rglob("*.py"))
    # Messages run over several lines of the code.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert [text for text in quoted if text not in code] == []


def test_navigation_lists_pages():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = re.findall(r"(\S+\.md)$", navigation, re.MULTILINE)
    taken = {page for page in named if page in RESULT_PAGES}
    assert sorted(taken) == RESULT_PAGES
    assert sorted(f"docs/{page}" for page in named if page not in taken) == PAGES
    notebooks = re.findall(r"(notebooks/\S+\.ipynb)$", navigation, re.MULTILINE)
    assert sorted(notebooks) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("*.ipynb")
    )


RESULTS = ROOT / "benchmarks" / "results"
FIGURE = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e[+-]\d+)?(?![\w-])")


def rows_of(page, heading):
    """Read the rows of the table below a heading of a page, without the header."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [r for r in section.splitlines() if r.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def measured(benchmark, label, heading=""):
    """Find the cells beside a label in the results of a benchmark, below a heading."""
    page = (RESULTS / f"{benchmark}.md").read_text()
    for line in page.split(f"\n## {heading}\n")[1 if heading else 0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] == label:
            return cells[1:]
    raise AssertionError(f"{benchmark} has no row {label}")


CHOOSE = "docs/how-to/choose.md"


def test_quotes_claims():
    rows = rows_of(CHOOSE, "Beside other packages")
    assert len(rows) > 5
    for label, *said in rows:
        found = measured("claims", label)
        assert [FIGURE.findall(c)[:1] for c in said] == [FIGURE.findall(c)[:1] for c in found]
        silent = [bool(re.search("silent|certified", c)) for c in said]
        assert silent == ["nothing is said" in c for c in found]
    hosts = [
        [re.findall("Pyro|nflows|neither", cell) for cell in row]
        for row in (rows[0][1:], measured("claims", "runs in"))
    ]
    assert rows[0][0] == "runs in"
    assert [h[:1] if "neither" in h else h for h in hosts[1]] == hosts[0]


# Place of each figure of the two tables in the results: row label, heading and column.
PLACES = {
    "log p(x), 64-D": [
        ("this project, Adaptive(0.15), MeanJacobian()", "", 1),
        ("published, unbiased value", "", 1),
    ],
    "10,000 inversions": [
        ("Anderson(), the default", "checkerboard, float32", 0),
        ("Anderson(), the default", "checkerboard, float32", 4),
        ("normflows, default", "checkerboard, float32", 0),
        ("normflows, default", "checkerboard, float32", 4),
    ],
    "a gradient through 256 of": [
        (kind, "checkerboard: a gradient through the inverse", place)
        for kind in ("implicit", "unrolled")
        for place in (0, 2)
    ],
    "a gradient through 256 inversions": [
        (kind, "digits: a gradient through the inverse", place)
        for kind in ("implicit", "unrolled")
        for place in (0, 2)
    ],
    "a guide's step over": [
        (f"hierarchical logistic regression, D = {size}", "", 0) for size in (20, 40)
    ],
    "a training step in the plane": [
        ("this project", "D = 2, 8 blocks of 64-64-64, threads: 2", 2),
        ("this project, packed", "D = 2, 8 blocks of 64-64-64, threads: 2", 2),
        ("this project, compiled", "D = 2, 8 blocks of 64-64-64, threads: 2", 2),
        ("this project, all defaults", "D = 2, 8 blocks of 64-64-64, threads: 2", 2),
        ("normflows Residual, brute force", "D = 2, 8 blocks of 64-64-64, threads: 2", 2),
    ],
    "a training step with 63": [
        ("this project", "D = 63, 8 blocks of 128-128, threads: 2", 2),
        ("this project, packed", "D = 63, 8 blocks of 128-128, threads: 2", 2),
        ("this project, compiled", "D = 63, 8 blocks of 128-128, threads: 2", 2),
        ("this project, all defaults", "D = 63, 8 blocks of 128-128, threads: 2", 2),
        ("flowcon iResBlock, unbiased", "D = 63, 8 blocks of 128-128, threads: 2", 2),
    ],
    "the checkerboard to 3.75": [
        ("this project", "checkerboard: seconds to 3.75 nats", 0),
        ("flowcon", "checkerboard: seconds to 3.75 nats", 0),
    ],
    "eight densities": [("2,000 steps: better than spline flow", "", 0)],
    "the same at equal time": [("40 s: better than spline flow", "", 0)],
    "the checkerboard among": [
        ("checkerboard", "2,000 steps: nats above the entropy", 1),
        ("checkerboard", "2,000 steps: nats above the entropy", 7),
    ],
    "MNIST, 15 minutes": [
        (flow, "mnist: density, 15 minutes of one thread a row, Intel(R) Xeon(R) Processor", 0)
        for flow in ("i-ResNet", "Real NVP", "Glow")
    ],
    "MNIST, 30 minutes": [
        ("0.9", "mnist: classify, 30 minutes of one thread a row, Intel(R) Xeon(R) Processor", 0),
        ("0.9", "mnist: classify, 30 minutes of one thread a row, Intel(R) Xeon(R) Processor", 3),
        ("none", "mnist: classify, 30 minutes of one thread a row, Intel(R) Xeon(R) Processor", 0),
    ],
    "eight schools": [
        ("AutoIResNet", "eight schools", 0),
        ("AutoIAFNormal (3)", "eight schools", 0),
    ],
    "Neal's funnel": [("AutoIResNet", "funnel", 0), ("AutoIAFNormal (3)", "funnel", 0)],
}


FIGURES = [*rows_of(CHOOSE, "In figures"), *rows_of("README.md", "What it gives and costs")]


@pytest.mark.parametrize("row", FIGURES, ids=lambda row: row[0][:30])
def test_quotes_results(row):
    label, here, beside, name = row
    said = FIGURE.findall(f"{here} {beside}".replace("*", ""))
    if label.startswith("NUTS"):
        page = (RESULTS / "neutra.md").read_text()
        found = [
            re.findall(rf"\| {kind} +\| \d .*?\| ([\d.]+) +\| \d+ +\|", page)
            for kind in ("NUTS through AutoIResNet", "NUTS")
        ]
        assert said == [*found[0], *found[1]]
        return
    if label.startswith("eight real tables"):
        page = (RESULTS / "tables.md").read_text().split("## Held-out nats")[1].split("## ")[0]
        ours = [line.split("|")[2] for line in page.splitlines() if "|" in line][2:]
        assert said == [str(sum("**" in cell for cell in ours)), str(len(ours))]
        return
    (places,) = (where for start, where in PLACES.items() if label.startswith(start))
    cells = [measured(name.strip("`"), where, heading)[i] for where, heading, i in places]
    # Of a figure with its spread the tables have the figure.
    found = [FIGURE.findall(cell)[: 3 if " of " in cell else 1] for cell in cells]
    assert said == [figure for figures in found for figure in figures]


# Public namespaces. Of a namespace without __all__: the classes and functions that it documents.
NAMESPACES = (
    "images",
    "tables",
    "training",
    "",
    "activations",
    "blocks",
    "contractions",
    "coordinates",
    "diagnostics",
    "errors",
    "hosts.nflows",
    "hosts.pyro",
    "logdet",
    "norms",
    "operators",
    "options",
    "solvers",
    "testing",
)
WITHOUT_ALL = {
    "errors": lambda value: isinstance(value, type) and issubclass(value, Exception),
    "options": lambda value: value is BlockOptions,
    "testing": lambda value: getattr(value, "__name__", "").startswith("check_"),
}
# Names below this heading serve those who write parts of their own, and need no example.
PARTS = "## Parts\n"


def reference():
    """List the import paths on the pages of the reference, and whether each is a part."""
    found = []
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        whole = page.read_text()
        parts = whole.split(PARTS)[1].split("\n## ")[0] if PARTS in whole else ""
        in_parts = re.findall(r"^::: (\S+)$", parts, re.M)
        paths = re.findall(r"^::: (\S+)$", whole, re.M)
        found += [(path, path in in_parts) for path in paths]
    return found


def named(path):
    """Import the object of a path."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def public():
    """List the classes and functions of all public namespaces, each once."""
    found = {}
    for space in NAMESPACES:
        module = importlib.import_module(f"pyro_iresnet.{space}".rstrip("."))
        chosen = WITHOUT_ALL.get(space, callable)
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            if chosen(value):
                found[id(value)] = f"{space}.{name}"
    return found


def test_reference_lists_names():
    paths = [path for path, _ in reference()]
    documented = {id(named(path)): path for path in paths}
    assert len(documented) == len(paths)
    assert not {name for key, name in public().items() if key not in documented}
    assert not {path for key, path in documented.items() if key not in public()}


@pytest.mark.parametrize(("path", "part"), reference())
def test_docstring_has_example(path, part):
    found = named(path)
    assert found.__doc__
    if part or (inspect.isclass(found) and issubclass(found, Exception)):
        return
    # The classes derived from an abstract class have the examples.
    assert ">>>" in found.__doc__ or inspect.isabstract(found)
    if re.search(r"raise \w+Error|check_\w+\(", inspect.getsource(found)):
        assert "Raises:" in found.__doc__


def test_constraints_pin_dependencies():
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


def test_small_files():
    for path in (ROOT / "pyro_iresnet").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path

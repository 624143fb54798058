"""Equations, tests and names on the page of the theory."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text()


def test_lists_equations_and_theorems():
    numbers = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", PAGE)]
    assert sorted(numbers) == list(range(1, 37))
    main, appendix = numbers[:24], numbers[24:]
    assert main == list(range(1, 25))
    assert appendix == list(range(25, 37))
    assert re.findall(r"\*\*Theorem (\d)\.\*\*", PAGE) == ["1", "2"]


def test_names_existing_tests():
    sections = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    for section in sections:
        if "\\tag{" in section:
            assert "`tests/" in section, section.splitlines()[0]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert named
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_names_existing_objects():
    linked = re.findall(r"\[`([\w.]+)`\]\(reference/(\w+)\.md#([\w.]+)\)", PAGE)
    assert len(linked) > 20
    for shown, page, target in linked:
        assert target.endswith(f".{shown}"), (shown, target)
        generated = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
        assert f"::: {target}\n" in generated, target
    for name, path in re.findall(r"`(\w+)` in `(pyro_iresnet/[\w/]+\.py)`", PAGE):
        code = (ROOT / path).read_text()
        assert re.search(rf"^ *(def|class) {name}\b", code, re.MULTILINE), (path, name)

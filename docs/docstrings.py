"""Docstrings as they are in the code, in the marks of Sphinx, made Markdown for the site."""

import re
from pathlib import Path

import griffe

PAGES = Path(__file__).parent / "reference"
LINKED = {
    name.rsplit(".", 1)[-1]: name
    for page in sorted(PAGES.glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}
DISPLAY = re.compile(r"^( *)\.\. math::((?:.*\n)(?:\1 +\S.*\n)*)", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`([^`]+)`")


def _link(found):
    """A reference as a link where the site has the name, else as code."""
    *path, last = found[1].lstrip("~").split(".")
    shown = last if found[1].startswith("~") else found[1]
    owner = LINKED.get(path[-1]) if path else None
    target = f"{owner}.{last}" if owner else LINKED.get(last)
    return f"[`{shown}`][{target}]" if target else f"`{shown}`"


def _display(found):
    """``.. math::`` and what is indented below it, between two lines of dollar signs."""
    indent, formula = found[1], " ".join(line.strip() for line in found[2].splitlines())
    return f"\n{indent}$$\n{indent}{formula.strip()}\n{indent}$$\n"


def _fields(text):
    """Several names of one entry, broken over lines before their colon, in one line."""
    return re.sub(
        r"^( {4,}[\w*]+(?:, [\w*]+)*,)\n +((?:[\w*]+, )*[\w*]+:)",
        r"\1 \2",
        text,
        flags=re.MULTILINE,
    )


def to_markdown(text):
    """The docstring ``text`` with formulas, references and code in Markdown."""
    text = _fields(DISPLAY.sub(_display, text + "\n"))
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = ROLE.sub(_link, text)
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"^References:\n((?:    .*\n?|\n)+)", _references, text, flags=re.MULTILINE)


def _references(found):
    body = re.sub(r"^    ", "", found[1], flags=re.MULTILINE)
    return f"**References:** {body.strip()}\n\n"


class Sphinx(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj, **kwargs):
        """As griffe calls it for each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)

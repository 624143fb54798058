"""Takes into the site: the notebooks, the results of the benchmarks, the changes."""

import html as entities
import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
INCLUDE = re.compile(r"^<!-- include (\S+) -->$", re.MULTILINE)
# Where a file of the repository stands in the site.
PLACES = {"CHANGELOG.md": "changelog.md"}
# Files that keep their path in the site.
TAKEN = ("notebooks/*.ipynb", "benchmarks/results/*.md", "benchmarks/results/*.png")
FOLDERS = tuple(f"{pattern.rpartition('/')[0]}/" for pattern in TAKEN)


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    """Take in the notebooks, and the pages and pictures of results."""
    for path in (path for pattern in TAKEN for path in sorted(ROOT.glob(pattern))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put in the files that a page includes, and mend links that leave or enter this folder."""
    up = "../" * page.file.src_uri.count("/")

    def mended(found):
        place = PLACES.get(found[1], found[1])
        return f"]({up}{place}" if place.startswith((*FOLDERS, *PLACES.values())) else found[0]

    markdown = re.sub(rf"\]\({re.escape('../' + up)}([^)#]+)", mended, markdown)
    markdown = INCLUDE.sub(lambda found: (ROOT / found[1]).read_text(), markdown)
    return markdown.replace(f"]({up}docs/", f"]({up}")


def on_page_content(html, page, config, files):
    """Of a notebook: links into this folder, no scripts from elsewhere, and the file itself."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = re.sub(r'href="\.\./docs/([^"#]+)\.md', r'href="../\1.html', html)
    for path, place in PLACES.items():
        html = html.replace(f'href="../{path}', f'href="../{place.removesuffix(".md")}.html')
    html = re.sub(r'href="(\.\./benchmarks/results/[^"#]+)\.md', r'href="\1.html', html)
    html = re.sub(r'href="([^":]+)\.ipynb', r'href="\1.html', html)
    html = re.sub(
        r"<!-- Load mathjax -->.*<!-- End of mermaid configuration -->", "", html, flags=re.DOTALL
    )
    html = described(html)
    name = Path(page.file.src_uri).name
    return f'<p><a href="{name}" download>Download this notebook</a></p>\n{html}'


UNTOLD = 'alt="No description has been provided for this image"'
TEXT = re.compile(r'<div class="jp-RenderedHTMLCommon[^>]*>(.*?)</div>', re.DOTALL)


def described(html):
    """Give each picture of a notebook the last paragraph before the picture as its description."""
    parts = html.split(UNTOLD)
    seen = ""
    for i, part in enumerate(parts[:-1]):
        texts = [t for t in TEXT.findall(part) if "<p>" in t]
        if texts:
            paragraph = texts[-1].rpartition("<p>")[2].partition("</p>")[0]
            seen = " ".join(re.sub(r"<[^>]+>", "", paragraph).split())
        told = entities.escape(entities.unescape(seen or "A picture of this notebook."))
        parts[i] = f'{part}alt="{told}"'
    return "".join(parts)

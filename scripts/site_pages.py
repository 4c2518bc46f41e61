"""A hook of mkdocs: what of the site lies outside docs/.

The README is the first page. Links in the pages are those that work in the repository; here they become links to other
pages, or to copies of files that are no pages: the site needs no repository beside it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).parent.parent
FROM_ROOT: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "bench/README.md": "measuring.md",
}
"""Files outside docs/, and the pages that they become."""
COPIES: Final = "files"
"""The folder of the site with the files that pages link to and that are no pages."""
_LINK: Final = re.compile(r"(\]\()([^)\s]+)(\))")


def on_config(config: Any) -> Any:
    """Has headings found under the same fragments as in the repository (tests/test_docs.py has GitHub's rule)."""
    config.mdx_configs["toc"]["slugify"] = lambda text, _: re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from elsewhere, and what pages link to; the decisions are pages, listed by their own index."""
    for source, page in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for file in files.documentation_pages():
        if file.src_uri.startswith("decisions/2"):
            file.inclusion = type(file.inclusion).NOT_IN_NAV
    sources = [*FROM_ROOT, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
    linked = {_path(found[2], source) for source in sources for found in _LINK.finditer((ROOT / source).read_text())}
    for path in sorted(linked):
        if path and not _page(path) and (ROOT / path).is_file():
            files.append(File.generated(config, f"{COPIES}/{path}", content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links that lead somewhere on the site."""
    here = page.file.src_uri
    source = next((name for name, made in FROM_ROOT.items() if made == here), f"docs/{here}")
    return _LINK.sub(lambda found: found[1] + _target(found[2], source, here) + found[3], markdown)


def _path(link: str, source: str) -> str:
    """The file that a link in `source` leads to, from the top of the repository; "" for one that is none of its."""
    if re.match(r"[a-z]+:|#|/", link):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link.partition("#")[0]))


def _page(path: str) -> str:
    """What a file or folder of the repository is on the site, where it is a page or lies beside them; else ""."""
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    return FROM_ROOT.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")


def _target(link: str, source: str, here: str) -> str:
    """The link, from the page at `here`, whose text is that of the file `source` in the repository."""
    path = _path(link, source)
    if not path:
        return link
    to = _page(path) or f"{COPIES}/{path}"
    return posixpath.relpath(to, posixpath.dirname(here) or ".") + "".join(link.partition("#")[1:])

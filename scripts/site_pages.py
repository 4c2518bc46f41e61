"""A hook of mkdocs: the pages of the site that lie outside docs/, and links to files that are no pages.

The README is the first page. Links in the pages are those that work in the repository; here they become links to other
pages, or to the file in the repository.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).parent.parent
FROM_ROOT: Final = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
"""Files of the repository's top level, and the pages that they become."""
_LINK: Final = re.compile(r"(\]\()([^)\s]+)(\))")


def _repository() -> str:
    """The URL of the repository, in which files that are no pages can be read."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    urls: dict[str, str] = project.get("urls", {})
    return urls.get("Source", "").rstrip("/")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from the top level; the decisions are pages, listed by their own index."""
    for source, page in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for file in files.documentation_pages():
        if file.src_uri.startswith("decisions/2"):
            file.inclusion = type(file.inclusion).NOT_IN_NAV
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links that lead somewhere on the site or in the repository."""
    here = page.file.src_uri
    source = next((name for name, made in FROM_ROOT.items() if made == here), f"docs/{here}")
    return _LINK.sub(lambda found: found[1] + _target(found[2], source, here) + found[3], markdown)


def _target(link: str, source: str, here: str) -> str:
    """The link, from the page at `here`, whose text is that of the file `source` in the repository."""
    if re.match(r"[a-z]+:|#|/", link):
        return link
    path, mark, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = FROM_ROOT.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
    if page and (path in FROM_ROOT or (ROOT / path).suffix in (".md", ".png", ".json", ".svg")):
        return posixpath.relpath(page, posixpath.dirname(here) or ".") + mark + anchor
    repository = _repository()
    return f"{repository}/blob/main/{path}{mark}{anchor}"

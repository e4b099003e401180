"""Hooks of the documentation site, which ``mkdocs build --strict`` makes of docs/.

Pages are written for a reader of the repository: a link is a path from the file that holds it.
Four files outside docs/ are pages of the site, too; links to and from them are made to fit. Any
other link out of docs/ leads nowhere on the site and fails the strict build: name such a file in
backticks.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that are files of the repository's root."""

_LINK = re.compile(r"(^```.*?^```$|`[^`\n]+`)|\]\(([^)\s]+)\)", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(
    r"""<(?:script|img|link|iframe|source|video)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)
_log = logging.getLogger("mkdocs.hooks.pages")


def links_for_site(markdown: str, page: str) -> str:
    """The text of a page with links as the site needs them; code keeps what looks like one.

    Args:
        markdown: text as it stands in the repository.
        page: name of the page on the site, such as ``howto/export.md``.
    """
    source = OUTSIDE.get(page, f"docs/{page}")
    pages = {file: name for name, file in OUTSIDE.items()}

    def link(found: re.Match[str]) -> str:
        code, target = found.groups()
        if code is not None or "://" in target or target.startswith("#"):
            return found[0]
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = pages.get(file, file.removeprefix("docs/"))
        if there == file:
            return found[0]
        relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"]({relative}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(link, markdown)


def loaded_from_elsewhere(html: str) -> list[str]:
    """Addresses of other hosts that a browser would load with a page; links are none."""
    return _LOADED.findall(html)


def on_config(config: Any) -> Any:
    """Make the anchors of headings as GitHub does."""
    # with the packages of the extra docs alone
    from pymdownx.slugs import slugify

    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand outside docs/."""
    from mkdocs.structure.files import File

    for name, source in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fit the links of a page."""
    return links_for_site(markdown, page.file.src_uri)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warn, which fails a strict build, of a page that a reader without a network sees in part."""
    for address in loaded_from_elsewhere(output):
        _log.warning("%s loads %s: put the file below docs/", page.file.src_uri, address)
    return output

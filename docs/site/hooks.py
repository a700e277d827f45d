"""Hooks of mkdocs: the generated pages of the reference, and links to files outside docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from reference_pages import generate_pages

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are derived from the code."""
    for name, text in generate_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Change links that are written for readers of the repository.

    A link to a file outside docs/ becomes the file's path, because the site does not hold the file.
    A link whose text is the name of a page gets the title of the page.
    """
    docs = Path(config.docs_dir)
    folder = (docs / page.file.src_uri).parent

    def replace_link(match: re.Match[str]) -> str:
        text, path, anchor = match[1], match[2], match[3] or ""
        target = (folder / path).resolve()
        if not target.is_relative_to(docs):
            return f"`{target.relative_to(docs.parent)}`"
        if target.exists() and text.rpartition("/")[2] == target.name:
            return f"[{read_title(target)}]({path}{anchor})"
        return match[0]

    return LINK.sub(replace_link, markdown)


def read_title(page: Path) -> str:
    """Return the text of the first heading of a page."""
    title = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return title[1] if title else page.stem

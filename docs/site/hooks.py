"""Hooks of mkdocs: the generated pages of the reference, and links to files outside docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from reference_pages import generate_pages

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are derived from the code."""
    for name, text in generate_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Show a link to a file outside docs/ as the file's path: the site does not hold the file."""
    docs = Path(config.docs_dir)
    folder = (docs / page.file.src_uri).parent

    def replace_link(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        return match[0] if target.is_relative_to(docs) else f"`{target.relative_to(docs.parent)}`"

    return LINK.sub(replace_link, markdown)

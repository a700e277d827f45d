"""The documentation site: pages, links, anchors; the reference agrees with the code; it builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import antlm_bench
from antlm_bench.cli.app import build_command
from antlm_bench.errors import BenchError
from antlm_bench.sweeps.declaration import SweepDeclaration
from antlm_bench.training.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NAVIGATION = re.findall(
    r"^ +- (?:[^:\n]+: )?(\S+\.md)$",
    (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1],
    re.MULTILINE,
)
WRITTEN = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@cache
def read_generated_pages() -> dict[str, str]:
    specification = importlib.util.spec_from_file_location(
        "reference_pages", DOCS / "site" / "reference_pages.py"
    )
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    pages: dict[str, str] = module.generate_pages()
    return pages


@cache
def read_pages() -> dict[str, str]:
    """Return page -> Markdown of the whole site, without code blocks."""
    written = {name: (DOCS / name).read_text(encoding="utf-8") for name in WRITTEN}
    pages = {**written, **read_generated_pages()}
    fence = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
    return {name: fence.sub("", text) for name, text in pages.items()}


def list_anchors(markdown: str) -> set[str]:
    """Return the ids of headings, as GitHub and the site make them."""
    anchors = set()
    for heading in re.findall(r"^#+ (.*)$", markdown, re.MULTILINE):
        explicit = re.search(r"\{ *#(\S+) *\}", heading)
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        anchors.add(explicit[1] if explicit else words.strip().replace(" ", "-"))
    return anchors | set(re.findall(r'<a id="([^"]+)"', markdown))


def iter_links(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield (path, anchor) of the links that stay in the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("page", sorted({*WRITTEN, *read_generated_pages()}))
def test_links_and_anchors_lead_somewhere(page: str) -> None:
    pages = read_pages()
    broken = []
    for path, anchor in iter_links(pages[page]):
        target = (DOCS / page).parent / path if path else DOCS / page
        name = os.path.relpath(target, DOCS)
        if name not in pages and not target.exists():
            broken.append(path)
        elif anchor and name in pages and anchor not in list_anchors(pages[name]):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_the_navigation_has_every_page_once() -> None:
    assert sorted(NAVIGATION) == sorted({*WRITTEN, *read_generated_pages()})


def test_the_reference_has_every_command_and_option() -> None:
    page = read_generated_pages()["reference/cli.md"]
    root = build_command()
    for name, command in root.commands.items():
        for full_name, leaf in getattr(command, "commands", {}).items() or [("", command)]:
            heading = f"## `{name} {full_name}`" if full_name else f"## `{name}`"
            section = page.split(f"{heading} ", 1)[1].split("\n## ", 1)[0]
            options = [
                option
                for parameter in leaf.params
                for option in parameter.opts
                if option.startswith("--") and option != "--help" and not parameter.hidden
            ]
            missing = [o for o in options if not re.search(rf"[`\s]{o}[`,\s]", section)]
            assert not missing, (name, full_name)


def test_the_reference_states_defaults_and_choices() -> None:
    section = read_generated_pages()["reference/cli.md"].split("## `check` ")[1].split("\n## ")[0]
    assert "`--fail-on regression|drop`" in section
    assert "Exit code 1 for a drop larger than the margin" in section
    assert "*Default: regression.*" in section or "*Default: `regression`.*" in section
    assert "`RUN`\n:   Run folder. *Required.*" in section


def test_the_errors_have_the_exit_codes_of_their_classes() -> None:
    page = read_generated_pages()["reference/api.md"]
    documented = re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE)
    errors = {error.__name__: error.exit_code for error in BenchError.__subclasses__()}
    assert {name: int(code) for name, code in documented} == errors


def test_the_python_reference_has_every_public_name() -> None:
    names = re.findall(
        r"^::: antlm_bench\.(\w+)$", read_generated_pages()["reference/api.md"], re.M
    )
    assert sorted([*names, "__version__"]) == sorted(antlm_bench.__all__)


@pytest.mark.parametrize(
    ("page", "declaration"),
    [("reference/recipe-toml.md", Recipe), ("reference/sweep-toml.md", SweepDeclaration)],
)
def test_the_reference_has_every_key_of_a_toml(page: str, declaration: type) -> None:
    text = read_generated_pages()[page]
    assert all(f"\n`{name}` · " in text for name in declaration.model_fields)  # type: ignore[attr-defined]


def test_the_run_folder_page_has_every_key_of_run_json() -> None:
    text = read_generated_pages()["reference/run-json.md"]
    keys = ("model", "software", "settings", "summary", "headline", "low", "within", "num_clusters")
    assert all(f"| `{key}` | " in text for key in keys)
    assert "| `scores` | `list<float64>` | " in text
    assert not re.findall(r"^.*\|\s*\|$", text, re.MULTILINE), "a field without a meaning"


def test_the_reference_is_generated_without_torch() -> None:
    code = (
        "import sys; sys.path.insert(0, 'docs/site'); import reference_pages as pages;"
        "pages.generate_pages(); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.split() == ["False", "False"], process.stderr


@pytest.mark.long
def test_the_site_builds_with_strict_links_and_loads_nothing(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    loaded = (
        r"<(?:script|img|iframe)[^>]* src=\"https?:|<link[^>]* href=\"https?:|@import url\(http"
    )
    assert not [path for path, text in pages.items() if re.search(loaded, text)]
    reference = pages[tmp_path / "reference" / "api.html"]
    names = [name for name in antlm_bench.__all__ if name != "__version__"]
    assert not [name for name in names if f'id="antlm_bench.{name}"' not in reference]

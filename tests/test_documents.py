"""The documents agree with the code: tables are compared, named files exist."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from documented_pages import read_code

from antlm_bench.cli.app import EXIT_CODES_HELP, build_app, normalize_argv
from antlm_bench.cli.score import score_command
from antlm_bench.commands.catalog import list_catalog
from antlm_bench.errors import BenchError
from antlm_bench.scoring.conventions import PEER_CONVENTIONS, ScoringConventions
from antlm_bench.scoring.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES]


def read_document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def read_table(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below `heading`, without its header."""
    below = read_document(document).split(heading, 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


def test_the_compat_table_is_the_one_in_force() -> None:
    """A row that names no method applies to all of them."""
    documented: dict[str, dict[str, ScoringConventions]] = {}
    for names, bos, context_bos, eos, ties, decides, before, joiner, lengths, softmax in read_table(
        "docs/reference/conventions.md", "## `--compat`"
    ):
        name, _, only = names.partition(", ")
        reduction = {"sum": "sum", "mean per token": "per-token", "what the suite says": ""}[
            decides
        ]
        policy = ScoringConventions(
            bos=bos.strip("`"),
            bos_before_context=context_bos.strip("`").replace("the same", ""),
            eos={"–": "", "scored": "all", "after a context, scored": "context"}[eos],  # type: ignore[arg-type]
            ties=ties.strip("`"),
            reduction=reduction,
            context="eos" if before.startswith("EOS or `None`") else "",
            delimiter=" " if "a space" in before else "",
            joiner=" " if joiner == "a space more" else "",
            lengths=lengths.strip("`"),
            softmax=softmax,
        )
        documented.setdefault(name.strip("`"), {}).update(
            dict.fromkeys([only] if only else ["causal", "masked"], policy)
        )
    in_force = {"(none)": ScoringConventions(), **PEER_CONVENTIONS}
    assert documented == {
        name: {
            "causal": policy.for_method(METHODS["causal"]),
            "masked": policy.for_method(METHODS["mlm"]),
        }
        for name, policy in in_force.items()
    }


def test_the_page_counts_the_suites_that_are_shipped() -> None:
    documented: dict[str, str] = {}
    for names, items, _ in read_table("docs/reference/suites.md", "# Suites\n"):
        suite_names = re.findall(r"`([^`]+)`", names)
        for name, count in zip(suite_names, re.findall(r"\d+(?:,\d{3})*", items), strict=True):
            documented[
                suite_names[0].removesuffix("-2025") + name if name.startswith("-") else name
            ] = count
    for names, language, items, licence, _ in read_table(
        "docs/reference/suites.md", "# Suites by other"
    ):
        documented[names.strip("`")] = items
        assert language and licence
    del documented["multiblimp-CODE"]
    assert documented == {
        str(row["suite"]): f"{row['items']:,}" if row["items"] else "–"
        for row in list_catalog("suites")
        if not str(row["suite"]).startswith("multiblimp-")
    }


def test_other_authors_languages_are_those_of_the_declarations() -> None:
    documented = {
        names.strip("`"): language
        for names, language, *_ in read_table("docs/reference/suites.md", "# Suites by other")
    }
    del documented["multiblimp-CODE"]
    languages = {row["suite"]: row["language"] for row in list_catalog("suites")}
    assert documented == {name: languages[name] for name in documented}


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    documented = {
        int(code) for code, _ in read_table("docs/reference/exit-codes.md", "# Exit codes")
    }
    assert {error.exit_code for error in BenchError.__subclasses__()} <= documented


def test_the_help_lists_the_documented_exit_codes() -> None:
    documented = {code for code, _ in read_table("docs/reference/exit-codes.md", "# Exit codes")}
    assert set(re.findall(r"\b\d+\b", EXIT_CODES_HELP)) == documented


@pytest.mark.parametrize("option", ["bos", "ties", "compat", "dtype", "precision"])
def test_the_page_lists_the_values_of_an_option(option: str) -> None:
    annotation = inspect.signature(score_command).parameters[option].annotation
    values = re.findall(r"'([^']+)'", str(annotation).split("Literal[")[1].split("]")[0])
    [row] = [
        cells[1]
        for cells in read_table("docs/reference/options.md", "These options can change a score")
        if f"`--{option}`" in cells[0]
    ]
    assert set(values) <= set(re.findall(r"`([^`]+)`", row))


def test_pictures_are_small_and_shown_in_a_document() -> None:
    text = "".join(map(read_document, DOCUMENTS))
    pictures = [path for path in (ROOT / "docs/images").iterdir() if path.suffix != ".py"]
    assert len(pictures) >= 3
    for picture in pictures:
        assert picture.stat().st_size < 150_000
        assert f"images/{picture.name})" in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    base = (ROOT / document).parent
    links = [
        link for link in re.findall(r"\]\(([^)#]+)\)", read_document(document)) if "://" not in link
    ]
    named = re.findall(
        r"`((?:tests|docs|tasks|examples|benchmarks)/[\w./-]*\w)`", read_document(document)
    )
    # test_site.py checks the links of pages in docs/, some of which lead to generated pages.
    links = [] if document.startswith("docs/") else links
    missing = [link for link in links if not (base / link).exists()]
    assert not missing + [name for name in named if not (ROOT / name).exists()]


def test_every_module_is_in_the_documented_tree() -> None:
    tree = read_document("ARCHITECTURE.md").split("## Tree", 1)[1].split("## Layers", 1)[0]
    names = {
        path.relative_to(ROOT / "antlm_bench").parts[0].removesuffix(".py")
        for path in ROOT.glob("antlm_bench/*/*.py")
    }
    names |= {path.stem for path in ROOT.glob("antlm_bench/*.py") if not path.stem.startswith("__")}
    assert not [name for name in names if not re.search(rf"\b{name}\b", tree)]


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports test files by base name: two of the same name hide each other."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not sorted({name for name in names if names.count(name) > 1})


@pytest.mark.parametrize("document", ["README.md", *PAGES])
def test_documented_commands_have_the_options_of_the_command_line(document: str) -> None:
    root: Any = typer.main.get_command(build_app())
    blocks = read_code(read_document(document), "sh", "bash")
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line.partition(" | ")[0], comments=True)
        if words[:1] != ["antlm-bench"]:
            continue
        command, arguments = root, normalize_argv(words[1:])
        while arguments and arguments[0] in getattr(command, "commands", {}):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        command.make_context(line, arguments)  # raises for a missing or an unknown option

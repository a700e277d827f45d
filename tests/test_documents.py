"""The documents say what the code does: tables are compared, places are looked up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from antlm_bench.commands.list import list_catalog
from antlm_bench.errors import BenchError
from antlm_bench.scoring.conventions import PEER_CONVENTIONS, ScoringConventions
from antlm_bench.scoring.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/conventions.md",
    "docs/ci.md",
    "docs/submit.md",
]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a line that holds `heading`."""
    below = text(document).split(heading, 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


def test_the_compat_table_is_the_one_in_force() -> None:
    """A row without a word on methods holds for all of them."""
    documented: dict[str, dict[str, ScoringConventions]] = {}
    for names, bos, context_bos, eos, ties, decides, before, joiner, lengths, softmax in rows(
        "docs/conventions.md", "## `--compat`"
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


def test_the_readme_counts_the_suites_that_are_shipped() -> None:
    counted: dict[str, str] = {}
    for names, items, _ in rows("README.md", "## Suites and their data"):
        found = re.findall(r"`([^`]+)`", names)
        for name, count in zip(found, re.findall(r"\d+(?:,\d{3})*", items), strict=True):
            counted[found[0].removesuffix("-2025") + name if name.startswith("-") else name] = count
    assert counted == {row["suite"]: f"{row['items']:,}" for row in list_catalog("suites")}


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    documented = {int(code) for code, _ in rows("README.md", "## Exit codes")}
    assert {error.exit_code for error in BenchError.__subclasses__()} <= documented


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    base = (ROOT / document).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text(document)) if "://" not in link]
    named = re.findall(r"`((?:tests|docs|tasks|examples|benchmarks)/[\w./-]*\w)`", text(document))
    missing = [link for link in links if not (base / link).exists()]
    assert not missing + [name for name in named if not (ROOT / name).exists()]


def test_every_module_stands_in_the_tree() -> None:
    tree = text("ARCHITECTURE.md").split("## Tree", 1)[1].split("## Layers", 1)[0]
    places = {
        path.relative_to(ROOT / "antlm_bench").parts[0].removesuffix(".py")
        for path in ROOT.glob("antlm_bench/*/*.py")
    }
    places |= {
        path.stem for path in ROOT.glob("antlm_bench/*.py") if not path.stem.startswith("__")
    }
    assert not [place for place in places if not re.search(rf"\b{place}\b", tree)]


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by name alone: two of one name hide each other."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not sorted({name for name in names if names.count(name) > 1})

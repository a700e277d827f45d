"""CITATION.cff and the issue forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from antlm_bench import __version__

ROOT = Path(__file__).resolve().parent.parent
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
FIELD_TYPES = ("markdown", "input", "textarea", "dropdown", "checkboxes")


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["authors"] == [{"name": "The antlm-bench authors"}]
    assert citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", ["wrong-number", "crash", "new-suite"])
def test_an_issue_form_has_the_fields_that_github_requires(name: str) -> None:
    form = yaml.safe_load((FORMS / f"{name}.yml").read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    for field in form["body"]:
        assert field["type"] in FIELD_TYPES
        needed = "value" if field["type"] == "markdown" else "label"
        assert field["attributes"][needed]
    ids = [field["id"] for field in form["body"] if "id" in field]
    assert len(ids) == len(set(ids))

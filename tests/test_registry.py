"""Registries: shipped records and those of installed packages are entries alike."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from antlm_bench.errors import UsageError
from antlm_bench.registry import Registry


@dataclass(frozen=True)
class Fruit:
    name: str


SHIPPED = {"apple": f"{__name__}:APPLE", "pear": f"{__name__}:PEAR"}
APPLE, PEAR = Fruit("apple"), Fruit("pear")


def registry() -> Registry[Fruit]:
    return Registry("fruit", "antlm_bench_test.fruits", SHIPPED, "antlm-bench list fruits")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """install(code, entries): a package on the path that declares these entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code: str, entries: str) -> None:
        (tmp_path / "orchard.py").write_text(code)
        info = tmp_path / "orchard-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: orchard\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[antlm_bench_test.fruits]\n{entries}\n")

    yield write
    sys.modules.pop("orchard", None)


CODE = """
from collections import namedtuple
F = namedtuple('F', 'name')
FIG, PLUM = F('fig'), F('plum')
"""


def test_records_come_in_order_ours_first(install):
    install(CODE, "plum = orchard:PLUM\nfig = orchard:FIG")
    fruits = registry()
    assert fruits.names() == ("apple", "pear", "fig", "plum")
    assert [fruit.name for fruit in fruits] == ["apple", "pear", "fig", "plum"]
    assert fruits["pear"] is PEAR and "fig" in fruits and "cherry" not in fruits


def test_a_name_imports_its_own_record_only(install):
    install("raise ImportError('no sun')", "fig = orchard:FIG")
    fruits = registry()
    assert fruits["apple"] is APPLE and "fig" in fruits.names()
    with pytest.raises(UsageError, match="'fig' of the package orchard cannot be imported: no sun"):
        fruits["fig"]


def test_an_unknown_name_suggests_the_nearest_name_and_the_list():
    with pytest.raises(UsageError) as error:
        registry()["aple"]
    assert error.value.message == "unknown fruit 'aple'"
    assert error.value.hint == "Did you mean 'apple'? List all: antlm-bench list fruits"


def test_a_package_cannot_take_a_name_of_ours(install):
    install(CODE, "apple = orchard:FIG")
    with pytest.raises(UsageError, match="orchard adds a fruit named 'apple'"):
        registry().names()


def test_an_entry_point_has_the_name_of_its_record(install):
    install(CODE, "lime = orchard:FIG")
    with pytest.raises(UsageError, match="'lime' of orchard points to a record named 'fig'"):
        registry()["lime"]


def test_a_record_can_be_added_in_a_process():
    fruits = registry()
    fruits.add(Fruit("kiwi"))
    assert fruits["kiwi"] == Fruit("kiwi") and fruits.names()[-1] == "kiwi"
    with pytest.raises(UsageError, match="a fruit named 'apple' exists already"):
        fruits.add(Fruit("apple"))

"""Declarations: an error in a TOML names the file, the key and the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antlm_bench.declarations import (
    Declaration,
    TomlTuple,
    find_declaration,
    list_declarations,
    parse_toml,
    read_toml,
    suggest_name,
    validate_tables,
)
from antlm_bench.errors import DeclarationError


class Wheel(Declaration):
    size: int
    spokes: TomlTuple[str] = ()


class Bicycle(Declaration):
    name: str
    gears: float = 1.0
    front: Wheel
    more: dict[str, Wheel] = {}  # noqa: RUF012


GOOD = 'name = "Rosinante"\n[front]\nsize = 28\nspokes = ["a", "b"]\n'


def write_toml(folder: Path, content: str | bytes) -> Path:
    path = folder / "bicycle.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_valid_declaration_is_read_and_frozen(tmp_path: Path) -> None:
    bicycle = read_toml(write_toml(tmp_path, GOOD), Bicycle)
    assert bicycle == Bicycle(name="Rosinante", front=Wheel(size=28, spokes=("a", "b")))
    assert read_toml(write_toml(tmp_path, "\ufeff" + GOOD), Bicycle) == bicycle
    with pytest.raises(ValueError, match="frozen"):
        bicycle.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "location", "message"),
    [
        (
            GOOD.replace("size", "syze"),
            "bicycle.toml: front",
            "unknown key 'syze': did you mean 'size'?",
        ),
        (
            GOOD + "[more.back]\nsize = 1\nwrong = 2\n",
            "bicycle.toml: more.back",
            "valid keys: size, spokes",
        ),
        (GOOD.replace("28", '"28"'), "bicycle.toml: front.size", "valid integer"),
        (GOOD.replace("28", "true"), "bicycle.toml: front.size", "valid integer"),
        (GOOD.replace("28", "1979-05-27"), "bicycle.toml: front.size", "valid integer"),
        (GOOD.replace('"b"', "2"), "bicycle.toml: front.spokes.1", "valid string"),
        ("gears = nan\n" + GOOD, "bicycle.toml: gears", "finite number"),
        (GOOD.replace('name = "Rosinante"', ""), "bicycle.toml: name", "required"),
        ("name = \n", "bicycle.toml:1", "not valid TOML"),
        (GOOD + "\n\nfront = 3 = 4", "bicycle.toml:7", "not valid TOML"),
        ("name = 'a'\nname = 'b'", "bicycle.toml", "not valid TOML"),
        (b'ok = 1\nname = "\xe4"', "bicycle.toml:2", "not UTF-8: byte 0xe4 at offset 15"),
        (f"gears = {'9' * 5000}\n{GOOD}", "bicycle.toml", ""),
        (f"gears = {'[' * 5000}", "bicycle.toml", ""),
    ],
)
def test_an_invalid_declaration_names_the_location(
    tmp_path: Path, content: str | bytes, location: str, message: str
) -> None:
    path = write_toml(tmp_path, content)
    with pytest.raises(DeclarationError) as caught:
        read_toml(path, Bicycle)
    assert caught.value.location.startswith(str(tmp_path / location))
    assert message in caught.value.message


def test_an_unreadable_file_is_one_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / ("x" * 400)):
        with pytest.raises(DeclarationError, match="cannot be read"):
            read_toml(path, Bicycle)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("there.toml", "did you mean 'their.toml'?"),
        ("b.toml", "holds a.toml, their.toml"),
        ("no/x.toml", "there is no folder"),
        ("empty/x.toml", "holds no .toml"),
    ],
)
def test_a_missing_file_hints_at_those_that_are_there(name: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for other in ("a.toml", "their.toml"):
        (tmp_path / other).touch()
    for read in (parse_toml, lambda path: find_declaration("tasks", str(path))):
        with pytest.raises(DeclarationError, match="there is no such file") as error:
            read(tmp_path / name)
        assert hint in error.value.hint


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(DeclarationError, match=r"\(and 1 more\)"):
        validate_tables({"name": 1, "front": {"size": "x"}}, Bicycle, Path("b.toml"))


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(st.text() | st.binary(max_size=60))
def test_any_text_is_a_declaration_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    try:
        raw = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError:
        return
    path = write_toml(tmp_path_factory.getbasetemp(), raw)
    with pytest.raises(DeclarationError) as caught:  # random text has no `front`
        read_toml(path, Bicycle)
    assert str(path) in caught.value.location


def test_user_folders_override_the_shipped_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = list_declarations("tasks")
    assert {"blimp", "nano", "zero-shot-2026"} <= set(shipped)
    assert list(shipped) == sorted(shipped)
    own = tmp_path / "tasks" / "blimp.toml"
    own.parent.mkdir()
    own.write_text("")
    monkeypatch.setenv("ANTLM_BENCH_PATH", f"{tmp_path / 'none'}:{tmp_path}")
    assert list_declarations("tasks") == {**shipped, "blimp": own}
    assert find_declaration("tasks", "blimp") == own


def test_the_current_directory_is_never_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.toml").write_text("")
    (tmp_path / "mine.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeclarationError, match="unknown suite 'mine'"):
        find_declaration("tasks", "mine")
    assert find_declaration("tasks", "mine.toml") == Path("mine.toml")  # a path is a path


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(DeclarationError) as caught:
        find_declaration("tasks", "Blmp")
    assert caught.value.hint == "did you mean 'blimp'?"
    for ref in ("./nothing.toml", "~nobody-here/x.toml", "x\0.toml", "y" * 5000 + ".toml"):
        with pytest.raises(DeclarationError, match="no such file"):
            find_declaration("tasks", ref)
    assert suggest_name("zzz", ["blimp"]) == ""

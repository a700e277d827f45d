"""Several revisions of a model on the hub: lists, patterns, `id@revision`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from score_helpers import make_agreement_rows, write_pairs

from antlm_bench.checkpoints import OpenOptions, expand_refs, resolve
from antlm_bench.checkpoints.resolve import split_revision
from antlm_bench.commands.score import score
from antlm_bench.errors import CheckpointError, UsageError

Make = Callable[..., Path]
BRANCHES, TAGS = ("main", "chck_100M", "chck_2M"), ("chck_10M", "v1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, make_checkpoint: Make) -> Iterator[list[str]]:
    """A hub with the model org/model, whose revisions have different weights; yields downloads."""
    downloads: list[str] = []

    def list_refs(_: object, repo_id: str) -> SimpleNamespace:
        if repo_id != "org/model":
            raise OSError("404")
        branches, tags = ([SimpleNamespace(name=n) for n in names] for names in (BRANCHES, TAGS))
        return SimpleNamespace(branches=branches, tags=tags)

    def download(repo_id: str, revision: str | None = None, **_: object) -> str:
        downloads.append(f"{repo_id}@{revision}")
        return str(make_checkpoint(seed=len(str(revision))))

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", list_refs)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve._list_revisions.cache_clear()
    yield downloads
    resolve._list_revisions.cache_clear()


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        (None, ["org/model"]),
        ("main", ["org/model"]),  # one revision stays an option
        ("chck_*M", ["org/model@chck_2M", "org/model@chck_10M", "org/model@chck_100M"]),
        ("v1,main", ["org/model@v1", "org/model@main"]),
        ("main,chck_2*,main", ["org/model@main", "org/model@chck_2M"]),
    ],
)
def test_revisions_become_references(
    hub: list[str], revision: str | None, expected: list[str]
) -> None:
    assert expand_refs(["org/model"], revision) == expected


def test_a_pattern_without_a_match_lists_the_revisions(hub: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"no revision matches 'step\*'.*\n.*chck_100M"):
        expand_refs(["org/model"], "step*")


def test_revisions_that_cannot_be_listed_are_an_error(hub: list[str]) -> None:
    with pytest.raises(CheckpointError, match="org/absent: its revisions cannot be listed: 404"):
        expand_refs(["org/absent"], "chck_*")


def test_a_folder_has_no_revisions(hub: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="local folder, which has no revisions"):
        expand_refs([str(tmp_path)], "a,b")


def test_a_reference_can_name_its_revision(tmp_path: Path) -> None:
    options = OpenOptions(revision="main")
    assert split_revision("org/model", options) == ("org/model", options)
    assert split_revision("org/model@v1", options) == ("org/model", OpenOptions(revision="v1"))
    folder = tmp_path / "odd@name"
    folder.mkdir()
    assert split_revision(str(folder), options) == (str(folder), options)


def test_every_milestone_on_the_hub_is_scored(hub: list[str], tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", make_agreement_rows(4))
    runs = score("org/model", str(pairs), revision="chck_*M", out=tmp_path / "out")
    assert [run.manifest.model["revision"] for run in runs] == ["chck_2M", "chck_10M", "chck_100M"]
    assert hub == [f"org/model@{name}" for name in ("chck_2M", "chck_10M", "chck_100M")]
    assert [run.manifest.model["name"] for run in runs] == [
        "org/model@chck_2M",
        "org/model@chck_10M",
        "org/model@chck_100M",
    ]

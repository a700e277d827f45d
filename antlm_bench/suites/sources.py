"""Where the bytes of a suite are: the user's data folder, else the cache, else the official place; always checked.

Order: ANTLM_BENCH_DATA, the folder of a user's own TOML, the cache (ANTLM_BENCH_CACHE, else the platform's), download.
A file counts only if its unpacked bytes have the published sha256; where none is published, its rows are counted and
the sha256 of the first download is kept beside it. A download is checked before it is stored, and stored at once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from antlm_bench.declarations import decode_utf8, user_path
from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.suites import derivation, download, files
from antlm_bench.suites.spec import DataSpec, FileSpec, SourceSpec

OFFLINE = ("ANTLM_BENCH_OFFLINE", "HF_HUB_OFFLINE")


class WithFiles(Protocol):
    """A suite of any kind, as far as its files go; one that generates its own items has no data."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> DataSpec | None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """The unpacked bytes of a file, and where they lie (as an error names it)."""

    raw: bytes
    place: str


@dataclass(frozen=True, slots=True)
class Row:
    """One file of a suite. size: bytes on disk. state: absent | here (present, not read) | verified (has the published
    sha256) | complete (none is published; the rows are all there) | incomplete | differs | damaged."""

    file: str
    state: str
    path: Path | None = None
    size: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file to find: of the suite itself, or the word list of a derivation."""

    suite: str
    file: str
    where: tuple[str, ...]
    sources: tuple[SourceSpec, ...]
    known: FileSpec
    password: str | None = None

    def paths(self, root: Path) -> Iterator[tuple[Path, str]]:
        """(path, member of the zip there or "") under a root, in the order of search."""
        for pattern in self.where:
            path, _, member = pattern.format(file=self.file, stem=self.file.rpartition(".")[0]).partition("!")
            yield root / path, member


# ---- what commands use -------------------------------------------------------------------------------------------


def locate(spec: WithFiles, file: str, folder: Path | None = None) -> Found:
    """The bytes of one file; downloaded into the cache if need be. `folder`: that of the suite's TOML.

    Raises DataError: absent (which file, from where, where to put it), damaged, not the official bytes, not storable.
    """
    wanted = _wanted(spec, file)
    return _search(wanted, roots(folder)) or _download(spec, wanted, cache())


def local(spec: WithFiles, file: str, known: FileSpec, folder: Path | None = None) -> Found | None:
    """The bytes of a file that lies where those of the suite lie, but is none of them; never fetched. As `locate`."""
    assert spec.data is not None  # as in _wanted
    return _search(_Wanted(spec.name, file, spec.data.where, (), known, spec.data.password), roots(folder))


def status(spec: WithFiles, folder: Path | None = None) -> list[Row]:
    """Which files are present where; reads none of them. A generated suite has none."""
    return _status(spec, roots(folder))


def verify(spec: WithFiles, folder: Path | None = None) -> list[Row]:
    """Every file read and compared with what is published; never downloads, never raises for a bad file."""
    return _verify(spec, roots(folder))


def fetch(spec: WithFiles, to: Path | None = None) -> list[Row]:
    """Download what is missing or bad into `to` (else the cache); `to` then serves as ANTLM_BENCH_DATA. As `locate`."""
    root, places = (to, [to]) if to else (cache(), roots())
    for file in spec.data.files if spec.data else ():
        wanted = _wanted(spec, file)
        try:
            good = _search(wanted, places)
        except DataError as error:
            if not error.place.startswith(str(root)):
                raise  # the user's own folder is the user's
            good = None
        if not good:
            _download(spec, wanted, root)
    return _verify(spec, places)


def roots(folder: Path | None = None) -> list[Path]:
    """The data roots that are searched, in order. UsageError where ANTLM_BENCH_DATA names no folder."""
    found = []
    if own := os.environ.get("ANTLM_BENCH_DATA"):
        found.append(user_path(own))
        if not found[0].is_dir():
            raise UsageError(f"{own!r} is not a folder", place="ANTLM_BENCH_DATA")
    return [*found, *([folder] if folder else []), cache()]


def cache() -> Path:
    """The cache folder (it need not exist): ANTLM_BENCH_CACHE, else the platform's place for caches."""
    if own := os.environ.get("ANTLM_BENCH_CACHE"):
        return user_path(own)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "antlm-bench"


def offline() -> str:
    """The environment variable that forbids the net, or nothing."""
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}), "")


# ---- looking -----------------------------------------------------------------------------------------------------


def _wanted(spec: WithFiles, file: str) -> _Wanted:
    assert spec.data is not None  # callers come from spec.data.files
    data = spec.data
    return _Wanted(spec.name, file, data.where, data.sources, data.files[file], data.password)


def _present(wanted: _Wanted, places: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for root in places:
        for path, member in wanted.paths(root):
            for candidate in (path, path.with_name(f"{path.name}.gz")):
                with suppress(OSError, ValueError):
                    if candidate.is_file():
                        yield candidate, member


def _search(wanted: _Wanted, places: Iterable[Path]) -> Found | None:
    for path, member in _present(wanted, places):
        raw = files.read(path)
        if member:
            found = Found(files.member(raw, member, wanted.password, str(path)), f"{path}!{member}")
        else:
            found = Found(raw, str(path))
        _check(found, wanted.known, path)
        return found
    return None


def _check(found: Found, known: FileSpec, path: Path) -> None:
    """DataError where the bytes are not those that are published, or not those of the first download to `path`."""
    want, of = known.sha256, "the published file"
    pin = _pin(path)
    if not want and pin.is_file():
        want, of = pin.read_text(encoding="ascii", errors="replace").split(" ")[0], "the first download"
    if want and (have := hashlib.sha256(found.raw).hexdigest()) != want:
        message = f"wrong hash, not the bytes of {of}: sha256 {have[:12]}..., expected {want[:12]}..."
        raise DataError(message, place=found.place, hint=files.AGAIN)


def _pin(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _status(spec: WithFiles, places: list[Path]) -> list[Row]:
    rows = []
    for file in spec.data.files if spec.data else ():
        path = next((path for path, _ in _present(_wanted(spec, file), places)), None)
        rows.append(Row(file, "here", path, path.stat().st_size) if path else Row(file, "absent"))
    return rows


def _verify(spec: WithFiles, places: list[Path]) -> list[Row]:
    rows = _status(spec, places)
    return [_verified(_wanted(spec, row.file), row, places) if row.path else row for row in rows]


def _verified(wanted: _Wanted, row: Row, places: list[Path]) -> Row:
    try:
        found = _search(wanted, places)
    except BenchError as error:
        state = "differs" if error.message.startswith("wrong hash") else "damaged"
        return replace(row, state=state, detail=error.message)
    assert found is not None  # _status saw it
    if wanted.known.sha256:
        return replace(row, state="verified")
    have, want = files.rows(found.raw), wanted.known.rows
    if want and have != want:
        return replace(row, state="incomplete" if have < want else "differs", detail=f"{have} of {want} rows")
    return replace(row, state="complete", detail="no sha256 is published")


# ---- fetching ----------------------------------------------------------------------------------------------------


def _download(spec: WithFiles, wanted: _Wanted, root: Path) -> Found:
    if forbidden := offline():
        raise _absent(wanted, f"and {forbidden} forbids to fetch it")
    if not wanted.sources:
        raise _absent(wanted, "and its declaration names no source")
    failed: list[BenchError] = []
    for source in wanted.sources:
        try:
            if source.hub and source.config:
                return _keep(wanted, _rows(wanted, source), root, source.place)
            if source.hub:
                return _derive(spec, wanted, source, root)
            if source.http:
                raw = download.get(source.http.format(file=wanted.file))
            else:
                raw = download.osf(str(source.osf), str(source.path).format(file=wanted.file))
            return _keep(wanted, raw, root, source.place.format(file=wanted.file))
        except DataError as error:
            failed.append(error)
    by_hand = _absent(wanted, "").hint
    if len(failed) == 1:
        [only] = failed
        raise DataError(only.message, place=only.place, hint="; ".join(h for h in (only.hint, by_hand) if h))
    why = "; ".join(f"{error.place}: {error.message}" for error in failed)
    message = f"{wanted.file} could not be fetched from any of {len(failed)} places: {why}"
    raise DataError(message, place=wanted.suite, hint=by_hand)


def _keep(wanted: _Wanted, raw: bytes, root: Path, origin: str) -> Found:
    """Check a download, then store it: an archive as it is, any other file packed (EWoK and entity tracking ask that
    no plain copies lie about), with its sha256 beside it where none is published."""
    path, member = next(wanted.paths(root))
    if member:
        found = Found(files.member(raw, member, wanted.password, origin), f"{path}!{member}")
        _check(Found(found.raw, origin), wanted.known, path)
        files.store(path, raw)
        return found
    path = path.with_name(f"{path.name}.gz")
    _check(Found(raw, origin), wanted.known, path)
    if not wanted.known.sha256:
        if wanted.known.rows not in (None, files.rows(raw)):
            raise DataError(f"{files.rows(raw)} rows of {wanted.known.rows}: not the official file", place=origin)
        files.store(_pin(path), f"{hashlib.sha256(raw).hexdigest()}  {wanted.file}\n".encode())
    files.store(path, gzip.compress(raw, mtime=0))
    return Found(raw, str(path))


def _rows(wanted: _Wanted, source: SourceSpec) -> bytes:
    """A file as the hub has it: the rows of one configuration and split, as JSON."""
    config, _, split = wanted.file.rpartition(".")[0].partition(".")
    named = [str(template).format(config=config, split=split) for template in (source.config, source.split)]
    rows = hub_rows(str(source.hub), named[1], source.revision, source.place, named[0])
    return "".join(f"{json.dumps(dict(row))}\n" for row in rows).encode()


def _derive(spec: WithFiles, wanted: _Wanted, source: SourceSpec, root: Path) -> Found:
    """Make all files of a hub suite at once, store them, return the wanted one."""
    assert spec.data is not None and spec.data.derive is not None  # DataSpec: hub goes with derive
    rule = spec.data.derive.vocabulary
    words = _Wanted(spec.name, rule.file, rule.where, rule.sources, FileSpec(sha256=rule.sha256))
    listed = _search(words, [*roots(), root]) or _download(spec, words, root)
    text = decode_utf8(listed.raw, listed.place, DataError)
    vocabulary = (line.strip() for line in text.split("\n"))
    rows = hub_rows(str(source.hub), source.split, source.revision, source.place)
    made = derivation.derive(rows, spec.data.derive, vocabulary, source.place)
    if made.keys() != spec.data.files.keys():
        odd = ", ".join(sorted(made.keys() ^ spec.data.files.keys()))
        raise DataError(f"the hub's rows do not give the files that are declared: {odd}", place=source.place)
    kept = {file: _keep(_wanted(spec, file), raw, root, source.place) for file, raw in made.items()}
    return kept[wanted.file]


def hub_rows(
    ref: str, split: str | None, revision: str | None = None, place: str = "", config: str | None = None
) -> Iterable[Mapping[str, Any]]:
    """The rows of a hub dataset's split. DataError, naming `place`, where it cannot be had."""
    import datasets

    place = place or f"https://huggingface.co/datasets/{ref}"
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(ref, config, split=split, revision=revision)
    except Exception as error:  # the hub's clients raise dozens of types; whatever it is, this file is not to be had
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        hint = f"if it is gated: accept the terms at {place}, and set HF_TOKEN"
        raise DataError(f"the hub does not give it ({reason})", place=place, hint=hint) from None
    return rows


def _absent(wanted: _Wanted, why: str) -> DataError:
    here, _ = next(wanted.paths(roots()[0]))
    places = " or ".join(source.place.format(file=wanted.file) for source in wanted.sources)
    hint = f"put it at {here} (or that with .gz)" + (f"; it comes from {places}" if places else "")
    return DataError(f"{wanted.file} of {wanted.suite!r} is absent {why}", place=wanted.suite, hint=hint)

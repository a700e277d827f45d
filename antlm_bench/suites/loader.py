"""A suite by name or file -> its items: the one way from data to the questions that a model is asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench.declarations import catalog, find, shipped, user_path
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge import tasks
from antlm_bench.suites import grammar, pairs_csv, reading_times_spec, records, sources, syntaxgym
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.names import absolute
from antlm_bench.suites.spec import OptionSpec, SuiteSpec, read
from antlm_bench.suites.templates import clean, described, fields_of, text_of, value_of
from antlm_bench.types import Item, Option

if TYPE_CHECKING:
    from antlm_bench.lm_eval_bridge.task_metrics import Judge
    from antlm_bench.metrics.reading_times import Times
    from antlm_bench.suites.formula import Formula
    from antlm_bench.suites.spec import Declared


@dataclass(frozen=True, slots=True)
class Suite:
    """A loaded suite: what a score needs of the declaration (see SuiteSpec), and the items in file order.

    digest: sha256 over metric, groups, averaging and every item's id, texts, spans, gold and labels; equal for the same
    questions. notes: what a reader of the number needs. times: the human side of reading times, `glued` words or not.
    formulas: what each label of syntaxgym.LEVEL says. judge: makes numbers of answers, which are views or decide (see
    metrics.judged). reduction: which score decides (SuiteSpec), and is a setting of cells. verbatim: a peer's requests.
    origin: absolute paths of the user's own files that it was read from, () = a suite of the catalog or of lm-eval.
    """

    name: str
    version: str
    title: str
    licence: str
    metric: str
    groups: tuple[str, ...]
    macro: tuple[str, ...]
    items: tuple[Item, ...]
    digest: str
    notes: tuple[str, ...] = ()
    times: Times | None = None
    glued: bool = False
    formulas: Mapping[str, Formula] | None = None
    judge: Judge | None = None
    reduction: str = "sum"
    verbatim: bool = False
    origin: tuple[str, ...] = ()


def load(
    ref: str,
    *,
    limit: int | None = None,
    allow_incomplete: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Suite:
    """The suite behind a name of the catalog, a TOML, a CSV, TSV or JSONL of pairs, SyntaxGym's JSON, `lm-eval:TASK`.

    limit: the first so many items of each finest group (all paradigms stay in, as with lm-eval's per-task limit).
    columns: for a file of pairs, our column -> theirs, as {"good": "grammatical"}.
    Raises DataError (absent, damaged, unreadable, incomplete unless allowed), DeclarationError, UsageError.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", place="--limit")
    times: Times | None = None
    origin: tuple[str, ...]
    if pairs_csv.is_pairs_file(ref):
        spec, rows = pairs_csv.read(user_path(ref), columns or {})
        items, origin = build(spec, rows), (absolute(user_path(ref)),)
    else:
        if columns:
            raise UsageError(f"columns are for a file of pairs; {ref!r} is none", place="--columns")
        if syntaxgym.is_gym_file(ref):
            return _gym(ref, limit)
        if tasks.is_task(ref):
            return Suite(**tasks.suite(ref, limit))
        spec, folder = suite(ref)
        items, origin = build(spec, _official(spec, folder)), origin_of(ref, spec)
        if spec.times:
            times = reading_times_spec.times(spec.times, items, _official(spec, folder))
    notes = [*spec.notes, *completeness(spec, items, allow_incomplete)]
    if limit is not None:
        items = _first(items, spec.finest, limit)
        notes.append(f"limit: the first {limit} of each {spec.finest or 'suite'}")
    return Suite(
        name=spec.name,
        version=spec.version,
        title=spec.title,
        licence=spec.licence,
        metric=spec.metric,
        groups=spec.groups,
        macro=spec.macro,
        items=tuple(items),
        digest=_digest(spec, items),
        notes=tuple(notes),
        times=times,
        glued=spec.times is not None and spec.times.words == "glued",
        reduction=spec.reduction,
        origin=origin,
    )


def _gym(ref: str, limit: int | None) -> Suite:
    """A SyntaxGym suite; the headline is the mean over its predictions."""
    gym = syntaxgym.read(user_path(ref))
    items, formulas = syntaxgym.items(gym)
    kept = items if limit is None else _first(list(items), syntaxgym.LEVEL, limit)
    notes = () if limit is None else (f"limit: the first {limit} of each {syntaxgym.LEVEL}",)
    return Suite(
        name=gym.name,
        version="user",
        title=f"SyntaxGym suite {gym.name}",
        licence="not stated",
        metric="accuracy",
        groups=(syntaxgym.LEVEL,),
        macro=(syntaxgym.LEVEL,),
        items=tuple(kept),
        digest=syntaxgym.digest(gym),
        notes=notes,
        formulas=formulas,
        origin=(absolute(user_path(ref)),),
    )


def members(ref: str) -> list[str]:
    """The suites behind a reference: a collection's, an age of acquisition's words, itself. UsageError for others."""
    if pairs_csv.is_pairs_file(ref) or syntaxgym.is_gym_file(ref):
        return [ref]
    if tasks.is_task(ref):
        return tasks.members(ref)
    spec, _ = declared(ref)
    if isinstance(spec, CollectionSpec):
        if not spec.suites():
            finetuned = ",".join(spec.suites("finetune")) or "NAME"
            hint = f"antlm-bench finetune --model CKPT --suite {finetuned}"
            raise UsageError(f"nothing of the collection {ref!r} is scored", place="--suite", hint=hint)
        return spec.suites()
    if isinstance(spec, AcquisitionSpec):
        return [spec.words]
    _scorable(ref, spec)
    return [ref]


def suite(ref: str) -> tuple[SuiteSpec, Path]:
    """The declaration of one suite, and its folder: the data of a user's own suite may lie beside its TOML."""
    spec, folder = declared(ref)
    if isinstance(spec, CollectionSpec):
        raise UsageError(f"{ref!r} is a collection", hint=f"name its members: {', '.join(spec.suites())}")
    return _scorable(ref, spec), folder


def declared(ref: str) -> tuple[Declared, Path]:
    """What a name of the catalog or a TOML declares, of whichever kind, and its folder."""
    path = find("tasks", ref)
    return read(path), path.parent


def origin_of(ref: str, spec: Declared) -> tuple[str, ...]:
    """Return the file of a declaration that is the user's own; () where it is the one that its name stands for.

    That is ours, or a copy that asks the same; for a name that we do not ship the one in ANTLM_BENCH_PATH.
    """
    path, ours = find("tasks", ref), shipped("tasks", spec.name)
    known = ours or catalog("tasks").get(spec.name)
    if known is not None and (path.samefile(known) or (ours and _asks(spec) == _asks(read(ours)))):
        return ()
    return (absolute(path),)


def _asks(spec: Declared) -> object:
    """What of a declaration decides a score: neither prose, nor margins, nor where its files lie."""
    prose = {"title", "licence", "citation", "homepage", "notes", "check", "example"}
    return spec.kind, spec.model_dump(exclude={**dict.fromkeys(prose, True), "data": {"where", "sources", "password"}})


def build(spec: SuiteSpec, files: records.Files) -> list[Item]:
    """The items of these files, in order. DataError names the first line that is wrong."""
    reader = _Reader(spec)
    items: list[Item] = []
    places: dict[str, str] = {}
    for file, place, rows in files:
        for line, record in rows:
            item = reader.item(file, record, f"{place}:{line}")
            if item is None:
                continue
            if item.id in places:
                raise DataError(f"the id {item.id!r} is already that of {places[item.id]}", place=f"{place}:{line}")
            places[item.id] = f"{place}:{line}"
            items.append(item)
    if not items:
        raise DataError("no items: every row is skipped, or there is none", place=spec.name)
    return items


def completeness(spec: SuiteSpec, items: Iterable[Item], allow_incomplete: bool) -> list[str]:
    """The note of an incomplete suite (or none). DataError where it is not allowed, or holds more than it should."""
    if spec.expect is None:
        return []
    level = spec.finest
    have = Counter(item.labels[level] if level else spec.name for item in items)
    want = spec.expect.counts or {spec.name: spec.expect.items}
    if level is None or not spec.expect.counts:
        have, want = Counter({spec.name: sum(have.values())}), {spec.name: spec.expect.items}
    for group, count in have.items():
        if count > want.get(group, 0):
            message = f"{count} items in {group!r}, officially {want.get(group, 0)}"
            raise DataError(message, place=spec.name, hint="these are not the files of this version of the suite")
    short = [group for group in want if have[group] < want[group]]
    if not short:
        return []
    unit = "pairs" if len(spec.item.options) == 2 and spec.times is None else "items"
    of = f"{len(short)} of {len(want)} {level}s short" if level else "short"
    note = f"incomplete: {sum(have.values())} of {spec.expect.items} {unit} ({of})"
    if not allow_incomplete:
        named = ", ".join(f"{group} {have[group]}/{want[group]}" for group in short[:3]) + ", ..." * (len(short) > 3)
        hint = f"short: {named}; get the rest, or accept what is there with --allow-incomplete"
        raise DataError(note, place=spec.name, hint=hint)
    return [note]


class _Reader:
    """Records -> items by one declaration; counts per group, from which the running ids come."""

    def __init__(self, spec: SuiteSpec) -> None:
        self.spec = spec
        self.seen: Counter[str] = Counter()
        texts = [text for option in spec.item.options for text in (option.context, option.scored)]
        self.fields = {text: fields_of(text) for text in texts}
        self.names = {text: fields_of(text) for text in (*spec.labels.values(), spec.item.id or "")}

    def item(self, file: str, record: records.Record, place: str) -> Item | None:
        """The item of a record, None where the declaration skips it."""
        spec, rule = self.spec, self.spec.item
        record = {**record, "file": file, "stem": file.rpartition(".")[0] or file}
        record |= {field: text for field, text in spec.fill.items() if record.get(field) == ""}
        if rule.skip and _holds(value_of(record, rule.skip.field, place), rule.skip.containing):
            return None
        labels = {label: self._name(template, record, place) for label, template in spec.labels.items()}
        for label, renamed in spec.rename.items():
            labels[label] = renamed.get(labels[label], labels[label])
        if rule.each:
            each = [{**record, "each": entry} for entry in self._entries(record, place)]
            options = tuple(self._option(rule.options[0], one, place) for one in each)
        else:
            there = [o for o in rule.options if not any(value_of(record, f, place) in v for f, v in o.unless.items())]
            options = tuple(self._option(template, record, place) for template in there)
        group = labels[spec.finest] if spec.finest else spec.name
        name = self._name(rule.id, record, place) if rule.id else f"{group}_{self.seen[group]}"
        self.seen[group] += 1
        return Item(name, options, self._gold(record, len(options), place), labels)

    def _option(self, template: OptionSpec, record: records.Record, place: str) -> Option:
        context = template.context and text_of(template.context, self.fields[template.context], record, place)
        scored = text_of(template.scored, self.fields[template.scored], record, place)
        if not scored.strip():
            raise DataError(f"the text of {template.scored!r} is empty", place=place)
        text = context + scored
        return Option(text, (len(context), len(text)) if template.context else None)

    def _entries(self, record: records.Record, place: str) -> list[Any]:
        field, cut = str(self.spec.item.each), self.spec.item.split
        value = value_of(record, field, place)
        if cut and isinstance(value, str):
            value = value.split(cut)
        if not isinstance(value, list):
            raise DataError(f"{field!r} must be {'a text' if cut else 'a list'}, not {described(value)}", place=place)
        if len(value) < 2:
            raise DataError(f"{field!r} gives {len(value)} option; an item needs two or more", place=place)
        return value

    def _gold(self, record: records.Record, options: int, place: str) -> int | float:
        gold = self.spec.item.gold
        value = value_of(record, gold, place) if isinstance(gold, str) else gold
        if self.spec.metric == "spearman":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise DataError(f"{gold!r} must be a number in 0..1, not {value!r}", place=place)
            return float(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < options:
            raise DataError(f"the right option must be 0..{options - 1}, not {value!r}", place=place)
        return value

    def _name(self, template: str, record: records.Record, place: str) -> str:
        for field in self.names[template]:
            value = value_of(record, field, place)
            if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
                raise DataError(f"{field!r} must be a text or a whole number, not {described(value)}", place=place)
        return clean(template.format_map(record), template, place)


def _holds(value: Any, part: str) -> bool:
    return any(part in entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, str))


def _scorable(ref: str, spec: Declared) -> SuiteSpec:
    if isinstance(spec, SuiteSpec):
        return spec
    if isinstance(spec, AcquisitionSpec):
        hint = f"antlm-bench acquisition RUN... --suite {ref}; every checkpoint is scored on {spec.words}"
        raise UsageError(f"{ref!r} is derived from the runs of checkpoints", place="--suite", hint=hint)
    hint = f"antlm-bench finetune --model CKPT --suite {ref}"
    raise UsageError(f"{ref!r} is finetuned, not scored", place="--suite", hint=hint)


def _official(spec: SuiteSpec, folder: Path) -> records.Files:
    if spec.grammar:
        yield spec.name, spec.name, enumerate(grammar.records(spec.grammar), start=1)
        return
    assert spec.data is not None  # SuiteSpec: data or grammar
    for file in spec.data.files:
        if spec.children and file == spec.children.human:
            continue
        found = sources.locate(spec, file, folder)
        yield file, found.place, records.read(found.raw, file, found.place)


def _first(items: list[Item], level: str | None, limit: int) -> list[Item]:
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        group = item.labels[level] if level else ""
        seen[group] += 1
        if seen[group] <= limit:
            kept.append(item)
    return kept


def _digest(spec: SuiteSpec, items: Iterable[Item]) -> str:
    sha = hashlib.sha256(json.dumps([spec.metric, spec.groups, spec.macro]).encode())
    encode = json.JSONEncoder(ensure_ascii=True, sort_keys=True).encode
    for item in items:
        sha.update(encode([item.id, [[o.text, o.span] for o in item.options], item.gold, item.labels]).encode())
    if spec.times:
        sha.update(encode(spec.times.model_dump()).encode())
    return sha.hexdigest()

"""A suite by name or file -> its items: the one way from data to the questions that a model is
asked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench.declarations import (
    catalog,
    expand_user_path,
    find_declaration,
    shipped_declaration,
)
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge import tasks
from antlm_bench.suites import grammar, pairs_csv, reading_times_spec, records, sources, syntaxgym
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.names import absolute_path
from antlm_bench.suites.spec import OptionSpec, SuiteSpec, read_spec
from antlm_bench.suites.templates import (
    check_text,
    describe_value,
    fill_template,
    get_field,
    template_fields,
)
from antlm_bench.types import Item, Option

if TYPE_CHECKING:
    from antlm_bench.lm_eval_bridge.task_metrics import TaskMetrics
    from antlm_bench.metrics.reading_times import ReadingTimes
    from antlm_bench.suites.formula import Formula
    from antlm_bench.suites.spec import AnySpec


@dataclass(frozen=True, slots=True)
class Suite:
    """A loaded suite: what a score needs of the declaration (see SuiteSpec), and the items in file
    order.

    digest: sha256 over metric, groups, averaging and every item's id, texts, spans, gold and
    labels; equal for the same questions. notes: what a reader of the number needs. times: the human
    side of reading times, `glued` words or not. formulas: what each label of syntaxgym.LEVEL says.
    judge: makes numbers of answers, which are views or decide (see metrics.task_metric). reduction:
    which score decides (SuiteSpec), and is a setting of cells. verbatim: a peer's requests. origin:
    absolute paths of the user's own files that it was read from, () = a suite of the catalog or of
    lm-eval.
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
    times: ReadingTimes | None = None
    tokenized_separately: bool = False
    formulas: Mapping[str, Formula] | None = None
    judge: TaskMetrics | None = None
    reduction: str = "sum"
    verbatim: bool = False
    origin: tuple[str, ...] = ()


def load_suite(
    ref: str,
    *,
    limit: int | None = None,
    allow_incomplete: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Suite:
    """The suite behind a name of the catalog, a TOML, a CSV, TSV or JSONL of pairs, SyntaxGym's
    JSON, `lm-eval:TASK`.

    limit: the first so many items of each finest group (all paradigms stay in, as with lm-eval's
    per-task limit). columns: for a file of pairs, our column -> theirs, as {"good": "grammatical"}.
    Raises DataError (absent, damaged, unreadable, incomplete unless allowed), DeclarationError,
    UsageError.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", location="--limit")
    times: ReadingTimes | None = None
    origin: tuple[str, ...]
    if pairs_csv.is_pairs_file(ref):
        spec, rows = pairs_csv.read_pairs(expand_user_path(ref), columns or {})
        items, origin = build_items(spec, rows), (absolute_path(expand_user_path(ref)),)
    else:
        if columns:
            raise UsageError(
                f"columns are for a file of pairs; {ref!r} is none", location="--columns"
            )
        if syntaxgym.is_syntaxgym_file(ref):
            return _load_syntaxgym(ref, limit)
        if tasks.is_lm_eval_ref(ref):
            return Suite(**tasks.build_suite_fields(ref, limit))
        spec, folder = read_suite_spec(ref)
        items, origin = (
            build_items(spec, _iter_official_files(spec, folder)),
            find_origin(ref, spec),
        )
        if spec.times:
            times = reading_times_spec.build_reading_times(
                spec.times, items, _iter_official_files(spec, folder)
            )
    notes = [*spec.notes, *check_completeness(spec, items, allow_incomplete)]
    if limit is not None:
        items = _limit_items(items, spec.finest_level, limit)
        notes.append(f"limit: the first {limit} of each {spec.finest_level or 'suite'}")
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
        tokenized_separately=spec.times is not None and spec.times.words == "glued",
        reduction=spec.reduction,
        origin=origin,
    )


def _load_syntaxgym(ref: str, limit: int | None) -> Suite:
    """A SyntaxGym suite; the headline is the mean over its predictions."""
    gym = syntaxgym.read_suite(expand_user_path(ref))
    items, formulas = syntaxgym.build_items(gym)
    kept = items if limit is None else _limit_items(list(items), syntaxgym.PREDICTION_LEVEL, limit)
    notes = (
        () if limit is None else (f"limit: the first {limit} of each {syntaxgym.PREDICTION_LEVEL}",)
    )
    return Suite(
        name=gym.name,
        version="user",
        title=f"SyntaxGym suite {gym.name}",
        licence="not stated",
        metric="accuracy",
        groups=(syntaxgym.PREDICTION_LEVEL,),
        macro=(syntaxgym.PREDICTION_LEVEL,),
        items=tuple(kept),
        digest=syntaxgym.compute_digest(gym),
        notes=notes,
        formulas=formulas,
        origin=(absolute_path(expand_user_path(ref)),),
    )


def list_suite_refs(ref: str) -> list[str]:
    """The suites behind a reference: a collection's, an age of acquisition's words, itself.
    UsageError for others.
    """
    if pairs_csv.is_pairs_file(ref) or syntaxgym.is_syntaxgym_file(ref):
        return [ref]
    if tasks.is_lm_eval_ref(ref):
        return tasks.list_suite_refs(ref)
    spec, _ = read_declaration(ref)
    if isinstance(spec, CollectionSpec):
        if not spec.list_suites():
            finetuned = ",".join(spec.list_suites("finetune")) or "NAME"
            hint = f"antlm-bench finetune --model CKPT --suite {finetuned}"
            raise UsageError(
                f"nothing of the collection {ref!r} is scored", location="--suite", hint=hint
            )
        return spec.list_suites()
    if isinstance(spec, AcquisitionSpec):
        return [spec.words]
    _require_scorable(ref, spec)
    return [ref]


def read_suite_spec(ref: str) -> tuple[SuiteSpec, Path]:
    """The declaration of one suite, and its folder: the data of a user's own suite may lie beside
    its TOML.
    """
    spec, folder = read_declaration(ref)
    if isinstance(spec, CollectionSpec):
        raise UsageError(
            f"{ref!r} is a collection", hint=f"name its members: {', '.join(spec.list_suites())}"
        )
    return _require_scorable(ref, spec), folder


def read_declaration(ref: str) -> tuple[AnySpec, Path]:
    """What a name of the catalog or a TOML declares, of whichever kind, and its folder."""
    path = find_declaration("tasks", ref)
    return read_spec(path), path.parent


def find_origin(ref: str, spec: AnySpec) -> tuple[str, ...]:
    """Return the file of a declaration that is the user's own; () where it is the one that its name
    stands for.

    That is ours, or a copy that asks the same; for a name that we do not ship the one in
    ANTLM_BENCH_PATH.
    """
    path, ours = find_declaration("tasks", ref), shipped_declaration("tasks", spec.name)
    known = ours or catalog("tasks").get(spec.name)
    if known is not None and (
        path.samefile(known) or (ours and _scoring_fields(spec) == _scoring_fields(read_spec(ours)))
    ):
        return ()
    return (absolute_path(path),)


def _scoring_fields(spec: AnySpec) -> object:
    """What of a declaration decides a score: neither prose, nor margins, nor where its files lie.
    """
    prose = {"title", "licence", "citation", "homepage", "notes", "check", "example"}
    return spec.kind, spec.model_dump(
        exclude={**dict.fromkeys(prose, True), "data": {"where", "sources", "password"}}
    )


def build_items(spec: SuiteSpec, files: records.RecordFiles) -> list[Item]:
    """The items of these files, in order. DataError names the first line that is wrong."""
    reader = _ItemBuilder(spec)
    items: list[Item] = []
    places: dict[str, str] = {}
    for file, place, rows in files:
        for line, record in rows:
            item = reader.build_item(file, record, f"{place}:{line}")
            if item is None:
                continue
            if item.id in places:
                raise DataError(
                    f"the id {item.id!r} is already that of {places[item.id]}",
                    location=f"{place}:{line}",
                )
            places[item.id] = f"{place}:{line}"
            items.append(item)
    if not items:
        raise DataError("no items: every row is skipped, or there is none", location=spec.name)
    return items


def check_completeness(spec: SuiteSpec, items: Iterable[Item], allow_incomplete: bool) -> list[str]:
    """The note of an incomplete suite (or none). DataError where it is not allowed, or holds more
    than it should.
    """
    if spec.expect is None:
        return []
    level = spec.finest_level
    have = Counter(item.labels[level] if level else spec.name for item in items)
    want = spec.expect.counts or {spec.name: spec.expect.items}
    if level is None or not spec.expect.counts:
        have, want = Counter({spec.name: sum(have.values())}), {spec.name: spec.expect.items}
    for group, count in have.items():
        if count > want.get(group, 0):
            message = f"{count} items in {group!r}, officially {want.get(group, 0)}"
            raise DataError(
                message,
                location=spec.name,
                hint="these are not the files of this version of the suite",
            )
    short = [group for group in want if have[group] < want[group]]
    if not short:
        return []
    unit = "pairs" if len(spec.item.options) == 2 and spec.times is None else "items"
    of = f"{len(short)} of {len(want)} {level}s short" if level else "short"
    note = f"incomplete: {sum(have.values())} of {spec.expect.items} {unit} ({of})"
    if not allow_incomplete:
        named = ", ".join(
            f"{group} {have[group]}/{want[group]}" for group in short[:3]
        ) + ", ..." * (len(short) > 3)
        hint = f"short: {named}; get the rest, or accept what is there with --allow-incomplete"
        raise DataError(note, location=spec.name, hint=hint)
    return [note]


class _ItemBuilder:
    """Records -> items by one declaration; counts per group, from which the running ids come."""

    def __init__(self, spec: SuiteSpec) -> None:
        self.spec = spec
        self.counts: Counter[str] = Counter()
        texts = [text for option in spec.item.options for text in (option.context, option.scored)]
        self.text_fields = {text: template_fields(text) for text in texts}
        self.name_fields = {
            text: template_fields(text) for text in (*spec.labels.values(), spec.item.id or "")
        }

    def build_item(self, file: str, record: records.Record, location: str) -> Item | None:
        """The item of a record, None where the declaration skips it."""
        spec, rule = self.spec, self.spec.item
        record = {**record, "file": file, "stem": file.rpartition(".")[0] or file}
        record |= {field: text for field, text in spec.fill.items() if record.get(field) == ""}
        if rule.skip and _contains(
            get_field(record, rule.skip.field, location), rule.skip.containing
        ):
            return None
        labels = {
            label: self._fill_name(template, record, location)
            for label, template in spec.labels.items()
        }
        for label, renamed in spec.rename.items():
            labels[label] = renamed.get(labels[label], labels[label])
        if rule.each:
            each = [{**record, "each": entry} for entry in self._list_entries(record, location)]
            options = tuple(self._build_option(rule.options[0], one, location) for one in each)
        else:
            there = [
                o
                for o in rule.options
                if not any(get_field(record, f, location) in v for f, v in o.unless.items())
            ]
            options = tuple(self._build_option(template, record, location) for template in there)
        group = labels[spec.finest_level] if spec.finest_level else spec.name
        name = (
            self._fill_name(rule.id, record, location)
            if rule.id
            else f"{group}_{self.counts[group]}"
        )
        self.counts[group] += 1
        return Item(name, options, self._read_gold(record, len(options), location), labels)

    def _build_option(self, template: OptionSpec, record: records.Record, location: str) -> Option:
        context = template.context and fill_template(
            template.context, self.text_fields[template.context], record, location
        )
        scored = fill_template(template.scored, self.text_fields[template.scored], record, location)
        if not scored.strip():
            raise DataError(f"the text of {template.scored!r} is empty", location=location)
        text = context + scored
        return Option(text, (len(context), len(text)) if template.context else None)

    def _list_entries(self, record: records.Record, location: str) -> list[Any]:
        field, cut = str(self.spec.item.each), self.spec.item.split
        value = get_field(record, field, location)
        if cut and isinstance(value, str):
            value = value.split(cut)
        if not isinstance(value, list):
            raise DataError(
                f"{field!r} must be {'a text' if cut else 'a list'}, not {describe_value(value)}",
                location=location,
            )
        if len(value) < 2:
            raise DataError(
                f"{field!r} gives {len(value)} option; an item needs two or more", location=location
            )
        return value

    def _read_gold(self, record: records.Record, num_options: int, location: str) -> int | float:
        gold = self.spec.item.gold
        value = get_field(record, gold, location) if isinstance(gold, str) else gold
        if self.spec.metric == "spearman":
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= 1
            ):
                raise DataError(
                    f"{gold!r} must be a number in 0..1, not {value!r}", location=location
                )
            return float(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_options:
            raise DataError(
                f"the right option must be 0..{num_options - 1}, not {value!r}", location=location
            )
        return value

    def _fill_name(self, template: str, record: records.Record, location: str) -> str:
        for field in self.name_fields[template]:
            value = get_field(record, field, location)
            if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
                raise DataError(
                    f"{field!r} must be a text or a whole number, not {describe_value(value)}",
                    location=location,
                )
        return check_text(template.format_map(record), template, location)


def _contains(value: Any, substring: str) -> bool:
    return any(
        substring in entry
        for entry in (value if isinstance(value, list) else [value])
        if isinstance(entry, str)
    )


def _require_scorable(ref: str, spec: AnySpec) -> SuiteSpec:
    if isinstance(spec, SuiteSpec):
        return spec
    if isinstance(spec, AcquisitionSpec):
        hint = f"antlm-bench acquisition RUN... --suite {ref}; every checkpoint is scored on {spec.words}"
        raise UsageError(
            f"{ref!r} is derived from the runs of checkpoints", location="--suite", hint=hint
        )
    hint = f"antlm-bench finetune --model CKPT --suite {ref}"
    raise UsageError(f"{ref!r} is finetuned, not scored", location="--suite", hint=hint)


def _iter_official_files(spec: SuiteSpec, folder: Path) -> records.RecordFiles:
    if spec.grammar:
        yield spec.name, spec.name, enumerate(grammar.generate_pairs(spec.grammar), start=1)
        return
    assert spec.data is not None  # SuiteSpec: data or grammar
    for file in spec.data.files:
        if spec.children and file == spec.children.human:
            continue
        found = sources.get_file(spec, file, folder)
        yield file, found.location, records.read_records(found.raw, file, found.location)


def _limit_items(items: list[Item], level: str | None, limit: int) -> list[Item]:
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
        sha.update(
            encode(
                [item.id, [[o.text, o.span] for o in item.options], item.gold, item.labels]
            ).encode()
        )
    if spec.times:
        sha.update(encode(spec.times.model_dump()).encode())
    return sha.hexdigest()

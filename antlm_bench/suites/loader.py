"""Load suites: the items that are scored, from a name of the catalog or a file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from antlm_bench.arguments import check_arguments
from antlm_bench.declarations import (
    expand_user_path,
    find_declaration,
    list_declarations,
    shipped_declaration,
)
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import METRICS, ItemKind
from antlm_bench.printable import format_count
from antlm_bench.suites import (
    grammar,
    pair_files,
    pair_layouts,
    reading_times_spec,
    records,
    sources,
    syntaxgym,
)
from antlm_bench.suites.acceptability import JudgementSpec
from antlm_bench.suites.declaration_types import SuiteDeclaration
from antlm_bench.suites.formula import Formula
from antlm_bench.suites.names import absolute_path
from antlm_bench.suites.spec import OptionSpec, SuiteSpec, SyntaxGymSpec
from antlm_bench.suites.task_types import (
    TASK_TYPES,
    Suite,
    SuiteRequest,
    find_task_type,
    read_declaration,
    read_declaration_file,
    read_declaration_of_type,
    suggest_commands,
)
from antlm_bench.suites.templates import (
    check_text,
    describe_value,
    fill_template,
    get_field,
    hash_cluster,
    split_file_name,
    template_fields,
)
from antlm_bench.types import Item, Names, Option, as_list


@check_arguments()
def load_suite(
    ref: str,
    *,
    limit: int | None = None,
    allow_incomplete: bool = False,
    columns: Mapping[str, str] | None = None,
    layout: str = "",
    good: str = "",
) -> Suite:
    """Load a suite with the loader of its task type.

    Arguments: see SuiteRequest. Raises DataError (files are missing, damaged or incomplete),
    DeclarationError, UsageError.
    """
    return load_requested_suite(
        SuiteRequest(ref, limit, allow_incomplete, columns or {}, layout, good)
    )


def load_requested_suite(request: SuiteRequest) -> Suite:
    """Load a suite. Raises as `load_suite`."""
    check_request(request)
    task_type = find_task_type(request.ref)
    if task_type.load is None:
        raise _not_scored_error(request.ref)
    return task_type.load(request)


def check_request(request: SuiteRequest) -> None:
    """Raise UsageError for settings of a request that do not fit its suite. Nothing is read."""
    ref, limit = request.ref, request.limit
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be 1 or more", location="--limit")
    if pair_files.is_pairs_ref(ref):
        for path in pair_files.list_pair_files(expand_user_path(ref)):
            pair_layouts.check_format(pair_files.choose_format(path.name, request))
    else:
        for name in pair_files.FORMAT_FIELDS:
            if getattr(request, name):
                raise UsageError(
                    f"{ref!r} is not a file of pairs",
                    location=f"--{name}",
                    hint=f"--{name} is for a CSV, TSV, JSONL or TXT file of pairs; leave it out",
                )


def load_declared_suite(request: SuiteRequest) -> Suite:
    """Load a suite of a TOML of kind "suite", or of a file or folder of pairs."""
    ref = request.ref
    reading_times = None
    origin: tuple[str, ...]
    if pair_files.is_pairs_ref(ref):
        path = expand_user_path(ref)
        spec, rows = pair_files.read_pairs(path, request)
        items, origin = build_items(spec, rows), (absolute_path(path),)
    else:
        spec, folder = read_suite_spec(ref)
        items = build_items(spec, _iter_official_files(spec, folder))
        origin = find_origin(ref, spec)
        if spec.times:
            files = _iter_official_files(spec, folder)
            reading_times = reading_times_spec.build_reading_times(spec.times, items, files)
    notes = check_completeness(spec, items, request.allow_incomplete)
    items, limit_notes, num_left_out = _limit_items(items, spec.finest_level, request.limit)
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
        task_type=spec.task_type,
        notes=(*spec.notes, *notes, *limit_notes),
        reading_times=reading_times,
        tokenized_separately=spec.times is not None and spec.times.words == "glued",
        reduction=spec.reduction,
        origin=origin,
        num_left_out=num_left_out,
    )


def load_syntaxgym_suite(request: SuiteRequest) -> Suite:
    """Load a SyntaxGym file, or a TOML that lists several."""
    if syntaxgym.is_syntaxgym_file(request.ref):
        return _load_syntaxgym_file(request)
    return _load_syntaxgym_files(request)


def _load_syntaxgym_files(request: SuiteRequest) -> Suite:
    """Load the SyntaxGym files of a TOML; the headline is the mean that it declares."""
    spec, folder = read_declaration_of_type(request.ref, SyntaxGymSpec)
    all_items: list[Item] = []
    formulas: dict[str, Formula] = {}
    digest = hashlib.sha256(json.dumps([spec.groups, spec.macro]).encode())
    for file in spec.data.files:
        data_file = sources.get_file(spec, file, folder)
        gym = syntaxgym.parse_suite(data_file.raw, file, data_file.location)
        fields = split_file_name(file)
        labels = {level: text.format_map(fields) for level, text in spec.labels.items()}
        items, formulas_of_file = syntaxgym.build_items(gym, fields["stem"], labels)
        all_items += items
        formulas |= formulas_of_file
        digest.update(json.dumps([file, labels, syntaxgym.compute_digest(gym)]).encode())
    kept, limit_notes, num_left_out = _limit_items(all_items, spec.groups[-1], request.limit)
    return Suite(
        name=spec.name,
        version=spec.version,
        title=spec.title,
        licence=spec.licence,
        metric="accuracy",
        groups=spec.groups,
        macro=spec.macro,
        items=tuple(kept),
        digest=digest.hexdigest(),
        task_type=spec.task_type,
        notes=(*spec.notes, *limit_notes),
        formulas=formulas,
        origin=find_origin(request.ref, spec),
        num_left_out=num_left_out,
    )


def _load_syntaxgym_file(request: SuiteRequest) -> Suite:
    """Load a SyntaxGym file; the headline is the mean over its predictions."""
    path = expand_user_path(request.ref)
    gym = syntaxgym.read_suite(path)
    all_items, formulas = syntaxgym.build_items(gym)
    level = syntaxgym.PREDICTION_LEVEL
    items, limit_notes, num_left_out = _limit_items(all_items, level, request.limit)
    return Suite(
        name=gym.name,
        version="user",
        title=f"SyntaxGym suite {gym.name}",
        licence="not stated",
        metric="accuracy",
        groups=(level,),
        macro=(level,),
        items=tuple(items),
        digest=syntaxgym.compute_digest(gym),
        task_type="syntaxgym",
        notes=limit_notes,
        formulas=formulas,
        origin=(absolute_path(path),),
        num_left_out=num_left_out,
    )


def list_suite_refs(names: Names) -> list[str]:
    """Return the references of the suites that `score` computes for some names, each once.

    A collection stands for its members, an age-of-acquisition suite for the suite of its words.
    Raises UsageError for a name for which `score` computes nothing, DeclarationError for an unknown
    suite.
    """
    return list(dict.fromkeys(ref for name in as_list(names) for ref in _list_members(name)))


def _list_members(ref: str) -> list[str]:
    task_type = find_task_type(ref)
    if task_type.matches(ref):
        return list(task_type.list_refs(ref))
    members = task_type.members(read_declaration(ref)[0], "score")
    if not members and task_type.load is None:
        raise _not_scored_error(ref)
    return list(members) or [ref]


def read_suite_spec(ref: str) -> tuple[SuiteSpec, Path]:
    """Return the declaration of a suite of kind "suite", and the folder of its TOML, which may
    have the user's data.
    """
    return read_declaration_of_type(ref, SuiteSpec)


def _not_scored_error(ref: str) -> UsageError:
    spec, _ = read_declaration(ref)
    noun = TASK_TYPES[spec.task_type].noun
    return UsageError(
        f"{ref!r} is {noun}, not {TASK_TYPES['suite'].noun}",
        location="--suite",
        hint=suggest_commands(ref, spec),
    )


def find_origin(ref: str, spec: SuiteDeclaration) -> tuple[str, ...]:
    """Return the absolute path of a user's declaration, () for a declaration of the catalog.

    A TOML belongs to the catalog if its name leads to the same file there, or if it equals the
    shipped declaration of that name in all fields that decide a score.
    """
    path = find_declaration("tasks", ref)
    shipped_path = shipped_declaration("tasks", spec.name)
    catalog_path = shipped_path or list_declarations("tasks").get(spec.name)
    if catalog_path is not None and path.samefile(catalog_path):
        return ()
    if shipped_path:
        shipped_spec = read_declaration_file(shipped_path)
        if _scoring_fields(spec) == _scoring_fields(shipped_spec):
            return ()
    return (absolute_path(path),)


def _scoring_fields(spec: SuiteDeclaration) -> object:
    """Return the fields that decide a score, without prose, margins, clusters and locations of
    files."""
    ignored = ("title", "licence", "citation", "homepage", "language", "notes")
    fields = spec.model_dump(
        exclude={
            **dict.fromkeys((*ignored, "check", "example", "cluster"), True),
            "data": {"where", "sources", "password"},
        }
    )
    for task in fields.get("task", {}).values():
        task.pop("cluster", None)
    return spec.kind, fields


def build_items(spec: SuiteSpec, files: records.RecordFiles) -> list[Item]:
    """Build the items of these files, in order. Raises DataError with the first invalid line."""
    builder = _ItemBuilder(spec)
    items: list[Item] = []
    locations: dict[str, str] = {}
    for file, path, rows in files:
        for line, record in rows:
            location = f"{path}:{line}"
            item = builder.build_item(file, record, location)
            if item is None:
                continue
            if item.id in locations:
                message = f"{locations[item.id]} has the same id {item.id!r}"
                raise DataError(message, location=location)
            locations[item.id] = location
            items.append(item)
    if not items:
        message = "no items: the files have no rows, or all rows are skipped"
        raise DataError(message, location=spec.name)
    return items


def check_completeness(spec: SuiteSpec, items: Iterable[Item], allow_incomplete: bool) -> list[str]:
    """Return a note if the suite is incomplete, [] if it is complete.

    Raises DataError if the suite has more items than expected, or if it has fewer and
    allow_incomplete is False.
    """
    if spec.expect is None:
        return []
    level = spec.finest_level if spec.expect.counts else None
    counts = Counter(item.labels[level] if level else spec.name for item in items)
    expected = spec.expect.counts if level else {spec.name: spec.expect.items}
    for group, count in counts.items():
        if count > expected.get(group, 0):
            raise DataError(
                f"{format_count(count, 'item')} in {group!r}, officially "
                f"{expected.get(group, 0):,}",
                location=spec.name,
                hint="these are not the files of this version of the suite",
            )
    incomplete = [group for group in expected if counts[group] < expected[group]]
    if not incomplete:
        return []
    unit = "pairs" if len(spec.item.options) == 2 and spec.times is None else "items"
    reason = "short"
    if spec.finest_level:
        reason = f"{len(incomplete)} of {len(expected)} {spec.finest_level}s short"
    note = f"incomplete: {sum(counts.values())} of {spec.expect.items} {unit} ({reason})"
    if not allow_incomplete:
        examples = [f"{group} {counts[group]}/{expected[group]}" for group in incomplete[:3]]
        if len(incomplete) > 3:
            examples.append("...")
        hint = f"short: {', '.join(examples)}; get the rest, or use --allow-incomplete"
        raise DataError(note, location=spec.name, hint=hint)
    return [note]


class _ItemBuilder:
    """Builds items from the records of one suite; counts the items of each group for their ids."""

    def __init__(self, spec: SuiteSpec) -> None:
        self.spec = spec
        self.counts: Counter[str] = Counter()
        self.labels: dict[tuple[str, ...], dict[str, str]] = {}
        """Values of the labels -> their dict, which items share: a dict takes as much memory as two
        texts."""
        texts = [text for option in spec.item.options for text in (option.context, option.scored)]
        self.text_fields = {text: template_fields(text) for text in texts}
        self.cluster_fields = {text: template_fields(text) for text in spec.cluster}
        self.name_fields = {
            text: template_fields(text) for text in (*spec.labels.values(), spec.item.id or "")
        }

    def build_item(self, file: str, record: records.Record, location: str) -> Item | None:
        """Build the item of a record; return None if the declaration skips it."""
        spec, rule = self.spec, self.spec.item
        record = {**record, **split_file_name(file)}
        if rule.cloze:
            record |= _split_last_word(record, rule.cloze, location)
        record |= {field: text for field, text in spec.fill.items() if record.get(field) == ""}
        if rule.skip:
            value = get_field(record, rule.skip.field, location)
            entries = value if isinstance(value, list) else [value]
            if any(isinstance(e, str) and rule.skip.containing in e for e in entries):
                return None
        labels = {
            label: self._fill_name(template, record, location)
            for label, template in spec.labels.items()
        }
        for label, renamed in spec.rename.items():
            labels[label] = renamed.get(labels[label], labels[label])
        labels = self.labels.setdefault(tuple(labels.values()), labels)
        options = tuple(self._build_options(record, location))
        group = labels[spec.finest_level] if spec.finest_level else spec.name
        item_id = f"{group}_{self.counts[group]}"
        if rule.id:
            item_id = self._fill_name(rule.id, record, location)
        self.counts[group] += 1
        gold = self._read_gold(record, len(options), location)
        cluster = hash_cluster(self.cluster_fields, record, location)
        return Item(item_id, options, gold, labels, cluster)

    def _build_options(self, record: records.Record, location: str) -> Iterator[Option]:
        rule = self.spec.item
        if rule.each:
            for entry in self._list_entries(record, location):
                yield self._build_option(rule.options[0], {**record, "each": entry}, location)
            return
        for template in rule.options:
            is_left_out = any(
                get_field(record, field, location) in values
                for field, values in template.unless.items()
            )
            if not is_left_out:
                yield self._build_option(template, record, location)

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
        field, separator = str(self.spec.item.each), self.spec.item.split
        value = get_field(record, field, location)
        if separator and isinstance(value, str):
            value = value.split(separator)
        if not isinstance(value, list):
            expected = "a text" if separator else "a list"
            message = f"{field!r} must be {expected}, not {describe_value(value)}"
            raise DataError(message, location=location)
        if len(value) < 2:
            options = format_count(len(value), "option")
            message = f"the list {field!r} gives {options}; an item needs two or more"
            raise DataError(message, location=location)
        return value

    def _read_gold(self, record: records.Record, num_options: int, location: str) -> int | float:
        gold = self.spec.item.gold
        value = get_field(record, gold, location) if isinstance(gold, str) else gold
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(self.spec.item, JudgementSpec):
            return self.spec.item.read_label(value, location)
        if METRICS[self.spec.metric].item_kind is ItemKind.RATING:
            if not is_number or not 0 <= value <= 1:
                message = f"the rating {gold!r} must be a number in 0..1, not {value!r}"
                raise DataError(message, location=location)
            return float(value)
        if not is_number or not isinstance(value, int) or not 0 <= value < num_options:
            message = f"the index of the right option must be 0..{num_options - 1}, not {value!r}"
            raise DataError(message, location=location)
        return value

    def _fill_name(self, template: str, record: records.Record, location: str) -> str:
        for field in self.name_fields[template]:
            value = get_field(record, field, location)
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                message = f"{field!r} must be a text or a whole number, not {describe_value(value)}"
                raise DataError(message, location=location)
        return check_text(template.format_map(record), template, location)


def _split_last_word(record: records.Record, field: str, location: str) -> dict[str, str]:
    """Return the fields {before} and {last} of a text: its last word, and what stands before."""
    text = get_field(record, field, location)
    before, space, last = text.rpartition(" ") if isinstance(text, str) else ("", "", "")
    if not space or not last or not before.strip():
        message = f"{field!r} must be a text of two words or more, not {describe_value(text)}"
        raise DataError(message, location=location)
    return {"before": before, "last": last}


def _iter_official_files(spec: SuiteSpec, folder: Path) -> records.RecordFiles:
    if spec.grammar:
        yield spec.name, spec.name, enumerate(grammar.generate_pairs(spec.grammar), start=1)
        return
    assert spec.data is not None  # SuiteSpec: data or grammar
    for file in spec.data.files:
        if spec.children and file == spec.children.human:
            continue
        data_file = sources.get_file(spec, file, folder)
        for name, location, raw in records.split_archive(data_file.raw, file, data_file.location):
            if spec.data.layout is None:
                rows = records.read_records(raw, name, location)
            else:
                rows = pair_layouts.read_pairs(raw, name, location, spec.data.pair_format)
            yield name, location, rows


def _limit_items(
    items: Sequence[Item], level: str | None, limit: int | None
) -> tuple[list[Item], tuple[str, ...], int]:
    """Return the first `limit` items of each group of a level (None = all items), a note if items
    are left out, and their number.
    """
    if limit is None:
        return list(items), (), 0
    counts: Counter[str] = Counter()
    kept = []
    for item in items:
        group = item.labels[level] if level else ""
        counts[group] += 1
        if counts[group] <= limit:
            kept.append(item)
    num_left_out = len(items) - len(kept)
    notes = (f"limit: the first {limit} of each {level or 'suite'}",) if num_left_out else ()
    return kept, notes, num_left_out


def _digest(spec: SuiteSpec, items: Iterable[Item]) -> str:
    sha = hashlib.sha256(json.dumps([spec.metric, spec.groups, spec.macro]).encode())
    encode = json.JSONEncoder(ensure_ascii=True, sort_keys=True).encode
    for item in items:
        options = [[option.text, option.span] for option in item.options]
        sha.update(encode([item.id, options, item.gold, item.labels]).encode())
    if spec.times:
        sha.update(encode(spec.times.model_dump()).encode())
    if spec.data and spec.data.layout not in (None, pair_layouts.DEFAULT_LAYOUT):
        sha.update(spec.data.layout.encode())
    return sha.hexdigest()

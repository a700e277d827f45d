"""`suggest`: look at a file of sentences, say what it seems to be, and how it is scored.

Which sentence of a pair is right is never guessed: if the file does not say it, there is a
suggestion for each choice.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

from antlm_bench.declarations import expand_user_path, is_folder
from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.suites import files, loader, pair_files, pair_layouts, records, syntaxgym
from antlm_bench.suites import table_profile as profile
from antlm_bench.suites.names import slugify_title
from antlm_bench.suites.pair_layouts import GOOD_LABELS, GROUP_LEVELS, LAYOUTS, PairFormat
from antlm_bench.suites.task_types import SuiteRequest
from antlm_bench.suites.templates import drop_single_clusters

MAX_ROWS = 5_000
"""Rows or lines at the start of a file that are looked at."""
CERTAIN, LIKELY = "certain: names or labels in the file say so", "likely: by its content"
UNKNOWN_RIGHT = "the file does not say which sentence is right: choose a suggestion"
MAX_LINE = 80
"""Longest line of a TOML. A terminal breaks longer ones, and a copy keeps the line break."""
LABEL_CELLS = {"true", "false", "0", "1", "*"}
"""Labels, in lower case. If the first row of a table has one, it does not name the columns."""
SCORE_WORDS = ("antlm-bench", "score", "--model", "CKPT", "--suite")
Rows = Sequence[records.Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What a file seems to be, and how it is scored. The fields are in reading order."""

    what: str
    why: str
    certainty: str
    which: str = ""
    """What decides which sentence is right; "" = the file has no pairs."""
    right: str = ""
    """The first sentence that is taken as right."""
    wrong: str = ""
    items: str = ""
    """Number of pairs, or why the whole file cannot be read."""
    command: str
    toml_file: str = ""
    """Where a declaration with the same meaning can be saved; "" = there is none."""
    toml: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """Name of a field -> its value, without empty ones, in reading order."""
        names = [each.name for each in fields(self)]
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def suggest(path: str) -> list[Suggestion]:
    """Return how a file, or a folder of files of one kind, can be scored.

    Several suggestions are alternatives, of which the user chooses one. Raises UsageError for a
    TOML, DataError for a file that cannot be read or has no sentences.
    """
    source = expand_user_path(path)
    if source.suffix == ".toml":
        hint = f"antlm-bench score --model CKPT --suite {shlex.quote(path)}"
        raise UsageError("a TOML is a declaration already", location=path, hint=hint)
    data_files = pair_files.list_pair_files(source)
    if not data_files and is_folder(source) and (gym_files := _list_syntaxgym_files(source)):
        return [_suggest_syntaxgym_folder(_SampledFile(path, gym_files[0], gym_files))]
    if not data_files:
        hint = "give a folder with .txt, .csv, .tsv or .jsonl files, or one file"
        raise DataError("there is no file of sentences in it", location=path, hint=hint)
    file = _SampledFile(path, data_files[0], data_files)
    if syntaxgym.is_syntaxgym_file(file.first.name):
        return [_suggest_syntaxgym(file)]
    rows = file.read_rows()
    detectors = LINE_DETECTORS if file.has_lines else TABLE_DETECTORS
    suggestions = next(filter(None, (detect(file, rows) for detect in detectors)), [])
    if not suggestions:
        hint = f"there are the columns {', '.join(map(repr, rows[0]))}"
        raise DataError("no column holds sentences", location=str(file.first), hint=hint)
    return suggestions


@dataclass(frozen=True, slots=True)
class _SampledFile:
    """A file, or the first file of a folder, whose first rows decide the suggestions."""

    ref: str
    """The file or folder, as the user names it."""
    first: Path
    """The file, or the first one of the folder."""
    paths: Sequence[Path]
    """All files."""

    @property
    def root(self) -> Path:
        """The file or folder."""
        return expand_user_path(self.ref)

    @property
    def toml_path(self) -> Path:
        """Where a declaration can be saved: beside the file or folder."""
        name = self.root.name if is_folder(self.root) else pair_files.remove_extension(self.root)
        return self.root.with_name(f"{slugify_title(name or self.root.resolve().name)}.toml")

    @property
    def has_lines(self) -> bool:
        return pair_layouts.is_lines_file(self.first.name)

    def read_rows(self) -> list[records.Record]:
        """Return the first rows, or the lines of a .txt as records with the key `sentence`."""
        location, raw = str(self.first), files.read_bytes(self.first)
        if self.has_lines:
            lines = pair_layouts.read_lines(raw, location)
            rows = [{"sentence": line} for _, line in islice(lines, MAX_ROWS)]
        else:
            table = records.read_records(raw, self.first.name.lower(), location)
            rows = [row for _, row in islice(table, MAX_ROWS)]
        if not rows:
            raise DataError("0 rows", location=location)
        if len(rows[0]) == 1 and not self.has_lines:
            raise records.missing_column_error("sentence", rows[0], location)
        self._check_header(rows)
        return rows

    def _check_header(self, rows: Rows) -> None:
        """Raise DataError if the first row of a table looks like the others."""
        first = list(rows[0])
        has_sentence = any(len(name.split()) > 2 and name.rstrip()[-1:] in ".?!" for name in first)
        if not self.has_lines and (has_sentence or LABEL_CELLS & set(map(str.lower, first))):
            raise DataError(
                "the first row has no names of columns",
                location=f"{self.first}:1",
                hint="add a row such as label,sentence; a file of lines LABEL<TAB>SENTENCE can "
                "be named .txt instead",
            )


# ---- commands and declarations


def _quote(value: object) -> str:
    """Return a text, a list or a mapping as a TOML value."""
    if isinstance(value, Mapping):
        entries = ", ".join(f"{_quote_key(key)} = {_quote(each)}" for key, each in value.items())
        return f"{{ {entries} }}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    assert isinstance(value, Sequence)
    return f"[{', '.join(map(_quote, value))}]"


def _quote_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else _quote(key)


def _build_setting(key: str, value: object) -> str:
    """Return a line of a TOML; a long array has a line per entry."""
    line = f"{_quote_key(key)} = {_quote(value)}"
    if len(line) <= MAX_LINE or not isinstance(value, list | tuple):
        return line
    entries = "".join(f"  {_quote(each)},\n" for each in value)
    return f"{_quote_key(key)} = [\n{entries}]"


def _build_toml(
    file: _SampledFile, kind: str, tables: Mapping[str, Mapping[str, object]]
) -> dict[str, str]:
    """Return the fields `toml_file` and `toml` of a Suggestion.

    tables: name of a table -> its keys; "" = keys above all tables. Empty values are left out.
    """
    names = [pair_files.name_in_folder(path, file.root) for path in file.paths]
    where = [f"{file.root.resolve().name}/{{file}}"] if is_folder(file.root) else []
    data = {"where": where, "files": names, **tables.get("data", {})}
    lines = []
    for name, table in {"": {}, **tables, "data": data}.items():
        keys = {"kind": kind, **table} if name == "" else table
        settings = [_build_setting(key, each) for key, each in keys.items() if each]
        lines += [f"[{name}]"] * bool(name and settings) + settings
    return {"toml_file": str(file.toml_path), "toml": "\n".join(lines)}


def _suggest_pairs(file: _SampledFile, pair_format: PairFormat, **facts: str) -> Suggestion:
    """Return the suggestion for pairs that are read with a format.

    facts: fields of Suggestion. The whole file is read, for the number of pairs.
    """
    settings = asdict(pair_format)
    request = SuiteRequest(file.ref, **settings)
    tables: dict[str, dict[str, object]] = {"data": settings}
    try:
        suite = loader.load_requested_suite(request)
        spec, _ = pair_files.read_pairs(file.root, request)
        facts["right"], facts["wrong"] = (option.text for option in suite.items[0].options)
        facts["items"] = format_count(len(suite.items), "pair")
        has_clusters = any(drop_single_clusters([item.cluster for item in suite.items]))
        cluster = spec.cluster if has_clusters else ()
        tables[""] = {"groups": spec.groups, "macro": spec.macro, "cluster": cluster}
        tables |= {"item": {"id": spec.item.id}, "labels": dict(spec.labels)}
    except BenchError as error:
        facts["items"] = f"the whole file cannot be read: {error}"
    toml = _build_toml(file, "suite", tables)
    return Suggestion(command=_score_command(file, pair_format), **toml, **facts)


def _score_command(file: _SampledFile, pair_format: PairFormat) -> str:
    """Return the command that scores a file of pairs. Settings that follow from others and from the
    file's name are left out.
    """
    if any("," in name or not name for name in pair_format.columns.values()):  # no flag names it
        return shlex.join([*SCORE_WORDS, str(file.toml_path)])
    words = [*SCORE_WORDS, file.ref]
    request = SuiteRequest("", columns=pair_format.columns, good=pair_format.good)
    if pair_files.choose_format(file.first.name, request) != pair_format:
        words += ["--layout", pair_format.layout]
    orders = {"first": ["--good-first"], "second": ["--bad-first"]}
    if pair_format.good:
        words += orders.get(pair_format.good, ["--good", pair_format.good])
    return shlex.join([*words, *_columns_option(pair_format.columns)])


def _columns_option(columns: Mapping[str, str]) -> list[str]:
    value = ",".join(f"{ours}={theirs}" for ours, theirs in columns.items())
    return ["--columns", value] if columns else []


def _surprisal_command(file: _SampledFile, columns: Mapping[str, str], *options: str) -> str:
    words = ["antlm-bench", "surprisal", "--model", "CKPT", "--in", str(file.first)]
    return shlex.join([*words, *_columns_option(columns), *options])


# ---- files of lines


def _detect_labelled_lines(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect lines `True<TAB>sentence`, or sentences of which the wrong ones begin with a star."""
    lines = [row["sentence"] for row in rows]
    layout = LAYOUTS["labelled"]
    assert layout.parse_line
    try:
        parsed = [layout.parse_line(line, "") for line in lines]
    except DataError:
        return []
    labels = [row["label"] for row in parsed]
    if not profile.says_which_is_right(labels):
        _check_labels(file, lines)
        return []
    return _suggest_labelled(file, parsed, {}) or [_describe_unpaired_lines(file)]


def _check_labels(file: _SampledFile, lines: Sequence[str]) -> None:
    """Raise DataError if each line has a label before a tab, but the labels say nothing."""
    labels = list(dict.fromkeys(line.partition("\t")[0].strip() for line in lines))
    if len(labels) > profile.MAX_LABELS or not all("\t" in line for line in lines):
        return
    command = shlex.join([*SCORE_WORDS, file.ref, "--layout", "labelled", "--good", "LABEL"])
    raise DataError(
        f"the labels {', '.join(map(repr, labels))} do not say which sentence is right",
        location=str(file.first),
        hint=f"write True and False, or name the label of right sentences: {command}",
    )


def _describe_unpaired_lines(file: _SampledFile) -> Suggestion:
    return Suggestion(
        what="single sentences with judgements, not in pairs",
        why="the lines have labels, but right ones are not followed by their wrong ones",
        certainty=LIKELY,
        command=_score_command(file, PairFormat("judgements")),
        which="the labels say it",
    )


def _suggest_labelled(
    file: _SampledFile, rows: Rows, columns: Mapping[str, str]
) -> list[Suggestion]:
    """Return the suggestion for rows in which right sentences are followed by their wrong ones."""
    is_good = [pair_layouts.format_label(row["label"]).lower() in GOOD_LABELS for row in rows]
    pairs = []
    for (index, first), second in zip(enumerate(is_good), is_good[1:], strict=False):
        if first and second:
            return []
        if first:
            pairs.append((rows[index]["sentence"], rows[index + 1]["sentence"]))
    similarity = profile.mean_similarity(pairs)
    if not pairs or not is_good[0] or similarity < profile.MIN_SIMILARITY:
        return []
    labels = " and ".join(repr(label) for label in dict.fromkeys(row["label"] for row in rows))
    pair_format = PairFormat("labelled", columns)
    return [
        _suggest_pairs(
            file,
            pair_format,
            what="labelled sentences: a right one is followed by one or more wrong ones",
            why=f"labels {labels}; the sentences of a pair share "
            f"{similarity:.0%} of their characters",
            certainty=CERTAIN,
            which="the labels say it",
        )
    ]


def _detect_alternating_lines(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect sentences in twos. Such files do not say which one is right."""
    lines = [row["sentence"] for row in rows]
    if len(lines) % 2 and len(lines) < MAX_ROWS:
        return []
    pairs = list(zip(lines[::2], lines[1::2], strict=False))
    within = profile.mean_similarity(pairs)
    between = profile.mean_similarity(zip(lines[1::2], lines[2::2], strict=False))
    if within < profile.MIN_SIMILARITY or within <= between:
        return []
    why = f"lines 1 and 2, 3 and 4, ... share {within:.0%} of their characters"
    why += f", lines 2 and 3, 4 and 5, ... {between:.0%}" if len(pairs) > 1 else ""
    return [
        _suggest_pairs(
            file,
            PairFormat("alternating", good=good),
            what=f"pairs of lines, if the {good} line of each is right",
            why=why,
            certainty=LIKELY,
            which=UNKNOWN_RIGHT,
        )
        for good in pair_layouts.ORDERS
    ]


def _detect_sentences(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect sentences without any other structure."""
    column = "sentence" if file.has_lines else next(iter(profile.list_text_columns(rows)), "")
    if not column:
        return []
    columns = {} if column in ("sentence", "text") else {"sentence": column}
    return [
        Suggestion(
            what="sentences, neither in pairs nor with judgements",
            why=f"{format_count(len(rows), 'row')} of text that have no partner and no label",
            certainty=LIKELY,
            command=_surprisal_command(file, columns, "--out", "words.csv"),
        )
    ]


# ---- tables


def _detect_named_pairs(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect the columns good and bad, or BLiMP's."""
    names = LAYOUTS["columns"].columns
    if not all(any(name in rows[0] for name in names[column]) for column in names):
        return []
    return [
        _suggest_pairs(
            file,
            PairFormat("columns", _find_level_columns(file, rows)),
            what="pairs: a row has the right and the wrong sentence",
            why="the names of the columns",
            certainty=CERTAIN,
            which="the names of the columns say it",
        )
    ]


def _find_level_columns(file: _SampledFile, rows: Rows) -> dict[str, str]:
    """Return level of results -> column, for names that differ from recognised ones in case. {} for
    a folder, whose files are the levels.
    """
    columns: dict[str, str] = {}
    if is_folder(file.root):
        return columns
    for level in GROUP_LEVELS:
        recognised = pair_layouts.OPTIONAL_COLUMNS[level]
        matches = [name for name in rows[0] if name.lower() == level]
        if matches and not any(name in rows[0] for name in recognised):
            columns[level] = matches[0]
    return columns


def _detect_regions(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect stimuli with regions."""
    names = {name.lower(): name for name in rows[0]}
    if "region" not in names or not {"text", "sentence"} & names.keys():
        return []
    columns: dict[str, str] = {
        column: names[column]
        for column in ("item", "condition", "region", "sentence", "text")
        if column in names and names[column] != column
    }
    per_region = "sentence" not in names
    return [
        Suggestion(
            what="stimuli with regions"
            + (", a row per region" if per_region else ", a row per sentence"),
            why="the columns " + ", ".join(repr(name) for name in names.values()),
            certainty=CERTAIN,
            command=_surprisal_command(file, columns, "--by", "region", "--out", "regions.csv"),
        )
    ]


def _detect_positions(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect a sentence per condition in each row, with the position of the critical word."""
    words = {name: profile.split_name(name) for name in rows[0]}
    texts = [name for name in rows[0] if name in profile.list_text_columns(rows)]
    sentences = [name for name in texts if words[name] & {"ambiguous", "unambiguous"}]
    positions = [
        name
        for name, parts in words.items()
        if parts & {"position", "pos"} and all(str(row.get(name)).isdecimal() for row in rows)
    ]
    items = {str(row.get("item", index)) for index, row in enumerate(rows)}
    are_unique = len(items) == len(rows)
    what, effects = "a sentence per condition", ["antlm-bench", "effects", "words.csv"]
    if is_ambiguity := len(sentences) == 2:
        sentences.sort(key=lambda name: "unambiguous" in words[name])
        positions.sort(key=lambda name: any(part.startswith("unamb") for part in words[name]))
        what = "ambiguous and unambiguous sentences"
        effects += ["--baseline", sentences[1]]
    else:  # two texts can be a pair, and a row per condition a long table
        sentences = texts if len(texts) > 2 and are_unique else []
    names = [*sentences, *positions]
    if not sentences or len(positions) not in {1, len(sentences)} or "," in "".join(names):
        return []
    layout = ["--conditions", ",".join(sentences), "--position", ",".join(positions)]
    if not are_unique and "condition" in rows[0]:
        effects += ["--per", "row_condition"]  # the result's name of the column
    return [
        Suggestion(
            what=f"{what} with the position of the critical word",
            why=f"the columns {', '.join(map(repr, names))}; the effect is the surprisal of the "
            "critical word in one condition minus that in another",
            certainty=CERTAIN if is_ambiguity else LIKELY,
            command=_surprisal_command(file, {}, *layout, "--out", "words.csv")
            + f"\n{shlex.join(effects)}",
        )
    ]


def _detect_pair_columns(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect two columns of sentences that differ little, whatever their names."""
    pair = profile.find_pair_columns(rows)
    if not pair:
        return []
    names = (pair.first, pair.second)
    good_name = profile.choose_good_name(names)
    return [
        _suggest_pairs(
            file,
            PairFormat("columns", {"good": good, "bad": bad, **_find_level_columns(file, rows)}),
            what="pairs in two columns" + ("" if good_name else f", if {good!r} is right"),
            why=f"{pair.first!r} and {pair.second!r} differ in {pair.different:.0%} of the rows "
            f"and share {pair.similarity:.0%} of their characters",
            certainty=LIKELY,
            which="the names of the columns say it" if good_name else UNKNOWN_RIGHT,
        )
        for good, bad in (names, names[::-1])
        if good_name in ("", good)
    ]


def _detect_long_table(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect a table with a sentence per row, with a key and a label."""
    table = profile.find_long_columns(rows)
    if not table:
        return []
    columns = {"key": table.key, "label": table.label, "sentence": table.sentence}
    columns |= _find_level_columns(file, rows)
    labels = list(dict.fromkeys(pair_layouts.format_label(row.get(table.label)) for row in rows))
    labels_decide = profile.says_which_is_right(labels)
    return [
        _suggest_pairs(
            file,
            PairFormat("long", columns, good),
            what="a long table: a row has one sentence of a pair"
            + (f", if {good!r} is the label of the right one" if good else ""),
            why=f"rows with the same {table.key!r} share {table.similarity:.0%} of their "
            f"characters and differ in {table.label!r}: {', '.join(map(repr, labels))}",
            certainty=LIKELY,
            which="the labels say it" if labels_decide else UNKNOWN_RIGHT,
        )
        for good in ([""] if labels_decide else table.good_labels)
    ]


def _detect_judgements(file: _SampledFile, rows: Rows) -> list[Suggestion]:
    """Detect single sentences with one of two labels."""
    texts = profile.list_text_columns(rows)
    columns = profile.list_label_columns(rows, at_most=2)
    by_labels = [name for name, labels in columns.items() if profile.says_which_is_right(labels)]
    by_name = [name for name in columns if profile.split_name(name) & profile.LABEL_NAMES]
    if not texts or not (by_labels or by_name):
        return []
    label = next((name for name in by_labels if name in by_name), (by_labels or by_name)[0])
    sentence = next((name for name in texts if name == "sentence"), texts[0])
    renamed = [{"label": row.get(label), "sentence": str(row[sentence])} for row in rows]
    names = {"label": label, "sentence": sentence}
    own_names = {ours: name for ours, name in names.items() if ours != name}
    labels_decide = label in by_labels
    if labels_decide and (pairs := _suggest_labelled(file, renamed, own_names)):
        return pairs
    labels = columns[label]
    good_labels = [each for each in labels if each.lower() in GOOD_LABELS]
    return [
        _suggest_judgements(file, (sentence, label), (good, bad), labels_decide)
        for good in (good_labels if labels_decide else labels)
        for bad in labels
        if bad != good
    ]


def _suggest_judgements(
    file: _SampledFile, columns: tuple[str, str], labels: tuple[str, str], labels_decide: bool
) -> Suggestion:
    """Return the suggestion for single judgements.

    columns: names of the columns of sentences and labels. labels: the right and the wrong one.
    labels_decide: whether the labels themselves say which one is right.
    """
    (sentence, label), (good, bad) = columns, labels
    options = [] if sentence == "sentence" else [{"scored": f"{{{sentence}}}"}]
    item = {"options": options, "gold": label, "acceptable": [good], "unacceptable": [bad]}
    names = {"sentence": sentence, "label": label}
    own_names = {ours: name for ours, name in names.items() if ours != name}
    return Suggestion(
        what="single sentences with judgements"
        + ("" if labels_decide else f", if {good!r} is the label of acceptable ones"),
        why=f"{label!r} is {good!r} or {bad!r}, and {sentence!r} has no partner in other rows",
        certainty=LIKELY,
        which=f"{good!r} calls a sentence acceptable" if labels_decide else UNKNOWN_RIGHT,
        command=_score_command(
            file, PairFormat("judgements", own_names, "" if labels_decide else good)
        ),
        **_build_toml(file, "acceptability", {"item": item}),
    )


def _list_syntaxgym_files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if syntaxgym.is_syntaxgym_file(path.name) and not path.name.startswith(".")
    )


def _suggest_syntaxgym_folder(file: _SampledFile) -> Suggestion:
    suites = [syntaxgym.read_suite(path) for path in file.paths]
    predictions = format_count(sum(len(gym.formulas) for gym in suites), "prediction")
    levels = {"groups": ["suite"], "macro": ["suite"]}
    toml = _build_toml(file, "syntaxgym", {"": levels, "labels": {"suite": "{stem}"}})
    return Suggestion(
        what=f"{format_count(len(suites), 'SyntaxGym suite')}: {predictions}",
        why="JSON with `items`, their regions, and `predictions`",
        certainty=CERTAIN,
        which="their predictions say which region must be more surprising",
        command=shlex.join([*SCORE_WORDS, str(file.toml_path)]),
        **toml,
    )


def _suggest_syntaxgym(file: _SampledFile) -> Suggestion:
    gym = syntaxgym.read_suite(file.first)
    items = format_count(len(gym.sentences), "item")
    return Suggestion(
        what=f"a SyntaxGym suite: {format_count(len(gym.formulas), 'prediction')}, {items}",
        why="JSON with `items`, their regions, and `predictions`",
        certainty=CERTAIN,
        which="its predictions say which region must be more surprising",
        command=shlex.join([*SCORE_WORDS, file.ref]),
    )


Detector = Callable[[_SampledFile, Rows], list[Suggestion]]
LINE_DETECTORS: tuple[Detector, ...] = (
    _detect_labelled_lines,
    _detect_alternating_lines,
    _detect_sentences,
)
"""Tried in this order for a file of lines."""
TABLE_DETECTORS: tuple[Detector, ...] = (
    _detect_named_pairs,
    _detect_regions,
    _detect_positions,
    _detect_pair_columns,
    _detect_long_table,
    _detect_judgements,
    _detect_sentences,
)
"""Tried in this order for a table."""

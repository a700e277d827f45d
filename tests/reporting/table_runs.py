"""Small finished runs with chosen numbers, for the tests of tables."""

from __future__ import annotations

from dataclasses import replace

from antlm_bench.types import Cell, Estimate, Group, Manifest, Run, Summary

PARADIGMS_BY_PHENOMENON = {
    "anaphor_agreement": ("anaphor_gender_agreement", "anaphor_number_agreement"),
    "irregular_forms": ("irregular_plural_subject_verb_agreement_2",),
}
NOTE = "incomplete: 64000 of 67000 pairs (10 of 67 paradigms short)"


def make_estimate(value: float, n: int, half: float, **flags: int) -> Estimate:
    return Estimate(
        value,
        n,
        value - half,
        value + half,
        {name.replace("_", "-"): c for name, c in flags.items()},
    )


def make_blimp_cell(method: str, value: float) -> Cell:
    groups = [
        Group("phenomenon", name, make_estimate(value + 0.01, 2000, 0.02))
        for name in PARADIGMS_BY_PHENOMENON
    ]
    groups += [
        Group("paradigm", paradigm, make_estimate(value + 0.02, 1000, 0.031, tie=1), phenomenon)
        for phenomenon, paradigms in PARADIGMS_BY_PHENOMENON.items()
        for paradigm in paradigms
    ]
    headline = make_estimate(value, 3000, 0.0042, tie=7, identical=7, unk=12, too_long=1)
    views = {
        "closed-form": make_estimate(value, 3000, 0.0041),
        "clustered": make_estimate(value, 3000, 0.123),
    }
    summary = Summary(
        "blimp", method, "accuracy", ("paradigm",), headline, views, tuple(groups), (NOTE,)
    )
    return Cell("blimp", method, "k", {"ties": "half"}, summary, "d")


def make_pairs_cell(method: str, value: float, name: str = "pairs") -> Cell:
    summary = Summary(name, method, "accuracy", (), make_estimate(value, 40, 0.15, tie=2), {}, ())
    return Cell(name, method, "k", {"ties": "half"}, summary, "d")


def make_wug_cell(method: str, value: float) -> Cell:
    summary = Summary("wug-adj", method, "spearman", (), make_estimate(value, 200, 0.14), {}, ())
    return Cell("wug-adj", method, "k", {}, summary, "d")


def make_reading_cell(method: str) -> Cell:
    """Make a cell of reading times: two measures of one outcome each, some words too long."""
    groups = []
    for measure, value in (("eye-tracking", 0.0123), ("self-paced", 0.004)):
        groups.append(Group("measure", measure, make_estimate(value, 1700, 0.008, too_long=3)))
        groups.append(
            Group(
                "outcome", f"{measure}-ms", make_estimate(value, 1700, 0.008, too_long=3), measure
            )
        )
    headline = make_estimate(0.00815, 1700, 0.0072, too_long=3)
    summary = Summary(
        "reading", method, "delta-r2", ("measure", "outcome"), headline, {}, tuple(groups)
    )
    return Cell("reading", method, "k", {"ties": "half", "reduction": "per-token"}, summary, "d")


def make_surprisal_cell(method: str) -> Cell:
    """Make a cell of word surprisal, which has no right or wrong."""
    summary = Summary(
        "aoa", method, "surprisal", ("word",), make_estimate(7.25, 8005, 0.31, too_long=1), {}, ()
    )
    return Cell("aoa", method, "k", {"ties": "half"}, summary, "d")


def make_run(name: str, *methods: str, suites: int = 0, value: float = 0.634) -> Run:
    manifest = Manifest(
        1, {"name": name, "weights": "w"}, {"antlm-bench": "0.1.0"}, "2026-01-01T00:00:00+00:00"
    )
    cells = []
    for i, method in enumerate(methods):
        more = [make_pairs_cell(method, value, f"suite-{j}") for j in range(suites)]
        cells += [
            make_blimp_cell(method, value + i / 10),
            make_pairs_cell(method, value),
            make_wug_cell(method, -0.084),
            *more,
        ]
    return Run(f"reports/{name}", manifest, tuple(cells))


ONE_RUN = [make_run("out/babyllama", "causal")]
HYBRID_RUN = [make_run("out/gpt-bert", "causal", "mntp", "fused")]
READING_RUN = [
    replace(
        make_run("out/babyllama"),
        cells=(make_reading_cell("causal"), make_surprisal_cell("causal")),
    )
]
TWO_RUNS = [make_run("out/babyllama", "causal"), make_run("out/ltg-bert", "mlm", value=0.71)]
CHECKPOINT_RUNS = [
    make_run(f"gpt/chck_{words}M", "causal", suites=6)
    for words in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20)
]

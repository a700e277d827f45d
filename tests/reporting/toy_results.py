"""Small finished runs for the tests of what people see; numbers chosen, nothing computed."""

from __future__ import annotations

from dataclasses import replace

from antlm_bench.types import Cell, Estimate, Group, Manifest, Run, Summary

TREE = {
    "anaphor_agreement": ("anaphor_gender_agreement", "anaphor_number_agreement"),
    "irregular_forms": ("irregular_plural_subject_verb_agreement_2",),
}
NOTE = "incomplete: 64000 of 67000 pairs (10 of 67 paradigms short)"


def estimate(value: float, n: int, half: float, **flags: int) -> Estimate:
    return Estimate(
        value,
        n,
        value - half,
        value + half,
        {name.replace("_", "-"): c for name, c in flags.items()},
    )


def blimp(method: str, value: float) -> Cell:
    groups = [Group("phenomenon", name, estimate(value + 0.01, 2000, 0.02)) for name in TREE]
    groups += [
        Group("paradigm", paradigm, estimate(value + 0.02, 1000, 0.031, tie=1), phenomenon)
        for phenomenon, paradigms in TREE.items()
        for paradigm in paradigms
    ]
    headline = estimate(value, 3000, 0.0042, tie=7, identical=7, unk=12, too_long=1)
    views = {
        "closed-form": estimate(value, 3000, 0.0041),
        "clustered": estimate(value, 3000, 0.123),
    }
    summary = Summary(
        "blimp", method, "accuracy", ("paradigm",), headline, views, tuple(groups), (NOTE,)
    )
    return Cell("blimp", method, "k", {"ties": "half"}, summary, "d")


def pairs(method: str, value: float, name: str = "pairs") -> Cell:
    summary = Summary(name, method, "accuracy", (), estimate(value, 40, 0.15, tie=2), {}, ())
    return Cell(name, method, "k", {"ties": "half"}, summary, "d")


def wug(method: str, value: float) -> Cell:
    summary = Summary("wug-adj", method, "spearman", (), estimate(value, 200, 0.14), {}, ())
    return Cell("wug-adj", method, "k", {}, summary, "d")


def reading(method: str) -> Cell:
    """Reading times: two measures of one outcome each, some words too long for the model."""
    groups = []
    for measure, value in (("eye-tracking", 0.0123), ("self-paced", 0.004)):
        groups.append(Group("measure", measure, estimate(value, 1700, 0.008, too_long=3)))
        groups.append(
            Group("outcome", f"{measure}-ms", estimate(value, 1700, 0.008, too_long=3), measure)
        )
    headline = estimate(0.00815, 1700, 0.0072, too_long=3)
    summary = Summary(
        "reading", method, "delta-r2", ("measure", "outcome"), headline, {}, tuple(groups)
    )
    return Cell("reading", method, "k", {"ties": "half", "reduction": "per-token"}, summary, "d")


def words(method: str) -> Cell:
    """Surprisal of words; nothing is right or wrong."""
    summary = Summary(
        "aoa", method, "surprisal", ("word",), estimate(7.25, 8005, 0.31, too_long=1), {}, ()
    )
    return Cell("aoa", method, "k", {"ties": "half"}, summary, "d")


def run(name: str, *methods: str, suites: int = 0, value: float = 0.634) -> Run:
    manifest = Manifest(
        1, {"name": name, "weights": "w"}, {"antlm-bench": "0.1.0"}, "2026-01-01T00:00:00+00:00"
    )
    cells = []
    for i, method in enumerate(methods):
        more = [pairs(method, value, f"suite-{j}") for j in range(suites)]
        cells += [blimp(method, value + i / 10), pairs(method, value), wug(method, -0.084), *more]
    return Run(f"reports/{name}", manifest, tuple(cells))


ONE = [run("out/babyllama", "causal")]
HYBRID = [run("out/gpt-bert", "causal", "mntp", "fused")]
READ = [replace(run("out/babyllama"), cells=(reading("causal"), words("causal")))]
TWO = [run("out/babyllama", "causal"), run("out/ltg-bert", "mlm", value=0.71)]
SWEEP = [
    run(f"gpt/chck_{words}M", "causal", suites=6) for words in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20)
]

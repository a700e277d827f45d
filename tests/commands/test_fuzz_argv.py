"""Any command line ends with a code of the documented table and a message: no traceback, no
half-written run.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_rows import read_rows
from score_helpers import make_agreement_rows, write_pairs, write_sentence_pairs

from antlm_bench import runs
from antlm_bench.cli.app import run

Make = Callable[..., Path]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "exit-codes.md"
CODES = {
    int(code)
    for code in re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
} - {70}

WORDS = (
    " |-|--|~|~nobody/x|.|..|/|//|*|**|[|a*/../*|"
    "é|\udc80|a=b|=|,|,,|0|-1|1e9|99999999999999999999|nan|@|gpt2@main"
)
ODD = ["", "\x00", "x" * 5000, *WORDS.split("|"), "a/b", "a/b/c"]
GOOD = """
kind = "suite"
name = "mine"
version = "1"
title = "mine"
licence = "mine"
citation = "mine"
item.options = [{ scored = "{good}" }, { scored = "{bad}" }]
data = { where = ["{file}"], files = { "agree.csv" = {} } }
"""
MODELS = [
    "model",
    "model",
    "models",
    "models/*",
    "models/chck_2M",
    "model/config.json",
    "empty",
    "absent",
    "gpt2",
    "a/b",
]
SUITES = [
    "pairs.csv",
    "pairs.csv",
    "agree.csv",
    "broken.csv",
    "absent.csv",
    "own.toml",
    "good.toml",
    "blimp",
    "nanno",
]
SUITES += ["zero-shot-2025", "pairs.csv,agree.csv", "pairs.csv.gz", "model"]
METHODS = ["causal", "all", "mlm", "mlm-l2r", "mntp", "fused", "causal,mlm", "mlmm"]
PLACES = [
    "out",
    "out",
    "other/below",
    "frozen",
    "frozen/below",
    "",
    ".",
    "é",
    "\udc80",
    "\x00",
    "x" * 300,
    "a*b",
    "model",
]
OPTIONS = {  # every option of `score` and the peers' spellings; values that fit, or nearly
    "--model": MODELS, "--suite": SUITES, "--tasks": SUITES, "--model_path_or_name": MODELS,
    "--revision": ["main"],
    "--limit": ["1", "2"], "--columns": ["good=bad,bad=good", "good=ok", "id=good"],
    "--method": METHODS,
    "--backend": METHODS, "--bos": ["auto", "always", "never", "tokenizer"], "--ties": ["half",
    "first", "random"],
    "--compat": ["lm-eval", "minicons", "babylm-2024", "babylm-2026"], "--max-length": ["1", "3",
    "64", "65"],
    "--device": ["cpu", "cuda", "cuda:99", "mps", "meta"], "--dtype": ["float32", "bfloat16",
    "float16"],
    "--precision": ["exact", "adaptive"], "--batch-tokens": ["1", "auto", "10000000"],
    "--batch_size": ["4", "auto:2"],
    "--by": ["suite", "field", "phenomenon", "paradigm"], "--original-layout": ["ltg-bert-bnc",
    "ltg-bert"],
    "--model_args": ["pretrained=model", "pretrained=a,dtype=x"],
}  # fmt: skip
FLAGS = [
    "--allow-incomplete",
    "--trust-remote-code",
    "--allow-pickle",
    "--again",
    "--json",
    "--csv",
    "--markdown",
]
FLAGS += ["--help", "--version"]
NAMED = [
    "nano",
    "blimp",
    "zero-shot-2025",
    "wug-adj",
    "mlm",
    "good.toml",
    "own.toml",
    "nanno",
    "model",
    "suites",
    "methods",
]
FORMATS = ["--json", "--csv", "--markdown"]
VERBS = {  # what fits each of the others, or nearly
    "list": [["suites"], ["collections"], ["models"], ["methods"], *([form] for form in FORMATS)],
    "show": [[name] for name in NAMED],
    "doctor": [["--model", name] for name in MODELS] + [["--revision", "main"]],
    "data list": [*([name] for name in NAMED), *([form] for form in FORMATS)],
    "data verify": [[name] for name in NAMED],
    "data where": [],
    "data fetch": [[name] for name in NAMED] + [["--to", "fetched"], ["--to", "frozen"]],
}

VALUE = st.sampled_from(ODD) | st.text(max_size=8)
PLACE = st.sampled_from(["--out", "--output_path"]).flatmap(
    lambda o: st.sampled_from(PLACES).map(lambda v: [o, v])
)


def option(names: list[str]) -> st.SearchStrategy[list[str]]:
    """An option with a value that fits (three times in four) or an odd one, apart or after an
    equals sign.
    """
    fitting = st.sampled_from(names).flatmap(
        lambda o: st.sampled_from(OPTIONS[o]).map(lambda v: [o, v])
    )
    odd = st.sampled_from(names).flatmap(
        lambda o: VALUE.map(lambda v: [o, v]) | VALUE.map(lambda v: [f"{o}={v}"])
    )
    return st.one_of(fitting, fitting, fitting, odd)


WORD = st.one_of(
    option(list(OPTIONS)), option(list(OPTIONS)), st.sampled_from(FLAGS).map(lambda f: [f]), PLACE
)
STRAY = st.one_of(
    WORD, WORD, WORD, VALUE.map(lambda v: [v]), st.sampled_from(SUITES).map(lambda v: [v])
)
SCORE = st.tuples(option(["--model"]), option(["--suite"]), st.lists(WORD, max_size=3)).map(
    lambda parts: [["score", "--device", "cpu"], parts[0], parts[1], *parts[2]]
)
OTHER = st.sampled_from(sorted(VERBS)).flatmap(
    lambda verb: st.tuples(
        st.lists(st.sampled_from(VERBS[verb] or [[]]), max_size=3),
        st.just([]) | st.lists(STRAY, max_size=1),
    ).map(lambda parts: [verb.split(), *parts[0], *parts[1]])
)
ANY = st.one_of(OTHER, OTHER, OTHER, st.lists(STRAY, max_size=4))


@pytest.fixture
def place(make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint, suites good and bad, and no way out to the net."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr("antlm_bench.suites.downloads.RETRY_DELAYS", (0.0,))
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ANTLM_BENCH_TRACEBACK", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(make_checkpoint(), tmp_path / "model")  # runs are written there
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "chck_1M").symlink_to(make_checkpoint())
    (tmp_path / "models" / "chck_2M").symlink_to(make_checkpoint("masked"))
    (tmp_path / "frozen").write_text("a file")
    write_pairs(tmp_path / "agree.csv", make_agreement_rows(6))
    write_sentence_pairs(
        tmp_path / "pairs.csv", ("the cat sleeps", "the cat sleep"), ("who", "what")
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "broken.csv").write_text("good,bad\nonly\n")
    (tmp_path / "own.toml").write_text("kind = 'suite'\n")
    (tmp_path / "good.toml").write_text(GOOD)
    return tmp_path


def whole_runs(place: Path) -> None:
    """Every run folder here can be read, with all the predictions that it names, and holds nothing
    half-written.
    """
    for document in place.rglob("run.json"):
        for cell in runs.open_run(document.parent):
            assert read_rows(document.parent, cell)
    assert not list(place.rglob("*.tmp")) and not list(place.rglob(".lock"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("lines", "examples", "codes"),
    [(ANY, 250, {0, 2, 3}), (SCORE, 120, {0, 2, 3})],
    ids=["any", "score"],
)
def test_every_command_line_ends_with_a_documented_code(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    lines: st.SearchStrategy[list[list[str]]],
    examples: int,
    codes: set[int],
) -> None:
    seen: Counter[int] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(lines)
    def check(line: list[list[str]]) -> None:
        argv = [word for words in line for word in words]
        code = run(argv)
        said = capsys.readouterr().err
        seen[code] += 1
        assert code in CODES, (argv, said)
        assert "Traceback" not in said
        assert code == 0 or "error: " in said, (argv, said)
        whole_runs(place)

    check()
    assert codes <= set(seen) <= CODES, seen

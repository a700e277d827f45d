"""Every command and snippet of README and docs/ is run at nano scale, or says why it is not.

Pages that no other test runs are run here: each in a folder that has what its commands name (tiny
checkpoints, small files, two runs), with synthetic data of two items per group. A page's blocks
that another test runs are listed in RUN_BY_OTHER_TESTS.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from documented_pages import (
    NOT_RUN,
    REASONS,
    ROOT,
    STIMULI_TABLE,
    Block,
    PageRunner,
    read_blocks,
    split_commands,
)
from encoder_decoders import save_encoder_decoder
from report_runs import make_glue_cells, make_zero_shot_cells, write_run
from synthetic_suites import serve_synthetic_data

from antlm_bench.cli.app import run as run_command_line
from antlm_bench.sweeps.declaration import read_sweep_file
from antlm_bench.sweeps.ray_executor import read_options as read_ray_options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]
LANGUAGES = {"sh", "bash", "python", "toml", "yaml", "r"}
"""Languages of blocks that a reader runs. Other blocks are data and output."""
PACKAGES = {"docs/how-to/languages.md": "jieba"}
"""Page -> an optional package that its commands need."""
SLOW_PAGES = (
    "docs/how-to/scale.md",  # starts workers
    "docs/explanation/finetuning.md",  # as how-to/finetune.md
    "docs/explanation/recipes.md",  # as how-to/train.md
)
PLUGIN_KINDS = ("metrics", "task_types", "methods", "architectures", "formats", "executors")
PLUGINS = "tests/test_plugins.py"
EXAMPLES = "tests/psycholinguistics/test_documented_examples.py"
API = "tests/test_python_api.py::test_the_examples_of_the_documents_run"
CHECK = "tests/ci/test_ci_page.py::test_the_commands_run_as_they_stand"
SUBMIT = "tests/commands/test_submit_whole.py::test_a_text_becomes_whole_submissions"
RUN_BY_OTHER_TESTS: dict[str, dict[str, str]] = {
    "README.md": {
        "import antlm_bench": API,
        "make demo": "tests/test_demo.py::test_make_demo_prints_the_table_of_the_readme",
    },
    "docs/how-to/completion.md": {
        "antlm-bench completion": "tests/cli/test_completion.py::test_tab_key_completes_in_a_shell",
    },
    "docs/tutorials/participant.md": {
        "*": "tests/test_tutorials.py::test_the_participant_scores_nineteen_checkpoints"
    },
    "docs/tutorials/ci-engineer.md": {
        "*": "tests/test_tutorials.py::test_the_gate_passes_and_fails_as_shown"
    },
    "docs/tutorials/linguist.md": {
        "*": "tests/test_tutorials.py::test_the_linguist_measures_attraction"
    },
    "docs/tutorials/lab.md": {"*": "tests/test_tutorials.py::test_the_lab_plans_and_finds_a_typo"},
    "docs/how-to/python.md": {"*": API},
    "docs/how-to/ci.md": {"*": CHECK},  # and the other tests of that file
    "docs/how-to/submit.md": {"python benchmarks/synthetic.py": SUBMIT},
    "docs/how-to/verify.md": {
        "*": "tests/commands/test_verify.py::test_the_worked_example_of_the_document_runs"
    },
    "docs/how-to/lm-eval.md": {
        "*": "tests/lm_eval_bridge/test_documented_lm_eval.py"
        "::test_the_example_scores_the_same_both_ways"
    },
    "docs/explanation/statistics.md": {
        "*": "tests/statistics/test_documented_numbers.py::test_the_example_code_of_the_page_runs"
    },
    "docs/how-to/surprisal.md": {
        "from antlm_bench import Scorer, surprisal": API,
        "antlm-bench surprisal": f"{EXAMPLES}::test_the_documented_surprisal_tables_are_reproduced",
        "antlm-bench score": f"{EXAMPLES}::test_the_syntaxgym_suite_of_the_document_is_scored",
        'kind = "syntaxgym"': f"{EXAMPLES}::test_the_syntaxgym_suite_of_the_document_is_scored",
    },
    "docs/explanation/reading.md": {
        "from itertools": "tests/psycholinguistics/test_reading_suites.py"
        "::test_exported_items_give_the_documented_numbers",
        "antlm-bench score --model CKPT": f"{EXAMPLES}"
        "::test_both_reading_suites_stand_side_by_side",
    },
    "docs/how-to/effects.md": {
        "antlm-bench effects surprisal.csv": f"{EXAMPLES}"
        "::test_the_documented_effects_are_reproduced",
        "antlm-bench surprisal": f"{EXAMPLES}::test_the_documented_stimuli_and_python_give_effects",
        "antlm-bench effects words.csv": f"{EXAMPLES}"
        "::test_the_documented_stimuli_and_python_give_effects",
        "kind =": f"{EXAMPLES}::test_the_documented_stimuli_and_python_give_effects",
        "import antlm_bench": f"{EXAMPLES}::test_the_documented_stimuli_and_python_give_effects",
    },
    "docs/how-to/extending.md": {
        "# tasks/animals.toml": f"{PLUGINS}::test_a_suite_is_a_toml_in_a_folder_of_ones_own",
        "# brier.py": f"{PLUGINS}::test_a_misspelt_metric_of_a_package_gets_a_suggestion",
        "# cloze.py": f"{PLUGINS}::test_a_kind_of_suite_is_one_record_of_a_package",
        "# tasks/gaps.toml": f"{PLUGINS}::test_a_kind_of_suite_is_one_record_of_a_package",
    },
    "docs/how-to/scale.md": {
        "# sweep.toml": "tests/sweeps/test_scale_page.py::test_the_walk_through_on_local_workers",
        "python examples": "tests/sweeps/test_scale_page.py"
        "::test_the_walk_through_on_local_workers",
        'name = "strict-small"': "tests/sweeps/test_slurm_walkthrough.py"
        "::test_a_sweep_scores_what_score_does",
        "antlm-bench run sweep.toml --executor slurm --w": "tests/sweeps/"
        "test_slurm_walkthrough.py::test_a_sweep_scores_what_score_does",
        "antlm-bench train": "tests/sweeps/test_slurm_walkthrough.py"
        "::test_a_training_runs_on_two_nodes_and_survives_its_time_limit",
    },
}
"""Page -> beginning of a block's first line ("*" = every block) -> the test that runs the block."""


def shrink_command(words: list[str]) -> list[str]:
    """Return a command of one seed, one epoch, or scale nano."""
    if words[:2] == ["antlm-bench", "finetune"]:
        words = [
            "1" if previous == "--seeds" else word
            for previous, word in zip(["", *words], words, strict=False)
        ]
        words += [] if "--frozen" in words else ["--set", "epochs=1"]
    if words[:2] == ["antlm-bench", "train"]:
        words += [] if "--scale" in words else ["--scale", "nano"]
        words += ["--device", "cpu", "--set", "corpus.words=500", "--set", "batch.tokens=1024"]
    return words


SENTENCES = "".join(f"the {w} sees the dog .\nthe {w} see the dog .\n" for w in ("cat", "boy"))
FILES = {
    "pairs.csv": "good,bad\nthe cat sees,the cat see\nthe dog sees,the dog see\n",
    "a.csv": "ok,wrong\nthe cat sees,the cat see\nthe dog sees,the dog see\n",
    "long.csv": "item,condition,text\n1,plus,the cat sees\n1,minus,the cat see\n",
    "sentences.txt": SENTENCES,
    "filler-gap.txt": SENTENCES,
    "zorro/agreement.txt": SENTENCES,
    "clams/agreement.txt": "True\tthe cat sees\nFalse\tthe cat see\n",
    "train.csv": "text,label\n" + "the cat sees,yes\nthe dog see,no\n" * 16,
    "valid.csv": "text,label\n" + "the boy sees,yes\nthe girl see,no\n" * 4,
    "sweep.toml": '[[score]]\nmodels = ["CKPT"]\nsuites = ["pairs.csv"]\n',
    "stimuli.csv": STIMULI_TABLE,
    "mine.tsv": "label\tsentence\n1\tthe cat sees\n0\tthe cat see\n1\tthe dog sees\n0\ta dog see\n",
    "text/corpus.txt": "the cat sees the dog .\nevery boy sleeps .\n" * 200,
    "path/to/text/corpus.txt": "the cat sees the dog .\nevery boy sleeps .\n" * 200,
}
CHECKPOINTS = {
    **dict.fromkeys(
        ["CKPT", "A", "gpt2", "path/to/checkpoint", "path/to/hybrid", "out/trusted"], ("causal", 0)
    ),
    **dict.fromkeys(["OTHER", "B", "out/new"], ("causal", 1)),
    **dict.fromkeys(["checkpoints/chck_1M", "path/to/checkpoints/chck_1M"], ("causal", 0)),
    **dict.fromkeys(["checkpoints/chck_2M", "path/to/checkpoints/main"], ("causal", 1)),
    **dict.fromkeys(["MASKED", "bert-base-uncased"], ("masked", 0)),
}
COPIED_RUNS = {"trusted": "a", "new": "b", "chck_1M": "a", "chck_2M": "b", "llama/main": "b"}


@pytest.fixture(scope="module")
def page_inputs(tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    """A folder with everything that commands of the pages name: files, checkpoints, runs."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name, (kind, seed) in CHECKPOINTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(make_checkpoint(kind, seed=seed))
    shutil.copytree(make_checkpoint("causal", seed=1), folder / "DIR")
    shutil.copy(folder / "text" / "corpus.txt", folder / "DIR")
    save_encoder_decoder("t5", folder / "t5-small")
    train = ["antlm-bench", "train", "babyllama", "--corpus", str(folder / "path/to/text")]
    train = shrink_command([*train, "--out", str(folder / "runs" / "babyllama")])
    assert run_command_line(train[1:]) == 0
    for name, more in {"a": 0, "b": 5}.items():
        cells = [*make_zero_shot_cells("causal", more=more), *make_glue_cells(seeds=(1,))]
        write_run(folder / "reports" / name, cells)
    for name, original in COPIED_RUNS.items():
        run = shutil.copytree(folder / "reports" / original, folder / "reports" / name)
        text = (run / "run.json").read_text(encoding="utf-8")
        text = text.replace(f'"name": "{original}"', f'"name": "{Path(name).name}"')
        text = text.replace(f'"w of {original}"', f'"w of {name}"')
        (run / "run.json").write_text(text, encoding="utf-8")
    export = ["export", str(folder / "reports" / "a"), "--format", "lm-eval"]
    for name in ("lm_eval_output", "harness/out/gpt2", "harness/out/other"):
        assert run_command_line([*export, "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture
def runner(page_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PageRunner:
    """Runs a page in a copy of `page_inputs`, on synthetic data."""
    folder = tmp_path / "page"
    shutil.copytree(page_inputs, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(folder))
    serve_synthetic_data(monkeypatch, most=2)
    return PageRunner(folder, shrink=shrink_command)


def name_other_test(page: str, block: Block) -> str:
    """Return the test of another file that runs a block, "" if there is none."""
    for start, test in RUN_BY_OTHER_TESTS.get(page, {}).items():
        if start == "*" or block.first_line.startswith(start):
            return test
    return ""


def read_page_blocks(page: str) -> list[Block]:
    """Return the blocks of a page that a reader runs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block for block in read_blocks(text) if block.language in LANGUAGES]


def check_toml(text: str, folder: Path) -> None:
    """Read a TOML as the command that takes such a file does."""
    tables = tomllib.loads(text)
    name = re.match(r"# ([\w/-]+\.toml)", text)
    path = folder / (name[1] if name else "block.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if path.name == "antlm-bench.toml":
        return  # every command below it on the page reads it
    if "kind" in tables:
        assert run_command_line(["show", str(path)]) == 0
    elif "project" in tables:
        groups = set(tables["project"]["entry-points"])
        assert groups <= {f"antlm_bench.{kind}" for kind in PLUGIN_KINDS}
    elif set(tables) == {"executor"}:
        read_ray_options(tables["executor"]["ray"], str(path))
    else:
        read_sweep_file(path)


def run_block(runner: PageRunner, block: Block) -> None:
    """Run a block, or read the file that it shows."""
    if not block.text_to_run.strip():
        return
    if block.language == "toml":
        check_toml(block.text_to_run, runner.folder)
    elif block.language in ("sh", "bash"):
        runner.run_commands(split_commands(block.text_to_run), may_lack_data=True)
    else:
        assert block.language == "python"
        runner.run_cell(block.text_to_run)


PAGES_TO_RUN = [
    page
    for page in PAGES
    if any(
        block.text_to_run.strip() and not name_other_test(page, block)
        for block in read_page_blocks(page)
    )
]


@pytest.mark.long
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page in SLOW_PAGES else page
        for page in PAGES_TO_RUN
    ],
)
def test_the_blocks_of_a_page_run(page: str, runner: PageRunner) -> None:
    if page in PACKAGES:
        pytest.importorskip(PACKAGES[page])
    if page == "README.md":  # its commands score these
        for name in ("trusted", "new"):
            shutil.rmtree(runner.folder / "reports" / name)
    for block in read_page_blocks(page):
        if not name_other_test(page, block):
            run_block(runner, block)


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_has_a_known_reason(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(NOT_RUN.findall(text)) <= set(REASONS)


def test_no_block_is_left_out() -> None:
    """A block is run here, by a test of another file that exists, or has a reason."""
    for page, tests in RUN_BY_OTHER_TESTS.items():
        starts = {block.first_line for block in read_page_blocks(page)}
        for start, test in tests.items():
            file, _, name = test.partition("::")
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"\ndef {name}(" in source, test
            assert Path(page).stem in source or Path(page).name in source, (page, test)
            assert start == "*" or any(line.startswith(start) for line in starts), (page, start)
    unknown = {
        (page, block.language)
        for page in PAGES
        for block in read_page_blocks(page)
        if block.language in ("yaml", "r")
        and block.text_to_run.strip()
        and not name_other_test(page, block)
    }
    assert not unknown

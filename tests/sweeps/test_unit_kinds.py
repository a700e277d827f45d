"""Units of the real kinds: what they compute, and how they fail."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE

import pytest
from commands.score_helpers import make_agreement_rows, write_pairs
from commands.train_helpers import CAUSAL, write_recipe

from antlm_bench.commands.finetune import finetune
from antlm_bench.commands.finetune_session import TaskCache
from antlm_bench.commands.score import score
from antlm_bench.errors import BenchError
from antlm_bench.runs.provenance import EXECUTOR_VARIABLE, PROVENANCE_FILE, read_provenance
from antlm_bench.scoring import multiple_choice
from antlm_bench.suites.classification_loader import ClassificationTask
from antlm_bench.sweeps import unit_kinds
from antlm_bench.sweeps.declaration import read_sweep_file
from antlm_bench.sweeps.expansion import expand_sweep
from antlm_bench.sweeps.status import SweepStatus, build_status, load_state
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.unit_kinds import UNIT_KINDS, describe_unit
from antlm_bench.sweeps.units import Sweep, Unit, group_units
from antlm_bench.sweeps.worker import Worker, WorkerOptions

Make = Callable[..., Path]
TIMES = {"created", "seconds", "examples_per_second"}
EPOCH = 'changes = ["epochs=1", "max_length=32"]'


@pytest.fixture(autouse=True)
def _new_sessions() -> Iterator[None]:
    """Give each test a worker's process without open checkpoints."""
    yield
    unit_kinds._score_session.cache_clear()
    unit_kinds._finetune_session.cache_clear()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with pairs.csv (40 pairs), and train.csv and valid.csv (the same as sentences)."""
    rows = make_agreement_rows()
    write_pairs(tmp_path / "pairs.csv", rows)
    for name, chosen in (("train.csv", rows[:30]), ("valid.csv", rows[30:])):
        texts = [{"text": row[side], "label": side} for row in chosen for side in ("good", "bad")]
        write_pairs(tmp_path / name, texts)
    return tmp_path


def carry_out(files: Path, *stages: str, retries: int = 0) -> SweepStatus:
    """Carry out a sweep in this process. Its folder is `files`/out."""
    path = files / "sweep.toml"
    path.write_text(f'out = "{files}/out"\n' + "\n".join(stages), encoding="utf-8")
    declaration = read_sweep_file(path)
    store = FolderStore(declaration.folder)
    store.create()
    store.write_sweep(expand_sweep(declaration, str(path)).sweep)
    Worker(store, "w-0", UNIT_KINDS, WorkerOptions(retries)).run()
    return build_status(store, load_state(FolderStore(declaration.folder)))


def score_stage(files: Path, models: Sequence[Path | str], extra: str = "") -> str:
    names = json.dumps([str(model) for model in models])
    return f'[[score]]\nmodels = {names}\nsuites = ["{files}/pairs.csv"]\n{extra}'


def finetune_stage(files: Path, models: Sequence[Path | str], options: str = EPOCH) -> str:
    names = json.dumps([str(model) for model in models])
    return (
        f'[[finetune]]\nmodels = {names}\nsuites = ["{files}/train.csv"]\nseeds = [1, 2]\n'
        f'options = {{ valid = "{files}/valid.csv", {options} }}'
    )


def read_files(run_dir: Path) -> dict[str, bytes]:
    """Return the bytes of a run's files, without the times in run.json."""
    contents = {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name not in (PROVENANCE_FILE, ".lock")
    }
    document = json.loads(
        contents["run.json"],
        object_hook=lambda table: {key: value for key, value in table.items() if key not in TIMES},
    )
    return {**contents, "run.json": json.dumps(document).encode()}


@pytest.fixture
def _chunks_of_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut suites into chunks of 7 items."""

    def iter_chunks(items: Sequence[object], methods: object) -> Iterator[Sequence[object]]:
        return (items[start : start + 7] for start in range(0, len(items), 7))

    monkeypatch.setattr(multiple_choice, "iter_chunks", iter_chunks)


@pytest.mark.usefixtures("_chunks_of_7")
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_score_units_make_the_run_of_one_score(
    files: Path, make_checkpoint: Make, shards: int
) -> None:
    model = make_checkpoint("masked")
    extra = f'methods = ["mlm", "mntp"]\nshards = {shards}'
    assert carry_out(files, score_stage(files, [model], extra)).is_complete
    score(str(model), str(files / "pairs.csv"), methods=["mlm", "mntp"], out=files / "single")
    [run_dir] = (files / "out" / "runs").iterdir()
    assert read_files(run_dir) == read_files(files / "single")


@pytest.mark.parametrize("options", [EPOCH, f"lora = 2, {EPOCH}", "frozen = true"])
def test_finetune_units_make_the_run_of_one_finetune(
    files: Path, make_checkpoint: Make, options: str
) -> None:
    """The second seed begins with the checkpoint that the first one has used."""
    if "lora" in options:
        pytest.importorskip("peft")
    model, frozen = make_checkpoint(), "frozen" in options
    assert carry_out(files, finetune_stage(files, [model], options)).is_complete
    finetune(
        str(model),
        str(files / "train.csv"),
        seeds=[1, 2],
        valid=str(files / "valid.csv"),
        out=files / "single",
        frozen=frozen,
        lora=2 if "lora" in options else 0,
        changes=() if frozen else ["epochs=1", "max_length=32"],
    )
    [run_dir] = (files / "out" / "runs").iterdir()
    assert read_files(run_dir) == read_files(files / "single")


def test_a_checkpoint_is_opened_once_for_all_its_units(
    files: Path, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from antlm_bench.commands import finetune_session

    opened = []

    def open_counted(ref: str, options: object) -> object:
        opened.append(ref)
        return open_backbone(ref, options)

    open_backbone = finetune_session.open_backbone
    monkeypatch.setattr(finetune_session, "open_backbone", open_counted)
    models = [make_checkpoint(), make_checkpoint("masked")]
    assert carry_out(files, finetune_stage(files, models)).is_complete
    assert opened == [str(model) for model in models]


def test_a_task_is_loaded_once_unless_its_file_changes(files: Path) -> None:
    def load() -> ClassificationTask:
        return cache.load(str(files / "train.csv"), "train", valid=str(files / "valid.csv"))

    cache = TaskCache()
    first = load()
    assert load() is first
    with (files / "train.csv").open("a", encoding="utf-8") as file:
        file.write("the cat sleeps.,good\n")
    assert len(load().train) == len(first.train) + 1


def test_a_failed_unit_does_not_stop_the_others(files: Path, make_checkpoint: Make) -> None:
    good, bad = make_checkpoint(), files / "bad"
    shutil.copytree(good, bad)
    (bad / "tokenizer.json").write_text("{")
    status = carry_out(files, score_stage(files, [bad, good]))
    assert status.counts["score"] == {"failed": 1, "done": 1}
    assert "cannot read the tokenizer" in status.failed[0].error
    assert [path.name for path in (files / "out" / "runs").iterdir()] == [good.name]
    shutil.copy(good / "tokenizer.json", bad)


@pytest.mark.usefixtures("_chunks_of_7")
def test_units_record_executor_and_attempt(
    files: Path, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXECUTOR_VARIABLE, "slurm")
    model = make_checkpoint()
    carry_out(files, score_stage(files, [model], "shards = 2"), finetune_stage(files, [model]))
    [run_dir] = (files / "out" / "runs").iterdir()
    for folder in (run_dir, *(files / "out" / "parts").iterdir()):
        records = read_provenance(folder).values()
        assert {(each["executor"], each["attempt"]) for each in records} == {("slurm", 1)}
    assert len(read_provenance(run_dir)) == 3


def test_training_scoring_finetuning_and_a_report(files: Path) -> None:
    corpus = files / "corpus"
    corpus.mkdir()
    (corpus / "text.txt").write_text("the old cat sees a small house\n" * 200)
    recipe = write_recipe(files, text=CAUSAL.replace("steps = 6", "steps = 36"))
    status = carry_out(
        files,
        f'[[train]]\nname = "pre"\nrecipes = ["{recipe}"]\ncorpus = "{corpus}"\nseeds = [1]\n'
        'changes = ["milestones=[1000, 2000, 3000]"]\noptions = { device = "cpu" }',
        score_stage(files, ["stage:pre/*"]),
        finetune_stage(files, ["stage:pre/main"]),
        '[report]\nhtml = "report.html"',
    )
    assert not status.failed
    assert status.is_complete
    run_dirs = {path.name for path in (files / "out" / "runs").iterdir()}
    assert run_dirs == {"chck_1k", "chck_2k", "chck_3k", "tiny-1--main"}
    page = (files / "out" / "report.html").read_text()
    assert "Learning curves" in page
    assert "tiny-1 (4 checkpoints): only the last checkpoint is compared" in " ".join(page.split())
    assert "train.csv" in page
    [training] = read_provenance(files / "out" / "models" / "pre" / "tiny-1").values()
    assert (training["first_step"], training["last_step"], training["attempt"]) == (1, 72, 1)


def test_runs_of_a_recipe_are_known_by_their_units(tmp_path: Path) -> None:
    trainings = [
        Unit("train", stage, recipe, {"out": f"models/{stage}/{recipe}-{seed}"})
        for stage, recipe, seed in (("a", "ltg-bert", 1), ("a", "ltg-bert", 12), ("b", "ltg", 1))
    ]
    models = ["stage:a/ltg-bert-1/main", "stage:a/ltg-bert-12/main", "stage:b/ltg-1/main", "gpt2"]
    runs = [
        Unit("collect", "collect", model, {"out": f"runs/{number}"})
        for number, model in enumerate(models)
    ]
    context = FakeContext(tmp_path)

    context.sweep = Sweep("x", group_units(iter([*trainings, *runs])))
    assert unit_kinds._list_recipes(context) == {
        tmp_path / "runs" / "0": "a/ltg-bert",
        tmp_path / "runs" / "1": "a/ltg-bert",
        tmp_path / "runs" / "2": "b/ltg",
    }

    context.sweep = Sweep("x", group_units(iter([*trainings[:2], *runs])))
    assert set(unit_kinds._list_recipes(context).values()) == {"ltg-bert"}


class FakeContext:
    """A context without parts."""

    def __init__(self, folder: Path) -> None:
        self.sweep_dir = self.part_dir = folder
        self.sweep = Sweep("x", ())

    def log(self, message: str) -> None:
        pass

    def find_parts(self, unit_ids: Iterable[str]) -> list[Path]:
        return []


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (
            Unit("score", "s", "stage:pre/tiny-1/chck_5M", {"suite": "nano", "methods": []}),
            "models/pre/tiny-1/chck_5M: the training did not write this checkpoint",
        ),
        (
            Unit("collect", "collect", "m", {"out": "runs/m"}, waits_for=("a",)),
            "m: none of its units is done",
        ),
        (Unit("report", "report", "", {"html": "x.html"}), "there is no run folder to report"),
    ],
)
def test_a_unit_without_its_input_is_one_clear_error(
    tmp_path: Path, unit: Unit, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        UNIT_KINDS[unit.kind].carry_out(unit, FakeContext(tmp_path))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("../elsewhere", "is not a path below a folder"),
        ("/elsewhere", "is not a path below a folder"),
        ("runs/link/m", "this is a link"),
    ],
)
def test_a_unit_writes_below_the_sweeps_folder_only(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "sweep" / "runs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sweep" / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    context = FakeContext(tmp_path / "sweep")
    options = {"corpus": "nano", "scale": "nano", "changes": [], "options": {}}
    with pytest.raises(BenchError, match=message):
        UNIT_KINDS["train"].carry_out(
            Unit("train", "t", "babyllama", {"out": out, **options}), context
        )
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("kind", "arguments", "description"),
    [
        (
            "train",
            {"corpus": "/x/text", "scale": "nano", "changes": ["a.b=2", "seed=1"], "out": "m/a"},
            "nano seed=1 a.b=2 text",
        ),
        (
            "score",
            {"suite": "/x/pairs.csv", "methods": ["mlm", "mntp"], "shard": "1/2"},
            "pairs.csv (mlm, mntp) shard 1/2",
        ),
        (
            "finetune",
            {"suite": "glue-2025", "task": "rte", "attentions": [], "seed": 3},
            "glue-2025 rte seed 3",
        ),
        ("collect", {"out": "runs/a", "parts": "ab12"}, "runs/a"),
        ("of-another-version", {"a": 1, "b": ["x", "y"]}, "a 1, b x, y"),
    ],
)
def test_a_unit_is_described_in_a_few_words(
    kind: str, arguments: dict[str, object], description: str
) -> None:
    assert describe_unit(Unit(kind, "stage", "model", arguments)) == description


@pytest.mark.slow
def test_a_sweep_continues_after_a_kill_and_a_repair(files: Path, make_checkpoint: Make) -> None:
    """Two worker processes; the driver is killed, a unit fails, and both are mended."""
    good, bad = files / "good", files / "bad"
    for folder in (good, bad):
        shutil.copytree(make_checkpoint("masked"), folder)
    (bad / "tokenizer.json").write_text("{")
    path = files / "sweep.toml"
    stages = [score_stage(files, [good, bad], "shards = 2"), finetune_stage(files, [good])]
    path.write_text(f'out = "{files}/out"\n' + "\n".join(stages), encoding="utf-8")

    def run(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "antlm_bench", *words, str(path)]
        return subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True)

    killed = run("run", "--workers", "2")
    journals = files / "out" / "journals"
    while not any('"done"' in file.read_text() for file in journals.glob("r1-*")):
        time.sleep(0.1)
    killed.kill()
    killed.communicate()

    failing = run("run", "--workers", "2")
    out, err = failing.communicate()
    assert failing.returncode == 5
    assert re.search(r"^ score +4 +2 +2$", out, re.MULTILINE)
    assert f"failed: score {bad} pairs.csv shard 1/2: {bad}: cannot read the tokenizer" in err

    shutil.copy(good / "tokenizer.json", bad)
    repaired = run("resume", "--workers", "2")
    out, err = repaired.communicate()
    assert repaired.returncode == 0, err
    score(str(bad), str(files / "pairs.csv"), out=files / "single")
    assert read_files(files / "out" / "runs" / "bad") == read_files(files / "single")

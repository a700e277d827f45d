"""The units of a sweep: which there are, what they need, and how their runs are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps.sweep_files import expand_text, write_pairs, write_texts

from antlm_bench.commands.train import TrainOptions, train
from antlm_bench.sweeps.expansion import name_runs
from antlm_bench.sweeps.units import Unit


def describe(unit: Unit) -> str:
    """Return what a unit computes in a few words."""
    arguments = unit.arguments
    texts = [unit.kind, Path(unit.model).name]
    for key in ("suite", "methods", "shard", "task", "attentions", "seed"):
        value = arguments.get(key)
        if value not in (None, []):
            texts.append(Path(value).name if key == "suite" else str(value))
    return " ".join(texts)


def test_a_score_stage_has_a_unit_per_checkpoint_suite_and_shard(
    tmp_path: Path, make_checkpoint
) -> None:
    model, other = make_checkpoint("causal"), make_checkpoint("masked")
    pairs = write_pairs(tmp_path / "pairs.csv")

    expanded = expand_text(
        tmp_path,
        f"[[score]]\nmodels = ['{model}', '{other}']\nsuites = ['nano', '{pairs}']\nshards = 2",
    )

    assert [describe(unit) for unit in expanded.sweep.units] == [
        f"score {model.name} nano 1/2",
        f"score {model.name} nano 2/2",
        f"score {model.name} pairs.csv 1/2",
        f"score {model.name} pairs.csv 2/2",
        f"score {other.name} nano 1/2",
        f"score {other.name} nano 2/2",
        f"score {other.name} pairs.csv 1/2",
        f"score {other.name} pairs.csv 2/2",
        f"collect {model.name}",
        f"collect {other.name}",
    ]
    assert [len(group.units) for group in expanded.sweep.groups] == [4, 4, 1, 1]


def test_a_finetune_stage_has_a_unit_per_task_attention_and_seed(
    tmp_path: Path, make_checkpoint
) -> None:
    model, texts = make_checkpoint("masked"), write_texts(tmp_path / "texts.csv", 8)

    expanded = expand_text(
        tmp_path,
        f"[[finetune]]\nmodels = ['{model}']\nsuites = ['{texts}']\nseeds = [4, 5]\n"
        f"options = {{ valid = '{texts}' }}\n[report]\nhtml = 'page.html'",
    )

    *units, collect, report = expanded.sweep.units
    assert [describe(unit) for unit in units] == [
        f"finetune {model.name} texts.csv texts {seed}" for seed in (4, 5)
    ]
    assert set(collect.waits_for) == {unit.id for unit in units}
    assert report.waits_for == (collect.id,)


def test_checkpoints_of_a_train_stage_need_its_unit(tmp_path: Path) -> None:
    expanded = expand_text(
        tmp_path,
        "[[train]]\nname = 'pretrain'\nrecipes = ['babyllama']\ncorpus = 'nano'\nscale = 'nano'\n"
        "seeds = [1, 2]\n[[score]]\nmodels = ['stage:pretrain/main']\nsuites = ['nano']",
    )

    first, second, *scores = (
        unit for unit in expanded.sweep.units if unit.kind in ("train", "score")
    )
    assert [unit.arguments["out"] for unit in (first, second)] == [
        "models/pretrain/babyllama-1",
        "models/pretrain/babyllama-2",
    ]
    assert [(unit.model, unit.needs) for unit in scores] == [
        ("stage:pretrain/babyllama-1/main", (first.id,)),
        ("stage:pretrain/babyllama-2/main", (second.id,)),
    ]


def test_equal_units_of_two_stages_are_computed_once(tmp_path: Path, make_checkpoint) -> None:
    stage = f"[[score]]\nmodels = ['{make_checkpoint('causal')}']\nsuites = ['nano']\n"

    expanded = expand_text(tmp_path, stage + stage)

    assert [unit.kind for unit in expanded.sweep.units] == ["score", "collect"]


def test_relative_paths_are_those_of_the_working_directory(
    tmp_path: Path, make_checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(make_checkpoint("causal"))
    write_pairs(tmp_path / "pairs.csv")
    monkeypatch.chdir(tmp_path)

    expanded = expand_text(tmp_path, "[[score]]\nmodels = ['model']\nsuites = ['pairs.csv']")

    unit = next(iter(expanded.sweep.units))
    assert unit.model == str(tmp_path / "model")  # the link, whose name the user knows
    assert unit.arguments["suite"] == str(tmp_path / "pairs.csv")


def test_a_unit_has_the_same_id_in_every_sweep(tmp_path: Path, make_checkpoint) -> None:
    text = f"[[score]]\nmodels = ['{make_checkpoint('causal')}']\nsuites = ['nano']\n"

    ids = [
        next(iter(expand_text(tmp_path, header + text).sweep.units)).id
        for header in ("", "name = 'other'\n")
    ]

    assert ids[0] == ids[1]


def test_missing_data_are_left_out_on_request(tmp_path: Path, make_checkpoint) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv")
    text = f"[[score]]\nmodels = ['{make_checkpoint('causal')}']\nsuites = ['{pairs}', 'no.csv']\n"

    expanded = expand_text(tmp_path, "allow_missing_data = true\n" + text)

    assert expanded.missing_data == {"no.csv": "there is no such file"}
    assert [unit.kind for unit in expanded.sweep.units] == ["score", "collect"]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["stage:pretrain/ltg-1/main"], ["ltg-1--main"]),
        (["stage:a/x-1/main", "stage:b/x-1/main"], ["a--x-1--main", "b--x-1--main"]),
        (["org/model@chck_1M", "org/model"], ["org--model@chck_1M", "org--model"]),
        (["stage:a/x-1/chck_1M", "stage:a/x-2/chck_1M"], ["x-1--chck_1M", "x-2--chck_1M"]),
    ],
)
def test_runs_have_the_shortest_names_that_differ(models: list[str], names: list[str]) -> None:
    assert name_runs(models) == dict(zip(models, names, strict=True))


def test_paths_with_one_name_have_runs_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a--b/c", "a/b--c", "z/c", "z/b--c", "link")]
    for folder in folders[:-1]:
        folder.mkdir(parents=True)
    folders[-1].symlink_to(folders[0])

    names = name_runs(list(map(str, folders)))

    assert len(set(names.values())) == len(folders)
    assert names[str(folders[2])] == "z--c"
    assert names[str(folders[3])] == "z--b--c"


@pytest.mark.long
def test_predicted_milestones_are_those_that_a_run_writes(tmp_path: Path) -> None:
    changes = ("corpus.words=5_000", "milestones=[2_000, 5_000, 12_000, 90_000]")
    expanded = expand_text(
        tmp_path,
        "[[train]]\nname = 'a'\nrecipes = ['ltg-bert']\ncorpus = 'nano'\nscale = 'nano'\n"
        f"changes = {list(changes)}\n[[score]]\nmodels = ['stage:a/*']\nsuites = ['nano']",
    )

    options = TrainOptions(scale="nano", changes=changes, device="cpu")
    train("ltg-bert", "nano", tmp_path / "ltg", options)

    scored = {Path(unit.model).name for unit in expanded.sweep.units if unit.kind == "score"}
    assert scored == {"chck_2k", "chck_5k", "chck_12k", "main"}
    assert scored == {path.parent.name for path in (tmp_path / "ltg").glob("*/config.json")}


def test_stages_open_a_checkpoint_with_their_own_options(tmp_path: Path, make_checkpoint) -> None:
    model, pairs = make_checkpoint("causal"), write_pairs(tmp_path / "pairs.csv")
    stage = f"[[score]]\nmodels = ['{model}']\noptions = {{ max_length = %d }}\nsuites = ['%s']\n"

    expanded = expand_text(tmp_path, stage % (9, pairs) + stage % (20, "nano"))

    limits = {name: facts.max_length for (name, _), facts in expanded.facts.items()}
    assert limits == {"score": 9, "score-2": 20}

"""Weight files of a checkpoint: the loaded files are hashed, and two sets of weights agree."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from antlm_bench.checkpoints import OpenOptions, expand_refs, open_checkpoint
from antlm_bench.checkpoints.resolve import locate_sources
from antlm_bench.checkpoints.tensor_check import check_other_weight_sets
from antlm_bench.commands.preflight import find_file_problems, weights_digest
from antlm_bench.errors import CheckpointError
from antlm_bench.weight_files import (
    hash_weights,
    list_weight_sets,
    read_tensor_headers,
    select_weights,
)


@pytest.fixture
def copy(make_checkpoint, tmp_path):
    def copy_checkpoint(name="model", kind="causal", **config):
        return shutil.copytree(make_checkpoint(kind, **config), tmp_path / name)

    return copy_checkpoint


def open_on_cpu(folder, **options):
    return open_checkpoint(str(folder), OpenOptions(device="cpu", **options))


def sha256(*files):
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def split_into_shards(folder, names=("a/first.safetensors", "b/second.safetensors")):
    """Split the weights of a folder into files in subfolders, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    weight_map = {name: names[position >= half] for position, name in enumerate(sorted(tensors))}
    for file in names:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        part = {name: tensors[name] for name, assigned in weight_map.items() if assigned == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [folder / name for name in names]


def test_the_hash_of_a_single_file_is_that_of_its_bytes(copy):
    folder = copy()
    before = hash_weights(folder)
    assert before == sha256(folder / "model.safetensors") == weights_digest(folder)
    # A variant, and the copy of another program.
    for other in ("model.fp16.safetensors", "consolidated.safetensors"):
        save_file({"x": torch.ones(3)}, folder / other)
    assert (
        hash_weights(folder)
        == before
        == weights_digest(folder)
        == open_on_cpu(folder).metadata["weights"]
    )


def test_the_hash_of_shards_is_that_of_their_bytes_in_order(copy):
    folder = copy()
    files = split_into_shards(
        folder, ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    )
    assert hash_weights(folder) == sha256(*files) == weights_digest(folder)
    assert open_on_cpu(folder).metadata["weight_files"] == "model.safetensors.index.json (2 files)"


@pytest.mark.long
def test_shards_in_subfolders_are_what_is_hashed_and_loaded(copy):
    folder, plain = copy(), copy("plain")
    files = split_into_shards(folder)
    save_file({"decoy": torch.ones(2)}, folder / "decoy.safetensors", {"format": "pt"})
    checkpoint = open_on_cpu(folder)
    assert checkpoint.metadata["weights"] == sha256(*files) == weights_digest(folder)
    for name, tensor in open_on_cpu(plain).engine.model.state_dict().items():
        assert torch.equal(checkpoint.engine.model.state_dict()[name], tensor)
    tensors = load_file(files[1])
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, files[1], {"format": "pt"})
    assert hash_weights(folder) == sha256(*files) != checkpoint.metadata["weights"]


def test_an_index_whose_file_is_missing_or_damaged_is_refused(copy):
    folder = copy()
    _, second = split_into_shards(folder)
    second.unlink()
    with pytest.raises(CheckpointError, match="second"):
        open_on_cpu(folder)
    assert any(
        "b/second.safetensors" in str(problem) for problem in find_file_problems("main", folder)
    )
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match="is not an index of weights"):
        open_on_cpu(folder)
    assert [problem for problem in find_file_problems("main", folder) if "index" in problem.message]


def test_pickled_headers_are_read_without_running_code(copy, tmp_path):
    folder = copy()
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for new_format in (True, False):
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
        headers = read_tensor_headers(list_weight_sets(folder)[1])
        assert {n: h.shape for n, h in headers.items()} == {
            n: tuple(t.shape) for n, t in state.items()
        }
        assert headers["lm_head.weight"].storage == headers["model.embed_tokens.weight"].storage

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot read which tensors"):
        read_tensor_headers(list_weight_sets(folder)[1])
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
def test_safetensors_are_preferred_to_pickled_weights(copy):
    folder = copy()
    state = load_file(folder / "model.safetensors")
    torch.save(state | {"rotary_emb.inv_freq": torch.ones(4)}, folder / "pytorch_model.bin")
    before = hash_weights(folder)
    for allowed in (False, True):
        checkpoint = open_on_cpu(folder, allow_pickle=allowed)
        [note] = checkpoint.metadata["notes"]
        assert note.startswith(
            "weights are read from model.safetensors (safetensors go before pickled weights)"
        )
        assert checkpoint.metadata["weights"] == before == sha256(folder / "model.safetensors")


def test_two_sets_of_other_shapes_or_names_are_refused(copy):
    folder = copy()
    state = load_file(folder / "model.safetensors")
    wide = state | {"model.norm.weight": torch.ones(33)}
    fewer = {name: tensor for name, tensor in state.items() if ".layers.1." not in name}
    for other, message in (
        (wide, r"model\.norm\.weight is \[32\] in the first and \[33\]"),
        (fewer, "only in the first"),
    ):
        torch.save(other, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=message) as refused:
            open_on_cpu(folder)
        assert "move the set" in refused.value.hint


def test_a_single_file_beside_an_index_is_compared_with_it(copy):
    folder, other = copy(), copy("other", num_hidden_layers=3)
    split_into_shards(other)
    for name in ("a", "b", "model.safetensors.index.json"):
        (other / name).rename(folder / name)
    with pytest.raises(CheckpointError, match="two sets of weights"):
        open_on_cpu(folder)
    assert select_weights(folder).name == "model.safetensors"  # the library's choice


def test_tied_weights_that_one_set_holds_twice_are_no_difference(copy):
    folder = copy(kind="masked")
    state = load_file(folder / "model.safetensors")
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    torch.save(
        {f"wrapper.{name}": tensor for name, tensor in state.items()}, folder / "pytorch_model.bin"
    )
    assert len(check_other_weight_sets(folder, OpenOptions())) == 1


def test_a_file_that_the_configuration_names_is_what_is_read(copy):
    folder = copy()
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"transformers_weights": "best.safetensors"})
    )
    assert open_on_cpu(folder).metadata["weights"] == sha256(folder / "best.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("name", ["seed[1]", "my model (v2)", "modèle-日本", "what? *really*"])
def test_a_path_that_exists_is_never_a_glob(copy, name):
    odd, other = copy(f"runs {name}/{name}"), copy(f"runs {name}/seed1", seed=1)
    assert expand_refs([str(odd)]) == [str(odd)]
    assert expand_refs([str(odd.parent)]) == sorted(
        [str(odd), str(other)], key=lambda p: expand_refs([str(odd.parent)]).index(p)
    )
    assert set(expand_refs([f"{odd.parent}/*"])) == {str(odd), str(other)}
    assert locate_sources(str(odd), OpenOptions()).base == odd
    assert (
        open_on_cpu(odd).metadata["weights"]
        == sha256(odd / "model.safetensors")
        != hash_weights(other)
    )


@pytest.mark.long
def test_a_run_of_a_folder_with_brackets_is_read_back(copy, tmp_path, monkeypatch):
    from antlm_bench.commands.report import build_report
    from antlm_bench.commands.score import score

    monkeypatch.chdir(tmp_path)
    odd = copy("seed[1]")
    copy("seed1", seed=1)
    (tmp_path / "pairs [é].csv").write_text("good,bad\nthe cat sees,the cat see\n")
    [run] = score("seed[1]", "pairs [é].csv")
    assert run.manifest.model["weights"] == sha256(odd / "model.safetensors")
    assert build_report([run.path]).columns[0].results[0].score is not None

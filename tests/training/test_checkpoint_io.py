"""What a run leaves on disk: written atomically, and opened as it was saved."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_helpers import make_recipe
from safetensors import SafetensorError
from tiny_models import train_tokenizer

from antlm_bench import atomic_files
from antlm_bench.checkpoints import open_checkpoint
from antlm_bench.commands.portability import find_portability_problems
from antlm_bench.errors import RunError
from antlm_bench.training import checkpoint_io
from antlm_bench.training.checkpoint_io import (
    flatten_optimizer_state,
    load_state,
    restore_optimizer_state,
    save_checkpoint,
    save_state,
)
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.optim import build_optimizer, build_param_groups

CARD = {"recipe": "toy", "scale": "nano", "attends": ["causal"], "methods": ["causal"],
        "words_seen": 1_234_567,
        "tokens_seen": 2_000_000, "steps": 10, "seed": 42}  # fmt: skip
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.int64)}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def refused(*_: Any, **__: Any) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


class TestCheckpoints:
    def save(self, folder: Path, architecture: str = "llama", **card: Any) -> Any:
        torch.manual_seed(0)
        model = build_model(
            make_recipe(model={"architecture": architecture}).model,
            400,
            masked=architecture.endswith("bert"),
        )
        save_checkpoint(folder, model, train_tokenizer("causal", adds=True), CARD | card)
        return model

    @pytest.mark.long
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "ltg-bert", "gpt-bert"])
    def test_it_opens_with_its_card(self, tmp_path: Path, architecture: str) -> None:
        kind = (
            {"attends": ["causal", "full"], "methods": ["mlm", "causal"]}
            if architecture != "gpt2"
            else {}
        )
        model = self.save(tmp_path / "chck_1M", architecture, **kind)
        opened = open_checkpoint(str(tmp_path / "chck_1M"))
        assert opened.methods[: len(kind.get("methods", ["causal"]))] == kind.get(
            "methods", ["causal"]
        )
        config = json.loads((tmp_path / "chck_1M" / "config.json").read_text())
        assert config["antlm_bench"] == CARD | kind
        own = {
            "ltg-bert": "ltg_bert.py",
            "gpt-bert": "gpt_bert.py",
            "llama": "llama_masked.py",
        }.get(architecture)
        carried = [path.name for path in (tmp_path / "chck_1M").glob("*.py")]
        assert carried == ([own] if own else []) and ("auto_map" in config) == bool(own)
        readme = (tmp_path / "chck_1M" / "README.md").read_text()
        assert (
            "1,234,567" in readme
            and f"{sum(p.numel() for p in model.parameters()):,} parameters" in readme
        )
        assert readme.startswith("---\nlibrary_name: transformers\n")

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "ltg-bert", "gpt-bert"])
    def test_it_fits_the_official_environment(self, tmp_path: Path, architecture: str) -> None:
        self.save(tmp_path / "main", architecture, attentions=["causal", "full"])
        assert not list(find_portability_problems(tmp_path / "main"))
        tokenizer = json.loads((tmp_path / "main" / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
        config = json.loads((tmp_path / "main" / "config.json").read_text())
        assert config.get("rope_theta") == (10_000.0 if architecture == "llama" else None)

    @pytest.mark.parametrize(
        ("architecture", "methods", "attends", "advice"),
        [
            ("llama", ["causal"], ["causal"], "transformers opens it."),
            (
                "llama",
                ["causal", "mlm"],
                ["causal", "full"],
                "`AutoModelForMaskedLM` and the pipeline `fill-mask` need",
            ),
            (
                "gpt2",
                ["causal", "mlm"],
                ["causal", "full"],
                "scoring it as a masked LM needs antlm-bench",
            ),
            ("ltg-bert", ["mlm"], ["full"], "opens it after `import antlm_bench`"),
            (
                "gpt-bert",
                ["mntp", "causal"],
                ["causal", "full"],
                "predicts a hidden token at the position before it",
            ),
        ],
    )
    def test_its_readme_says_how_to_open_it(
        self,
        tmp_path: Path,
        architecture: str,
        methods: list[str],
        attends: list[str],
        advice: str,
    ) -> None:
        self.save(tmp_path / "main", architecture, methods=methods, attends=attends)
        assert advice in (tmp_path / "main" / "README.md").read_text()

    @pytest.mark.parametrize("fails", [full, refused])
    def test_a_full_disk_keeps_the_older_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., None]
    ) -> None:
        self.save(tmp_path / "main", words_seen=1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_io.registration, "add_remote_code", fails)
            with pytest.raises(RunError, match="No space left") as error:
                self.save(tmp_path / "main", words_seen=2)
        assert (
            error.value.location == str(tmp_path / "main")
            and "continues from the last state" in error.value.hint
        )
        assert names(tmp_path) == ["main"]
        assert (
            json.loads((tmp_path / "main" / "config.json").read_text())["antlm_bench"]["words_seen"]
            == 1
        )

    def test_it_is_put_back_where_the_new_one_cannot_take_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.save(tmp_path / "main", words_seen=1)
        rename = Path.rename

        def fails(path: Path, to: Path) -> Path:
            return full() if path.name == ".main.new" else rename(path, to)  # type: ignore[func-returns-value]

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fails)
            patch.setattr(atomic_files, "_exchange_folders", lambda a, b: False)
            with pytest.raises(RunError):
                self.save(tmp_path / "main", words_seen=2)
        assert names(tmp_path) == ["main"]
        assert (
            json.loads((tmp_path / "main" / "config.json").read_text())["antlm_bench"]["words_seen"]
            == 1
        )

    def test_a_new_one_takes_its_place_and_clears_what_a_kill_left(self, tmp_path: Path) -> None:
        self.save(tmp_path / "main", words_seen=1)
        shutil.copytree(tmp_path / "main", tmp_path / ".main.new")
        (tmp_path / ".main.old").mkdir()
        self.save(tmp_path / "main", words_seen=2)
        assert names(tmp_path) == ["main"]
        assert (
            json.loads((tmp_path / "main" / "config.json").read_text())["antlm_bench"]["words_seen"]
            == 2
        )


class TestStates:
    def test_what_was_saved_comes_back(self, tmp_path: Path) -> None:
        save_state(tmp_path / "state", 10, TENSORS, {"done": 10, "words": 0.1})
        result = load_state(tmp_path / "state")
        assert result is not None
        tensors, facts = result
        assert same(tensors, TENSORS) and facts == {"done": 10, "words": 0.1}
        assert load_state(tmp_path / "absent") is None

    def test_the_newest_stays(self, tmp_path: Path) -> None:
        for step in (9, 10, 100_000_000, 100_000_001):
            save_state(tmp_path, step, TENSORS, {"done": step})
        assert names(tmp_path) == ["100000001"]

    def test_of_several_the_newest_is_taken_and_what_is_half_is_not(self, tmp_path: Path) -> None:
        """A kill after the new one was put in its place, and before the old one was deleted."""
        for step in (99_999_999, 100_000_000):
            save_state(tmp_path / str(step), step, TENSORS, {"done": step})
            shutil.copytree(tmp_path / str(step) / f"{step:08}", tmp_path / "state" / f"{step:08}")
        (tmp_path / "state" / ".100000001.new").mkdir()
        result = load_state(tmp_path / "state")
        assert result is not None and result[1]["done"] == 100_000_000
        save_state(tmp_path / "state", 100_000_002, TENSORS, {})
        assert names(tmp_path / "state") == ["100000002"]

    @pytest.mark.parametrize("fails", [full, refused])
    def test_a_full_disk_keeps_the_older_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., None]
    ) -> None:
        save_state(tmp_path, 1, TENSORS, {"done": 1})
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_io, "save_file", fails)
            with pytest.raises(RunError, match="No space left"):
                save_state(tmp_path, 2, TENSORS, {"done": 2})
        result = load_state(tmp_path)
        assert names(tmp_path) == ["00000001"] and result is not None and result[1]["done"] == 1

    @pytest.mark.parametrize("file", ["tensors", "facts.json"])
    def test_a_damaged_one_is_named(self, tmp_path: Path, file: str) -> None:
        save_state(tmp_path, 1, TENSORS, {})
        path = tmp_path / "00000001" / file
        path.write_bytes(path.read_bytes()[:1])
        with pytest.raises(RunError, match="cannot be read") as error:
            load_state(tmp_path)
        assert error.value.location == str(path.parent)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_an_optimizer_continues_from_its_saved_state(tmp_path: Path, name: str) -> None:
    def steps(net: torch.nn.Module, law: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            law.zero_grad()
            net(torch.full((1, 3), float(step))).square().sum().backward()
            law.step()

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        return net, build_optimizer(name, build_param_groups(net, 0.1), 0.01, (0.9, 0.99), 1e-8)

    whole, law = fresh()
    steps(whole, law, 0, 6)
    first, law = fresh()
    steps(first, law, 0, 3)
    tensors, rest = flatten_optimizer_state(law)
    save_state(tmp_path, 3, tensors, {"rest": rest})
    result = load_state(tmp_path)
    assert result is not None
    second, law = fresh()
    second.load_state_dict(first.state_dict())
    restore_optimizer_state(law, result[0], result[1]["rest"])
    steps(second, law, 3, 6)
    assert same(second.state_dict(), whole.state_dict())

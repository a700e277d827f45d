"""Small real checkpoints, made once per session: the models that the scoring tests ask."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

WORDS = [
    "the",
    "a",
    "cat",
    "cats",
    "dog",
    "dogs",
    "sees",
    "see",
    "sleeps",
    "sleep",
    "who",
    "what",
    "which",
    "never",
    "ever",
    "no",
    "every",
    "some",
    "has",
    "have",
    "seen",
    "not",
    "himself",
    "herself",
    "themselves",
    "boy",
    "girl",
    "boys",
    "girls",
    "that",
    "near",
    "old",
    "small",
    "house",
    "houses",
]


@pytest.fixture(scope="session", autouse=True)
def _private_places(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache, and none reaches a hub."""
    os.environ["ANTLM_BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """make_checkpoint(kind, adds=True, seed=0, **config) -> folder of a tiny random causal or masked checkpoint.

    `adds`: whether the tokenizer adds its specials by itself. Weights are scaled up so that scores differ clearly.
    """
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def make(kind: str = "causal", adds: bool = True, seed: int = 0, mask: bool = True, **config: object) -> Path:
        key = (kind, adds, seed, mask, repr(sorted(config.items())))
        if key not in made:
            made[key] = root / f"{kind}-{len(made)}"
            tokenizer_for(kind, adds, mask).save_pretrained(made[key])
            model_for(kind, seed, **config).save_pretrained(made[key])
        return made[key]

    return make


def tokenizer_for(kind: str, adds: bool, mask: bool = True):
    """A word-level-ish byte BPE with <s> (causal) or <s> ... </s> (masked) as specials."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A" if kind == "causal" else "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if mask:
        names["mask_token"] = "<mask>"
    if kind == "masked":
        names |= {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def model_for(kind: str, seed: int, architecture: str = "", **config: object):
    """A random transformers model: Llama or BERT shape unless `architecture` names another class."""
    import torch
    import transformers

    name = architecture or {"causal": "LlamaForCausalLM", "masked": "BertForMaskedLM"}[kind]
    make = getattr(transformers, name)
    settings = {
        "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = make(make.config_class(**(settings | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Made-up sentences of many lengths with shared beginnings, odd characters and line ends among them."""
    import random

    rng = random.Random(0)
    made = []
    for _ in range(60):
        stem = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        made += [f"{stem} {' '.join(rng.choices(WORDS, k=rng.randint(1, 5)))}." for _ in range(2)]
    return [*made, "Is it?\nIt is.", 'She said "no".', "naïve café ☕", "unbelievably antidisestablishmentarian"]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real evaluation data, or a skip that says what is missing."""
    place = Path(os.environ.get("ANTLM_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (place / "blimp").is_dir():
        pytest.skip("needs the real data: set ANTLM_BENCH_DATA")
    return place

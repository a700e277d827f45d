"""A config.json with one wrong value opens, or is one error with its location.

ANTLM_BENCH_FUZZ=N tries about N mutations instead of MUTATIONS, and other ones each time.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ltg_models import build_ltg_model
from tiny_models import build_model, train_tokenizer

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.errors import BenchError

MUTATIONS = 60
FUZZ_MUTATIONS = int(os.environ.get("ANTLM_BENCH_FUZZ", "0"))
MAX_SECONDS = 20  # of CPU time
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: build_model(
        "causal", 0, "GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
    "llama": lambda: build_model("causal", 0),
    "hybrid llama": lambda: build_model(
        "causal", 0, antlm_bench={"attends": ["causal", "full"], "methods": ["mntp", "causal"]}
    ),
    "opt": lambda: build_model("causal", 0, "OPTForCausalLM", ffn_dim=48, word_embed_proj_dim=32),
    "gpt-neox": lambda: build_model("causal", 0, "GPTNeoXForCausalLM"),
    "bert": lambda: build_model("masked", 0),
    "roberta": lambda: build_model("masked", 0, "RobertaForMaskedLM"),
    "deberta": lambda: build_model("masked", 0, "DebertaV2ForMaskedLM"),
    "ltg-bert": lambda: build_ltg_model("", vocab_size=400),
    "elc-bert": lambda: build_ltg_model("weighted_output", vocab_size=400),
    "gpt-bert": lambda: build_ltg_model("gpt", vocab_size=400),
}
REMOVED = object()
VALUES = [
    *(REMOVED, None, True, False, -1, 0, 1, 3, 7, 10**9, 2**63, 10**400, 0.5, -0.5, 1e308),
    *(float("nan"), "", "4", "relu", "x" * 3000, [], [4], ["a"], [[]] * 300, {}, {"a": 1}),
    {"x": {"y": [1]}},
]
OTHER_KEYS = [
    *("torch_dtype", "dtype", "quantization_config", "rope_scaling", "rope_parameters"),
    *("tie_word_embeddings", "is_decoder", "auto_map", "text_config", "new_key", "head_dim"),
    *("_name_or_path", "problem_type", "id2label", "num_labels", "pruned_heads"),
    *("output_attentions", "return_dict", "layer_types", "sliding_window", "_attn_implementation"),
    *("max_length", "chunk_size_feed_forward", "gradient_checkpointing", "antlm_bench"),
    *("model_type", "architectures"),
]


def mutate(config: dict[str, Any], rng: random.Random) -> str:
    """Change one value of a configuration, or of a table in it, and return what was changed."""
    table = config
    key = rng.choice([*config, *OTHER_KEYS])
    while isinstance(table.get(key), dict) and table[key] and rng.random() < 0.5:
        table, key = table[key], rng.choice([*table[key]])
    value = rng.choice(VALUES)
    if value is REMOVED:
        table.pop(key, None)
        return f"{key} removed"
    table[key] = copy.deepcopy(value)
    return f"{key} = {value!r:.60}"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_wrong_config_opens_or_is_one_error(name: str, tmp_path: Path) -> None:
    source = tmp_path / "valid"
    model = MODELS[name]()
    model.save_pretrained(source)
    is_causal = type(model).__name__.endswith(("CausalLM", "LMHeadModel"))
    train_tokenizer("causal" if is_causal else "masked", adds=True).save_pretrained(source)
    open_checkpoint(str(source), OpenOptions(device="cpu"))
    valid = (source / "config.json").read_text(encoding="utf-8")
    rng = random.Random(None if FUZZ_MUTATIONS else name)

    problems = []
    for _ in range((FUZZ_MUTATIONS or MUTATIONS) // len(MODELS)):
        folder = tmp_path / "changed"
        shutil.copytree(source, folder)
        config = json.loads(valid)
        mutation = mutate(config, rng)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        started = time.process_time()
        try:
            open_checkpoint(str(folder), OpenOptions(device="cpu"))
        except BenchError as error:
            if error.exit_code >= 70 or not error.location:
                problems.append(f"{mutation}: {error.exit_code} {error.location} {error}")
        except Exception as error:  # a bug: the command line ends with 70
            problems.append(f"{mutation}: {type(error).__name__}: {error}")
        if time.process_time() - started > MAX_SECONDS:
            problems.append(f"{mutation}: took more than {MAX_SECONDS} s")
        shutil.rmtree(folder)

    assert not problems, "\n".join(problems)

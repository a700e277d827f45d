"""Compare our scores with a plain loop, for every causal and masked architecture of transformers.

`make sweep` prints the table of docs/reference/models.md. Each architecture is exact, or refused
with a reason.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from prediction_rows import predict_rows
from tiny_models import WORDS, train_tokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint
from antlm_bench.errors import BenchError
from antlm_bench.scoring.methods import METHODS
from antlm_bench.types import Item, Option

TOLERANCE = 1e-4  # nats per text, relative to its size from 1 nat on
LARGEST = 30_000_000  # parameters: larger ones were not shrunk by the sizes below
SECONDS = 200  # per architecture
SIZES: dict[int, str] = {
    32: """
    hidden_size d_model n_embd dim emb_dim embed_dim model_dim word_embed_proj_dim
    embedding_size hidden_dim_size attention_hidden_size
    """,
    2: """
    num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
    num_encoder_layers num_decoder_layers num_key_value_heads num_experts_per_tok moe_topk
    moe_k top_k_experts num_blocks
    """,
    4: """
    num_attention_heads n_head n_heads num_heads encoder_attention_heads
    decoder_attention_heads attention_heads num_experts num_local_experts n_routed_experts
    moe_num_experts mamba_n_heads num_hash_functions
    """,
    8: """
    head_dim qk_nope_head_dim v_head_dim qk_rope_head_dim d_kv state_size mamba_d_state
    swa_head_dim chunk_size mamba_chunk_size attention_head_dim linear_key_head_dim
    linear_value_head_dim mamba_head_dim kv_channels
    """,
    16: """
    q_lora_rank kv_lora_rank lora_rank time_step_rank mamba_dt_rank sliding_window
    attention_window attention_window_size lru_width_ index_head_dim
    """,
    48: """
    intermediate_size ffn_dim d_ff d_inner hidden_dim n_inner inner_dim encoder_ffn_dim
    decoder_ffn_dim moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size
    mlp_hidden_size moe_shared_expert_intermediate_size shared_intermediate_size
    """,
    1: """
    n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace
    pretraining_tp
    """,
    130: """
    max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length max_seq_length
    context_length
    """,
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
# These count positions from a mask of padding.
POSITIONS_FROM_MASK = ("opt",)
IDS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "mask_token_id": 3,
}
# What an architecture needs beside small sizes, from its own configuration's rules.
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_expand": 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
    },
    "big_bird": {"block_size": 8, "num_random_blocks": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1},
    # Its encoder pads every source to a multiple of 512 tokens, which takes minutes.
    "pegasus_x": {"block_size": 8, "num_global_tokens": 4},
}


@dataclass(frozen=True)
class SweepRow:
    """One row of the table."""

    architecture: str
    kind: str
    """causal, masked or encoder-decoder."""
    outcome: str
    """exact, refused, wrong, or not built."""
    detail: str
    """Methods, or the reason."""
    shortcuts: str = ""


def make_pairs() -> list[Item]:
    """Draw 20 minimal pairs of 4 to 14 words."""
    rng = np.random.default_rng(1)
    items = []
    for number in range(20):
        words = list(rng.choice(WORDS, int(rng.integers(4, 15))))
        changed_words = list(words)
        changed_words[int(rng.integers(len(words)))] = str(rng.choice(WORDS))
        changed_words[-1] = "themselves" if changed_words == words else changed_words[-1]
        items.append(
            Item(str(number), (Option(" ".join(words)), Option(" ".join(changed_words))), 0)
        )
    return items


def iter_architectures() -> Iterator[tuple[str, str, str]]:
    """Yield (model type, kind, class name) of all causal and masked classes of transformers, and of
    its encoder-decoders of text.
    """
    pairs = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    for kind, mapping in (
        ("causal", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("masked", MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        ("encoder-decoder", pairs),
    ):
        for model_type, name in mapping.items():
            for class_name in [name] if isinstance(name, str) else name:
                is_pair = class_name in pairs.values()
                if hasattr(transformers, class_name) and is_pair == (kind == "encoder-decoder"):
                    yield model_type, kind, class_name


def build_small_config(model_type: str, vocabulary: int, variant: Mapping[str, Any]) -> Any:
    """Return the default configuration with small sizes, inner configurations included."""
    config_class = CONFIG_MAPPING[model_type]
    values = config_class().to_dict()
    small = _shrink_sizes(values, vocabulary)
    for inner in [v for v in small.values() if isinstance(v, dict)]:
        inner.update(
            {k: v for k, v in variant.items() if k in values.get(inner["model_type"], inner)}
        )
    small |= {k: v for k, v in variant.items() if k in values}
    return config_class(**small | EXTRA.get(model_type, {}))


def _shrink_sizes(values: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name.endswith("_config") and isinstance(value, dict) and "model_type" in value:
            small[name] = {"model_type": value["model_type"], **_shrink_sizes(value, vocabulary)}
        elif name in ("vocab_size", "n_words"):
            small[name] = vocabulary
        elif (
            name in SMALL
            and isinstance(value, int | float | type(None))
            and not isinstance(value, bool)
        ):
            small[name] = value if value is None and name not in ("head_dim",) else SMALL[name]
        elif name in SMALL and isinstance(value, list):
            small[name] = SMALL[name]
        elif name in IDS:
            small[name] = IDS[name]
    if values.get("head_dim", 0) is None:
        small.pop("head_dim", None)
    return small


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds."""

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Checked by hand: architectures that are refused (and the message), or that no small configuration
# builds (and the error).
OTHER_INPUTS = "generates text from images, sounds or other inputs"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "AudioFlamingo3ForConditionalGeneration",
            "GlmAsrForConditionalGeneration",
            "GraniteSpeechForConditionalGeneration",
            "GraniteSpeechPlusForConditionalGeneration",
            "MusicFlamingoForConditionalGeneration",
            "Qwen2AudioForConditionalGeneration",
            "Qwen3ASRForConditionalGeneration",
            "VoxtralForConditionalGeneration",
        ),
        OTHER_INPUTS,
    ),
    "ProphetNetForConditionalGeneration": "differ by up to",
    "CpmAntForCausalLM": "not a causal model",
    "FunnelForMaskedLM": "doesn't match the broadcast shape",
    "Gemma3ForConditionalGeneration": OTHER_INPUTS,
    "Gemma4UnifiedForConditionalGeneration": OTHER_INPUTS,
    "GotOcr2ForConditionalGeneration": OTHER_INPUTS,
    "MllamaForCausalLM": "cannot load the weights",
    "MossTranscribeDiarizeForConditionalGeneration": OTHER_INPUTS,
    "XLNetLMHeadModel": "not a causal model",
}
NOT_BUILT: dict[str, str] = {
    "EncoderDecoderModel": "its sizes have names of their own",
    "Nemotron3_5TranscribeForConditionalGeneration": "Class validation error for validator",
    "T5GemmaForConditionalGeneration": "its sizes have names of their own",
    "T5Gemma2ForConditionalGeneration": "its sizes have names of their own",
    "VibeVoiceAsrForConditionalGeneration": "its sizes have names of their own",
    "VoxtralRealtimeForConditionalGeneration": "You must specify exactly o",
    "BailingHybridForCausalLM": "`get_seq_length` can only be called on Atten",
    "BltForCausalLM": "its sizes have names of their own",
    "CohereCompassForCausalLM": "'full_attention'",
    "DbrxForCausalLM": "'DbrxAttentionConfig' object has no attribut",
    "DeepseekV2ForCausalLM": "The size of tensor a (4) must match the size",
    "Dots1ForCausalLM": "empty() takes 1 positional argument but 3 we",
    "Dots3NoteForCausalLM": "Class validation error for validator 'valida",
    "Emu3ForCausalLM": "'Emu3Config' object has no attribute 'pad_to",
    "Gemma3nForConditionalGeneration": "TimmWrapperModel requires the timm library b",
    "Gemma4AssistantForCausalLM": "Class validation error for validator 'valida",
    "Gemma4ForConditionalGeneration": "its sizes have names of their own",
    "Gemma4UnifiedAssistantForCausalLM": "The set of layer types producing a cache is",
    "KimiLinearForCausalLM": "`get_seq_length` can only be called on Atten",
    "Llama4ForCausalLM": "'Llama4Config' object has no attribute 'pad_",
    "LongcatFlashForCausalLM": "its sizes have names of their own",
    "LukeForMaskedLM": "its sizes have names of their own",
    "MusicgenForCausalLM": "'MusicgenConfig' object has no attribute 'dr",
    "MusicgenMelodyForCausalLM": "'MusicgenMelodyConfig' object has no attribu",
    "PerceiverForMaskedLM": "its sizes have names of their own",
    "Qwen3_5ForCausalLM": "'Qwen3_5Config' object has no attribute 'voc",
    "Qwen3_5MoeForCausalLM": "'Qwen3_5MoeConfig' object has no attribute '",
    "Qwen4ExpForCausalLM": "`get_seq_length` can only be called on Atten",
    "ReformerForMaskedLM": "(64, 192) sum to config.hidden_size: 32",
    "ReformerModelWithLMHead": "(64, 192) sum to config.hidden_size: 32",
    "XmodForCausalLM": "Input language unknown. Please call `XmodPre",
    "XmodForMaskedLM": "Input language unknown. Please call `XmodPre",
    "Zamba2ForCausalLM": "Class validation error for validator 'valida",
    "ZambaForCausalLM": "Class validation error for validator 'valida",
    "ZayaForCausalLM": "Class validation error for validator 'valida",
    "xLSTMForCausalLM": "[1, 4, 4, 8].  Tensor sizes: [4, 16, 16]",
}

# Sizes that some architectures need to agree with each other, tried one after the other.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 4, "rotary_dim": 8},
    {"num_key_value_heads": 4, "head_dim": 16},
    {"num_key_value_heads": 1, "pad_token_id": 0},
    {"num_hidden_layers": 4},
    {
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 400,
    },
)


def build(model_type: str, kind: str, name: str, folder: Path) -> None:
    """Save a random tiny checkpoint of an architecture with a tokenizer, and see that it runs.

    If no variant of sizes can be built, raises the error of the first.
    """
    first: Exception | None = None
    for variant in VARIANTS:
        try:
            return _build(model_type, kind, name, folder, variant)
        except TimeoutError:
            raise
        except Exception as error:  # whatever a configuration of unknown rules raises
            first = first or error
    assert first is not None
    raise first


def _build(model_type: str, kind: str, name: str, folder: Path, variant: Mapping[str, Any]) -> None:
    tokenizer = train_tokenizer("causal" if kind == "causal" else "masked", True)
    config = build_small_config(model_type, len(tokenizer), variant)
    if kind == "causal" and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    if kind == "causal" and hasattr(config, "causal"):
        config.causal = True  # XLM
    start = getattr(config, "decoder_start_token_id", None)
    if kind == "encoder-decoder" and (start is None or start >= len(tokenizer)):
        config.decoder_start_token_id = getattr(config, "pad_token_id", None)  # T5 and Marian
    cls = getattr(transformers, name)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f}M parameters: its sizes have names of their own")
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    with torch.inference_mode():
        ids = torch.arange(5, 25)[None]
        model(input_ids=ids, **({"decoder_input_ids": ids} if kind == "encoder-decoder" else {}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class PlainLoop:
    """The forward pass of transformers, one row per hidden token or prefix."""

    def __init__(self, folder: Path, kind: str) -> None:
        auto = {
            "causal": transformers.AutoModelForCausalLM,
            "masked": transformers.AutoModelForMaskedLM,
            "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        }[kind]
        self.model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.kind, self.rows = kind, dict[tuple[int, ...], torch.Tensor]()

    def scores(self, method: str, texts: Sequence[str]) -> list[float]:
        """Return the summed log-probabilities (nats) of texts under a scoring method."""
        if method == "fused":
            both = (self.scores(name, texts) for name in ("causal", "mntp"))
            return [a + b for a, b in zip(*both, strict=True)]
        if self.kind == "encoder-decoder":
            return [self._score_pair(method, self.tokenizer(text)["input_ids"]) for text in texts]
        return [self._score(method, self.tokenizer(text)) for text in texts]

    def _score_pair(self, method: str, ids: list[int]) -> float:
        """Return the score of a text whose source is empty (seq2seq) or masked (infill)."""
        labels, total = torch.tensor([ids]), 0.0
        start = self.model.config.decoder_start_token_id
        if hasattr(self.model, "prepare_decoder_input_ids_from_labels"):
            start = int(self.model.prepare_decoder_input_ids_from_labels(labels)[0, 0])
        for position in range(1, len(ids) - 1):
            source = [ids[0], ids[-1]]
            if method == "infill":
                source = [*ids[:position], self.tokenizer.mask_token_id, *ids[position + 1 :]]
            row = [start, *ids[:position]]
            with torch.inference_mode():
                logits = self.model(
                    input_ids=torch.tensor([source]),
                    decoder_input_ids=torch.tensor([row]),
                    use_cache=False,  # with a cache FSMT attends to later tokens of a row
                ).logits[0, -1]
            total += float(logits.float().log_softmax(-1)[ids[position]])
        return total

    def _score(self, method: str, encoded: Any) -> float:
        ids, word_ids, total = list(encoded["input_ids"]), encoded.word_ids(), 0.0
        for position in range(1, len(ids) if self.kind == "causal" else len(ids) - 1):
            if method == "causal":
                total += self._logprobs(ids[:position], full=False)[
                    position - 1, ids[position]
                ].item()
                continue
            ends = len(ids) if method == "mlm-l2r" else position + 1
            hidden = [
                i
                for i in range(position, ends)
                if i == position or word_ids[i] == word_ids[position]
            ]
            row = [
                self.tokenizer.mask_token_id if i in hidden else token
                for i, token in enumerate(ids)
            ]
            total += self._logprobs(row, full=self.kind == "causal")[
                position - (method == "mntp"), ids[position]
            ].item()
        return total

    def _logprobs(self, row: list[int], full: bool) -> torch.Tensor:
        """Return (t, vocabulary) log-probabilities of a row; `full`: attend to the whole row."""
        if (key := (full, *row)) not in self.rows:
            mask = (
                {"attention_mask": torch.ones(1, 1, len(row), len(row), dtype=torch.bool)}
                if full
                else {}
            )
            if full and self.model.config.model_type in POSITIONS_FROM_MASK:
                mask["position_ids"] = torch.arange(len(row))[None]
            with torch.inference_mode():
                self.rows[key] = (
                    self.model(input_ids=torch.tensor([row]), **mask)
                    .logits[0]
                    .float()
                    .log_softmax(-1)
                )
        return self.rows[key]


def examine_architecture(model_type: str, kind: str, name: str, folder: Path) -> SweepRow:
    """Build, open and score one architecture, and compare every method that it offers."""
    try:
        with time_limit(SECONDS):
            build(model_type, kind, name, folder)
    except Exception as error:  # whatever a configuration of unknown rules raises
        return SweepRow(name, kind, "not built", f"{type(error).__name__}: {first_line(error)}")
    try:
        with time_limit(SECONDS):
            checkpoint = open_checkpoint(str(folder), OpenOptions(device="cpu"))
            plain = PlainLoop(folder, kind)
            differences = {
                method: max_difference(checkpoint, plain, method) for method in checkpoint.methods
            }
    except BenchError as error:
        return SweepRow(name, kind, "refused", first_line(error))
    except Exception as error:  # an error of ours
        return SweepRow(name, kind, "wrong", f"{type(error).__name__}: {first_line(error)}")
    deviations = [
        f"{method} off by {deviation:.2g} nats"
        for method, deviation in differences.items()
        if not deviation < TOLERANCE
    ]
    shortcuts = ", ".join(checkpoint.engine.shortcuts)
    return SweepRow(
        name,
        kind,
        "wrong" if deviations else "exact",
        "; ".join(deviations) or ", ".join(differences),
        shortcuts,
    )


def max_difference(checkpoint: Checkpoint, plain: PlainLoop, method: str) -> float:
    """Return the largest difference of a text score (nats; relative from 1 nat on)."""
    items = make_pairs()
    [predictions] = predict_rows(checkpoint, items, [METHODS[method]])
    ours = np.array([p.scores for p in predictions]).ravel()
    expected = np.array(plain.scores(method, [o.text for item in items for o in item.options]))
    return float((np.abs(ours - expected) / np.maximum(1, np.abs(expected))).max())


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0].split(": ", 1)[-1][:140]


def examine_in_temporary_folder(entry: tuple[str, str, str]) -> SweepRow:
    """Examine one architecture in a temporary folder, in a worker process."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        return examine_architecture(*entry, Path(folder) / entry[2])


def check_exceptions(row: SweepRow) -> SweepRow:
    """Call an exception wrong that is not listed, or is listed with another reason."""
    exceptions = {"refused": REFUSED, "not built": NOT_BUILT}.get(row.outcome)
    if exceptions is None or (
        row.architecture in exceptions and exceptions[row.architecture] in row.detail
    ):
        return row
    return replace(
        row, outcome="wrong", detail=f"not on the list of exceptions: {row.outcome}, {row.detail}"
    )


def main(names: Sequence[str]) -> int:
    """Print a Markdown row per architecture (default: all); return 1 if one is wrong."""
    entries = [entry for entry in iter_architectures() if not names or entry[2] in names]
    print("| architecture | read as | outcome | methods, or the reason | shortcuts |")
    print("| --- | --- | --- | --- | --- |")
    wrong, seen = 0, set[tuple[str, ...]]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(examine_in_temporary_folder, entries):
            row = check_exceptions(result)
            line = (row.architecture, row.kind, row.outcome, row.detail, row.shortcuts)
            if line not in seen:  # several model types share a class
                print(f"| {' | '.join(line)} |", flush=True)
            seen.add(line)
            wrong += row.outcome == "wrong"
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

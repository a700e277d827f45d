"""Open a checkpoint: a folder, a hub id, or a model and a tokenizer that are in memory.

For scoring, the steps are: load the model and find out how it runs (loader), put it on an engine
(`attach_engine`), compare the engine with the model's plain forward (self_test). The result is a
`Checkpoint`. For finetuning, the result is a `Backbone`: no engine, and the library's own layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from antlm_bench.checkpoints import forward_trials, pretrained
from antlm_bench.checkpoints.loader import (
    DTYPES,
    LoadedModel,
    RunnableModel,
    detect_capabilities,
    load_runnable_model,
)
from antlm_bench.checkpoints.metadata import add_scored_specials, describe_checkpoint
from antlm_bench.checkpoints.resolve import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    CheckpointSources,
    OpenOptions,
)
from antlm_bench.checkpoints.self_test import (
    SelfTestResult,
    run_self_test,
    select_texts_by_length,
    trial_texts,
)
from antlm_bench.checkpoints.tensor_check import AllowedMismatches
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.cpu_kernels import (
    PackedLinear,
    can_pack_linears,
    fuse_layers,
    pack_linears,
)
from antlm_bench.scoring.encoder_decoder_engine import EncoderDecoderEngine
from antlm_bench.scoring.engine import Engine, lock_model
from antlm_bench.scoring.int8_linear import (
    applies_gelu,
    check_kept_inputs,
    int8_is_faster,
    packs_matrices,
    use_int8_linears,
)
from antlm_bench.scoring.methods import METHODS, Method, supported_methods
from antlm_bench.scoring.mixed_precision_head import (
    Bf16HeadEngine,
    Bf16LMHead,
    Int8LMHead,
    has_plain_lm_head,
)
from antlm_bench.scoring.plain_forward import is_encoder_decoder, plain_logits
from antlm_bench.scoring.shared_encodings import (
    CheckpointEncodings,
    EncodingCache,
    encode_texts,
)
from antlm_bench.scoring.text import (
    ContextEncoder,
    EosRule,
    Specials,
    TextEncoder,
    build_specials,
    with_scored_eos,
)
from antlm_bench.scoring.tokens import WORDS_FROM_OFFSETS_NOTE
from antlm_bench.types import Attention, Encodings, Floats, Probes, ProgressCallback, Span


@dataclass(slots=True)
class Checkpoint:
    """A LanguageModel (types.LanguageModel) that runs on an engine."""

    name: str
    kind: str
    """causal or masked."""
    attentions: frozenset[str]
    """The attentions ("causal", "full") that the model can run with."""
    eos: str
    """The EOS token as text; the string "None" if there is none."""
    mask_id: int | None
    max_length: int | None
    """Tokens per row, special tokens included; None = unlimited."""
    engine: Engine
    encoders: Mapping[Attention, TextEncoder]
    """Attention -> the tokenizer with its special tokens and limits."""
    trained_methods: tuple[str, ...] = ()
    """Scoring methods that config.json records for the training, the default first."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Entries for a run's manifest (metadata.describe_checkpoint)."""
    no_mask_reason: str = ""
    """Why `mask_id` is None; "" if it is not None."""
    shared_encodings: CheckpointEncodings | None = None
    """Encodings shared with checkpoints of equal tokenizers (`share_encodings`)."""

    def encode(
        self,
        texts: Sequence[str],
        spans: Sequence[Span],
        attention: Attention,
        sources: Sequence[str] | None = None,
    ) -> Encodings:
        encode = encode_texts if self.shared_encodings is None else self.shared_encodings.encode
        return encode(self.encoders[attention], texts, spans, sources)

    def share_encodings(self, cache: EncodingCache) -> None:
        """Share a cache of encodings with checkpoints that have an equal tokenizer.

        Does nothing for a checkpoint with code of its own, because that code may be the tokenizer.
        """
        if self.shared_encodings is None and "code" not in self.metadata:
            tokenizer = next(iter(self.encoders.values())).tokenizer
            files_hash = str(self.metadata["tokenizer"])
            self.shared_encodings = cache.for_checkpoint(tokenizer, files_hash)

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: ProgressCallback | None = None
    ) -> Floats:
        return self.engine.score_probes(probes, num_texts, tick)

    def read_distributions(
        self,
        probes: Iterable[Probes],
        num_reads: int,
        top_k: int = 0,
        tick: ProgressCallback | None = None,
    ) -> Floats:
        """Return what Engine.read_distributions reads: rank, entropy, most probable tokens."""
        return self.engine.read_distributions(probes, num_reads, top_k, tick)

    def run_self_test(self, texts: Sequence[str], methods: Sequence[Method]) -> SelfTestResult:
        """Compare the engine with the model's plain forward on a few of these texts, from the
        shortest to the longest (see self_test).
        """
        attentions = {attention for method in methods for attention in method.attentions}
        return run_self_test(self, select_texts_by_length(texts), attentions)

    def decode_token(self, token_id: int) -> str:
        """Return a token as text."""
        return str(next(iter(self.encoders.values())).tokenizer.decode(token_id))

    @property
    def methods(self) -> list[str]:
        """Names of the scoring methods that the checkpoint supports. The methods of its training
        come first; the first of all is the default.
        """
        names = supported_methods(self)
        trained = [name for name in self.trained_methods if name in names]
        return [*trained, *(name for name in names if name not in trained)]

    def with_word_rule(self, rule: str) -> Checkpoint:
        """Return a copy that masks the rest of a word by a rule of words.WORD_RULES."""
        encoders = {name: encoder.with_word_rule(rule) for name, encoder in self.encoders.items()}
        return replace(self, encoders=encoders)

    def with_context_bos_policy(self, bos: str) -> Checkpoint:
        """Return a copy with another BOS policy for causal texts that have a context."""
        causal = self.encoders.get("causal")
        if causal is None:
            return self
        encoder = ContextEncoder(causal, build_specials(causal.tokenizer, "causal", bos))
        return replace(self, encoders={**self.encoders, "causal": encoder})

    def with_scored_eos(self, rule: EosRule) -> Checkpoint:
        """Return a copy that also scores the special tokens that the tokenizer appends to causal
        texts (scoring.text.with_scored_eos).
        """
        causal = self.encoders.get("causal")
        if causal is None:
            return self
        encoder = with_scored_eos(causal, rule)
        if encoder is causal:
            return self
        return replace(
            self,
            encoders={**self.encoders, "causal": encoder},
            metadata=add_scored_specials(self.metadata, causal.tokenizer, rule),
        )

    def describe_for_doctor(self) -> Mapping[str, object]:
        """Return the metadata and the methods that `doctor` shows."""
        if not self.methods:
            return {**self.metadata, "methods": f"none: {self.no_mask_reason}"}
        description = dict(self.metadata)
        notes = [note for method in self.methods for note in self.notes(method)]
        if notes:
            description["words"] = notes[0]
        methods = f"{', '.join(self.methods)} (default: {self.methods[0]})"
        if self.no_mask_reason and "full" in self.attentions:
            methods += f"; no masked method: {self.no_mask_reason}"
        return {**description, "methods": methods}

    def notes(self, method: str) -> tuple[str, ...]:
        """Return notes about the tokenizer that qualify scores under this method."""
        if not METHODS[method].needs_words:
            return ()
        text_tokenizer = self.encoders["full"].text_tokenizer
        if text_tokenizer.has_word_ids or text_tokenizer.word_rule is not None:
            return ()
        return (WORDS_FROM_OFFSETS_NOTE,)


def open_for_scoring(ref: str, sources: CheckpointSources, options: OpenOptions) -> Checkpoint:
    """Open a checkpoint whose files were located. Raises as `opening.open_checkpoint`."""
    with pretrained.silence_transformers():
        loaded = load_runnable_model(ref, sources, options)
        checkpoint = attach_engine(loaded, options.batch_tokens, DTYPES[options.dtype])
        checkpoint.metadata |= describe_checkpoint(ref, loaded, options)
        _self_test_on_opening(checkpoint, loaded)
    return checkpoint


def open_model(model: Any, tokenizer: Any, options: OpenOptions | None = None) -> Checkpoint:
    """Open a transformers model and its tokenizer for scoring.

    The model keeps its device, dtype and weights, and no layer is replaced, so the caller may train
    it further between two calls. Of `options`, only bos, max_length and batch_tokens are used.

    Raises UsageError (objects of other classes, a tokenizer with dropout) and CheckpointError (a
    model without an LM head, a causal model that sees later tokens, a failed self-test).
    """
    options = options or OpenOptions()
    check_model(model)
    _check_tokenizer(tokenizer)
    tokenizer = _copy_tokenizer(tokenizer)
    class_name = type(model).__name__
    name = str(getattr(model.config, "_name_or_path", "") or class_name)
    config = copy.copy(model.config)
    config.architectures = [class_name]
    # The class name stands for the folder in error messages.
    sources = CheckpointSources(base=Path(class_name), tokenizer=Path(class_name))
    kind = pretrained.detect_kind(config, sources.base)
    loaded = LoadedModel(name, sources, kind, model, tokenizer, AllowedMismatches())
    with evaluation_mode(model), pretrained.silence_transformers():
        runnable = detect_capabilities(loaded, options, model.device)
        checkpoint = attach_engine(runnable, options.batch_tokens)
        checkpoint.metadata |= {"name": name, "architecture": class_name, "kind": kind}
        _self_test_on_opening(checkpoint, runnable)
    return checkpoint


def check_model(model: Any) -> None:
    """Raise UsageError if a model is not one of transformers, with weights of a dtype in DTYPES."""
    if not isinstance(model, transformers.PreTrainedModel):
        raise UsageError(
            f"a model of transformers is needed, not {type(model).__name__}",
            location="model",
            hint="unwrap it: model.module (DDP), model.merge_and_unload() (PEFT);"
            " or give the path or hub id of a checkpoint",
        )
    dtype = next(model.parameters()).dtype
    if dtype not in DTYPES.values():
        raise UsageError(
            f"the weights are {str(dtype).removeprefix('torch.')}, not {', '.join(DTYPES)}",
            location="model",
            hint="model.to(torch.float32)",
        )


def _check_tokenizer(tokenizer: Any) -> None:
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise UsageError(
            f"a tokenizer of transformers is needed, not {type(tokenizer).__name__}",
            location="tokenizer",
            hint="wrap it: transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)",
        )
    backend_model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(backend_model, "dropout", None):
        raise UsageError(
            f"the tokenizer drops merges at random (BPE dropout {backend_model.dropout:g})",
            location="tokenizer",
            hint="tokenizer.backend_tokenizer.model.dropout = None",
        )


def _copy_tokenizer(tokenizer: Any) -> Any:
    """Return a copy, because truncation and padding of calls in other threads are set on the
    object. A tokenizer with Python code in it cannot be copied, and is returned itself.
    """
    try:
        return copy.deepcopy(tokenizer)
    except Exception:  # of the code that is copied
        return tokenizer


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Hold the lock of the model, and turn dropout off. Restore training mode and attention
    implementation at the end.
    """
    with lock_model(model):
        training = [module for module in model.modules() if module.training]
        implementation = model.config._attn_implementation
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
            if model.config._attn_implementation != implementation:
                model.set_attn_implementation(implementation)


def attach_engine(
    loaded: RunnableModel, batch_tokens: int | None, dtype: torch.dtype | None = None
) -> Checkpoint:
    """Put a loaded model on an engine.

    dtype: cast the weights to it, and replace CPU layers by faster ones, which copy the weights.
    None = do not modify the model, because the caller owns it.
    """
    model, tokenizer, max_length = loaded.model, loaded.tokenizer, loaded.max_length
    if dtype is not None:
        pretrained.cast_weights(model, dtype)
    if batch_tokens is not None and batch_tokens < 0:
        raise UsageError(
            f"{batch_tokens} is negative", location="--batch-tokens", hint="leave it out"
        )
    if not batch_tokens:
        batch_tokens = CPU_BATCH_TOKENS if model.device.type == "cpu" else GPU_BATCH_TOKENS
    engine_class = EncoderDecoderEngine if is_encoder_decoder(model) else Engine
    engine = engine_class(model, loaded.name, loaded.forward_config, batch_tokens)
    if dtype is not None:
        engine.enable_cpu_kernels()
    return Checkpoint(
        name=loaded.name,
        kind=loaded.kind,
        attentions=frozenset(loaded.encoders),
        eos=str(tokenizer.eos_token),
        mask_id=loaded.mask_id,
        no_mask_reason=loaded.no_mask_reason,
        max_length=max_length,
        trained_methods=loaded.trained_methods,
        engine=engine,
        encoders=loaded.encoders,
    )


def _self_test_on_opening(checkpoint: Checkpoint, loaded: RunnableModel) -> None:
    """Run the self-test, and add its result to the metadata. Raises as `run_self_test`.

    If it fails only with an attention that the model was not trained with, that attention is
    removed from `checkpoint.attentions`, and nothing is raised.
    """
    texts = trial_texts(loaded.tokenizer)
    trained_attentions = loaded.trained_attentions & checkpoint.attentions
    other_attentions = checkpoint.attentions - trained_attentions
    result = run_self_test(checkpoint, texts, trained_attentions, max_predictions=6)
    if other_attentions:
        try:
            run_self_test(checkpoint, texts, other_attentions, max_predictions=6)
        except CheckpointError:
            checkpoint.attentions = trained_attentions
    checkpoint.metadata |= {
        "shortcuts": checkpoint.engine.shortcuts,
        "self_test": result.to_record(),
    }


def build_adaptive_scorer(checkpoint: Checkpoint) -> AdaptiveScorer:
    """Return a scorer for `--precision adaptive`, not yet calibrated.

    Its fast model has int8 linear layers if these were measured to be faster than bf16
    (`int8_is_faster`), the model is in fp32 and uses the CPU kernels for nearly all matrices
    (`packs_matrices`), its LM head can be replaced, and no layer applies a GELU (`applies_gelu`).
    Otherwise it has a bf16 body. Raises CheckpointError if there is no LM head.
    """
    engine = checkpoint.engine
    is_fp32 = next(engine.model.parameters()).dtype == torch.float32
    if (
        engine.kernels is not None
        and is_fp32
        and not applies_gelu(engine.model)
        and packs_matrices(engine.model)
        and _can_replace_head(engine, engine.model.get_output_embeddings())
        and int8_is_faster()
    ):
        return AdaptiveScorer(with_int8_layers(checkpoint), checkpoint, is_int8=True)
    return AdaptiveScorer(with_bf16_body(checkpoint), checkpoint)


def with_int8_layers(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy with int8 linear layers, and all else in fp32. Its LM head is an Int8LMHead."""
    original = checkpoint.engine
    model = copy.deepcopy(original.model)
    # Before `pack_linears`, which would replace the LM head by a PackedLinear.
    model.set_output_embeddings(Int8LMHead(_copy_lm_head(checkpoint), original.head_rows))
    pack_linears(model, original.batch_tokens, original.head_rows)
    fuse_layers(model)
    use_int8_linears(model, original.batch_tokens)
    engine = Bf16HeadEngine(model, checkpoint.name, original.forward_config, original.batch_tokens)
    check_kept_inputs(model, partial(_trial_logits, engine))
    return replace(checkpoint, engine=engine)


def _trial_logits(engine: Engine) -> Tensor:
    """Return the logits of two rows, each in a forward of its own."""
    engine.set_attention(engine.forward_config.native_implementation)
    ids = torch.arange(4, device=engine.device)
    logits = []
    with torch.inference_mode():
        for row in (ids, ids.flip(0)):
            logits.append(plain_logits(engine.model, input_ids=row[None]))
            if engine.model_state is not None:
                engine.model_state.restore()
    return torch.cat(logits)


def _copy_lm_head(checkpoint: Checkpoint) -> Any:
    """Return a copy of the LM head. Raises CheckpointError if there is none."""
    head = copy.deepcopy(checkpoint.engine.model.get_output_embeddings())
    if head is None:
        raise CheckpointError(
            f"{checkpoint.name} has no LM head, which --precision adaptive needs",
            hint="use --precision exact",
        )
    return head


def _can_replace_head(engine: Engine, head: Any) -> bool:
    """Return whether `head` may compute in low precision, with target logits in fp32."""
    return (
        type(engine) is Engine
        and can_pack_linears(engine.model)
        and isinstance(head, nn.Linear | PackedLinear)
        and has_plain_lm_head(engine)
    )


def with_bf16_body(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy with a bf16 body, for `--precision adaptive`.

    Its LM head is a Bf16LMHead. The head stays in fp32 if there are no bf16 kernels, and if the
    model changes the head's logits (scaling, soft-capping).
    """
    original = checkpoint.engine
    head = _copy_lm_head(checkpoint)
    bf16_head = _can_replace_head(original, head)
    model = copy.deepcopy(original.model)
    pretrained.cast_weights(model, torch.bfloat16)
    engine_class: type[Engine]
    if bf16_head:
        engine_class = Bf16HeadEngine
        model.set_output_embeddings(Bf16LMHead(head, original.head_rows))
    else:
        engine_class = type(original)
        # The body gives bf16 hidden states; the fp32 head needs fp32 input.
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
        model.set_output_embeddings(head)
    engine = engine_class(model, checkpoint.name, original.forward_config, original.batch_tokens)
    if original.kernels is not None:
        engine.enable_cpu_kernels()
    return replace(checkpoint, engine=engine)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A checkpoint without its LM head, opened for finetuning: fp32 weights, the library's layers.

    An engine's packed layers cannot be trained, so a Backbone has none.
    """

    name: str
    kind: str
    """causal or masked."""
    attentions: frozenset[Attention]
    """The attentions that it can be trained with."""
    native_attention: Attention
    """The attention of its forward without a mask."""
    model: Any
    """The base model. Training works on a copy of it."""
    tokenizer: Any
    specials: Mapping[Attention, Specials]
    """Attention -> the special tokens around a text, as in scoring."""
    max_length: int | None
    """Tokens per row, special tokens included; None = unlimited."""
    trained_methods: tuple[str, ...]
    """Scoring methods that config.json records for the training, the default first."""
    metadata: dict[str, Any]
    """Entries for a run's manifest (metadata.describe_checkpoint)."""

    @property
    def vocab_size(self) -> int:
        """The number of rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def has_token_type_ids(self) -> bool:
        """Whether the model distinguishes the two texts of a pair (BERT's token types)."""
        num_types = getattr(self.model.config, "type_vocab_size", None) or 0
        return num_types > 1 and "token_type_ids" in self.tokenizer.model_input_names


def open_for_finetuning(ref: str, sources: CheckpointSources, options: OpenOptions) -> Backbone:
    """Open a checkpoint whose files were located. Raises as `opening.open_backbone`."""
    with pretrained.silence_transformers():
        loaded = load_runnable_model(ref, sources, options)
        if loaded.kind == pretrained.ENCODER_DECODER:
            raise CheckpointError(
                f"{loaded.name} is an encoder-decoder, which can be scored but not finetuned",
                location=ref,
                hint="finetune a ...ForCausalLM or ...ForMaskedLM checkpoint",
            )
        metadata = describe_checkpoint(ref, loaded, options)
        # The trial forwards left another implementation.
        loaded.model.set_attn_implementation(loaded.forward_config.native_implementation)
        fuse_layers(loaded.model)
        return Backbone(
            name=loaded.name,
            kind=loaded.kind,
            attentions=_list_trainable_attentions(loaded),
            native_attention=loaded.forward_config.native_attention,
            model=loaded.model.base_model,
            tokenizer=loaded.tokenizer,
            specials=loaded.specials,
            max_length=loaded.max_length,
            trained_methods=loaded.trained_methods,
            metadata=metadata,
        )


def _list_trainable_attentions(loaded: RunnableModel) -> frozenset[Attention]:
    """Return the attentions that the model can be trained with.

    Training gives a model another attention by a 4-D mask; the engine's packed attention is for
    scoring only.
    """
    native = loaded.forward_config.native_attention
    others = frozenset(loaded.specials) - {native}
    if others and forward_trials.obeys_attention_masks(loaded.model, native):
        return others | {native}
    return frozenset({native})

"""GPT-BERT (Charpentier & Samuel 2024, arXiv 2410.24159), in one file that is copied into
checkpoints.

It has LTG-BERT's disentangled relative positions in logarithmic buckets and its GEGLU feed-forward.
It adds a gate to attention and, after each sub-layer, a learned weighted sum of the embeddings and
all sub-layers so far (DenseFormer, arXiv 2402.02622). One set of weights runs with full attention
(`GptBertForMaskedLM`) and with causal attention (`GptBertForCausalLM`).
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils import can_return_tuple

try:
    from transformers import initialization as init
except ImportError:  # transformers 4, which BabyLM's official pipelines pin
    init = nn.init

DEFAULTS: dict[str, Any] = {
    "vocab_size": 16384,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 2560,
    "position_bucket_size": 32,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-5,
    "attention_gate": True,
    "layer_weights": True,
    "classifier_dropout": 0.2,
    "is_decoder": False,
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Added to attention scores of masked positions: fp16 can represent it, and its softmax is 0.
MASK_VALUE = -3e4


class GptBertConfig(PretrainedConfig):
    """Configuration of a GPT-BERT. Defaults are the sizes of the paper's strict track.

    position_bucket_size: number of relative-position buckets on each side (see `bucket_index`).
    attention_gate, layer_weights: False removes the gate or the weighted sums, for ablations.
    is_decoder: a classifier uses causal attention and reads the last token instead of the first.
    Raises ValueError that names an invalid key.
    """

    model_type = "antlm_gpt_bert"

    def __init__(self, **settings: Any) -> None:
        values = {key: settings.pop(key, default) for key, default in DEFAULTS.items()}
        super().__init__(**settings)
        for key, value in values.items():  # last, because transformers 4 resets some of them
            check_setting(key, value)
            setattr(self, key, value)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} does not divide "
                f"{self.hidden_size}"
            )
        if not 4 <= self.position_bucket_size < self.max_position_embeddings:
            raise ValueError(
                f"position_bucket_size: {self.position_bucket_size}, "
                "not in 4..max_position_embeddings-1"
            )


def check_setting(key: str, value: Any) -> None:
    """Raise ValueError for a value of another type than the default, or out of range."""
    default = DEFAULTS[key]
    is_bool, is_integer = isinstance(value, bool), isinstance(value, int)
    if isinstance(default, bool):
        is_valid, expected = is_bool, "true or false"
    elif isinstance(default, int):
        is_valid, expected = is_integer and not is_bool and value > 0, "a positive integer"
    elif isinstance(default, float):
        is_number = isinstance(value, int | float) and not is_bool
        is_valid, expected = is_number and 0 <= value <= 1, "a number from 0 to 1"
    elif isinstance(default, str):
        is_valid, expected = isinstance(value, str), "a string"
    else:
        is_valid = value is None or isinstance(value, list) or (is_integer and not is_bool)
        expected = "the id of a token"
    if not is_valid:
        raise ValueError(f"{key}: {value!r:.40} is not {expected}")


def bucket_index(length: int, buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each distance (query position - key position) as an index (length,
    length) into the 2 * buckets - 1 position vectors.

    Distances up to buckets / 2 have a bucket each, longer ones up to `max_distance` share
    logarithmically growing buckets, and all beyond share the last (DeBERTa, arXiv 2006.03654, app.
    A.5).
    """
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    num_exact = buckets // 2
    long_distance = distance.abs().clamp(min=num_exact, max=max_distance - 1).double()
    growth = torch.log(long_distance / num_exact) / math.log((max_distance - 1) / num_exact)
    # Without 1e-9, rounding of the logarithm could lift a whole number to the next bucket.
    bucket = num_exact + torch.ceil(growth * (num_exact - 1) - 1e-9).long()
    is_exact = distance.abs() <= num_exact
    return torch.where(is_exact, distance, bucket * distance.sign()) + buckets - 1


def attention_bias(mask: Tensor | None, causal: bool, like: Tensor) -> Tensor | float:
    """Return the bias of attention scores (B, heads, T, T): 0, or MASK_VALUE at masked positions.

    mask: None, (B, T) with 0 for padding, or 4-D. A 4-D mask replaces `causal`; it is bool or 0/1
    (true = may attend), or an additive bias. A token that may attend to nothing gets finite,
    meaningless values. like: (B, T, d), a tensor whose dtype and device the bias gets.
    """
    if mask is not None and mask.dim() == 4:
        if mask.is_floating_point():
            return mask.to(like.dtype).clamp(min=MASK_VALUE)
        allowed = mask.bool()
    elif mask is None and not causal:
        return 0.0
    else:
        square = torch.ones(
            1, 1, like.shape[1], like.shape[1], dtype=torch.bool, device=like.device
        )
        allowed = square.tril() if causal else square
        if mask is not None:
            allowed = allowed & mask.bool()[:, None, None, :]
    bias = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill(~allowed, MASK_VALUE)


def non_affine_norm(size: int, config: Any) -> nn.LayerNorm:
    return nn.LayerNorm(size, config.layer_norm_eps, elementwise_affine=False)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, T, heads * h) -> (B, heads, T, h)


def init_parameter(parameter: nn.Parameter, values: Sequence[float]) -> None:
    """Set initial values (n,), unless transformers has loaded the parameter from a file."""
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(torch.tensor(values))


def classification_loss(logits: Tensor, labels: Tensor, config: Any) -> Tensor:
    """Compute the loss of logits (B, num_labels), as transformers' classifiers do.

    config.problem_type decides: regression: squared error; single_label_classification:
    cross-entropy; multi_label_classification: binary cross-entropy per label. Without one, it is
    regression for a single label, else multi-label for floating-point labels, else single-label.
    """
    problem_type = config.problem_type
    if problem_type is None:
        if config.num_labels == 1:
            problem_type = "regression"
        elif labels.is_floating_point():
            problem_type = "multi_label_classification"
        else:
            problem_type = "single_label_classification"
    if problem_type == "single_label_classification":
        return functional.cross_entropy(logits, labels.flatten())
    labels = labels.to(logits.dtype).view_as(logits)
    if problem_type == "regression":
        return functional.mse_loss(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, labels)


class GptBertRelativePositions(nn.Module):
    """Embeddings of relative positions, shared by all layers, and their index per token pair."""

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__()
        self.buckets = config.position_bucket_size
        self.max_distance = config.max_position_embeddings
        self.table = nn.Embedding(2 * self.buckets - 1, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        # The index for the longest text so far. It follows from the configuration: not a buffer.
        self._index: Tensor | None = None

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Return vectors (2 * buckets - 1, d) and the index (length, length) into them."""
        vectors = self.norm(self.table.weight)
        if self._index is None or self._index.device != vectors.device or len(self._index) < length:
            # A tensor created in inference mode could not be used in a later training step.
            with torch.inference_mode(False):
                index = bucket_index(length, self.buckets, self.max_distance)
                self._index = index.to(vectors.device)
        return vectors, self._index[:length, :length]


class GptBertAttention(nn.Module):
    """norm, attention by content and relative position, gate, norm, linear, dropout.

    Maps (B, T, d) to (B, T, d).
    """

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.num_heads, self.gated = config.num_attention_heads, config.attention_gate
        self.scale = 1 / math.sqrt(3 * (d // self.num_heads))  # a score is a sum of three products
        self.norm_in, self.norm_out = non_affine_norm(d, config), non_affine_norm(d, config)
        self.query_key = nn.Linear(d, 2 * d)
        self.value_gate = nn.Linear(d, 2 * d if self.gated else d)
        self.output = nn.Linear(d, d)
        self.probs_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.positions_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        # The position vectors have no batch dimension: all texts of a batch share the mask.
        self.positions_dropout.shared = True
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, positions: Tensor, index: Tensor, bias: Tensor | float) -> Tensor:
        x = self.norm_in(x)
        query, key = split_heads(self.query_key(x), 2 * self.num_heads).chunk(2, dim=1)
        value, *gate = self.value_gate(x).split(x.shape[-1], dim=-1)
        value, query = split_heads(value, self.num_heads), query * self.scale
        scores = self._position_scores(query, key, positions, index) + bias
        if torch.is_grad_enabled() or self.training:
            probs = torch.softmax(
                query @ key.transpose(-1, -2) + scores, dim=-1, dtype=torch.float32
            )
            context = self.probs_dropout(probs.to(value.dtype)) @ value
        else:
            context = functional.scaled_dot_product_attention(
                query, key, value, scores.to(query.dtype), scale=1.0
            )
        context = context.transpose(1, 2).flatten(2)
        if self.gated:
            context = context * functional.gelu(gate[0])
        return self.dropout(self.output(self.norm_out(context)))

    def _position_scores(
        self, query: Tensor, key: Tensor, positions: Tensor, index: Tensor
    ) -> Tensor:
        """Return content-to-position plus position-to-content scores (B, heads, T, T).

        query and key: (B, heads, T, h); query is already scaled.
        """
        projected = self.query_key(self.positions_dropout(positions))  # (buckets, 2 d)
        by_head = projected.unflatten(-1, (2, self.num_heads, -1))
        position_query, position_key = by_head.unbind(1)  # (buckets, heads, h)
        query_scores = query @ position_key.permute(1, 2, 0)  # (B, heads, T, buckets)
        key_scores = key @ (position_query * self.scale).permute(1, 2, 0)
        shape = (*query_scores.shape[:3], len(index))  # (B, heads, T, T)
        position_to_content = key_scores.gather(-1, index.T.expand(shape)).transpose(-1, -2)
        return query_scores.gather(-1, index.expand(shape)) + position_to_content


class GptBertFeedForward(nn.Module):
    """norm, linear, GEGLU (arXiv 2002.05202, tanh GELU), norm, linear, dropout; no biases."""

    def __init__(self, config: GptBertConfig, layer_index: int) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.norm_in, self.norm_mid = non_affine_norm(d, config), non_affine_norm(inner, config)
        self.wide = nn.Linear(d, 2 * inner, bias=False)
        self.narrow = nn.Linear(inner, d, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.wide.init_scale = self.narrow.init_scale = math.sqrt(1 / (2 * (1 + layer_index)))

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.wide(self.norm_in(x)).chunk(2, dim=-1)
        return self.dropout(
            self.narrow(self.norm_mid(x * functional.gelu(gate, approximate="tanh")))
        )


class GptBertMix(nn.Module):
    """A learned weighted sum of the embeddings and all sub-layers so far. It starts as the last.

    learned: False returns the last state, for ablations.
    """

    def __init__(self, num_states: int, learned: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(num_states)) if learned else None

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        if self.alpha is None:
            return states[-1]
        weights = self.alpha.to(states[0].dtype).unbind()
        mixed = weights[0] * states[0]
        for weight, state in zip(weights[1:], states[1:], strict=True):
            mixed = torch.addcmul(mixed, weight, state)
        return mixed


class GptBertLayer(nn.Module):
    """Attention, then feed-forward, each followed by a weighted sum of all states so far."""

    def __init__(self, config: GptBertConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = GptBertAttention(config)
        self.feed_forward = GptBertFeedForward(config, layer_index)
        self.mixes = nn.ModuleList(
            GptBertMix(2 * layer_index + num_states, config.layer_weights) for num_states in (2, 3)
        )

    def forward(
        self,
        x: Tensor,
        states: list[Tensor],
        positions: Tensor,
        index: Tensor,
        bias: Tensor | float,
    ) -> Tensor:
        """Return the weighted sum after both sub-layers, and append their outputs to `states`.

        x: the last weighted sum (B, T, d). states: the embeddings and all sub-layers' outputs so
        far, each (B, T, d).
        """
        states.append(x + self.attention(x, positions, index, bias))
        x = self.mixes[0](states)
        states.append(x + self.feed_forward(x))
        return self.mixes[1](states)


class GptBertHead(nn.Sequential):
    """`transform` (norm, linear, GELU, norm, dropout), then a linear `decoder` to num_outputs."""

    def __init__(self, config: GptBertConfig, num_outputs: int, dropout: float) -> None:
        super().__init__()
        d = config.hidden_size
        norms = [non_affine_norm(config.hidden_size, config) for _ in range(2)]
        self.transform = nn.Sequential(
            norms[0], nn.Linear(d, d), nn.GELU(), norms[1], nn.Dropout(dropout)
        )
        self.decoder = nn.Linear(d, num_outputs)


class GptBertPreTrainedModel(PreTrainedModel):
    config_class = GptBertConfig
    base_model_prefix = "model"
    _input_embed_layer, accepts_loss_kwargs = "embedding", False

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights from a normal distribution with std sqrt(2 / (5 d)), truncated at two std.

        Feed-forward layers have a smaller std (`init_scale`). Biases start at 0.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            std = math.sqrt(2 / (5 * self.config.hidden_size)) * getattr(module, "init_scale", 1.0)
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            init.ones_(module.weight)
        elif isinstance(module, GptBertMix) and module.alpha is not None:
            init_parameter(module.alpha, [0.0] * (len(module.alpha) - 1) + [1.0])
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)


class GptBertModel(GptBertPreTrainedModel):
    """The model without a head. causal: its attention, unless a forward gets a 4-D mask."""

    def __init__(self, config: GptBertConfig, causal: bool = False) -> None:
        super().__init__(config)
        self.causal = causal
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = non_affine_norm(config.hidden_size, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.positions = GptBertRelativePositions(config)
        self.layers = nn.ModuleList(
            GptBertLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        **more: Any,
    ) -> Any:
        """Return a BaseModelOutput with hidden states (B, T, d) for ids (B, T).

        attention_mask: see `attention_bias`. position_ids has no effect.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.dropout(
            self.norm(self.embedding(input_ids) if inputs_embeds is None else inputs_embeds)
        )
        vectors, index = self.positions(x.shape[1])
        bias = attention_bias(attention_mask, self.causal, x)
        states, hidden_states = [x], [x]
        for layer in self.layers:
            x = layer(x, states, vectors, index, bias)
            hidden_states.append(x)
        if more.get("output_hidden_states") or self.config.output_hidden_states:
            return BaseModelOutput(last_hidden_state=x, hidden_states=tuple(hidden_states))
        return BaseModelOutput(last_hidden_state=x)


class _GptBertLanguageModel(GptBertPreTrainedModel):
    """A model with an LM head. Its subclasses have the same parameters under the same names."""

    _tied_weights_keys = {"head.decoder.weight": "model.embedding.weight"}  # noqa: RUF012
    causal, output_class = False, MaskedLMOutput

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__(config)
        self.model = GptBertModel(config, causal=self.causal)
        self.head = GptBertHead(config, config.vocab_size, config.hidden_dropout_prob)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.head.decoder = value

    @can_return_tuple
    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **others: Any
    ) -> Any:
        """Return logits (B, T, vocabulary), and with labels (B, T; -100 = ignored) the mean
        cross-entropy. A causal model predicts label i at position i - 1.
        """
        body = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **others, return_dict=True
        )
        logits, loss = self.head(body.last_hidden_state), None
        if labels is not None:
            predictions = logits[:, :-1] if self.causal else logits
            targets = labels[:, 1:] if self.causal else labels
            loss = functional.cross_entropy(predictions.flatten(0, 1).float(), targets.flatten())
        return self.output_class(loss=loss, logits=logits, hidden_states=body.hidden_states)


class GptBertForMaskedLM(_GptBertLanguageModel):
    """A masked LM: full attention; a masked token is predicted at its position."""


class GptBertForCausalLM(_GptBertLanguageModel, GenerationMixin):
    """A causal LM. It generates without a key/value cache."""

    causal, output_class = True, CausalLMOutput

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Any = None, **_cache: Any
    ) -> Any:
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class GptBertForSequenceClassification(GptBertPreTrainedModel):
    """A classifier that reads the first token with full attention, or, if config.is_decoder, the
    last token with causal attention.
    """

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__(config)
        self.model = GptBertModel(config, causal=config.is_decoder)
        self.classifier = GptBertHead(config, config.num_labels, config.classifier_dropout)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **others: Any
    ) -> Any:
        """Return logits (B, num_labels), and with labels the loss of `classification_loss`."""
        body = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **others, return_dict=True
        )
        hidden = body.last_hidden_state
        if getattr(attention_mask, "ndim", 0) == 2:
            is_text = attention_mask != 0
        else:
            is_text = input_ids is None or input_ids != self.config.pad_token_id
        # A rank of each position: its maximum is at the last position, or at the first.
        rank = torch.arange(1.0, hidden.shape[1] + 1, device=hidden.device)
        if not self.model.causal:
            rank = 1 / rank
        read_position = (is_text * rank).argmax(-1)
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = self.classifier(hidden[rows, read_position])
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=body.hidden_states)

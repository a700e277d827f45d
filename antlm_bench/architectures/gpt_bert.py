"""GPT-BERT (Charpentier & Samuel 2024, arXiv 2410.24159): one file that a checkpoint can carry.

LTG-BERT's disentangled, log-bucketed relative positions and GEGLU feed-forward, with gated
attention and, after each sub-layer, a learned weighted sum of all sub-layers so far (DenseFormer,
2402.02622). The same weights attend in full (`...ForMaskedLM`) or causally (`...ForCausalLM`).
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
# Added to a score that must not count: its softmax is 0, and even fp16 can hold it (no NaN).
MASK_VALUE = -3e4


class GptBertConfig(PretrainedConfig):
    """Sizes are those of the paper's strict track. ValueError names the key that cannot be.

    position_bucket_size: distances up to half of it have a vector each, longer ones share them,
    logarithmically up to max_position_embeddings. attention_gate, layer_weights: without them for
    ablations. is_decoder: classification attends causally and reads the last token, not the first.
    """

    model_type = "antlm_gpt_bert"

    def __init__(self, **settings: Any) -> None:
        given = {key: settings.pop(key, default) for key, default in DEFAULTS.items()}
        super().__init__(**settings)
        for key, value in given.items():  # after: transformers 4 would set some of them back
            setattr(self, key, value)
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} does not divide "
                f"{self.hidden_size}"
            )
        if not 4 <= self.position_bucket_size < self.max_position_embeddings:
            raise ValueError(
                f"position_bucket_size: {self.position_bucket_size}, "
                "not in 4..max_position_embeddings-1"
            )


def bucket_index(length: int, buckets: int, max_distance: int) -> Tensor:
    """Return the row of the position table for each pair of positions, (length, length): the bucket
    of query position minus key position, from 0 to 2 * buckets - 2.

    Exact up to buckets / 2, then logarithmic up to `max_distance`, then constant (DeBERTa's, arXiv
    2006.03654 app. A.5).
    """
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    exact = buckets // 2
    far = distance.abs().clamp(min=exact, max=max_distance - 1).double()
    grown = torch.log(far / exact) / math.log((max_distance - 1) / exact) * (exact - 1)
    # The last one is a whole number but for a logarithm's last bit.
    bucket = exact + torch.ceil(grown - 1e-9).long()
    return torch.where(distance.abs() <= exact, distance, bucket * distance.sign()) + buckets - 1


def attention_bias(mask: Tensor | None, causal: bool, like: Tensor) -> Tensor | float:
    """Return what to add to attention scores (B, heads, T, T): 0 or MASK_VALUE, with the dtype and
    device of `like` (B, T, d).

    mask: None, (B, T) with 1 = a token, or 4-D, which is used as it is: bool or 0/1 (true = may
    attend), or additive. A token that may attend to nothing gets finite, meaningless values.
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
        allowed = (square.tril() if causal else square) & (
            square if mask is None else mask.bool()[:, None, None, :]
        )
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~allowed, MASK_VALUE
    )


def non_affine_norm(size: int, config: Any) -> nn.LayerNorm:
    return nn.LayerNorm(size, config.layer_norm_eps, elementwise_affine=False)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, T, heads * h) -> (B, heads, T, h)


def init_parameter(parameter: nn.Parameter, values: Sequence[float]) -> None:
    """Set initial values (n,), unless the library has loaded the parameter from a file."""
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(torch.tensor(values))


def classification_loss(logits: Tensor, labels: Tensor, config: Any) -> Tensor:
    """Compute the loss that config.problem_type names, for logits (B, labels).

    regression: squared error; multi_label_classification: binary cross-entropy of each label;
    single_label_classification: cross-entropy. None: regression where there is one label, else
    single labels where they are whole numbers, else several.
    """
    kind = config.problem_type
    if kind is None:
        single = "multi_label" if labels.is_floating_point() else "single_label"
        kind = "regression" if config.num_labels == 1 else f"{single}_classification"
    if kind == "single_label_classification":
        return functional.cross_entropy(logits, labels.flatten())
    labels = labels.to(logits.dtype).view_as(logits)
    if kind == "regression":
        return functional.mse_loss(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, labels)


class GptBertRelativePositions(nn.Module):
    """One table of position vectors for all layers, and the index of each pair of positions."""

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__()
        self.buckets = config.position_bucket_size
        self.max_distance = config.max_position_embeddings
        self.table = nn.Embedding(2 * self.buckets - 1, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        # For the longest text so far; no buffer: the configuration says it all.
        self._index: Tensor | None = None

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Return vectors (2 * buckets - 1, d) and the index (length, length) into them."""
        vectors = self.norm(self.table.weight)
        if self._index is None or self._index.device != vectors.device or len(self._index) < length:
            # An inference tensor could not be used by a later forward with gradients.
            with torch.inference_mode(False):
                index = bucket_index(length, self.buckets, self.max_distance)
                self._index = index.to(vectors.device)
        return vectors, self._index[:length, :length]


class GptBertAttention(nn.Module):
    """norm, attention by content and relative position, gate, norm, projection, dropout: (B, T, d)
    -> (B, T, d).
    """

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.num_heads, self.gated = config.num_attention_heads, config.attention_gate
        self.scale = 1 / math.sqrt(3 * (d // self.num_heads))  # three terms make up a score
        self.norm_in, self.norm_out = non_affine_norm(d, config), non_affine_norm(d, config)
        self.query_key = nn.Linear(d, 2 * d)
        self.value_gate = nn.Linear(d, 2 * d if self.gated else d)
        self.output = nn.Linear(d, d)
        self.probs_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.positions_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        # One mask for all texts of a batch: the table has no dimension for them.
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
        """Return content-to-position plus position-to-content scores (B, heads, T, T); `query` is
        already scaled.
        """
        projected = self.query_key(self.positions_dropout(positions))  # (buckets, 2 d)
        by_head = projected.unflatten(-1, (2, self.num_heads, -1))
        query_at, key_at = by_head.unbind(1)  # (buckets, heads, h)
        to_position = query @ key_at.permute(1, 2, 0)  # (B, heads, T, buckets)
        from_position = key @ (query_at * self.scale).permute(1, 2, 0)
        pairs = (*to_position.shape[:3], len(index))
        key_scores = from_position.gather(-1, index.T.expand(pairs)).transpose(-1, -2)
        return to_position.gather(-1, index.expand(pairs)) + key_scores


class GptBertFeedForward(nn.Module):
    """norm, linear, GEGLU, norm, linear, dropout (arXiv 2002.05202; a tanh-approximated GELU), no
    biases.
    """

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
    """A learned weighted sum of all sub-layers' outputs so far, the embedding among them; at first,
    the last one.
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
    """Attention, then feed-forward. `states`: what all sub-layers gave so far; x: their last
    weighted sum.
    """

    def __init__(self, config: GptBertConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = GptBertAttention(config)
        self.feed_forward = GptBertFeedForward(config, layer_index)
        self.mixes = nn.ModuleList(
            GptBertMix(2 * layer_index + place, config.layer_weights) for place in (2, 3)
        )

    def forward(self, x: Tensor, states: list[Tensor], *where: Any) -> Tensor:
        states.append(x + self.attention(x, *where))
        x = self.mixes[0](states)
        states.append(x + self.feed_forward(x))
        return self.mixes[1](states)


class GptBertHead(nn.Sequential):
    """norm, linear, GELU, norm, dropout (`transform`), then the `decoder` into `outputs` scores."""

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
        """Truncated normal of std sqrt(2 / (5 d)), cut at two std; biases 0; see FeedForward for
        `init_scale`.
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
    """The body. `causal`: which way it attends unless a 4-D mask says it all."""

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
        """(B, T) ids -> BaseModelOutput with (B, T, d). attention_mask: see `attention_bias`.
        position_ids: unused.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.dropout(
            self.norm(self.embedding(input_ids) if inputs_embeds is None else inputs_embeds)
        )
        where = (*self.positions(x.shape[1]), attention_bias(attention_mask, self.causal, x))
        states, hidden = [x], [x]
        for layer in self.layers:
            x = layer(x, states, *where)
            hidden.append(x)
        wanted = more.get("output_hidden_states") or self.config.output_hidden_states
        return BaseModelOutput(last_hidden_state=x, hidden_states=tuple(hidden) if wanted else None)


class _GptBertLanguageModel(GptBertPreTrainedModel):
    """A body that attends one way, and the head that both ways share: the same parameters under the
    same names.
    """

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
        """Logits (B, T, vocabulary) and, with labels (B, T; -100 = none), the mean cross-entropy,
        shifted if causal.
        """
        body = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **others, return_dict=True
        )
        logits, loss = self.head(body.last_hidden_state), None
        if labels is not None:
            read, wanted = (logits[:, :-1], labels[:, 1:]) if self.causal else (logits, labels)
            loss = functional.cross_entropy(read.flatten(0, 1).float(), wanted.flatten())
        return self.output_class(loss=loss, logits=logits, hidden_states=body.hidden_states)


class GptBertForMaskedLM(_GptBertLanguageModel):
    """Attends in full and predicts a token at its own position."""


class GptBertForCausalLM(_GptBertLanguageModel, GenerationMixin):
    """Attends to the past and predicts the next token; generates without a key/value cache."""

    causal, output_class = True, CausalLMOutput

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Any = None, **_cache: Any
    ) -> Any:
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class GptBertForSequenceClassification(GptBertPreTrainedModel):
    """Full attention read at the first token of a text, or, if config.is_decoder, causal read at
    the last.
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
        """Logits (B, num_labels), and with labels the loss of `classification_loss`."""
        body = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **others, return_dict=True
        )
        hidden = body.last_hidden_state
        padded = getattr(attention_mask, "ndim", 0) == 2
        text = (
            attention_mask if padded else input_ids is None or input_ids != self.config.pad_token_id
        )
        place = torch.arange(1.0, hidden.shape[1] + 1, device=hidden.device)
        at = ((text != 0) * (place if self.model.causal else 1 / place)).argmax(-1)
        logits = self.classifier(hidden[torch.arange(len(hidden), device=hidden.device), at])
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=body.hidden_states)

"""LTG-BERT (Samuel et al. 2023, arXiv 2303.09859) and ELC-BERT (2311.02265): one file that a
checkpoint can carry.

Pre- and post-normalised attention with disentangled, log-bucketed relative positions, and a GEGLU
feed-forward. The same weights attend in full (`...ForMaskedLM`) or causally (`...ForCausalLM`).
`layer_mix` makes it an ELC-BERT.
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

LAYER_MIXES = ("", "base", "zero", "normalized", "weighted_output")
DEFAULTS: dict[str, Any] = {
    "vocab_size": 16384,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 2048,
    "position_bucket_size": 32,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-7,
    "layer_mix": "",
    "per_head_positions": False,
    "classifier_dropout": 0.2,
    "is_decoder": False,
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Added to a score that must not count: its softmax is 0, and even fp16 can hold it (no NaN).
MASK_VALUE = -3e4


class LtgBertConfig(PretrainedConfig):
    """Sizes are the paper's base. ValueError names the key that cannot be.

    position_bucket_size: distances up to half of it have a vector each, longer ones share them,
    logarithmically up to max_position_embeddings. layer_mix: "", or the ELC-BERT variant.
    per_head_positions: positions are projected head by head, as in one public wrapper. is_decoder:
    classification attends causally and reads the last token, not the first.
    """

    model_type = "antlm_ltg_bert"

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
        if self.layer_mix not in LAYER_MIXES:
            raise ValueError(
                f"layer_mix: {self.layer_mix!r} is none of {', '.join(map(repr, LAYER_MIXES))}"
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


class LtgBertRelativePositions(nn.Module):
    """One table of position vectors for all layers, and the index of each pair of positions."""

    def __init__(self, config: LtgBertConfig) -> None:
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


class LtgBertAttention(nn.Module):
    """norm, attention by content and relative position, projection, affine norm, dropout: (B, T, d)
    -> (B, T, d).
    """

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.per_head_positions = config.per_head_positions
        self.scale = 1 / math.sqrt(3 * (d // self.num_heads))  # three terms make up a score
        self.norm_in = non_affine_norm(d, config)
        self.norm_out = nn.LayerNorm(d, config.layer_norm_eps)
        self.query_key = nn.Linear(d, 2 * d)
        self.value, self.output = nn.Linear(d, d), nn.Linear(d, d)
        self.probs_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.positions_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        # One mask for all texts of a batch: the table has no dimension for them.
        self.positions_dropout.shared = True
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, positions: Tensor, index: Tensor, bias: Tensor | float) -> Tensor:
        x = self.norm_in(x)
        query, key = split_heads(self.query_key(x), 2 * self.num_heads).chunk(2, dim=1)
        value, query = split_heads(self.value(x), self.num_heads), query * self.scale
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
        return self.dropout(self.norm_out(self.output(context.transpose(1, 2).flatten(2))))

    def _position_scores(
        self, query: Tensor, key: Tensor, positions: Tensor, index: Tensor
    ) -> Tensor:
        """Return content-to-position plus position-to-content scores (B, heads, T, T); `query` is
        already scaled.
        """
        shape, axis = (
            ((self.num_heads, 2, -1), -2)
            if self.per_head_positions
            else ((2, self.num_heads, -1), -3)
        )
        projected = self.query_key(self.positions_dropout(positions))  # (buckets, 2 d)
        query_at, key_at = projected.unflatten(-1, shape).unbind(axis)  # (buckets, heads, h)
        to_position = query @ key_at.permute(1, 2, 0)  # (B, heads, T, buckets)
        from_position = key @ (query_at * self.scale).permute(1, 2, 0)
        pairs = (*to_position.shape[:3], len(index))
        key_scores = from_position.gather(-1, index.T.expand(pairs)).transpose(-1, -2)
        return to_position.gather(-1, index.expand(pairs)) + key_scores


class LtgBertFeedForward(nn.Module):
    """norm, linear, GEGLU, norm, linear, dropout (arXiv 2002.05202; a tanh-approximated GELU), no
    biases.
    """

    def __init__(self, config: LtgBertConfig, layer_index: int) -> None:
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


class LtgBertMix(nn.Module):
    """A learned, soft-maxed average of all states so far (ELC-BERT). Alphas start as 0, the last as
    `last`.
    """

    def __init__(self, num_states: int, last: float = 0.0) -> None:
        super().__init__()
        self.alpha, self.last = nn.Parameter(torch.empty(num_states)), last

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        weights = torch.softmax(self.alpha, dim=0, dtype=torch.float32).to(states[0].dtype).unbind()
        mixed = weights[0] * states[0]
        for weight, state in zip(weights[1:], states[1:], strict=True):
            mixed = torch.addcmul(mixed, weight, state)
        return mixed


class LtgBertLayer(nn.Module):
    """Attention and feed-forward on the last state, or in ELC-BERT on a mix of all of them."""

    def __init__(self, config: LtgBertConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_mix = config.layer_mix
        self.mix = (
            LtgBertMix(layer_index + 1, last=float(self.layer_mix == "base"))
            if self.layer_mix
            else None
        )
        self.attention = LtgBertAttention(config)
        self.feed_forward = LtgBertFeedForward(config, layer_index)
        self.norm = (
            non_affine_norm(config.hidden_size, config)
            if self.layer_mix == "normalized"
            else nn.Identity()
        )

    def forward(self, states: Sequence[Tensor], *where: Any) -> Tensor:
        x = states[-1] if self.mix is None else self.mix(states)
        attended = self.attention(x, *where)
        if self.layer_mix in ("", "base"):
            x = attended if self.layer_mix else x + attended
            return x + self.feed_forward(x)
        return self.norm(attended + self.feed_forward(x + attended))


class LtgBertHead(nn.Sequential):
    """norm, linear, GELU, norm, dropout (`transform`), then the `decoder` into `outputs` scores."""

    def __init__(self, config: LtgBertConfig, num_outputs: int, dropout: float) -> None:
        super().__init__()
        d = config.hidden_size
        norms = [non_affine_norm(config.hidden_size, config) for _ in range(2)]
        self.transform = nn.Sequential(
            norms[0], nn.Linear(d, d), nn.GELU(), norms[1], nn.Dropout(dropout)
        )
        self.decoder = nn.Linear(d, num_outputs)


class LtgBertPreTrainedModel(PreTrainedModel):
    config_class = LtgBertConfig
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
        elif isinstance(module, LtgBertMix):
            init_parameter(module.alpha, [0.0] * (len(module.alpha) - 1) + [module.last])
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)


class LtgBertModel(LtgBertPreTrainedModel):
    """The body. `causal`: which way it attends unless a 4-D mask says it all."""

    def __init__(self, config: LtgBertConfig, causal: bool = False) -> None:
        super().__init__(config)
        self.causal = causal
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = non_affine_norm(config.hidden_size, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.positions = LtgBertRelativePositions(config)
        self.layers = nn.ModuleList(
            LtgBertLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.mix = (
            LtgBertMix(config.num_hidden_layers + 1)
            if config.layer_mix == "weighted_output"
            else None
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
        states = [x]
        for layer in self.layers:
            states.append(layer(states, *where))
        x = states[-1] if self.mix is None else self.mix(states)
        wanted = more.get("output_hidden_states") or self.config.output_hidden_states
        return BaseModelOutput(last_hidden_state=x, hidden_states=tuple(states) if wanted else None)


class _LtgBertLanguageModel(LtgBertPreTrainedModel):
    """A body that attends one way, and the head that both ways share: the same parameters under the
    same names.
    """

    _tied_weights_keys = {"head.decoder.weight": "model.embedding.weight"}  # noqa: RUF012
    causal, output_class = False, MaskedLMOutput

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.model = LtgBertModel(config, causal=self.causal)
        self.head = LtgBertHead(config, config.vocab_size, config.hidden_dropout_prob)
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


class LtgBertForMaskedLM(_LtgBertLanguageModel):
    """Attends in full and predicts a token at its own position."""


class LtgBertForCausalLM(_LtgBertLanguageModel, GenerationMixin):
    """Attends to the past and predicts the next token; generates without a key/value cache."""

    causal, output_class = True, CausalLMOutput

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Any = None, **_cache: Any
    ) -> Any:
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class LtgBertForSequenceClassification(LtgBertPreTrainedModel):
    """Full attention read at the first token of a text, or, if config.is_decoder, causal read at
    the last.
    """

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.model = LtgBertModel(config, causal=config.is_decoder)
        self.classifier = LtgBertHead(config, config.num_labels, config.classifier_dropout)
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

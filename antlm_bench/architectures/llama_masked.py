"""Llama as a masked LM, in one file that is copied into checkpoints.

transformers has Llama as a causal LM only. AntLM (arXiv 2412.03275) trains one set of weights with
causal and masked objectives. This class opens such a checkpoint with `AutoModelForMaskedLM` and the
pipeline `fill-mask`.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import MaskedLMOutput


class LlamaForMaskedLM(LlamaForCausalLM):
    """A Llama with full attention that predicts a masked token at the token's position.

    Its parameters have the names of the causal LM's. Raises ValueError if config.json does not say
    that the checkpoint was trained with full attention.
    """

    def __init__(self, config: Any) -> None:
        training = getattr(config, "antlm_bench", None)
        if not isinstance(training, dict) or "full" not in training.get("attends", []):
            raise ValueError(
                "this Llama was trained with causal attention: open it with AutoModelForCausalLM"
            )
        super().__init__(config)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        return_dict: bool | None = None,
        **more: Any,
    ) -> Any:
        """Return logits (B, T, vocabulary), and with labels (B, T; -100 = ignored) the mean
        cross-entropy.

        attention_mask: None, (B, T) with 0 for padding, or 4-D, which is used as it is. A row that
        is all padding gets finite, meaningless values.
        """
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        dtype = self.get_input_embeddings().weight.dtype
        if attention_mask is None:
            attention_mask = torch.ones(inputs.shape[:2], device=inputs.device)
        if attention_mask.dim() == 2:
            bias = torch.zeros(attention_mask.shape, dtype=dtype, device=inputs.device)
            bias = bias.masked_fill(attention_mask == 0, torch.finfo(dtype).min)
            attention_mask = bias[:, None, None, :].expand(-1, 1, inputs.shape[1], -1).contiguous()
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_hidden_states=more.get("output_hidden_states"),
            output_attentions=more.get("output_attentions"),
            return_dict=True,
        )
        logits, loss = self.lm_head(body.last_hidden_state), None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=body.hidden_states, attentions=body.attentions
        )
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()

"""Llama as a masked LM: one file that a hybrid's checkpoint can carry.

transformers has Llama as a causal LM only. A hybrid (AntLM, arXiv 2412.03275) was trained both ways
with one set of weights; this class gives them to `AutoModelForMaskedLM` and to the pipeline
`fill-mask`.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import MaskedLMOutput


class LlamaForMaskedLM(LlamaForCausalLM):
    """Attends in full and predicts a token at its own position. Same parameters, same names as the
    causal LM.

    Raises ValueError for a Llama whose config.json does not say that it was trained to attend in
    full.
    """

    def __init__(self, config: Any) -> None:
        training = getattr(config, "antlm_bench", None)
        if not isinstance(training, dict) or "full" not in training.get("attends", []):
            raise ValueError(
                "this Llama was trained to attend causally: open it with AutoModelForCausalLM"
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
        """Logits (B, T, vocabulary) and, with labels (B, T; -100 = none), the mean cross-entropy.

        attention_mask: None, (B, T) with 1 = a token, or 4-D, which is used as it is. A row that is
        all padding gets finite, meaningless values.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        dtype = self.get_input_embeddings().weight.dtype
        if attention_mask is None or attention_mask.dim() == 2:
            real = (
                torch.ones(given.shape[:2], device=given.device)
                if attention_mask is None
                else attention_mask
            )
            hidden = torch.zeros(real.shape, dtype=dtype, device=given.device)
            hidden = hidden.masked_fill(real == 0, torch.finfo(dtype).min)
            attention_mask = hidden[:, None, None, :].expand(-1, 1, given.shape[1], -1).contiguous()
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
        configured = getattr(self.config, "return_dict", True)
        return output if (configured if return_dict is None else return_dict) else output.to_tuple()

"""The engine of encoder-decoders: rows of the decoder, each after a source that the encoder reads.

It runs the model's own encoder and forward. Each source of a batch is encoded once, whatever the
number of rows after it; short rows are padded (scoring.pair_plan); and the LM head runs only at the
positions that are read. Padding follows a row, where a decoder does not see it; padding of a source
is masked. Every shortcut can be turned off, as in Engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from antlm_bench.scoring.devices import copy_together, to_device
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.logit_readers import Reads
from antlm_bench.scoring.pair_plan import PADDING, PairBatch, PairPlan
from antlm_bench.scoring.plain_forward import no_cache_kwargs, plain_logits
from antlm_bench.types import Ints, Probes


class _DecoderDoneError(Exception):
    """Raised to end a forward after the decoder, before the LM head."""


class EncoderDecoderEngine(Engine):
    """Scores probes that have sources (attention "cross")."""

    def _build_plans(self, probes: Sequence[Probes]) -> Sequence[PairPlan]:
        config = self.forward_config
        limit = None if config.lm_head_at_reads else self.head_rows
        plan = PairPlan(
            probes, padded=config.padded, batched=config.batched, max_decoder_tokens=limit
        )
        return [plan]

    def _batch_logprobs(self, batch: PairBatch) -> Tensor:
        """Return the k log-probabilities of a batch, on the device."""
        self.set_attention(self.forward_config.native_implementation)
        inputs = {"decoder_input_ids": self._to_tensor(batch.decoder_ids)}
        sources = self._to_tensor(batch.source_ids)
        is_padding = batch.source_ids == PADDING
        mask = None
        if is_padding.any():
            mask = to_device((~is_padding).astype(np.int64), self.device)
        with self.rotary_patch.active():
            if not self.forward_config.batched:
                assert len(batch.decoder_ids) == 1, "a PairPlan makes batches of one pair"
                inputs["input_ids"] = sources
            else:
                index = to_device(batch.source_index, self.device)
                encoded = self.model.get_encoder()(input_ids=sources, attention_mask=mask)
                inputs["encoder_outputs"] = _select_rows(encoded, index)
                if mask is not None:
                    inputs["attention_mask"] = mask[index]
            reads = Reads(batch.read_nodes, batch.read_index, batch.target)
            tensors = copy_together(reads.arrays, self.device)
            output = compute_logits = None
            if self.forward_config.lm_head_at_reads:
                output = self._run_decoder(inputs)
                compute_logits = partial(self._head_logits, output, inputs)
            hidden = self._all_logits(inputs) if output is None else output[0]
            hidden = hidden.flatten(0, 1).index_select(0, tensors["read_positions"])
            return self._read_logprobs(hidden, reads, tensors, compute_logits)

    def _to_tensor(self, ids: Ints) -> Tensor:
        """Return ids as a tensor, with the model's padding token for PADDING."""
        padding_id = getattr(self.model.config, "pad_token_id", None)
        fill = padding_id if isinstance(padding_id, int) and padding_id >= 0 else 0
        filled = np.where(ids == PADDING, fill, ids).astype(np.int64)
        return to_device(filled, self.device)

    def _all_logits(self, inputs: dict[str, Any]) -> Tensor:
        """Return the logits (r, t, vocabulary) of the model's own forward."""
        if "input_ids" in inputs:
            return plain_logits(self.model, **inputs)
        logits: Tensor = self.model(**inputs, **no_cache_kwargs(self.model)).logits
        return logits

    def _run_decoder(self, inputs: dict[str, Any]) -> Any:
        """Run the model up to its LM head. Return the output of its decoder."""
        decoder = self.model.get_decoder()
        forward, outputs = decoder.forward, []

        def stop_after(*args: Any, **kwargs: Any) -> Any:
            outputs.append(forward(*args, **kwargs))
            raise _DecoderDoneError

        decoder.forward = stop_after
        try:
            self.model(**inputs, **no_cache_kwargs(self.model))
        except _DecoderDoneError:
            pass
        finally:
            del decoder.forward
        return outputs[0]

    def _head_logits(self, output: Any, inputs: dict[str, Any], hidden: Tensor) -> Tensor:
        """Return the logits (h, vocabulary) of hidden states (h, d).

        The model's own forward runs with a decoder that only returns these states, so that scales
        and biases between decoder and logits are applied.
        """
        block = type(output)(last_hidden_state=hidden[None])
        decoder = self.model.get_decoder()
        decoder.forward = lambda *_args, **_kwargs: block
        try:
            logits: Tensor = self.model(**inputs, **no_cache_kwargs(self.model)).logits[0]
        finally:
            del decoder.forward
        if len(logits) != len(hidden):
            raise ValueError(f"the LM head of {type(self.model).__name__} cannot be run alone")
        return logits


def _select_rows(encoded: Any, index: Tensor) -> Any:
    """Return the output of an encoder with its states (u, s, d) at index (r,)."""
    return type(encoded)(last_hidden_state=encoded[0].index_select(0, index))

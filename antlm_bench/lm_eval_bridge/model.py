"""The model `antlm-bench` of lm-evaluation-harness. It answers lm-eval's requests with this
package's scoring methods and engine:

lm_eval run --model antlm-bench --model_args pretrained=CKPT,method=mlm --tasks blimp
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from lm_eval.api.model import LM

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError, MethodNotSupported, UsageError
from antlm_bench.lm_eval_bridge.documents import request_to_option
from antlm_bench.lm_eval_bridge.request_encoder import RequestEncoder
from antlm_bench.lm_eval_bridge.rolling import require_causal_method, score_documents
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import default_method, resolve_method
from antlm_bench.types import FLAGS, Item

logger = logging.getLogger(__name__)
TRUNCATION_MODES = ("never", "left")
# Model arguments that have the names and meanings of the options of `score`.
CHECKPOINT_OPTIONS = (
    "revision",
    "dtype",
    "max_length",
    "batch_tokens",
    "trust_remote_code",
    "allow_pickle",
    "peft",
    "tokenizer",
    "allow_unused",
    "allow_missing",
    "original_layout",
)
MODEL_ARGS = "--model_args"


class Request(Protocol):
    """The attributes of lm_eval's Instance that are used."""

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), or (text,)."""
        ...


class AntlmBench(LM):  # type: ignore[misc]  # lm_eval is not typed
    """A checkpoint that answers lm-eval's log-likelihood requests. It does not generate text.

    pretrained: folder or hub id. method: a name in scoring.methods.METHODS, "" = the checkpoint's
    default. bos: "lm-eval" (see RequestEncoder) or a value of `score --bos`. truncate: "never" = a
    request that does not fit raises DataError, "left" = its context is cut with a warning, as
    lm-eval's own models do. device: "" and lm-eval's default cuda:0 select the best device.
    batch_size is ignored, because scores do not depend on it; batch_tokens sets the batch size.
    checkpoint_options: options in CHECKPOINT_OPTIONS.
    """

    def __init__(
        self,
        pretrained: str,
        method: str = "",
        bos: str = "lm-eval",
        truncate: str = "never",
        device: str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        **checkpoint_options: Any,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size
        for name in checkpoint_options:
            if name not in CHECKPOINT_OPTIONS:
                names = ("pretrained", "method", "bos", "truncate", "device", *CHECKPOINT_OPTIONS)
                hint = suggest_name(name, names) or f"one of {', '.join(names)}"
                raise UsageError(f"unknown argument {name!r}", location=MODEL_ARGS, hint=hint)
        if truncate not in TRUNCATION_MODES:
            hint = f"one of {', '.join(TRUNCATION_MODES)}"
            raise UsageError(f"unknown value truncate={truncate!r}", location=MODEL_ARGS, hint=hint)
        device = "auto" if device in (None, "", "cuda", "cuda:0") else str(device)
        checkpoint_bos = "auto" if bos == "lm-eval" else bos
        options = OpenOptions(bos=checkpoint_bos, device=device, **checkpoint_options)
        checkpoint = open_checkpoint(str(pretrained), options)
        if "cross" in checkpoint.attentions:
            raise MethodNotSupported(
                f"{checkpoint.name} is an encoder-decoder, which lm-eval does not score with our "
                "engine",
                location=MODEL_ARGS,
                hint="antlm-bench score --suite lm-eval:TASK scores its tasks, --model hf is "
                "lm-eval's own code",
            )
        self.request_encoder = RequestEncoder(checkpoint, bos, truncate == "left")
        self.method_name = method or default_method(checkpoint, checkpoint.methods)
        self.method = resolve_method(self.method_name, checkpoint)
        self.bos = bos

    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return (log-probability of the continuation in nats, is_greedy) per request.

        is_greedy: whether every scored token is the argmax. A masked method gives the
        pseudo-log-likelihood, and the argmax at the position where the token is masked. Raises
        DataError for a request that does not fit (see truncate), or has no token to score.
        """
        del disable_tqdm
        encoder = self.request_encoder
        options = [request_to_option(*request.args[:2]) for request in requests]
        encoder.checkpoint.run_self_test([option.text for option in options], [self.method])
        # Longest contexts first, so that a request that does not fit raises its error early. Equal
        # contexts are neighbours, so that they are in one chunk.
        contexts = [request.args[0] for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (-len(contexts[i]), contexts[i]))
        responses: dict[int, tuple[float, bool]] = {}
        num_truncated_before = encoder.num_truncated
        flag_counts: Counter[str] = Counter()
        items = [Item(str(i), (options[i],), 0) for i in order]
        for chunk in multiple_choice.iter_chunks(items, [self.method]):
            [predictions] = multiple_choice.predict(encoder, chunk, [self.method])
            indices, flag_masks = [int(item.id) for item in chunk], predictions.flags()
            if "too-long" in flag_masks:
                raise self._too_long_error(requests[indices[int(flag_masks["too-long"].argmax())]])
            flag_counts.update({name: int(mask.sum()) for name, mask in flag_masks.items()})
            scores, misses = predictions.first("scores").tolist(), encoder.num_non_greedy
            for index, score, num_misses in zip(indices, scores, misses, strict=True):
                response = score, bool(num_misses == 0)
                responses[index] = response
                self.cache_hook.add_partial("loglikelihood", requests[index].args, response)
            logger.info("%d of %d requests answered", len(responses), len(requests))
        for flag, count in flag_counts.items():
            logger.warning("%d requests: %s", count, FLAGS[flag])
        num_truncated = encoder.num_truncated - num_truncated_before
        if num_truncated:
            message = "%d texts lost the beginning of their context: max_length=%s"
            logger.warning(message, num_truncated, encoder.max_length)
        return [responses[i] for i in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability (nats) of each whole text, see rolling.score_documents.

        Raises MethodNotSupported for a masked method.
        """
        del disable_tqdm
        hint = "use method=causal, if the model has causal attention"
        require_causal_method(self.method_name, MODEL_ARGS, hint)
        texts = [request.args[0] for request in requests]
        documents = score_documents(self.request_encoder.checkpoint, texts)
        for flag in documents.encodings.collect_flags(range(len(texts))):
            logger.warning("at least one of %d documents: %s", len(texts), FLAGS[flag])
        scores = [float(score) for score in documents.scores]
        for text, score in zip(texts, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), score)
        return scores

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Raise MethodNotSupported, because this package does not generate text."""
        del requests, disable_tqdm
        message = "antlm-bench scores texts, and does not generate text"
        hint = "use --model hf for this task"
        if self.method.needs_mask:
            message = "a masked model does not generate text"
            hint = "leave out tasks of output_type generate_until"
        raise MethodNotSupported(message, location="--tasks", hint=hint)

    def get_model_info(self) -> dict[str, Any]:
        """Return the model information that lm-eval writes into its results file."""
        metadata = self.request_encoder.checkpoint.metadata
        return {
            "model_num_parameters": metadata["parameters"],
            "model_dtype": metadata["dtype"],
            "model_revision": metadata["revision"] or "main",
            "model_sha": metadata["weights"],
            "antlm_bench": {
                "method": self.method_name,
                "bos": self.bos,
                "max_length": metadata["max_length"],
            },
        }

    def _too_long_error(self, request: Request) -> DataError:
        context, continuation = request.args[:2]
        encoder = self.request_encoder
        return DataError(
            f"a request of {len(context) + len(continuation)} characters does not fit into the "
            f"{encoder.max_length} tokens of {encoder.name}: ...{context[-40:]!r}",
            location=MODEL_ARGS,
            hint="use truncate=left to cut contexts as --model hf does, or fewer shots",
        )

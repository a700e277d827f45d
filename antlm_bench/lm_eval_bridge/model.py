"""The model that lm-evaluation-harness knows as `antlm-bench`: its requests, our methods and
engine.

lm_eval run --model antlm-bench --model_args pretrained=CKPT,method=mlm --tasks blimp
"""

from __future__ import annotations

import logging
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
from antlm_bench.scoring.methods import default_method
from antlm_bench.scoring.methods import resolve_method as find_method
from antlm_bench.types import FLAGS, Item

logger = logging.getLogger(__name__)
TRUNCATION_MODES = ("never", "left")
CHECKPOINT_OPTIONS = (
    *("revision", "dtype", "max_length", "batch_tokens", "trust_remote_code", "allow_pickle"),
    *("peft", "tokenizer", "allow_unused", "allow_missing", "original_layout"),
)
MODEL_ARGS = "--model_args"


class Request(Protocol):
    """What is needed of lm_eval's Instance: (context, continuation), or (text,)."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class AntlmBench(LM):  # type: ignore[misc]  # lm_eval is not typed
    """A checkpoint behind the harness's three questions: two are answered, generation is refused.

    pretrained: folder or hub id. method: of scoring.methods.METHODS, "" = the checkpoint's own. bos:
    "lm-eval" (see Reader) or a policy of `score`. truncate: "never" refuses requests that do not
    fit, "left" cuts their contexts as the harness's own models do, and says how many. device: ""
    and the harness's default cuda:0 are the best there is. batch_size: ignored, for scores do not
    depend on it, and speed on batch_tokens. opening: the rest, see OPENING.
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
                known = ("pretrained", "method", "bos", "truncate", "device", *CHECKPOINT_OPTIONS)
                hint = suggest_name(name, known) or f"there are {', '.join(known)}"
                raise UsageError(f"unknown argument {name!r}", location=MODEL_ARGS, hint=hint)
        if truncate not in TRUNCATION_MODES:
            raise UsageError(
                f"truncate={truncate!r}",
                location=MODEL_ARGS,
                hint=f"one of {', '.join(TRUNCATION_MODES)}",
            )
        policy = "auto" if bos == "lm-eval" else bos
        best = device in (None, "", "cuda", "cuda:0")
        opened = open_checkpoint(
            str(pretrained),
            OpenOptions(bos=policy, device="auto" if best else str(device), **checkpoint_options),
        )
        self.request_encoder = RequestEncoder(opened, bos, truncate == "left")
        self.method_name = method or default_method(opened, opened.methods)
        self.method = find_method(self.method_name, opened)
        self.bos = bos

    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(summed log-probability in nats, whether every scored token was the model's first choice)
        per request.

        Of a masked method it is the pseudo-log-likelihood, and the first choice where the token is
        hidden. Raises DataError for a request that does not fit (see truncate), or of which no
        token can be scored.
        """
        del disable_tqdm
        options = [request_to_option(*request.args[:2]) for request in requests]
        # The longest contexts first: what does not fit is found at once, and equal contexts stand
        # together.
        self.request_encoder.checkpoint.run_self_test(
            [option.text for option in options], [self.method]
        )
        order = sorted(
            range(len(requests)), key=lambda i: (-len(requests[i].args[0]), requests[i].args[0])
        )
        answers: dict[int, tuple[float, bool]] = {}
        before = self.request_encoder.num_truncated
        raised: dict[str, int] = {}
        items = [Item(str(i), (options[i],), 0) for i in order]
        for chunk in multiple_choice.iter_chunks(items, [self.method]):
            found = multiple_choice.predict(self.request_encoder, chunk, [self.method])[0]
            for prediction, missed in zip(found, self.request_encoder.num_non_greedy, strict=True):
                number = int(prediction.id)
                if "too-long" in prediction.flags:
                    raise self._too_long_error(requests[number])
                for flag in prediction.flags:
                    raised[flag] = raised.get(flag, 0) + 1
                answers[number] = prediction.scores[0], bool(missed == 0)
                self.cache_hook.add_partial("loglikelihood", requests[number].args, answers[number])
            logger.info("%d of %d requests answered", len(answers), len(requests))
        for flag, count in raised.items():
            logger.warning("%d requests: %s", count, FLAGS[flag])
        if cut := self.request_encoder.num_truncated - before:
            logger.warning(
                "%d texts lost the beginning of their context: max_length=%s",
                cut,
                self.request_encoder.max_length,
            )
        return [answers[i] for i in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability (nats) of whole texts: see `rolling`. Raises MethodNotSupported for a
        masked method.
        """
        del disable_tqdm
        require_causal_method(
            self.method_name, MODEL_ARGS, "method=causal, if the model attends that way"
        )
        texts = [request.args[0] for request in requests]
        rolled = score_documents(self.request_encoder.checkpoint, texts)
        scores = rolled.scores
        for flag in rolled.encodings.collect_flags(range(len(texts))):
            logger.warning("of %d documents at least one: %s", len(texts), FLAGS[flag])
        for text, score in zip(texts, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), float(score))
        return [float(score) for score in scores]

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Refused: MethodNotSupported."""
        del requests, disable_tqdm
        masked = self.method.needs_mask
        why = (
            "a masked model generates no text"
            if masked
            else "antlm-bench scores texts, and generates none"
        )
        hint = (
            "leave out the tasks of output_type generate_until"
            if masked
            else "use --model hf for this task"
        )
        raise MethodNotSupported(why, location="--tasks", hint=hint)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results beside the arguments."""
        facts = self.request_encoder.checkpoint.metadata
        return {
            "model_num_parameters": facts["parameters"],
            "model_dtype": facts["dtype"],
            "model_revision": facts["revision"] or "main",
            "model_sha": facts["weights"],
            "antlm_bench": {
                "method": self.method_name,
                "bos": self.bos,
                "max_length": facts["max_length"],
            },
        }

    def _too_long_error(self, request: Request) -> DataError:
        context, continuation = request.args[:2]
        return DataError(
            f"a request of {len(context) + len(continuation)} characters does not fit into the "
            f"{self.request_encoder.max_length} tokens of {self.request_encoder.name}: ...{context[-40:]!r}",
            location=MODEL_ARGS,
            hint="truncate=left cuts contexts on the left, as --model hf does; or fewer shots",
        )

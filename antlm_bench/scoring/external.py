"""The peers' scorers, opened in one documented place: oracles for tests and benchmarks, never our engine.

minicons 0.3.39 calls `tokenizer.batch_encode_plus`, which transformers 5 removed (its development head has the fix).
`minicons_scorer` gives the tokenizer that name back, as an alias of calling it, which is what it always was.
"""

from __future__ import annotations

from typing import Any, Literal

from antlm_bench.errors import CheckpointError


def minicons_scorer(kind: Literal["causal", "masked"], model: Any, tokenizer: Any, device: str = "cpu") -> Any:
    """A minicons IncrementalLMScorer or MaskedLMScorer around an opened model and tokenizer."""
    from minicons import scorer

    if not hasattr(type(tokenizer), "batch_encode_plus"):
        type(tokenizer).batch_encode_plus = lambda self, *args, **kwargs: self(*args, **kwargs)
    make = scorer.IncrementalLMScorer if kind == "causal" else scorer.MaskedLMScorer
    return make(model, device, tokenizer=tokenizer)


def minicons_scores(scorer: Any, texts: list[str], batch_size: int, **options: Any) -> list[float]:
    """Summed log-probabilities, one per text. minicons' own default is the mean; every peer of ours means the sum.

    For masked scorers pass PLL_metric="original" or "within_word_l2r" here: the constructor's is ignored (0.3.39).
    """
    scores: list[float] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        scores += scorer.sequence_score(batch, reduction=lambda x: x.sum(0).item(), **options)
    return scores


def lm_eval_scores(model: Any, tokenizer: Any, texts: list[str], batch_size: int) -> list[float]:
    """Summed log-probabilities as lm-eval's HFLM gives them for an empty context (BLiMP's form), one per text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    requests = [Instance("loglikelihood", {}, ("", text), 0) for text in texts]
    answers = harness.loglikelihood(requests, disable_tqdm=True)
    if len(answers) != len(texts):
        raise CheckpointError(f"lm-eval answered {len(answers)} of {len(texts)} texts")
    return [float(answer[0]) for answer in answers]

"""minicons and lm-eval load a folder that our architectures were saved into, and answer with our
numbers.
"""

from __future__ import annotations

import pytest
from ltg_models import SIZES
from peer_helpers import sum_logprobs
from tiny_models import WORDS, train_tokenizer

import antlm_bench  # noqa: F401 - registers the architectures
from antlm_bench.architectures import gpt_bert, ltg_bert
from antlm_bench.scoring import peers

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own
TEXTS = [" ".join(WORDS[i : i + 5]) for i in range(0, 20, 4)]
MODELS = {"ltg": (ltg_bert, "LtgBert"), "gpt": (gpt_bert, "GptBert")}


@pytest.fixture(params=MODELS)
def save(request, tmp_path):
    """save(kind) -> folder of a tiny random masked or causal checkpoint."""
    module, prefix = MODELS[request.param]

    def make(kind: str):
        config = getattr(module, prefix + "Config")(
            **SIZES | {"vocab_size": 400, "max_position_embeddings": 64}
        )
        model = getattr(module, prefix + {"causal": "ForCausalLM", "masked": "ForMaskedLM"}[kind])(
            config
        )
        for parameter in model.parameters():
            parameter.data.mul_(3)
        model.save_pretrained(tmp_path / kind)
        train_tokenizer(kind, True).save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


def minicons(kind, folder):
    """A scorer that has loaded the folder itself (see scoring.peers for the tokenizer's alias)."""
    from minicons import scorer
    from transformers import PreTrainedTokenizerFast

    if not hasattr(PreTrainedTokenizerFast, "batch_encode_plus"):
        PreTrainedTokenizerFast.batch_encode_plus = lambda self, *args, **kwargs: self(
            *args, **kwargs
        )
    return (scorer.IncrementalLMScorer if kind == "causal" else scorer.MaskedLMScorer)(
        str(folder), "cpu"
    )


@pytest.mark.long
def test_minicons_loads_our_causal_checkpoints(save):
    folder = save("causal")
    theirs = peers.score_with_minicons(
        minicons("causal", folder), TEXTS, 3
    )  # batches of unequal lengths: padded
    assert theirs == pytest.approx(sum_logprobs(folder, TEXTS, "causal"), abs=1e-4)


@pytest.mark.long
def test_minicons_loads_our_masked_checkpoints(save):
    folder = save("masked")
    theirs = peers.score_with_minicons(minicons("masked", folder), TEXTS, 3, PLL_metric="original")
    assert theirs == pytest.approx(sum_logprobs(folder, TEXTS, "mlm"), abs=1e-4)


@pytest.mark.long
def test_lm_eval_loads_our_causal_checkpoints(save):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = save("causal")
    harness = HFLM(pretrained=str(folder), device="cpu", batch_size=2)
    requests = [Instance("loglikelihood", {}, ("", text), 0) for text in TEXTS]
    theirs = [answer[0] for answer in harness.loglikelihood(requests, disable_tqdm=True)]
    assert theirs == pytest.approx(sum_logprobs(folder, TEXTS, "causal"), abs=1e-4)

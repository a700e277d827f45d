"""Open checkpoints as the official BabyLM pipelines do, with transformers 4.51.3 only.

    python official_environment.py FOLDER ...    one line of JSON: scores and losses per checkpoint
    python official_environment.py --known       the model types and tokenizer classes of that
                                                 version, and which of the newer names it has

It cannot import this package, which needs transformers 5.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoProcessor

TEXTS = ["the old cat sees no dogs.", "who sleeps?"]


def query_checkpoint(folder, trusted=True):
    """Return scores of TEXTS by each method of the checkpoint, and losses of a short finetuning."""
    card = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["antlm_bench"]
    processor = AutoProcessor.from_pretrained(
        folder, padding_side="right", trust_remote_code=trusted
    )
    tokenizer = getattr(processor, "tokenizer", processor)
    answers = {
        "keys": sorted(tokenizer(TEXTS, padding=True)),
        "specials": tokenizer(TEXTS[1])["input_ids"][:1],
    }
    for method in card["methods"]:
        auto = AutoModelForCausalLM if method == "causal" else AutoModelForMaskedLM
        model = auto.from_pretrained(folder, trust_remote_code=trusted).eval()
        answers[method] = [score(model, tokenizer, text, method) for text in TEXTS]
    answers["losses"] = finetune(folder, tokenizer, trusted)
    return answers


def score(model, tokenizer, text, method):
    """Return the summed log-probability of all tokens but the first (masked: one row per token)."""
    batch = tokenizer(text, return_tensors="pt")
    ids, total = batch["input_ids"], 0.0
    for position in range(1, ids.shape[1]):
        row = ids.clone()
        if method != "causal":
            row[0, position] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=row, attention_mask=batch["attention_mask"]).logits[0]
        index = position if method == "mlm" else position - 1
        total += logits[index].log_softmax(-1)[ids[0, position]].item()
    return total


def finetune(folder, tokenizer, trusted):
    """Return the losses of five updates of the backbone under a linear head on mean features."""
    torch.manual_seed(0)
    body = AutoModel.from_pretrained(folder, trust_remote_code=trusted).train()
    head = torch.nn.Linear(body.config.hidden_size, 2)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=3e-3)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    losses = []
    for _ in range(5):
        hidden = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        loss = torch.nn.functional.cross_entropy(head(hidden.mean(1)), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def list_names(modules, names):
    """List model types and tokenizer classes, and which of the newer modules and names exist."""
    from transformers.models.auto import configuration_auto, tokenization_auto

    classes = {
        name for pair in tokenization_auto.TOKENIZER_MAPPING_NAMES.values() for name in pair if name
    }
    present = [name for name in modules if importable(name)]
    namespaces = [
        importlib.import_module(f"transformers{part}")
        for part in ("", ".utils", ".utils.generic", ".cache_utils")
    ]
    namespaces += [
        importlib.import_module(f"transformers.{part}")
        for part in ("modeling_utils", "configuration_utils")
    ]
    present += [name for name in names if any(hasattr(namespace, name) for namespace in namespaces)]
    return {
        "transformers": transformers.__version__,
        "model_types": sorted(configuration_auto.CONFIG_MAPPING_NAMES),
        "tokenizer_classes": sorted(classes | {"PreTrainedTokenizerFast"}),
        "present": present,
    }


def importable(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "--known":
        print(json.dumps(list_names(*json.loads(sys.stdin.read()))))
    else:
        print(
            json.dumps(
                {
                    "transformers": transformers.__version__,
                    "answers": [query_checkpoint(folder) for folder in sys.argv[1:]],
                }
            )
        )

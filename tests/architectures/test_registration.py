"""Auto classes know our architectures after `import antlm_bench`, in any order of imports; files
travel alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from ltg_models import build_ltg_model, build_reference_model

from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.architectures.registration import add_remote_code
from antlm_bench.errors import CheckpointError
from antlm_bench.training.checkpoint_io import save_checkpoint

IDS = torch.tensor([[3, 7, 19, 4, 4, 11, 2]])
USE = """
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
print(type(AutoModelForMaskedLM.from_pretrained(folder)).__name__)
print(type(AutoModelForCausalLM.from_pretrained(folder)).__name__)
print(AutoConfig.for_model("antlm_gpt_bert").model_type)
"""


def printed(code: str, folder) -> list[str]:
    """The lines that a fresh interpreter prints; stray progress bars go to stderr."""
    private = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": f"{folder}-home",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    environment = {**os.environ, **private}
    done = subprocess.run(
        [sys.executable, "-c", f"folder = {str(folder)!r}\n{code}"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved") / "model"
    build_reference_model("base")[0].save_pretrained(place)
    return place


ORDERS = [
    "import antlm_bench, transformers.trainer",
    "import transformers.trainer, antlm_bench, transformers.models.auto.modeling_auto",
    "from transformers import AutoModelForMaskedLM\nimport "
    "antlm_bench\nantlm_bench.install_import_hook()",
    "import antlm_bench\nfrom antlm_bench.architectures import ltg_bert, gpt_bert",
]
TRY_ORDERS = f"""
import os, sys, torch, torch._dynamo, huggingface_hub, scipy.stats, sklearn.metrics, tokenizers
assert "transformers" not in sys.modules
for code in {ORDERS!r}:
    if not os.fork():
        exec(code + {USE!r})
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, code
"""


@pytest.mark.long
def test_any_order_of_imports_will_do(folder):
    """One process forks, so that torch is loaded once."""
    names = ["LtgBertForMaskedLM", "LtgBertForCausalLM", "antlm_gpt_bert"]
    assert printed(TRY_ORDERS, folder) == names * len(ORDERS)


def test_importing_the_package_loads_no_torch(folder):
    code = (
        "import sys, antlm_bench\n"
        "print(*{'torch', 'transformers', 'numpy'} & set(sys.modules), 'end')"
    )
    assert printed(code, folder) == ["end"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["normalized", "gpt"])
def test_a_carried_architecture_opens_without_this_package(tmp_path, kind):
    model = build_reference_model(kind)[0]
    model.save_pretrained(tmp_path)
    assert add_remote_code(tmp_path) and add_remote_code(tmp_path)  # again changes nothing
    assert sorted(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == sorted(
        ARCHITECTURES["gpt-bert"].classes
    )
    assert not list(tmp_path.glob("*.part"))
    lines = printed(
        f"""
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "antlm_bench":
            raise ImportError(name)
sys.meta_path.insert(0, Nowhere())
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers import AutoModelForSequenceClassification
for auto in (AutoModelForMaskedLM, AutoModelForCausalLM):
    model = auto.from_pretrained(folder, trust_remote_code=True)
    print(float(model(torch.tensor({IDS.tolist()})).logits[0, 0, 0]))
AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, num_labels=2)
print(any(m.startswith("antlm_bench") for m in sys.modules))
""",
        tmp_path,
    )
    expected = [
        build_reference_model(kind, suffix)[0](IDS).logits[0, 0, 0].item()
        for suffix in ("ForMaskedLM", "ForCausalLM")
    ]
    assert [float(x) for x in lines[:2]] == pytest.approx(expected, abs=1e-5) and lines[
        2
    ] == "False"


CARD = {"attends": ["causal", "full"], "methods": ["mlm", "causal"]}
EVERY_DOOR = """
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline
more = {"trust_remote_code": True} if trusted else {}
for name in ("LtgBert", "GptBert", "Llama"):
    place = f"{folder}/{name}"
    AutoTokenizer.from_pretrained(place, **more)
    print(type(AutoModelForCausalLM.from_pretrained(place, **more)).__name__)
    print(type(AutoModelForMaskedLM.from_pretrained(place, **more)).__name__)
    fill = pipeline("fill-mask", model=place, **more)
    print(type(fill.model).__name__, len(fill("the <mask> sees", top_k=3)))
"""


@pytest.fixture(scope="module")
def hybrids(tmp_path_factory):
    """A hybrid of each kind, as a training run saves it."""
    from tiny_models import train_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    models = {
        "LtgBert": build_ltg_model("", vocab_size=400),
        "GptBert": build_ltg_model("gpt", vocab_size=400),
        "Llama": LlamaForCausalLM(
            LlamaConfig(vocab_size=400, **sizes, pad_token_id=0, antlm_bench=CARD)
        ),
    }
    root, facts = (
        tmp_path_factory.mktemp("hybrids"),
        {"recipe": "toy", "scale": "", "words_seen": 1, "tokens_seen": 1},
    )
    for name, model in models.items():
        save_checkpoint(
            root / name,
            model,
            train_tokenizer("causal", adds=True),
            CARD | facts | {"steps": 1, "seed": 1},
        )
    return root


@pytest.mark.parametrize("trusted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hybrids_open_both_ways_offline_without_a_prompt(hybrids, trusted):
    start = f"trusted = {trusted}\n" + ("" if trusted else "import antlm_bench\n")
    expected = [
        answer
        for name in ("LtgBert", "GptBert", "Llama")
        for answer in (f"{name}ForCausalLM", f"{name}ForMaskedLM", f"{name}ForMaskedLM", "3")
    ]
    assert printed(start + EVERY_DOOR, hybrids) == expected


def test_a_library_architecture_carries_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not add_remote_code(tmp_path) and [f.name for f in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: cannot add the model file"):
        add_remote_code(tmp_path)

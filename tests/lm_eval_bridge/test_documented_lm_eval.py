"""The worked example of docs/how-to/lm-eval.md, both ways, as it stands there; both give the same
accuracy.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from documented_pages import read_blocks
from prediction_rows import read_rows

from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.lm_eval_bridge.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "lm-eval.md"


@pytest.mark.long
def test_the_example_scores_the_same_both_ways(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks(DOCUMENT.read_text(encoding="utf-8"))
    data, task, ours, theirs = (block.text for block in blocks)
    Path("agreement.jsonl").write_text(data, encoding="utf-8")
    Path("agreement.yaml").write_text(task, encoding="utf-8")
    folder = str(make_checkpoint("masked"))
    words = [word.replace("CKPT", folder) for word in shlex.split(ours)[1:]]
    assert run([*words, "--out", "run", "--compat", "lm-eval", "--device", "cpu"]) == 0
    (cell,) = runs.open_run("run")
    assert (cell.suite, cell.method, cell.summary.headline.n) == ("lm-eval.agreement", "mlm", 2)
    argv = [word.replace("CKPT", folder) for word in shlex.split(theirs)]
    assert argv[:3] == ["python", "-m", "antlm_bench.lm_eval_bridge"]
    monkeypatch.setattr("sys.argv", argv[2:])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main() == 0
    results = json.loads(next(Path("out").rglob("results_*.json")).read_text())
    assert results["results"]["agreement"]["acc,none"] == pytest.approx(cell.summary.headline.value)
    assert results["config"]["antlm_bench"]["method"] == "mlm"
    assert results["config"]["model_num_parameters"] > 0
    samples = next(Path("out").rglob("samples_agreement_*.jsonl")).read_text().splitlines()
    scores = [
        [float(answer[0]) for answer in json.loads(line)["filtered_resps"]] for line in samples
    ]
    assert scores == [pytest.approx(list(p.scores), abs=1e-4) for p in read_rows("run", cell)]

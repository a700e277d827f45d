"""What lm-eval itself says of tasks that lie in a folder: the oracle of what our engine makes of
them.
"""

from __future__ import annotations


def task_ref(file):
    return f"lm-eval:{file}"


def evaluate_tasks(files, folder, model=None, **options):
    """lm-eval's results of tasks under its own causal model (or another one of its registry), and
    the scores per task and document.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(files[0].parent))
    asked = {"model": model, "model_args": {"pretrained": str(folder), **options}, "device": "cpu"}
    if model is None:
        asked = {"model": HFLM(pretrained=str(folder), device="cpu", batch_size=2, **options)}
    names = [file.stem for file in files]
    found = lm_eval.simple_evaluate(
        **asked, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    scores = {
        f"{task}_{sample['doc_id']}": [
            float(answer[0][0]) for answer in sample["resps"] if isinstance(answer[0], tuple)
        ]
        for task, samples in found["samples"].items()
        for sample in samples
    }
    return found["results"], scores

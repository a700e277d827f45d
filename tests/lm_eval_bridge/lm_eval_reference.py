"""Results of lm-eval itself on the tasks of a folder, the oracle for our engine."""

from __future__ import annotations


def task_ref(file):
    return f"lm-eval:{file}"


def evaluate_tasks(files, folder, model=None, **options):
    """Return lm-eval's results under its causal (or a named) model, and scores per document."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(files[0].parent))
    model_options = {
        "model": model,
        "model_args": {"pretrained": str(folder), **options},
        "device": "cpu",
    }
    if model is None:
        model_options = {
            "model": HFLM(pretrained=str(folder), device="cpu", batch_size=2, **options)
        }
    names = [file.stem for file in files]
    output = lm_eval.simple_evaluate(
        **model_options, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    scores = {
        f"{task}_{sample['doc_id']}": [
            float(answer[0][0]) for answer in sample["resps"] if isinstance(answer[0], tuple)
        ]
        for task, samples in output["samples"].items()
        for sample in samples
    }
    return output["results"], scores

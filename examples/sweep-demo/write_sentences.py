"""Write the sentences of the suite nano as a classification task: acceptable or not.

python write_sentences.py DIR    writes DIR/acceptability.csv and DIR/acceptability-valid.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from antlm_bench.suites.loader import load_suite

NUM_TRAIN, NUM_VALID = 400, 100
"""Pairs of sentences, evenly spaced over the paradigms."""


def main(folder: Path) -> None:
    items = load_suite("nano").items
    step = len(items) // (NUM_TRAIN + NUM_VALID)
    chosen = items[::step][: NUM_TRAIN + NUM_VALID]
    valid = chosen[:: (NUM_TRAIN + NUM_VALID) // NUM_VALID]
    splits = {
        "acceptability.csv": [item for item in chosen if item not in valid],
        "acceptability-valid.csv": valid,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for item in pairs:
                for index, option in enumerate(item.options):
                    label = "acceptable" if index == item.gold else "unacceptable"
                    writer.writerow([option.text, label])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

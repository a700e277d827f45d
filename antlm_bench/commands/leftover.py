"""What a collection holds and `score` does not compute: said, so that nobody takes a part of it for the whole."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from antlm_bench.commands.cells import Names, listed
from antlm_bench.declarations import catalog
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.spec import read

COMMANDS = {
    "finetune": "antlm-bench finetune --model {model} --suite {suite}",
    "acquisition": "antlm-bench acquisition RUN... --suite {suite}",
    "nothing": "nothing here computes it yet",
}


def left_out(models: Names, suites: Names) -> Iterator[str]:
    """A line per collection among `suites`: its members that are not scored, each with the command that makes it."""
    model = shlex.quote(listed(models)[0]) if len(listed(models)) == 1 else "CKPT"
    known = catalog("tasks")
    for ref in listed(suites):
        spec = read(known[ref]) if ref in known else None
        if not isinstance(spec, CollectionSpec):
            continue
        others = [
            f"{member.name} ({COMMANDS[member.made_by].format(model=model, suite=member.suite)})"
            for member in spec.members
            if member.made_by != "score"
        ]
        if others:
            yield f"{ref}: not scored, and no part of the table: {'; '.join(others)}"

"""Whatever a stranger's input holds, a command ends with a documented exit code below 70, in
bounded time and memory, and writes nothing outside its folder.

ANTLM_BENCH_FUZZ=N tries N inputs instead of INPUTS, and other ones each time (`make fuzz`).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hostile_inputs import KINDS, Bases, make_bases, run_guarded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

INPUTS = 250
FUZZ_INPUTS = int(os.environ.get("ANTLM_BENCH_FUZZ", "0"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="contextlib.chdir"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_hostile_input_ends_with_a_documented_exit_code(kind: Any, bases: Bases) -> None:
    problems: dict[str, list[str]] = {}

    @settings(
        max_examples=(FUZZ_INPUTS or INPUTS) // len(KINDS),
        derandomize=not FUZZ_INPUTS,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def try_input(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            folder, outside = root / "input", root / "outside"
            folder.mkdir()
            outside.mkdir()
            (outside / "letter.txt").write_text("do not touch")
            argv = kind(data.draw, folder, bases)
            problem = run_guarded(argv, folder, outside)
            if problem:
                key = problem.partition(": ")[0]
                if key not in problems and (keep := os.environ.get("ANTLM_BENCH_FUZZ_KEEP")):
                    target = Path(keep) / f"{kind.__name__}-{len(problems)}"
                    shutil.copytree(root, target, symlinks=True, dirs_exist_ok=True)
                problems.setdefault(key, []).append(f"{argv}: {problem}"[:600])

    try_input()

    assert not problems, "\n".join(f"{len(all_)} x {all_[0]}" for all_ in problems.values())

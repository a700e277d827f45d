"""Run the code blocks of a documentation page in one folder, and compare what they print.

- A block with a title (```` ```csv title="stimuli.csv" ````) is written to the file of that name.
- An `sh` block is run line by line. `echo $?` shows the exit code of the line before it; any other
  line must succeed, unless `echo $?` follows. `bash` blocks need a network, a cluster or another
  package: they and their output are left out, unless `PageRunner.shells` has them.
- Lines below `# not run by the tests: REASON` in a block are left out. REASONS lists the reasons.
- A `python` block without a title is a cell of a notebook: all of a page share their names.
- A `text` block is the output of the block before it. A line `...` stands for left-out lines, and a
  line that ends in ` ...` for its beginning.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antlm_bench.cli.app import run as run_command_line

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"^ *# not run by the tests: (.*)$", re.MULTILINE)
REASONS = (
    "needs a download",
    "needs a GPU",
    "needs several machines",
    "needs a server",
    "needs a CI service",
    "needs R",
    "takes hours",
)
"""Why commands on a page are not run by the tests. Readers see the reason above the commands."""
MEASURED = re.compile(r"< 1 s|\d+(?:\.\d+)? (?:s|min|MB|GB|kB)\b")
"""What depends on the machine: durations, sizes and memory."""
CURVE = re.compile("[▁▂▃▄▅▆▇█=·]{2,}")
STIMULI_TABLE = "item,condition,region,text\n" + "".join(
    f"{item},{filler}_{gap},{region},{text}\n"
    for item in (1, 2)
    for filler in ("what", "that")
    for gap in ("gap", "noun")
    for region, text in (("start", f"the cat {filler}"), ("critical", f"sees {gap}"))
)
"""The file stimuli.csv of pages on surprisal and effects."""
NUMBER = re.compile(r"[-+−]?(?:\d*\.\d+|\d{1,3}(?:,\d{3})+|\d+)(?!\w)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code of a page."""

    language: str
    title: str
    """The file that the block shows, or ""."""
    text: str

    @property
    def text_to_run(self) -> str:
        """The lines that the tests run: those above `# not run by the tests: ...`."""
        return NOT_RUN.split(self.text, maxsplit=1)[0]

    @property
    def first_line(self) -> str:
        """The first line that the tests run, which identifies the block on its page."""
        return next(filter(str.strip, self.text_to_run.splitlines()), "")


def read_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page with a language, in order."""
    return [Block(*match) for match in FENCE.findall(text)]


def read_code(text: str, *languages: str) -> list[str]:
    """Return the code of the fenced blocks in some languages, in order."""
    return [block.text for block in read_blocks(text) if block.language in languages]


def split_commands(text: str) -> list[str]:
    """Return the command lines of an `sh` block, continuation lines joined, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def split_words(line: str) -> list[str]:
    """Return the words of a command line as a shell does, with file names for patterns."""
    words: list[str] = []
    for quoted in re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", line):
        unquoted = re.sub(r"""'[^']*'|"[^"]*\"""", "", quoted)
        files = sorted(map(str, Path().glob(quoted))) if "*" in unquoted else []
        words += files or shlex.split(quoted)
    return words


def assert_output(documented: str, printed: str) -> None:
    """Compare lines in order: words and whole numbers are equal, decimals nearly so."""
    lines = [line for line in printed.splitlines() if line.strip()]
    position, may_skip = 0, False
    for expected in documented.splitlines():
        if expected.strip() in ("", "..."):
            may_skip = may_skip or bool(expected.strip())
            continue
        candidates = range(position, len(lines) if may_skip else min(position + 1, len(lines)))
        match = next((i for i in candidates if is_same_line(expected, lines[i])), None)
        assert match is not None, f"not printed:\n{expected}\nbut:\n{printed}"
        position, may_skip = match + 1, False
    assert may_skip or position == len(lines), f"also printed:\n{chr(10).join(lines[position:])}"


def is_same_line(documented: str, printed: str) -> bool:
    """Return whether a printed line is the documented one but for what the machine decides."""
    expected, actual = (
        CURVE.sub("C", MEASURED.sub("T", line)).split() for line in (documented, printed)
    )
    if expected[-1:] == ["..."]:
        expected = expected[:-1]
        actual = actual[: len(expected)]
    shapes = [NUMBER.sub("N", " ".join(words)) for words in (expected, actual)]
    if re.sub(r"[-─]+", "-", shapes[0]) != re.sub(r"[-─]+", "-", shapes[1]):
        return False
    pairs = zip(*(NUMBER.findall(" ".join(words)) for words in (expected, actual)), strict=True)
    return all(a == b if "." not in a else is_near(a, b) for a, b in pairs)


def is_near(documented: str, printed: str) -> bool:
    """Compare decimals: another CPU rounds the training's sums differently.

    A fifth is tolerated, at least 1 and at most 10 (points).
    """
    a, b = (float(number.replace("−", "-")) for number in (documented, printed))
    return abs(a - b) <= min(10, max(1, abs(a) / 5))


@dataclass
class PageRunner:
    """Runs the blocks of a page in a folder, which is the current directory."""

    folder: Path
    train: Callable[[Sequence[str]], str] | None = None
    """Runs `antlm-bench train` with these arguments and returns its output; None: as it is."""
    shells: frozenset[str] = frozenset({"sh"})
    """Languages of the blocks that are run as commands."""
    shrink: Callable[[list[str]], list[str]] = list
    """Makes the words of a command line smaller: fewer seeds, one epoch."""
    names: dict[str, Any] = field(default_factory=dict)
    """Names of the notebook's cells."""
    exit_code: int = 0

    def run(self, blocks: Sequence[Block]) -> None:
        output: str | None = ""
        for block in blocks:
            if block.title:
                path = self.folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language in self.shells:
                output = self.run_commands(split_commands(block.text_to_run))
            elif block.language == "python":
                output = self.run_cell(block.text_to_run)
            elif block.language == "bash":
                output = None
            elif block.language == "text" and output is not None:
                assert_output(block.text, output)

    def run_commands(self, commands: Sequence[str], may_lack_data: bool = False) -> str:
        """Run command lines and return what they print.

        may_lack_data: whether exit code 5 is accepted where data of some suites is absent.
        """
        output = ""
        for number, line in enumerate(commands, start=1):
            if line == "echo $?":
                output += f"{self.exit_code}\n"
                continue
            printed = self.run_command(line)
            if may_lack_data and self.exit_code == 5 and "is absent" in printed:
                self.exit_code = 0
            if "echo $?" not in commands[number : number + 1]:
                assert self.exit_code == 0, f"{line}: exit code {self.exit_code}\n{printed}"
            output += printed
        return output

    def run_command(self, line: str) -> str:
        words = self.shrink(split_words(line))
        if words[:2] == ["antlm-bench", "train"] and self.train:
            self.exit_code = 0
            return self.train(words[2:])
        if words[0] != "antlm-bench" or set(words) & {"|", ">", "&&"}:
            return self.run_program(line)
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            self.exit_code = run_command_line(words[1:])
        return output.getvalue()

    def run_program(self, line: str) -> str:
        """Run a line by bash; `python` and `antlm-bench` are those of the tests."""
        directories = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": directories, "PYTHONPATH": str(ROOT)}
        line = re.sub(r"\bantlm-bench ", "python -m antlm_bench ", line)
        process = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.exit_code = process.returncode
        return process.stdout

    def run_cell(self, code: str) -> str:
        """Run a cell, and return what it prints, with the value of a last expression."""
        module = ast.parse(code)
        last = module.body[-1]
        expression = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
        if expression:
            module.body.pop()
        output = io.StringIO()
        with redirect_stdout(output):
            exec(compile(module, "<cell>", "exec"), self.names)
            if expression:
                value = eval(compile(expression, "<cell>", "eval"), self.names)
                print("" if value is None else value)
        return output.getvalue()

"""Draw the pictures of README and docs from the runs of `make demo`: `make pictures`.

They are terminal.svg, a table in a terminal; page.png, page-dark.png, phone.png and phone-dark.png,
a report in Chromium as wide as a laptop and a phone; and figure.svg, one figure of the report.
With a second folder, that of the runs of checkpoints (those of docs/tutorials/participant.md),
curve.svg is drawn, too.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

FOLDER = Path(__file__).parent
WIDTH = 112
"""Characters per line of the terminal."""
LAPTOP, PHONE = (1366, 768), (390, 844)
"""Width and height in pixels."""
FRAME = (
    '<body style="margin:0;background:#d5d5d2;display:flex;justify-content:center">'
    '<iframe src="{}" style="width:{}px;height:{}px;border:0">'
)
"""Windows of Chromium cannot be as narrow as a phone, but a frame can."""


def run_command(arguments: Sequence[str]) -> str:
    """Run antlm-bench as in a colour terminal and return what it prints."""
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": f"{WIDTH}"}
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | terminal
    argv = [sys.executable, "-m", "antlm_bench", *arguments]
    return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout


def draw_terminal(command: str, output: str, path: Path) -> None:
    """Draw a command and its output as an SVG that loads no font from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(output.rstrip()))
    svg = console.export_svg(title="antlm-bench", unique_id="terminal")
    path.write_text(re.sub(r"@font-face \{[^}]*\}\s*", "", svg), encoding="utf-8")


def photograph_page(page: Path, name: str, size: tuple[int, int], *, dark: bool = False) -> None:
    """Save what a screen of a size shows of a page as PNG. Needs Chromium.

    A dark picture shows the page from its figures on.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        sys.exit("needs Chromium (Debian: apt-get install chromium)")
    frame = page.with_name("frame.html")
    start = page.as_uri() + "#phenomena" * dark
    frame.write_text(FRAME.format(start, *size), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--force-prefers-reduced-motion"]  # no animated scrolling
    options += [f"--blink-settings=preferredColorScheme={int(not dark)}"]
    options += [f"--window-size={max(size[0], 500)},{size[1]}"]
    path = FOLDER / name
    with tempfile.TemporaryDirectory() as profile:
        options += [f"--user-data-dir={profile}", f"--screenshot={path}", frame.as_uri()]
        subprocess.run([chromium, *options], check=True, capture_output=True, timeout=60)


def main() -> None:
    """Draw all pictures. Usage: draw.py RUNS [CHECKPOINT_RUNS], two folders of run folders."""
    runs, *checkpoint_runs = (
        sorted(str(path.parent) for path in Path(folder).glob("*/run.json"))
        for folder in sys.argv[1:]
    )
    reference, other = (
        next(run for run in runs if Path(run).name.startswith(name))
        for name in ("babyllama-", "antlm-babyllama-")
    )
    comparison = run_command(["compare", reference, other])
    draw_terminal("antlm-bench compare BASE RUN", comparison, FOLDER / "terminal.svg")
    for each in checkpoint_runs:
        run_command(["curve", *each, "--svg", str(FOLDER / "curve.svg")])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        run_command(["report", *runs, "--html", str(page)])
        for dark, suffix in ((False, ""), (True, "-dark")):
            photograph_page(page, f"page{suffix}.png", LAPTOP, dark=dark)
            photograph_page(page, f"phone{suffix}.png", PHONE, dark=dark)
        run_command(["report", *runs, "--svg", folder])
        shutil.copy(Path(folder, "phenomena.nano.svg"), FOLDER / "figure.svg")


if __name__ == "__main__":
    main()

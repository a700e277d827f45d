"""Draw the pictures of README and docs from the runs of `make demo`: `make pictures`.

They are terminal.svg, a table in a terminal; page.png and phone.png, a report in Chromium as wide
as a laptop and a phone; and figure.svg, one figure of the report.
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
PHONE = (
    '<body style="margin:0;background:#d5d5d2;display:grid;justify-content:center">'
    '<iframe src="{}" style="width:390px;height:844px;border:0">'
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


def photograph_page(page: Path, path: Path, width: int, height: int) -> None:
    """Save the top of a page as PNG. Needs Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        sys.exit("needs Chromium (Debian: apt-get install chromium)")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--blink-settings=preferredColorScheme=1", f"--window-size={width},{height}"]
    with tempfile.TemporaryDirectory() as profile:
        options += [f"--user-data-dir={profile}", f"--screenshot={path}", page.as_uri()]
        subprocess.run([chromium, *options], check=True, capture_output=True, timeout=60)


def main() -> None:
    """Draw all pictures. Usage: draw.py FOLDER, the folder of the runs."""
    runs = sorted(str(path.parent) for path in Path(sys.argv[1]).glob("*/run.json"))
    reference, other = (
        next(run for run in runs if Path(run).name.startswith(name))
        for name in ("babyllama-", "antlm-babyllama-")
    )
    comparison = run_command(["compare", reference, other])
    draw_terminal("antlm-bench compare BASE RUN", comparison, FOLDER / "terminal.svg")
    with tempfile.TemporaryDirectory() as folder:
        page, phone = Path(folder, "page.html"), Path(folder, "phone.html")
        run_command(["report", *runs, "--html", str(page)])
        photograph_page(page, FOLDER / "page.png", 1280, 800)
        phone.write_text(PHONE.format(page.as_uri()), encoding="utf-8")
        photograph_page(phone, FOLDER / "phone.png", 500, 844)
        run_command(["report", *runs, "--svg", folder])
        shutil.copy(Path(folder, "phenomena.nano.svg"), FOLDER / "figure.svg")


if __name__ == "__main__":
    main()

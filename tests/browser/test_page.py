"""The page in Chromium: it renders at two widths, light and dark, and makes no requests."""

from __future__ import annotations

import html
import json
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import large_runs
import pytest

from antlm_bench.commands.report import build_report
from antlm_bench.reporting import html_data, palette

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)
CHROMIUM_REQUESTS = re.compile(
    r"^\w+ (http://)?(\w+\.google|update\.googleapis)\.com[:/]"
)  # the time, updates: whatever the page
# Shows the page in frames as wide as a laptop and a phone, uses it and measures it: windows of
# Chromium cannot be as narrow as a phone. A frame from `srcdoc` can be inspected, and keeps the
# security policy of the page.
HARNESS = """<!doctype html><script type="text/plain" id="page">%s</script><pre id="found"></pre>
<script>
const found = {};
const look = (width) => new Promise((done) => {
  try { localStorage.clear(); } catch { } // the page remembers what was chosen in the frame before
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.srcdoc = document.getElementById("page").textContent.replaceAll("<\\\\/", "</");
  const high = (text) => text.getBoundingClientRect().height;
  frame.onload = () => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const seen = (e) => e.getClientRects().length > 0;
    const charts = [...page.querySelectorAll(".chart")].filter(seen);
    const mark = charts[0].querySelector("[data-label]"), box = mark.getBoundingClientRect();
    const at = { clientX: box.left + 3, clientY: box.top + 3, bubbles: true };
    charts[0].dispatchEvent(new view.PointerEvent("pointermove", at));
    const tip = page.getElementById("tip");
    const told = !tip.hidden && tip.textContent;
    page.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    const table = page.querySelector(".numbers"), head = table.tHead.rows[0].cells[1];
    const column = () => [...table.tBodies[0].rows].map((r) => parseFloat(r.cells[1].textContent));
    const sorted = [1, 2].map(() => {
      head.querySelector("button").click();
      return [head.getAttribute("aria-sort"), ...column()];
    });
    const style = (e) => view.getComputedStyle(e);
    const colour = () => [style(page.body).backgroundColor, style(mark).stroke];
    const before = colour(), texts = [...page.querySelectorAll(".chart text")].filter(seen);
    page.getElementById("theme").click();
    found[width] = {
      before, after: colour(), tip: told, escaped: tip.hidden, sorted,
      label: mark.dataset.label, charts: charts.length,
      small: charts.filter((c) => c.getBoundingClientRect().width < 200).length,
      wide: Math.max(...charts.map((c) => c.getBoundingClientRect().right)) - width,
      overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      cut: [...page.querySelectorAll(".headline .value, .headline .half")].filter(seen)
        .filter((e) => e.getBoundingClientRect().right > e.closest(".results")
          .getBoundingClientRect().right + 1).map((e) => e.textContent),
      figures: page.querySelectorAll("figure").length,
      tiled: page.querySelectorAll("figure .tiles").length,
      pwned: view.pwned === true || page.querySelector("img, svg[onload], [onerror]") !== null,
      type: Math.min(...texts.map(high).filter((h) => h > 0)),
    };
    done();
  };
  document.body.append(frame);
});
const say = () => { document.getElementById("found").textContent = JSON.stringify(found); };
look(1280).then(() => look(390)).then(say);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    for number, name in enumerate(("babyllama", *large_runs.HOSTILE_NAMES[::2])):
        name = name.replace("alert(1)", "window.pwned=true").replace(
            "alert(2)", "window.pwned=true"
        )
        large_runs.write_model_run(
            root / "runs" / f"{number}",
            name,
            0.66 + 0.04 * number,
            seeds=2 * (number == 0),
            items=4,
        )
    large_runs.write_checkpoint_runs(
        root / large_runs.HOSTILE_NAMES[1], 0.8, [1, 2, 4, 10], twins=[2]
    )
    large_runs.write_training_log(root / "train")
    paths = [root / "runs", root / large_runs.HOSTILE_NAMES[1]]
    table = build_report(paths, collection="babylm-2024", partial=True, published=[])
    return html_data.write_page(
        paths,
        root / "out.html",
        training_dirs=[root / "train"],
        title=large_runs.HOSTILE_NAMES[2],
        report=table,
    )


@pytest.fixture
def proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that records every request of the browser and answers none."""
    requests: list[str] = []

    class Counting(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline(2000).decode(errors="replace").strip()
            if not CHROMIUM_REQUESTS.search(line):
                requests.append(line)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], requests
        server.shutdown()


def open_in_chromium(file: Path, port: int, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Return the document after its scripts have run, and the lines of the console."""
    flags = """
--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-extensions --proxy-bypass-list=<-loopback>
--enable-logging=stderr --v=0 --virtual-time-budget=4000 --window-size=1400,1000 --dump-dom
"""
    argv = [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}"]
    argv += [f"--proxy-server=127.0.0.1:{port}", *options]
    process = subprocess.run([*argv, file.as_uri()], capture_output=True, timeout=60)
    stderr = process.stderr.decode(errors="replace")
    return process.stdout.decode(errors="replace"), re.findall(r".*CONSOLE.*", stderr)


def css_rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders_and_works(
    page: Path, proxy: tuple[int, list[str]], tmp_path: Path, scheme: str
) -> None:
    harness = tmp_path / "harness.html"
    harness.write_text(
        HARNESS % page.read_text(encoding="utf-8").replace("</", "<\\/"), encoding="utf-8"
    )
    preferred = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    dom, console = open_in_chromium(harness, proxy[0], tmp_path / "profile", preferred)
    assert not console
    assert not proxy[1]
    text = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert text
    measured: dict[str, dict[str, Any]] = json.loads(html.unescape(text[1]))
    first, second = (
        (palette.LIGHT, palette.DARK) if scheme == "light" else (palette.DARK, palette.LIGHT)
    )
    for width in ("1280", "390"):
        view = measured[width]
        assert view["charts"] == view["figures"] - view["tiled"] > 5
        assert view["small"] == 0 and view["wide"] <= 0, (
            "a chart is squeezed, or runs out of the page"
        )
        assert view["type"] >= 11, "too small to read"
        assert view["overflow"] == 0, "the page scrolls sideways"
        assert view["cut"] == [], "a number is cut"
        assert view["tip"] == view["label"] and view["escaped"]
        (up, *rising), (down, *falling) = view["sorted"]
        assert (up, down) == ("ascending", "descending") and len(rising) > 1
        assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
        assert not view["pwned"]
        assert view["before"] == [css_rgb(first["ground"]), css_rgb(first["series-1"])]
        assert view["after"] == [css_rgb(second["ground"]), css_rgb(second["series-1"])]


@pytest.mark.long
def test_the_page_writes_nothing_to_the_console(
    page: Path, proxy: tuple[int, list[str]], tmp_path: Path
) -> None:
    dom, console = open_in_chromium(page, proxy[0], tmp_path / "profile")
    assert not console and not proxy[1]
    assert 'id="theme" type="button" aria-label' in dom, "the script did not run"


@pytest.mark.long
def test_requests_and_console_messages_are_detected(
    page: Path, proxy: tuple[int, list[str]], tmp_path: Path
) -> None:
    """A page with a request and a console message, and without its security policy."""
    asks = '<img src="http://example.invalid/x.png"><script>console.log("noticed")</script>'
    bad = tmp_path / "bad.html"
    policy = page.read_text(encoding="utf-8").replace("</main>", f"{asks}</main>")
    bad.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", policy), encoding="utf-8"
    )
    _, console = open_in_chromium(bad, proxy[0], tmp_path / "profile")
    assert any("noticed" in line for line in console)
    assert any("example.invalid" in line for line in proxy[1])

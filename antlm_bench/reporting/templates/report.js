"use strict";
const root = document.documentElement, tip = document.getElementById("tip");
const theme = document.getElementById("theme"), save = document.getElementById("save");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const remember = (value) => { try { if (value) localStorage.setItem("antlm-bench-theme", value); return localStorage.getItem("antlm-bench-theme"); } catch { return value; } };
if (["light", "dark"].includes(remember())) root.dataset.theme = remember();
theme.hidden = false;
theme.addEventListener("click", () => remember(root.dataset.theme = dark() ? "light" : "dark"));
if (save) save.hidden = false;
save?.addEventListener("click", () => {
  const file = new Blob([document.getElementById("numbers").textContent], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "antlm-bench.json" });
  link.click();
  URL.revokeObjectURL(link.href);
});
// The mark nearest to the pointer says what it shows; a finger needs no better aim than a mouse.
const near = (event) => {
  let best = null, least = 22;
  for (const mark of event.currentTarget.querySelectorAll("[data-label]")) {
    const box = mark.getBoundingClientRect();
    const far = Math.hypot(Math.max(box.left - event.clientX, event.clientX - box.right, 0), Math.max(box.top - event.clientY, event.clientY - box.bottom, 0));
    if (far < least) { best = mark; least = far; }
  }
  tip.hidden = !best;
  if (!best) return;
  tip.textContent = best.dataset.label;
  const box = best.getBoundingClientRect();
  const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8), innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(left, 8) + scrollX}px`;
  tip.style.top = `${box.top + scrollY - tip.offsetHeight - 8}px`;
};
for (const chart of document.querySelectorAll(".chart")) {
  chart.addEventListener("pointermove", near);
  chart.addEventListener("pointerdown", near);
  chart.addEventListener("pointerleave", () => { tip.hidden = true; });
}
addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
// Tables of numbers are sorted by the column whose header is pressed, once up and once down.
const number = (text) => parseFloat(text.replaceAll(",", "").replace("−", "-"));
const sort = (table, column, direction) => {
  const rows = [...table.tBodies[0].rows], shown = (row) => row.cells[column].textContent;
  const isNumber = rows.some((row) => number(shown(row)) === number(shown(row)));
  const order = (a, b) => isNumber ? number(shown(a)) - number(shown(b)) : shown(a).localeCompare(shown(b));
  const missing = (row) => isNumber && isNaN(number(shown(row)));
  rows.sort((a, b) => missing(a) - missing(b) || direction * order(a, b) || 0);
  table.tBodies[0].append(...rows);
};
for (const table of document.querySelectorAll(".numbers:not(:has(.group))")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table, column, up ? 1 : -1);
    });
  });
}
// Paper has no way to open the notes.
const notes = document.querySelectorAll("#results details:not([open])");
addEventListener("beforeprint", () => { for (const note of notes) note.open = true; });
addEventListener("afterprint", () => { for (const note of notes) note.open = false; });

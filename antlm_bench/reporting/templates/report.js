"use strict";
const root = document.documentElement, tip = document.getElementById("tip");
const theme = document.getElementById("theme"), save = document.getElementById("save");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const remember = (value) => { try { if (value) localStorage.setItem("antlm-bench-theme", value); return localStorage.getItem("antlm-bench-theme"); } catch { return value; } };
if (["light", "dark"].includes(remember())) root.dataset.theme = remember();
theme.hidden = save.hidden = false;
theme.addEventListener("click", () => remember(root.dataset.theme = dark() ? "light" : "dark"));
save.addEventListener("click", () => {
  const file = new Blob([document.getElementById("numbers").textContent], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "antlm-bench.json" });
  link.click();
  URL.revokeObjectURL(link.href);
});
// The mark nearest to the pointer says what it shows; a finger needs no better aim than a mouse.
const near = (event) => {
  let best = null, least = 22;
  for (const mark of event.currentTarget.querySelectorAll("[aria-label]")) {
    const box = mark.getBoundingClientRect();
    const far = Math.hypot(Math.max(box.left - event.clientX, event.clientX - box.right, 0), Math.max(box.top - event.clientY, event.clientY - box.bottom, 0));
    if (far < least) { best = mark; least = far; }
  }
  tip.hidden = !best;
  if (!best) return;
  tip.textContent = best.getAttribute("aria-label");
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

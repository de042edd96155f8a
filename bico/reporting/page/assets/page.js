"use strict";
// Plots tell their marks' numbers under the pointer; without this script the browser's own titles do.
const tip = document.getElementById("tip");
function place(event) {
  const box = tip.getBoundingClientRect();
  const right = document.documentElement.clientWidth - box.width - 8;
  tip.style.left = Math.max(8, Math.min(event.clientX + 14, right)) + "px";
  tip.style.top = (event.clientY - box.height - 12 < 8 ? event.clientY + 18 : event.clientY - box.height - 12) + "px";
}
for (const plot of document.querySelectorAll("svg.plot")) {
  for (const title of plot.querySelectorAll("g > title")) title.remove();
  plot.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("[data-tip]"), line = event.target.closest(".line");
    for (const other of plot.querySelectorAll(".line.on")) other.classList.remove("on");
    plot.classList.toggle("lit", Boolean(mark));
    if (mark && line) line.classList.add("on");
    tip.hidden = !mark;
    if (mark) { tip.textContent = mark.dataset.tip; place(event); }
  });
  plot.addEventListener("pointerleave", () => { plot.classList.remove("lit"); tip.hidden = true; });
}
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    const key = CSS.escape(button.dataset.key);
    for (const line of document.querySelectorAll(`svg.plot .line[data-key="${key}"]`)) line.classList.toggle("off", !shown);
  });
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const theme = () => ({
    "font.color": colour("--text"),
    "hoverlabel.bgcolor": colour("--panel"),
    "hoverlabel.bordercolor": colour("--line"),
    "hoverlabel.font.color": colour("--text"),
  });
  const config = { responsive: true, displayModeBar: false };
  const precise = window.matchMedia("(pointer: fine)").matches; // on a touch screen dragging must scroll the page
  const repaint = () => plots.forEach((plot) => Plotly.relayout(plot, theme()));

  for (const plot of plots) {
    const figure = figures[plot.dataset.figure];
    figure.layout.dragmode = precise ? "zoom" : false;
    figure.layout.legend.maxheight = 130; // a long legend scrolls, so the plot keeps its height
    if (window.innerWidth < 640) figure.layout.font.size = 11;
    Plotly.newPlot(plot, figure.data, figure.layout, config).then(() => Plotly.relayout(plot, theme()));
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  // A printed page is light and unfolds all details.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    root.classList.add("printing");
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((item) => { item.open = true; });
    repaint();
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("printing");
    folded.forEach((item) => { item.open = false; });
    repaint();
  });
})();

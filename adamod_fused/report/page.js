"use strict";
// Draws every figure in the colours that the reader's system asks for, and again when they change.
(() => {
  const { figures, templates } = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 560px)");
  const config = {
    responsive: true,
    displaylogo: false,
    // By name: the default has a button that sends the figure to plotly's own server.
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };

  // Plotly wants a text for each cell of a map. The page has one for each row: all of them would be
  // most of its size.
  for (const { data } of Object.values(figures)) {
    for (const trace of data) {
      if (trace.type === "heatmap" && !Array.isArray(trace.text[0])) {
        trace.text = trace.z.map((row, place) => row.map(() => trace.text[place]));
      }
    }
  }

  function fitted(layout) {
    const template = templates[dark.matches ? "dark" : "light"];
    const result = { ...layout, template, autosize: true };
    if (narrow.matches && layout.yaxis.type === "category") {
      // Names would leave no room for the map; hovering and tapping tell them.
      result.height = Math.min(layout.height, 480);
      result.yaxis = { ...layout.yaxis, showticklabels: false, ticks: "" };
    }
    return result;
  }

  async function draw() {
    const drawn = Object.entries(figures).map(([key, figure]) =>
      Plotly.react(`plot-${key}`, figure.data, fitted(figure.layout), config));
    await Promise.all(drawn);
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  for (const query of [dark, narrow]) query.addEventListener("change", draw);
  draw();
})();

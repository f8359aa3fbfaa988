"use strict";
// Draws the charts of a page from the JSON in #chart-data (reports/charts.py). Names are text everywhere: the page gets
// them by textContent, and plotly, which reads tags in its labels, gets them escaped.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const root = document.getElementById("charts");
  const bar = document.getElementById("bar");
  const withTimes = root.dataset.times === "yes";
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const lines = data.charts.flatMap((chart) => chart.lines);
  const subjects = [...new Set(lines.map((line) => line.subject))];
  const seeds = [...new Set(lines.map((line) => line.seed))].sort((a, b) => a - b);
  const known = ["images", "step", "seconds"].filter((axis) => data.axes.some((each) => each[axis].some((x) => x !== null)));
  const state = { axis: known[0], smoothing: 0, start: false, subjects: new Set(subjects), seeds: new Set(seeds), range: null };
  const panels = [];
  let isLinking = false;

  function element(tag, parent, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (parent) parent.append(made);
    return made;
  }

  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  const isShown = (line) => state.subjects.has(line.subject) && state.seeds.has(line.seed);

  // Exponential mean that starts without bias; gaps stay gaps.
  function smooth(values) {
    let mean = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = state.smoothing * mean + (1 - state.smoothing) * value;
      weight = state.smoothing * weight + (1 - state.smoothing);
      return mean / weight;
    });
  }

  // The points of a line on the chosen axis, without the untrained model unless it is asked for: it would press the rest flat.
  function pointsOf(line) {
    const axes = data.axes[line.axis], first = state.start || !(axes.step[0] === 0) || line.y.length < 2 ? 0 : 1;
    return { x: axes[state.axis].slice(first), y: line.y.slice(first) };
  }

  // A name without the model, if all runs have the same.
  const model = subjects.length > 1 ? subjects[0].split(" ")[0] + " " : "";
  const short = (name) => (subjects.every((each) => each.startsWith(model)) ? name.slice(model.length) : name);

  const labelOf = (line) => (seeds.length > 1 && line.seed !== null ? `${short(line.name)}, seed ${line.seed}` : short(line.name));

  function tracesOf(chart) {
    const shown = chart.lines.filter(isShown), traces = [];
    for (const line of shown) {
      const { x, y } = pointsOf(line), color = data.colours[line.name];
      const isFirst = shown.find((other) => other.name === line.name) === line;
      const common = { x, type: "scatter", connectgaps: false, opacity: isFirst ? 1 : 0.5 };
      if (state.smoothing > 0) {
        traces.push({ ...common, y, mode: "lines", line: { color, width: 1 }, opacity: 0.22, hoverinfo: "skip", showlegend: false });
      }
      traces.push({
        ...common, y: state.smoothing > 0 ? smooth(y) : y, name: plain(labelOf(line)), line: { color, width: 2 }, marker: { size: 5 },
        mode: y.length < 12 ? "lines+markers" : "lines", hovertemplate: "%{y:.5~g}<extra>%{fullData.name}</extra>",
      });
    }
    return traces;
  }

  // The times to target whose runs are shown.
  function timesOf(chart) {
    return chart.times.filter((time) => chart.lines.some((line) => line.place === time.place && isShown(line)));
  }

  const onAxis = (value) => (value === null || state.axis !== "seconds" ? value : value / 3600);

  function speedup({ t, t0 }) {
    return t && t0 !== null ? `${(t0 / t).toFixed(2)}×` : "";
  }

  function targetsOf(chart, traces) {
    const times = timesOf(chart), shapes = [];
    for (const target of [...new Set(times.map((time) => time.target))].slice(0, 6)) {
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: target, y1: target, line: { color: "#5b6675", width: 1, dash: "dash" } });
    }
    const reached = times.filter((time) => time.axes[state.axis].t !== null);
    if (reached.length) {
      traces.push({
        x: reached.map((time) => onAxis(time.axes[state.axis].t)), y: reached.map((time) => time.target), mode: "markers",
        type: "scatter", name: "reaches the target", showlegend: false, hovertemplate: "%{text}<extra></extra>",
        marker: { symbol: "diamond", size: 10, color: reached.map((time) => data.colours[time.name]), line: { color: "#fff", width: 1.5 } },
        text: reached.map((time) => `${plain(labelOf(time))}<br>reaches ${time.target.toPrecision(4)} ${speedup(time.axes[state.axis])}`),
      });
    }
    return shapes;
  }

  // The range of the values in view, so that a zoom of one chart fits the others.
  function heightOf(traces, chart) {
    if (!state.range) return { autorange: true };
    const inView = traces.flatMap((trace) => trace.y.filter((y, i) => y !== null && trace.x[i] >= state.range[0] && trace.x[i] <= state.range[1]));
    if (!inView.length || chart.log) return { autorange: true };
    const low = Math.min(...inView), high = Math.max(...inView), margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
    return { range: [low - margin, high + margin] };
  }

  function draw(panel) {
    const { chart, plot } = panel, traces = tracesOf(chart), shapes = targetsOf(chart, traces);
    const isNamed = chart.lines.some((line) => line.name !== line.subject);
    const font = { family: "system-ui, sans-serif", size: 12, color: "#1c2430" };
    const grid = { gridcolor: "#e3e6ea", zeroline: false, linecolor: "#e3e6ea" };
    const layout = {
      margin: { l: 56, r: 12, t: 8, b: 42 }, font, shapes, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      xaxis: { ...grid, title: { text: data.words[state.axis], standoff: 8 }, unifiedhovertitle: { text: `%{x:,.5~g} ${data.words[state.axis]}` }, ...(state.range ? { range: state.range } : { autorange: true }) },
      yaxis: { ...grid, type: chart.log ? "log" : "linear", exponentformat: "power", ...heightOf(traces, chart) },
      showlegend: isNamed, legend: { orientation: "h", y: -0.25 },
      hovermode: traces.length <= 10 ? "x unified" : "closest", hoverlabel: { namelength: -1, bgcolor: "#fff", bordercolor: "#c9ced6", font: { ...font, size: 11 } },
      modebar: { bgcolor: "rgba(255, 255, 255, 0.7)", color: "#9aa3ae", activecolor: "#1c2430" },
      dragmode: isTouch ? false : "zoom",
    };
    // All buttons by name: plotly's own choice holds one that sends a chart to its makers.
    const buttons = [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
    const config = { responsive: true, displaylogo: false, showTips: false, modeBarButtons: buttons };
    Plotly.react(plot, traces, layout, config).then(() => {
      if (!panel.isDrawn) plot.on("plotly_relayout", (change) => zoomed(panel, change));
      panel.isDrawn = true;
    });
    panel.empty.hidden = traces.length > 0;
    panel.isStale = false;
    if (panel.table) fillTimes(panel);
  }

  // A zoom of one chart is that of all.
  function zoomed(panel, change) {
    if (isLinking) return;
    const low = change["xaxis.range[0]"], high = change["xaxis.range[1]"];
    if (low === undefined && !change["xaxis.autorange"]) return;
    state.range = low === undefined ? null : [low, high];
    isLinking = true;
    refresh(panel);
    isLinking = false;
  }

  function refresh(except = null) {
    for (const panel of panels) {
      panel.isStale = panel !== except;
      if (panel.isVisible && panel.isStale) draw(panel);
    }
  }

  function fillTimes({ chart, table }) {
    const axis = state.axis, times = timesOf(chart);
    table.hidden = !times.length;
    table.replaceChildren();
    const head = element("tr", table, null);
    for (const word of ["run", "target", `reached, ${data.words[axis]}`, "t0 / t"]) element("th", head, word);
    for (const time of times) {
      const row = element("tr", table, null), { t } = time.axes[axis], cell = element("td", row, "");
      element("span", cell, null, { class: "swatch" }).style.background = data.colours[time.name];
      cell.append(labelOf(time));
      element("td", row, time.target.toPrecision(4));
      element("td", row, t === null ? "not reached" : axis === "seconds" ? onAxis(t).toPrecision(3) : Math.round(t).toLocaleString("en"));
      element("td", row, speedup(time.axes[axis]));
    }
  }

  function chips(title, values, kind, isChecked, nameOf, colourOf, choose) {
    const group = element("div", bar, null, { class: "group", role: "group", "aria-label": title });
    element("span", group, title, { class: "title" });
    for (const value of values) {
      const label = element("label", group, null, { class: "chip" });
      const input = element("input", label, null, { type: kind, name: title });
      input.checked = isChecked(value);
      if (colourOf) element("span", label, null, { class: "swatch" }).style.background = colourOf(value);
      label.append(nameOf(value));
      input.addEventListener("change", () => { choose(value, input.checked); refresh(); });
    }
  }

  const toggle = (chosen) => (value, isOn) => (isOn ? chosen.add(value) : chosen.delete(value));

  function controls() {
    chips("against", known, "radio", (axis) => axis === state.axis, (axis) => data.words[axis], null, (axis) => { state.axis = axis; state.range = null; });
    const group = element("div", bar, null, { class: "group" }), label = element("label", group, "smoothing ");
    const slider = element("input", label, null, { type: "range", min: 0, max: 0.98, step: 0.02, value: 0, "aria-label": "smoothing" });
    slider.addEventListener("input", () => { state.smoothing = Number(slider.value); refresh(); });
    const first = element("label", group, null, { class: "chip" }), box = element("input", first, null, { type: "checkbox" });
    first.append("with step 0");
    box.addEventListener("change", () => { state.start = box.checked; refresh(); });
    const reset = element("button", group, "whole range", { class: "chip", type: "button" });
    reset.addEventListener("click", () => { state.range = null; refresh(); });
    chips("runs", subjects, "checkbox", () => true, short, (name) => data.colours[name], toggle(state.subjects));
    if (seeds.length > 1) chips("seeds", seeds, "checkbox", () => true, (seed) => (seed === null ? "none" : String(seed)), null, toggle(state.seeds));
  }

  controls();
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const panel = panels.find((each) => each.plot === target);
      panel.isVisible = isIntersecting;
      if (isIntersecting && panel.isStale) draw(panel);
    }
  }, { rootMargin: "400px" });
  let section = null, grid = null;
  for (const chart of data.charts) {
    if (chart.section !== section) {
      section = chart.section;
      element("h3", root, section);
      grid = element("div", root, null, { class: "panels" });
    }
    const figure = element("figure", grid, null, { class: "panel" }), caption = element("figcaption", figure, null);
    element("b", caption, chart.words);
    caption.append(` ${chart.title}`);
    const longest = Math.max(...chart.lines.map((line) => line.of));
    if (longest > data.points) caption.append(`; at most ${data.points} of ${longest} points a line, peaks kept`);
    const plot = element("div", figure, null, { class: "plot" });
    const empty = element("p", figure, "No run that is chosen has this metric.", { class: "note", hidden: "" });
    const wide = element("div", figure, null, { class: "wide" });
    const table = withTimes && chart.times.length ? element("table", wide, null, { class: "times" }) : null;
    panels.push({ chart, plot, empty, table, isVisible: false, isStale: true, isDrawn: false });
    seen.observe(plot);
  }
})();

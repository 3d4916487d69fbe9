"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const plots = read("plots");
  const palette = read("palette");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 640;

  /* A page may fix the theme by the root's color-scheme; else it is the system's. */
  const isDark = () => {
    const schemes = getComputedStyle(document.documentElement).colorScheme.split(" ");
    return schemes.includes("dark") && (!schemes.includes("light") || dark.matches);
  };

  /* Plots: colours of the theme; on a narrow screen the labels stand above their rows instead of beside them. */
  const themed = (value) => {
    let text = JSON.stringify(value);
    if (isDark()) for (const [light, other] of Object.values(palette)) text = text.replaceAll(`"${light}"`, `"${other}"`);
    return JSON.parse(text);
  };

  const note = (text, row, more) => ({ text, y: row, xref: "paper", yref: "y", showarrow: false, ...more });

  /* reach: how far a row's marks extend from its middle, in rows. */
  const fitted = (plot, isNarrow) => {
    const { data, layout } = themed(plot);
    if (!plot.labels) {
      if (isNarrow && layout.xaxis.tickvals) thin(layout.xaxis);
      return { data, layout };
    }
    const count = plot.labels.length;
    if (!isNarrow) {
      const beside = { x: 1, xanchor: "left", xshift: 8, font: { size: 12.5 } };
      layout.annotations = plot.notes.map(([text], row) => note(text, row, beside));
      layout.margin.r = plot.notes.length ? 150 : 16;
      return { data, layout };
    }
    const unit = Math.max(40, Math.ceil(18 / (1 - 2 * plot.reach)));
    const above = plot.reach + 18 / unit;
    layout.yaxis.showticklabels = false;
    layout.yaxis.range = [count - 0.5, -above];
    layout.height = layout.margin.t + layout.margin.b + Math.round(unit * (count - 0.5 + above));
    Object.assign(layout.margin, { l: 12, r: 16 });
    layout.font.size = 12;
    const style = { yanchor: "bottom", yshift: plot.reach * unit, font: { size: 12 }, borderpad: 0, bgcolor: getComputedStyle(document.body).backgroundColor };
    layout.annotations = [
      ...plot.short.map((text, row) => note(text, row, { x: 0, xanchor: "left", ...style })),
      ...plot.notes.map(([, text], row) => note(text, row, { x: 1, xanchor: "right", ...style })),
    ];
    thin(layout.xaxis);
    return { data, layout };
  };

  const thin = (axis) => {
    while (axis.tickvals.length > 6) {
      const keep = (_, i) => i % 2 === axis.tickvals.findIndex((v) => v === 1) % 2 || (i % 2 === 0 && !axis.tickvals.includes(1));
      const kept = axis.tickvals.map(keep);
      axis.ticktext = axis.ticktext.filter((_, i) => kept[i]);
      axis.tickvals = axis.tickvals.filter((_, i) => kept[i]);
    }
  };

  const draw = () => {
    for (const [name, plot] of Object.entries(plots)) {
      const element = document.getElementById(`plot-${name}`);
      const { data, layout } = fitted(plot, element.clientWidth < NARROW);
      layout.width = element.clientWidth - 8;
      Plotly.react(element, data, layout, { displayModeBar: false, responsive: false });
    }
  };

  let width = 0;
  if (Object.keys(plots).length && window.Plotly) {
    draw();
    width = innerWidth;
    dark.addEventListener("change", draw);
    document.addEventListener("themechange", draw);
    addEventListener("resize", () => {
      if (innerWidth === width) return;
      width = innerWidth;
      draw();
    });
  }

  /* Tables: a click on a heading sorts, a second one turns the order round; empty cells stay last. */
  const valueOf = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  };

  /* A cell that spans columns holds the value of its first one; the others are empty. */
  const valueAt = (row, column) => {
    let start = 0;
    for (const cell of row.cells) {
      if (start === column) return valueOf(cell);
      start += cell.colSpan;
      if (start > column) return "";
    }
    return "";
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };

  const sortBy = (table, column, isDescending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [valueAt(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return isDescending ? compare(b, a) : compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.tHead.rows[0].cells) {
      heading.querySelector("button").addEventListener("click", () => {
        const isDescending = heading.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
        sortBy(table, heading.cellIndex, isDescending);
      });
    }
  }

  for (const form of document.querySelectorAll("form.filters")) {
    const rows = form.dataset.table.split(" ").flatMap((id) => [...document.getElementById(id).tBodies[0].rows]);
    const filter = () => {
      const { text: find = "", ...exact } = Object.fromEntries(new FormData(form));
      const words = find.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const isShown =
          words.every((word) => text.includes(word)) &&
          Object.entries(exact).every(([key, value]) => !value || (row.dataset[key] ?? value) === value);
        row.hidden = !isShown;
        shown += isShown;
      }
      form.querySelector("output").textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /* A link to a kernel opens it. */
  const openTarget = () => {
    let name = location.hash.slice(1);
    try {
      name = decodeURIComponent(name);
    } catch {
      return; /* no link of ours */
    }
    const target = document.getElementById(name);
    if (target instanceof HTMLDetailsElement) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", openTarget);
  for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", () => setTimeout(openTarget));
  openTarget();
})();

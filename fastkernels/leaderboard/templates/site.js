
(() => {
  /* Theme: the system's, or one that is kept. */
  const button = document.getElementById("theme");
  const names = { "": "system", light: "light", dark: "dark" };
  const order = ["", "dark", "light"];
  const root = document.documentElement;
  const show = () => { button.textContent = `Theme: ${names[root.style.colorScheme] ?? "system"}`; };
  button.addEventListener("click", () => {
    const theme = order[(order.indexOf(root.style.colorScheme) + 1) % order.length];
    root.style.colorScheme = theme;
    try { localStorage.setItem("fastkernels-theme", theme); } catch { /* storage is off: until the next page */ }
    show();
    document.dispatchEvent(new Event("themechange"));
  });
  show();
  button.hidden = false;

  /* Ranking: every table that has the metric is sorted by it, each level for itself; its cells know their ranks. */
  const rankBy = document.getElementById("rank-by");
  const valueOf = (row, column) => (row.cells[column].dataset.value === "" ? -Infinity : Number(row.cells[column].dataset.value));

  const first = new Map([...document.querySelectorAll("table.ranking tbody tr")].map((row, place) => [row, place]));

  const rank = (table, key) => {
    const headings = [...table.tHead.rows[0].cells];
    const column = headings.findIndex((heading) => heading.dataset.metric === key);
    if (column < 0) return;
    for (const heading of headings) heading.removeAttribute("aria-sort");
    headings[column].setAttribute("aria-sort", "descending");
    const rows = [...table.tBodies[0].rows];
    const levels = [...new Set(rows.map((row) => row.dataset.level))].sort((a, b) => (b ?? "").length - (a ?? "").length || (a ?? "").localeCompare(b ?? ""));
    rows.sort((a, b) => levels.indexOf(a.dataset.level) - levels.indexOf(b.dataset.level) || valueOf(b, column) - valueOf(a, column) || first.get(a) - first.get(b));
    for (const row of rows) {
      const { rank: text, why, close } = row.cells[column].dataset;
      row.cells[0].textContent = text;
      row.cells[0].title = why;
      row.cells[0].classList.toggle("close", close !== undefined);
      [...row.cells].forEach((cell, place) => cell.classList.toggle("chosen", place === column));
    }
    table.tBodies[0].append(...rows);
  };

  const rankAll = () => {
    const tables = document.querySelectorAll("table.ranking");
    tables.forEach((table) => rank(table, rankBy.value));
    const chosen = document.querySelector(`th[data-metric="${CSS.escape(rankBy.value)}"]`);
    document.getElementById("rank-about").textContent = chosen ? `${chosen.textContent.trim()}: ${chosen.title}.` : "";
  };

  if (rankBy) {
    rankBy.addEventListener("input", () => { rankAll(); write(); });
    for (const heading of document.querySelectorAll("th[data-metric]")) {
      heading.querySelector("button").addEventListener("click", () => {
        rankBy.value = heading.dataset.metric;
        rankAll();
        write();
      });
    }
  }

  /* A group whose rows are all filtered away is not shown. */
  const hideEmpty = () => {
    for (const group of document.querySelectorAll(".group")) {
      const rows = [...group.querySelectorAll("tbody tr")];
      group.hidden = rows.every((row) => row.hidden);
    }
  };

  /* Links: what is chosen stands after the #, as by=score_0.5&q=mine&sort.ops=best-speedup.descending. */
  const controls = [...document.querySelectorAll("[data-state]")];
  const defaults = new Map(controls.map((control) => [control, control.value]));
  const sorted = [...document.querySelectorAll("table[data-sort]")];
  const nameOf = (heading) => heading.textContent.trim().toLowerCase().replace(/[^a-z0-9]+/g, "-");

  const write = () => {
    const state = new URLSearchParams();
    for (const control of controls) if (control.value !== defaults.get(control)) state.set(control.dataset.state, control.value);
    for (const table of sorted) {
      const heading = table.querySelector("th[aria-sort]");
      if (heading) state.set(`sort.${table.dataset.sort}`, `${nameOf(heading)}.${heading.getAttribute("aria-sort")}`);
    }
    history.replaceState(null, "", `${location.href.split("#")[0]}#${state}`);
  };

  const sort = (table, wanted) => {
    const place = wanted.lastIndexOf(".");
    const heading = [...table.tHead.rows[0].cells].find((cell) => nameOf(cell) === wanted.slice(0, place));
    if (!heading || !["ascending", "descending"].includes(wanted.slice(place + 1))) return;
    for (let turn = 0; turn < 2 && heading.getAttribute("aria-sort") !== wanted.slice(place + 1); turn += 1) heading.querySelector("button").click();
  };

  let isReading = false;
  const read = () => {
    const text = location.hash.slice(1);
    const state = new URLSearchParams(text.includes("=") ? text : "");
    isReading = true;
    for (const control of controls) {
      const wanted = state.get(control.dataset.state) ?? defaults.get(control);
      control.value = wanted;
      if (control.value !== wanted) control.value = defaults.get(control);
    }
    for (const form of document.querySelectorAll("form.filters")) form.dispatchEvent(new Event("input"));
    if (rankBy) rankAll();
    for (const table of sorted) if (state.has(`sort.${table.dataset.sort}`)) sort(table, state.get(`sort.${table.dataset.sort}`));
    hideEmpty();
    isReading = false;
  };

  const changed = () => {
    hideEmpty();
    if (!isReading) write();
  };
  for (const form of document.querySelectorAll("form.filters")) form.addEventListener("input", changed);
  for (const table of sorted) table.tHead.addEventListener("click", (event) => { if (!isReading && event.target.closest("button")) write(); });
  const isPlace = () => location.hash.length > 1 && !location.hash.includes("=");
  addEventListener("hashchange", () => { if (!isPlace()) read(); }); // a link to a place of the page chooses nothing
  read();
})();

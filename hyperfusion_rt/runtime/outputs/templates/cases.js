// The table of cases: search, filters, order, a hundred rows at a time. All of it with the keyboard.
(() => {
  const STEP = 100;
  const tools = document.querySelector(".cases-tools");
  if (!tools) return;
  const table = document.querySelector("table.cases");
  const body = table.tBodies[0];
  const words = tools.querySelector(".words");
  const filters = [...tools.querySelectorAll(".filter")];
  const by = tools.querySelector(".by");
  const way = tools.querySelector(".way");
  const count = tools.querySelector(".count");
  const more = document.querySelector(".cases-more .more");
  const rows = [...body.rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  let kept = rows.map((_, n) => n);
  let shown = STEP;

  const matches = (n, asked) =>
    asked.every((word) => texts[n].includes(word)) &&
    filters.every(({ value, dataset }) =>
      !value || (rows[n].dataset[dataset.of] || "").split("|").includes(value));

  const place = (row, key) => {
    const cell = row.querySelector(`[data-key="${key}"]`);
    const text = cell.dataset.value ?? cell.textContent;
    const value = cell.dataset.value ? Number(text) : NaN;
    return Number.isNaN(value) ? text.trim() : value;
  };

  const compare = new Intl.Collator(undefined, { numeric: true }).compare;

  // What has no value stands last, whichever way.
  const sorted = () => {
    const found = rows.map((_, n) => n);
    if (!by.value) return found;
    const sign = way.getAttribute("aria-pressed") === "true" ? -1 : 1;
    const keys = rows.map((row) => place(row, by.value));
    return found.sort((a, b) => {
      const [x, y] = [keys[a], keys[b]];
      if (x === "" || y === "") return (x === "") - (y === "") || a - b;
      const found = typeof x === "number" && typeof y === "number" ? x - y : compare(x, y);
      return sign * found || a - b;
    });
  };

  const draw = () => {
    const visible = new Set(kept.slice(0, shown));
    rows.forEach((row, n) => row.classList.toggle("out", !visible.has(n)));
    const all = rows.length.toLocaleString("en");
    count.textContent =
      visible.size === rows.length ? `${all} cases`
      : `${visible.size.toLocaleString("en")} of ${kept.length.toLocaleString("en")} shown` +
        (kept.length < rows.length ? `, of ${all} cases` : "");
    more.parentElement.hidden = kept.length <= shown;
    more.textContent = `Show ${Math.min(STEP, kept.length - shown)} more`;
  };

  const choose = () => {
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    kept = order.filter((n) => matches(n, asked));
    shown = STEP;
    draw();
  };

  let order = kept;
  const arrange = () => {
    order = sorted();
    body.append(...order.map((n) => rows[n]));
    for (const head of table.tHead.rows[0].cells) {
      const down = way.getAttribute("aria-pressed") === "true";
      if (!head.dataset.by) continue;
      if (head.dataset.by === by.value) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    choose();
  };

  for (const head of table.tHead.rows[0].cells) {
    if (!head.dataset.by) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const again = by.value === head.dataset.by;
      way.setAttribute("aria-pressed", String(again && way.getAttribute("aria-pressed") !== "true"));
      by.value = head.dataset.by;
      arrange();
    });
  }
  words.addEventListener("input", choose);
  words.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !words.value) return;
    event.preventDefault();
    words.value = "";
    choose();
  });
  for (const filter of filters) filter.addEventListener("change", choose);
  by.addEventListener("change", arrange);
  way.addEventListener("click", () => {
    way.setAttribute("aria-pressed", String(way.getAttribute("aria-pressed") !== "true"));
    arrange();
  });
  more.addEventListener("click", () => {
    const first = kept[shown];
    shown += STEP;
    draw();
    rows[first]?.querySelector("a")?.focus();
  });

  // Up and down from subject to subject; Home and End to the first and last.
  body.addEventListener("keydown", (event) => {
    const links = [...body.querySelectorAll("tr:not(.out) th a")];
    const at = links.indexOf(event.target.closest("a"));
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: links.length - 1 }[event.key];
    if (at < 0 || to === undefined || !links[to]) return;
    event.preventDefault();
    links[to].focus();
  });

  // A link to the cases of a code, in the list of failures.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-filter-code]");
    const filter = link && filters.find(({ dataset }) => dataset.of === "code");
    if (!filter) return;
    filter.value = link.dataset.filterCode;
    choose();
  });

  // Back from a subject: its row, though it was not shown.
  const arrive = () => {
    const row = /^#row-\d+$/.test(location.hash) && document.querySelector(location.hash);
    if (!row) return;
    const at = kept.indexOf(rows.indexOf(row));
    if (at < 0) return;
    if (at >= shown) {
      shown = Math.ceil((at + 1) / STEP) * STEP;
      draw();
    }
    row.scrollIntoView({ block: "center" });
    row.querySelector("a")?.focus({ preventScroll: true });
  };
  draw();
  table.classList.add("ready");
  window.addEventListener("hashchange", arrive);
  arrive();
})();

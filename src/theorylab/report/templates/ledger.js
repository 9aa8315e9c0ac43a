// The ledger can be filtered and sorted.
(() => {
  "use strict";
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const body = one("#ledger-rows");
  const rows = all("tr", body);
  const [text, verdict, topic] = ["#filter-text", "#filter-verdict", "#filter-topic"].map(one);
  const shown = one("#ledger-shown");
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits =
        words.every((word) => row.dataset.text.includes(word)) &&
        (!verdict.value || row.dataset.state.split(" ").includes(verdict.value)) &&
        (!topic.value || row.dataset.topic === topic.value);
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = count === rows.length ? `${count} claims` : `${count} of ${rows.length} claims`;
    one("#ledger-none").hidden = count > 0;
  };
  [text, verdict, topic].forEach((control) => control.addEventListener("input", filter));
  one("#filter-form").addEventListener("submit", (event) => event.preventDefault());
  one("#filter-form").addEventListener("reset", () => setTimeout(filter));
  filter();

  const heads = all("#ledger-table th[data-column]");
  heads.forEach((head) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[head.cellIndex].dataset.sort;
    const numeric = head.dataset.column === "number";
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured comes last either way
      return (numeric ? x - y : x.localeCompare(y)) * (descending ? -1 : 1);
    };
    body.append(...rows.slice().sort(compare));
  }));
})();

// The page reads without this script; it adds filtering, sorting, copying of links and a choice of light or dark.
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  root.classList.add("scripted");
  all("[data-scripted]").forEach((element) => element.removeAttribute("hidden"));

  // Light, dark, or as the system says. A page opened from disk may have no storage.
  const themes = ["auto", "light", "dark"];
  const toggle = one("#theme");
  const remembered = () => { try { return localStorage.getItem("theorylab-theme"); } catch { return null; } };
  const setTheme = (theme) => {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
    toggle.dataset.now = theme;
    toggle.querySelector("span").textContent = theme[0].toUpperCase() + theme.slice(1);
    toggle.setAttribute("aria-label", `Colour theme: ${theme}. Change.`);
    try { localStorage.setItem("theorylab-theme", theme); } catch { /* not remembered */ }
  };
  const saved = remembered();
  setTheme(themes.includes(saved) ? saved : "auto");
  toggle.addEventListener("click", () => setTheme(themes[(themes.indexOf(toggle.dataset.now) + 1) % themes.length]));

  // The ledger: filter and sort.
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

  // Permalinks.
  all("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const address = location.href.split("#")[0] + "#" + button.dataset.copy;
    history.replaceState(null, "", "#" + button.dataset.copy);
    let done = "Copied";
    try { await navigator.clipboard.writeText(address); } catch { done = "In the address bar"; }
    const before = button.textContent;
    button.textContent = done;
    setTimeout(() => { button.textContent = before; }, 1600);
  }));

  // A link into a folded part unfolds it; for print, everything is unfolded.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target && target.closest("details");
    if (folded) { folded.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", unfold);
  unfold();
})();

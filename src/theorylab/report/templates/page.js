// Every page reads without scripts; this one adds copying of links and a choice of light or dark.
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

  // What scrolls sideways can be reached by keyboard; what fits needs no stop on the way.
  const scrolling = all(".scroll, .formula");
  const stops = () => {
    const beyond = scrolling.map((e) => e.scrollWidth > e.clientWidth); // read all, then write: one layout
    scrolling.forEach((e, i) => { if (beyond[i]) e.setAttribute("tabindex", "0"); else e.removeAttribute("tabindex"); });
  };
  stops();
  addEventListener("resize", stops);
  addEventListener("toggle", stops, true); // what was folded had no width

  // For print the tables of data are unfolded, and folded again after it; code and settings stay folded.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all(".series details:not([open])");
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));

  // A link into a folded part unfolds it.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target && target.closest("details");
    if (folded) { folded.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", unfold);
  unfold();
})();

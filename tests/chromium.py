"""What tests of a page in a real browser share: the browser, a page that records what it says and asks for, and what to look for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install theorylab[test]")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH: the report cannot be looked at")

CONTRASTS = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return {rgb: [r, g, b], alpha: a}; };
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (element) => { for (let e = element; e; e = e.parentElement) {
    const {rgb, alpha} = rgba(getComputedStyle(e).backgroundColor); if (alpha === 255) return rgb; } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !element.getClientRects().length || element.closest(".skip, script, option")) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color).rgb;
    const [a, b] = [light(ink), light(behind(element))];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element instanceof SVGElement, text.slice(0, 40)]);
  }
  return found;
}"""
"""Of every visible text: its contrast, whether it is in a figure, and its beginning."""

BEYOND = """(width) => [...document.querySelectorAll("main *")].filter((e) => e.getClientRects().length
  && !e.closest(".scroll, .formula, pre, svg") && e.getBoundingClientRect().right > width + 1).map((e) => e.tagName + "." + e.className)"""
"""Elements that reach past the edge of a window of ``width``, outside of a container that scrolls by itself."""

CLIPPED = """() => [...document.querySelectorAll("svg.curves")].flatMap((svg) => { const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((t) => { const b = t.getBoundingClientRect();
    return b.left < box.left - 2 || b.right > box.right + 2 || b.top < box.top - 2 || b.bottom > box.bottom + 2; })
  .map((t) => t.textContent); })"""
"""Labels of figures that their frames cut."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # --no-sandbox: a container's root may not have one; the page is our own
    args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    pages = []

    def open_(width: int = 1440, scheme: str = "light", script: bool = True, hash: str = "") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script)
        page.heard = []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("request", lambda request: page.heard.append(request.url) if request.url.startswith(("http", "ws", "ftp")) else None)
        page.goto(address + hash)
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()

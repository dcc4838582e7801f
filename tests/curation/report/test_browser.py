"""The report in a real browser: on a phone and a desk, light and dark, on paper, by keyboard, and under attack."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from curation.opened import Opened
from tests.curation.pairs import flat, good_pairs, image, pair, profile, write_tar
from tests.curation.report.runs import HOSTILE, decided, finished, html_of
from tests.curation.report.test_page import attacked

SIZES = {"phone": (360, 640), "desk": (1280, 800)}
# Text against what is behind it, by WCAG 2: elements that have text of their own and are drawn.
CONTRAST = """
const numbers = color => color.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const behind = element => { for (let at = element; at; at = at.parentElement) {
  const found = numbers(getComputedStyle(at).backgroundColor); if (found.length < 4 || found[3] === 1) return found; } return null; };
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || element.closest("title")) continue;
  const style = getComputedStyle(element), svg = element instanceof SVGElement;
  const color = numbers(svg ? style.fill : style.color), back = behind(svg ? element.ownerSVGElement.parentElement : element);
  found.push([ratio(color, back), element.tagName + "." + element.getAttribute("class"), element.textContent.slice(0, 30)]);
}
for (const shape of document.querySelectorAll("rect.others, rect.all, line.threshold, .fill-left, .fill-kept, .fill-dropped")) {
  const style = getComputedStyle(shape), back = behind(shape.ownerSVGElement.parentElement);
  const drawn = style.stroke !== "none" ? style.stroke : style.fill;
  found.push([ratio(numbers(drawn), back) * 1.5, "shape." + shape.getAttribute("class"), ""]);  // 3 is enough for shapes
}
return found;
"""
STRUCTURE = "return [...document.querySelectorAll('*')].map(e => [e.tagName, [...e.getAttributeNames()].sort()]);"


def _installed() -> tuple[str, str]:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("WINNOW_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver here: install chromium and chromium-driver, or set WINNOW_CHROMIUM")
    return browser, driver


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    program, driver = _installed()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing could be fetched if anything tried to
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def run(folder: Path) -> Opened:
    """Captions, urls and names of files that are hostile, among ordinary ones."""
    attacks = [text for text in HOSTILE if "\ud800" not in text]
    for number, text in enumerate(attacks):  # a file each: a unit keeps two samples of a reason; half are too small
        picture = image(*((240, 240), (120, 120))[number % 2], seed=number)
        write_tar(folder / f"in/{number:02d}.tar", pair(f"x{number}", f"A fine picture {text}", picture, {"url": text}))
    odd = [
        pair("wide", "A very wide picture of some thing", image(900, 240)),
        pair("half", "A good caption of half a picture", image()[:700]),
        pair("zh", "一只棕色的狗在草地上奔跑", image(seed=77)),
    ]
    write_tar(folder / "in/<img src=x onerror=alert(1)>.tar", flat(good_pairs(9)) + flat(odd))
    write_tar(folder / "in/b.tar", [*flat(good_pairs(9, 20))[:-3], ("cut.jpg", image())])
    return finished(profile(folder, target_retention=0.28))


@pytest.fixture(scope="module")
def report(run: Opened, folder: Path) -> Path:
    from curation.report.compare import compare
    from curation.report.data import gather

    other = decided(folder, {"text_length": {"min_words": 6}}, target_retention=0.28)
    path = folder / "report.html"
    path.write_text(html_of(run, compare(gather(run), other)))
    return path


def emulate(browser: Any, size: str = "desk", scheme: str = "light", media: str = "screen") -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def visit(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    browser.get(page.as_uri())


def fits(browser: Any) -> bool:
    script = """
    const width = document.documentElement.clientWidth;
    const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll *, svg *, .skip"))
      .filter(e => { const box = e.getBoundingClientRect(); return box.width && box.right > width + 0.5; });
    return [document.documentElement.scrollWidth, width, wide.map(e => e.tagName + "." + e.className)];
    """
    scroll, width, wide = browser.execute_script(script)
    assert not wide
    return bool(scroll <= width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_it_opens(browser: Any, report: Path, size: str, scheme: str) -> None:
    emulate(browser, size, scheme)
    visit(browser, report)
    assert browser.title == "test: curation report"
    assert browser.get_log("browser") == []  # no error, and nothing that the policy had to forbid
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert fits(browser)
    pictures = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(pictures) > 12
    assert all(complete and width > 0 and alt for complete, width, alt in pictures)
    headings = browser.execute_script("return [...document.querySelectorAll('h2')].map(e => e.innerText)")
    assert headings[:3] == ["Funnel", "Comparison", "Filters"]
    assert headings[-2:] == ["Samples", "Thresholds, versions, fingerprints"]
    low = [entry for entry in browser.execute_script(CONTRAST) if entry[0] < 4.5]
    assert low == []


def test_dark_is_dark(browser: Any, report: Path) -> None:
    looks = {}
    for scheme in ("light", "dark"):
        emulate(browser, "desk", scheme)
        visit(browser, report)
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        looks[scheme] = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in browser.execute_script(script)]
    assert looks["light"][0] > 700 > 200 > looks["light"][1]
    assert looks["dark"][0] < 120 < 600 < looks["dark"][1]


def test_on_paper(browser: Any, report: Path) -> None:
    """In light colours whatever the screen has, on several pages, with no chart cut in two."""
    emulate(browser, "desk", "dark", "print")
    visit(browser, report)
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.execute_script(script, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script(script, "nav", "display") == "none"
    for whole in ("figure", "tr", ".card"):
        assert browser.execute_script(script, whole, "breakInside") == "avoid"
    paper = {"width": 680, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4 without its margins
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
    assert fits(browser)
    tables = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert browser.execute_script(tables) == 0
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    data = base64.b64decode(printed["data"])
    assert data.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) < 60
    assert browser.get_log("browser") == []


def test_by_keyboard_and_by_ear(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    emulate(browser)
    visit(browser, report)
    body = browser.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.get_attribute("class") == "skip"
    assert focused.rect["x"] >= 0  # it comes into sight
    focused.send_keys(Keys.ENTER)
    assert browser.current_url.endswith("#content")
    script = """
    const all = selector => [...document.querySelectorAll(selector)];
    return {
      tables: all("table").filter(t => !t.caption || ![...t.querySelectorAll("th")].every(h => h.scope)).length,
      boxes: all(".scroll").filter(b => b.tabIndex !== 0 || b.getAttribute("role") !== "region").length,
      drawings: all("svg[role=img]").filter(s => !document.getElementById(s.getAttribute("aria-labelledby"))?.textContent).length,
      bare: all("svg:not([role=img]):not([aria-hidden=true])").length,
      levels: all("h1, h2, h3").map(h => +h.tagName[1]),
      ids: all("[id]").map(e => e.id),
      landmarks: all("main, header, nav, footer").length,
    };
    """
    found = browser.execute_script(script)
    assert [found[name] for name in ("tables", "boxes", "drawings", "bare")] == [0, 0, 0, 0]
    assert found["landmarks"] == 4
    assert len(found["ids"]) == len(set(found["ids"]))
    levels = found["levels"]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_hostile_captions_are_there_as_text(browser: Any, report: Path) -> None:
    emulate(browser)
    visit(browser, report)
    text = browser.execute_script("return document.body.textContent")
    assert 'document.title="owned"</script>' in text
    assert "⟨U+202E⟩evil" in text
    assert "javascript:document.title='owned'" in text
    assert browser.execute_script("return [...document.links].filter(a => !a.href.includes('#')).length") == 0
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.title == "test: curation report"


def test_a_real_parser_sees_no_element_that_is_not_ours(browser: Any, run: Opened, tmp_path: Path) -> None:
    def structure(text: str) -> Any:
        page = tmp_path / "page.html"
        page.write_text(attacked(run, text))
        visit(browser, page)
        assert browser.get_log("browser") == []
        return browser.execute_script(STRUCTURE)

    expected = structure("harmless")
    for text in HOSTILE:
        if ":" not in text:  # which would be another reason
            assert structure(text) == expected, text


def test_bare_and_crowded_reports_fit_a_phone(browser: Any, tmp_path: Path) -> None:
    filters = {f"{'label_of_sixty_characters':_<58}{index:02d}": {"filter": "emoji"} for index in range(20)}
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)) + flat([pair("x", "w" * 900 + " \U0001f600", image())]))
    page = tmp_path / "page.html"
    page.write_text(html_of(finished(profile(tmp_path, filters=filters))))
    emulate(browser, "phone")
    visit(browser, page)
    assert fits(browser)
    emulate(browser, "desk", "light", "print")
    assert fits(browser)

"""The page's own parts, one by one: touch, Escape, what a growing run must not take away, the sample view, numbers, paper."""

# ruff: noqa: F401, F811  fixtures come from other test files
from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curation import lease
from curation.opened import Opened
from curation.profile import Profile
from tests.curation.dashboard.conftest import write_mixture
from tests.curation.dashboard.served import Served, serving
from tests.curation.dashboard.test_page import chart, kept, opened, page, served, text, threshold, told, until
from tests.curation.pairs import flat, good_pairs, profile, write_tar
from tests.curation.report.runs import finished
from tests.curation.report.test_browser import CONTRAST, browser, emulate, fits

PAPER = {"width": 680, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4 without its margins


def slider_of(browser: Any, name: str) -> Any:
    return browser.find_element("css selector", f'[data-line="{name}"] .slider')


def value_of(browser: Any, name: str) -> float:
    return float(slider_of(browser, name).get_attribute("aria-valuenow"))


def to_middle(browser: Any, element: Any) -> None:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)


def script_value(browser: Any, code: str, *given: Any) -> Any:
    """What a module's function gives: `code` is the body of an async function that may `import`."""
    wrapped = "const done = arguments[arguments.length - 1]; (async (...given) => {" + code + "})(...arguments)"
    found = browser.execute_async_script(wrapped + ".then(done, (error) => done(String(error)))", *given)
    assert not isinstance(found, str), found
    return found


@contextmanager
def touched(browser: Any) -> Iterator[Any]:
    """A phone's finger: touch(kind, x, y)."""
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 1})

    def touch(kind: str, *at: float) -> None:
        points = [{"x": at[0], "y": at[1]}] if at else []
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    try:
        yield touch
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_finger_drags_a_line(browser: Any, served: Served, mixture: tuple[Opened, Profile]) -> None:
    run, _ = mixture
    steps = threshold(served, run, "shine.min")["steps"]
    with touched(browser) as touch:
        phone = opened(browser, served, run, "phone")
        figure = chart(phone, "shine_mean")
        to_middle(phone, figure.find_element("css selector", "svg"))
        script = (
            "const box = arguments[0].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]"
        )
        x, y = phone.execute_script(script, slider_of(phone, "shine.min").find_element("css selector", ".knob"))
        before, scrolled = value_of(phone, "shine.min"), phone.execute_script("return scrollY")
        touch("Start", x, y)
        for step in range(1, 5):
            touch("Move", x + 10 * step, y + 3 * step)
        until(lambda: value_of(phone, "shine.min") > before, "the line to follow the finger")
        touch("End")
        assert phone.execute_script("return scrollY") == scrolled  # the page did not move under the finger
        place = steps["value"].index(value_of(phone, "shine.min"))
        assert told(figure, "kept") == kept(steps["low"][place], steps["high"][place])
        until(lambda: " kept: " in text(phone, "#tryout .joint"), "the exact count")
        until(lambda: figure.find_elements("css selector", ".near li"), "thumbnails")
        assert fits(phone)
        assert [entry for entry in phone.execute_script(CONTRAST) if entry[0] < 4.5] == []
        assert phone.get_log("browser") == []


def test_escape_ends_a_drag_where_it_began(page: Any, mixture: tuple[Opened, Profile]) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    name, figure = "shine.min", chart(page, "shine_mean")
    to_middle(page, figure)
    knob = slider_of(page, name).find_element("css selector", ".knob")
    before = value_of(page, name)
    ActionChains(page, duration=30).click_and_hold(knob).move_by_offset(30, 0).perform()
    until(lambda: value_of(page, name) > before, "the drag")
    ActionChains(page, duration=30).send_keys(Keys.ESCAPE).move_by_offset(20, 0).release().perform()
    assert value_of(page, name) == before
    assert told(figure, "kept") == f"{mixture[0].totals().kept:,}"
    assert not page.find_element("id", "tryout").is_displayed()


def test_ten_steps_at_once_and_both_ends(page: Any, served: Served, mixture: tuple[Opened, Profile]) -> None:
    from selenium.webdriver.common.keys import Keys

    values = threshold(served, mixture[0], "min_size.short_side")["steps"]["value"]
    slider = slider_of(page, "min_size.short_side")
    page.execute_script("arguments[0].focus()", slider)
    slider.send_keys(Keys.HOME)
    assert value_of(page, "min_size.short_side") == values[0] == float(slider.get_attribute("aria-valuemin"))
    for key, index in ((Keys.PAGE_UP, 10), (Keys.ARROW_UP, 11), (Keys.PAGE_DOWN, 1), (Keys.ARROW_DOWN, 0)):
        slider.send_keys(key)
        assert value_of(page, "min_size.short_side") == values[index]
    slider.send_keys(Keys.ARROW_LEFT)  # there is nothing further
    assert value_of(page, "min_size.short_side") == values[0]
    assert "kept" in slider.get_attribute("aria-valuetext")


@pytest.mark.parametrize(
    ("name", "score", "kept_is"),
    [("shine.min", "shine_mean", "above"), ("aspect_ratio.max", "aspect_ratio_ratio", "below")],
)
def test_thumbnails_stand_on_their_side(
    page: Any,
    served: Served,
    mixture: tuple[Opened, Profile],
    name: str,
    score: str,
    kept_is: str,
) -> None:
    from selenium.webdriver.common.keys import Keys

    figure, slider = chart(page, score), slider_of(page, name)
    page.execute_script("arguments[0].focus()", slider)
    slider.send_keys(Keys.ARROW_LEFT)
    at = f"{served.run(mixture[0].output.uri)}/near?score={score}&x={value_of(page, name)}&n=6&side={name[-3:]}"
    expected = served.get(at).json
    script = """return [...arguments[0].querySelectorAll('.near > div')].map(one => [one.querySelector('.fate').className,
      [...one.querySelectorAll('button')].map(button => button.dataset.key)])"""
    fates = (
        {"below": "fate kept", "above": "fate dropped"}
        if kept_is == "below"
        else {"below": "fate dropped", "above": "fate kept"}
    )
    sides = [[fates[side], [item["key"] for item in expected[side]]] for side in ("below", "above")]
    assert sides[0][1]
    assert sides[1][1]
    until(lambda: page.execute_script(script, figure) == sides, "the nearest samples")
    thumbnail = figure.find_element("css selector", ".near button")
    to_middle(page, thumbnail)  # the panel of what was tried stays in sight at the foot of the window
    thumbnail.click()
    until(lambda: sides[0][1][0] in text(page, "dialog#sample"), "the sample of a thumbnail")


def test_what_is_copied(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    for name in ("shine.min", "text_length.min_words"):
        slider = slider_of(page, name)
        page.execute_script("arguments[0].focus()", slider)
        slider.send_keys(Keys.ARROW_RIGHT)
    pairs = [
        f"{name}={slider_of(page, name).get_attribute('aria-valuenow')}"
        for name in ("text_length.min_words", "shine.min")
    ]
    wanted = " ".join(f"--set {pair}" for pair in pairs)
    until(lambda: text(page, "#tryout").count("alone") == 2, "both changes")
    copy = page.find_element("xpath", "//aside//button[text()='Copy as --set']")
    page.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    copy.click()
    until(lambda: "Copied." in text(page, "#tryout"), "the answer")
    assert page.execute_script("return window.copied") == wanted
    page.execute_script("navigator.clipboard.writeText = async () => { throw new Error('not allowed'); }")
    copy.click()
    until(lambda: "Ctrl+C" in text(page, "#tryout"), "the way without a clipboard")
    script = "const at = document.activeElement; return at.value.slice(at.selectionStart, at.selectionEnd)"
    assert page.execute_script(script) == wanted


def test_from_sample_to_sample_and_back(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    cards = until(lambda: page.find_elements("css selector", "#cards a.open"), "the gallery")
    keys = [card.get_attribute("data-key") for card in cards]
    dialog = page.find_element("id", "sample")

    def shows(key: str) -> bool:
        return bool(dialog.is_displayed() and key in dialog.text and "…" not in dialog.text[:8])

    cards[1].send_keys(Keys.ENTER)
    until(lambda: shows(keys[1]) and "unit" in dialog.text, "the second sample")
    dialog.find_element("css selector", "[data-go=next]").click()
    until(lambda: shows(keys[2]) and page.current_url.endswith(f"#sample={keys[2]}"), "the third")
    for key in (keys[1], keys[0]):
        page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
        until(lambda key=key: shows(key), "the one before")  # type: ignore[misc]
    assert not dialog.find_element("css selector", "[data-go=previous]").is_enabled()
    until(lambda: not page.find_elements("css selector", "dialog[aria-busy=true]"), "its end")
    script = "return [...document.querySelectorAll('dialog th')].every(head => head.scope)"
    assert page.execute_script(script)
    assert [entry for entry in page.execute_script(CONTRAST) if entry[0] < 4.5] == []
    page.back()  # one step, however many were looked at
    until(lambda: not dialog.is_displayed(), "the end of it")
    assert "#sample" not in page.current_url
    page.execute_script("location.hash = '#sample=000000000000-000000'")
    until(lambda: "no sample of this run" in dialog.text, "the line that says so")
    assert [entry["message"] for entry in page.get_log("browser") if "404" not in entry["message"]] == []


def test_growing_takes_nothing_away(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    write_mixture(tmp_path, files=1, samples=40)
    run = finished(profile(tmp_path))
    with lease.hold(run.output, lambda line: None), serving([str(tmp_path / "runs")]) as server:
        opened(browser, server, run)
        slider = slider_of(browser, "min_size.short_side")
        browser.execute_script("arguments[0].focus()", slider)
        slider.send_keys(Keys.ARROW_RIGHT)
        tried = value_of(browser, "min_size.short_side")
        box = "[data-fragment=filters] .scroll"
        browser.execute_script("document.querySelector(arguments[0]).focus({preventScroll: true})", box)
        write_tar(tmp_path / "in/00007.tar", flat(good_pairs(5, 700)))
        more = finished(profile(tmp_path)).totals()
        until(lambda: f"{more.kept:,} were kept" in text(browser, "[data-fragment=head]"), "the new numbers")
        assert browser.execute_script("return document.activeElement.matches(arguments[0])", box)
        steps = threshold(server, run, "min_size.short_side")["steps"]
        place = steps["value"].index(tried)
        wanted = kept(steps["low"][place], steps["high"][place])
        until(lambda: told(chart(browser, "min_size_short_side"), "kept") == wanted, "the new numbers of the line")
        assert value_of(browser, "min_size.short_side") == tried
        until(lambda: f" of {more.seen:,} kept" in text(browser, "#tryout"), "the count among more samples")
        port = server.port
        assert browser.get_log("browser") == []
    until(lambda: "does not answer" in text(browser, "#connection"), "that the server has gone")
    with serving([str(tmp_path / "runs")], port=port):
        until(lambda: not text(browser, "#connection"), "that it is back")


def test_numbers_are_written_as_in_the_report(page: Any) -> None:
    shares = [part / whole for whole in (400, 240, 7, 3_000) for part in range(min(whole, 400) + 1)]
    code = "const {percent} = await import('/static/numbers.js'); return given[0].map((share) => percent(share));"
    assert script_value(page, code, shares) == [f"{share:.1%}".replace("%", " %") for share in shares]
    values = [0.3, 1e-7, 5e-324, -2.5e-9, 1e21, 1e300, 3, 2.9999999999999996, -0.30078125]
    code = "const {exact} = await import('/static/numbers.js'); return given[0].map(exact);"
    texts = script_value(page, code, values)
    assert [float(text) for text in texts] == values
    from curation.yaml_lines import read_yaml

    assert [read_yaml(text)[0] for text in texts] == values  # as `--set` reads it: a number, never a text


def test_on_paper_and_without_script(browser: Any, served: Served, mixture: tuple[Opened, Profile]) -> None:
    opened(browser, served, mixture[0])
    emulate(browser, "desk", "light", "print")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PAPER)
    until(lambda: fits(browser), "charts as wide as the paper")
    data = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) < 40
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        emulate(browser)
        browser.get(served.address + served.run(mixture[0].output.uri))
        assert "needs JavaScript" in text(browser, "#thresholds")
        assert f"{mixture[0].totals().kept:,}" in text(browser, "[data-fragment=funnel]")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

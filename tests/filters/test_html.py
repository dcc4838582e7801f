"""Markup goes, text stays, and whatever a page's author could write takes linear time."""

import time
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.html import Html, clean

CASES = [
    ("Red shoe<br>size 9", "Red shoe size 9"),
    ("Red shoe<BR/>size 9", "Red shoe size 9"),
    ("<p>Red shoe</p><p>size 9</p>", "Red shoe size 9"),
    ("<ul><li>cotton</li><li>blue</li></ul>", "cotton blue"),
    ("H<sub>2</sub>O in a <b>glass</b>", "H2O in a glass"),
    ("<b>From the archives</b>: a singer ", "From the archives: a singer"),
    ('<span style="font-size:13px;">A lake</span>', "A lake"),
    ("a <a href='x > y' title=\"c\">link</a> here", "a link here"),
    ("a <a href=/search?phrase=A+B&family=c ng-click='$e.stop()'>link</a>", "a link"),
    ("A cat <a title=don't>it's</a> asleep", "A cat it's asleep"),
    ('the end was cut <a href="http://example.org/', "the end was cut"),
    ("<script>alert('<b>1</b>')</script>dog", "dog"),
    ("<style type='text/css'>p{color:red}</style>A cat", "A cat"),
    ("<!--0200401-->World Finals [DVD]", "World Finals [DVD]"),
    ("<!DOCTYPE html><html><title>A dog</title></html>", "A dog"),
    ("<title>x <b>y</b> z", "x y z"),
    ("<textarea>x <i>y</i></textarea>", "x y"),
    ("black &amp; white", "black & white"),
    ("black &Amp; white", "black & white"),
    ("&amp;amp;quot;Duda&amp;amp;quot;", '"Duda"'),
    ("&#39;Growing&#x27;s &#8211; star&nbsp;&hellip;", "'Growing's – star …"),
    ("price &lt 3 &gt 2", "price < 3 > 2"),
    ("&amp;lt;b&amp;gt;bold&amp;lt;/b&amp;gt; text", "bold text"),
    ("two&nbsp;&nbsp;spaces", "two spaces"),
    ("<b>x<y</b>", "x<y"),
    ("三个<b>红色</b>的圆形<br/>背景", "三个红色的圆形 背景"),
    ("<img src=a.jpg>", ""),
    ("How to use the <script> tag in HTML pages", "How to use the tag in HTML pages"),
    ("a <style> of its own", "a of its own"),
    ("<script>1</script>b<script>c", "b c"),
    ("x <rt> rest of it <rp> too", "x rest of it too"),
    ("<rt>kan</rt> outside", "kan outside"),
    ("<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby>字", "漢字"),
    ("<ruby>漢<rt>kan<rt>x</ruby> and <rt>y", "漢 and y"),
    ("<ruby>漢<rt>kan", "漢kan"),
    ("<video controls playsinline>Red</video>", "Red"),
    ("<p itemscope>Red", "Red"),
    ('<img alt="a<b" src=x>Red shoe', "Red shoe"),
    ("""<a title='1<2' rel="x<y">Red</a> "shoe" """, 'Red "shoe"'),
    ('<b title="x>Red</a> and <b class="y">shoe</b>', "Red and shoe"),
    ("<o:p></o:p>Red <st1:place w:st='on'>Rome</st1:place>", "Red Rome"),
    ("<math><mi>E</mi><mo>=</mo><mn>1</mn></math>", "E=1"),
    ("<svg><path d='M0'/><circle r=1></circle></svg>Logo", "Logo"),
    ("<?php echo '<b>' ?>Red <?= 1 ?>shoe", "Red shoe"),
    ("<![CDATA[Red <b>shoe</b>]]>", "Red shoe"),
    ("Red shoe<br", "Red shoe"),
    ("Red shoe<br/", "Red shoe"),
    ("Red shoe</p", "Red shoe"),
    ("Red shoe<br class", "Red shoe"),
    ("Red shoe<a href", "Red shoe"),
]
UNTOUCHED = [
    "x<y",
    "I <3 you",
    "a < b > c",
    "a <b and c> d",
    "<PERSON> at the beach",
    "<loc> and <3",
    "AT&T and R&D, Q&A; B&B",
    "a?x=1&copy=2&lt=3",
    "rock&roll &unknown; &",
    "an arrow <!-- that never ends",
    "a <?php that never ends",
    "the <path> of a <text> in a <filter>",
    "if a<b",
    "1 <i and",
    "a <table full",
    "two  spaces stay where there is no markup",
    "",
]
HOSTILE = [
    "<", "<b>", "<b", '<b "', "<b a=", "<b '\"", "<p>", "</b>", "<!--", "<script>", "<script></script>",
    "<style><b></style>", "&", "&amp;", "&#38;", "&lt;", "&amp;lt;b&amp;gt;", "<b><i></b>", "<b <",
    "<a href='", "&#", "<!doctype ", "<b hidden ", '<b a="<', "<b a='<\"", '<b "="<', '<b a="="', "<b a='=\"='\"=",
    "<br", "</br", "<br class ", "<o:p a=", "<path ", "<?php", "<![CDATA[", "<rt>", "<ruby><rt>", "<ruby>",
]  # fmt: skip
fragments = st.sampled_from(
    [*HOSTILE, "?>", "]]>", "</rt>", "</ruby>", "<rp>", "</", "<br", " class", ">", "/>", "b>", "lt;", "amp;", "gt;", "-->", "</script>", "</title>", "<title>", " ", "x", "红", "\xa0",
     "\n", "\x1f", "\0", "&LT;", "&Amp", "#60;", "=", '"', "'", "<br>", "<PERSON>"]
)  # fmt: skip
hostile_text = st.lists(fragments | st.text(max_size=3), max_size=30).map("".join)


def rewrite(*captions: str | None) -> list[str | None]:
    found: list[str | None] = Html().rewrite(pa.array(captions, pa.large_string()))[0].to_pylist()
    return found


@pytest.mark.parametrize(("caption", "expected"), CASES)
def test_markup_becomes_text(caption: str, expected: str) -> None:
    assert rewrite(caption) == [expected]


@pytest.mark.parametrize("caption", UNTOUCHED)
def test_text_stays_as_it_is(caption: str) -> None:
    assert rewrite(caption) == [caption]


def test_nulls_stay_and_hits_are_counted_by_caption() -> None:
    captions = pa.array([None, "a cat", "<b>a</b> <i>b</i>", "&amp; &amp;", "&lt;b&gt;x"], pa.large_string())
    cleaned, hits = Html().rewrite(captions)
    assert cleaned.to_pylist() == [None, "a cat", "a b", "& &", "x"]
    assert cleaned.type == pa.large_string()
    assert hits == {"entities": 2, "tags": 2}


def test_a_column_without_markup_comes_back_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filters.html.clean", lambda caption: pytest.fail(f"{caption!r} reached Python"))
    captions = pa.array(["a cat", "I <3 you", "salt & pepper", None], pa.large_string())
    assert Html().rewrite(captions)[0].equals(captions)


def test_no_rows() -> None:
    assert rewrite() == []


@given(hostile_text)
def test_idempotent(caption: str) -> None:
    once = clean(caption)[0]
    assert clean(once)[0] == once


@given(st.text())
def test_text_without_markup_characters_is_never_touched(caption: str) -> None:
    caption = caption.replace("<", "").replace("&", "")
    assert rewrite(caption) == [caption]


@pytest.mark.parametrize("piece", HOSTILE)
def test_linear_time(piece: str) -> None:
    assert growth(lambda length: clean(piece * (length // len(piece)))) < QUADRATIC / 2


@pytest.mark.parametrize(("left", "right"), [("<", "b>"), ("&", "amp;"), ("<b", ">"), ("<!--", "-->")])
def test_deep_nesting_is_linear_and_idempotent(left: str, right: str) -> None:
    once = clean(left * 2500 + right * 2500)[0]
    assert clean(once)[0] == once
    assert growth(lambda length: clean(left * (length // 4) + right * (length // 4))) < QUADRATIC / 2


STEP = 8
QUADRATIC = STEP * STEP


def growth(work: Callable[[int], object]) -> float:
    """How many times longer `work` takes for STEP times the length: STEP if linear, QUADRATIC if quadratic."""

    def best(length: int) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            work(length)
            times.append(time.process_time() - start)
        return min(times)

    return best(1_250 * STEP) / max(best(1_250), 2e-4)

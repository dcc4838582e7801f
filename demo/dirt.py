"""What the web puts around captions, and captions that no cleaning can save.

The decision behind this module: dirt is added to a clean caption and nothing of the caption is taken away, so the
clean caption is what the mappers must come back to.
"""

from __future__ import annotations

import html
import random
from collections.abc import Callable

from demo.captions import Language, accented, caption, lookalike
from demo.scenes import Scene

EMOJI = (
    "😀", "🎉", "🔥", "✨", "⭐", "❤️", "☀️", "✔️", "👍🏽", "👩🏿‍🚀", "👨‍👩‍👧", "🇫🇷", "🇨🇳", "1️⃣", "🏳️‍🌈", "😂", "🌸", "💯",
)  # fmt: skip
_NAMES = ("John Smith", "Anna Lee", "Maria Garcia", "David Cohen", "Emily O'Neil", "Wei Zhang")
_AGENCIES = ("Getty Images", "Reuters", "AFP", "Shutterstock", "Alamy")
_ZH_NAMES = ("张伟", "李娜", "王芳", "陈静")


def spoil(kind: str, clean: str, language: Language, rng: random.Random) -> tuple[str, str]:
    """The clean caption (some kinds need one of a certain form) and the caption with dirt of `kind` on it."""
    if kind == "lookalike":
        text = lookalike(clean, rng)
        return text, text
    if kind == "mojibake":
        clean = clean if not clean.isascii() else accented(clean, rng)
        return clean, mojibake(clean)
    if kind == "repeated_punctuation":
        return _repeat(clean, language, rng)
    return clean, _DIRT[kind](clean, language, rng)


def mojibake(text: str) -> str:
    """UTF-8 read as Windows-1252, where that knows the byte, else as Latin-1: what browsers do."""
    out = []
    for byte in text.encode():
        try:
            out.append(bytes([byte]).decode("cp1252"))
        except UnicodeDecodeError:
            out.append(chr(byte))
    return "".join(out)


def _repeat(clean: str, language: Language, rng: random.Random) -> tuple[str, str]:
    clean = clean.rstrip(".。")
    times = rng.randint(4, 9)
    if rng.random() < 0.3:
        return clean, f"{clean} {rng.choice('-~=') * times}"
    mark = rng.choice("！。") if language == "zh" else "!"
    return clean + mark, clean + mark * times


def _tags(text: str, language: Language, rng: random.Random) -> str:
    forms = [
        "<b>{}</b>",
        "<p>{}</p>",
        '<p class="wp-caption-text">{}</p>',
        '<div><span style="color:#333">{}</span></div>',
        '<a href="https://example.com/p?id=3&amp;s=1" target="_blank">{}</a>',
        "<script>var x = 1 < 2;</script>{}",
        "{}<style>.c {{color: red}}</style>",
        "<!-- caption -->{}",
        "<FONT SIZE=2>{}</FONT>",
        '<img src="a.jpg" alt=""/>{}',
        "{}<br/>",
    ]
    kind = rng.random()
    spaces = [i for i, c in enumerate(text) if c == " "]
    if kind < 0.35 and spaces and language == "en":
        at = rng.choice(spaces)
        return text[:at] + rng.choice(("<br>", "<br/>", " <br /> ", "</p><p>", "</div><div>")) + text[at + 1 :]
    if kind < 0.5 and len(text) > 4:
        a, b = sorted(rng.sample(range(len(text) + 1), 2))
        tag = rng.choice(("em", "strong", "i", "u", "span"))
        return f"{text[:a]}<{tag}>{text[a:b]}</{tag}>{text[b:]}"
    return rng.choice(forms).format(text)


def _entities(text: str, language: Language, rng: random.Random) -> str:
    named = {'"': "&quot;", "&": "&amp;", "'": "&#39;", "“": "&ldquo;", "”": "&rdquo;", "—": "&mdash;", "é": "&eacute;"}
    share = rng.choice((0.1, 0.3, 1.0))
    forced = rng.randrange(len(text))
    out = []
    for i, c in enumerate(text):
        if c in named:
            out.append(named[c])
        elif c == " " and (i == forced or rng.random() < 0.3):
            out.append("&nbsp;")
        elif i == forced or (language == "zh" and ord(c) > 127 and rng.random() < share):
            out.append(rng.choice((f"&#{ord(c)};", f"&#x{ord(c):x};")))
        else:
            out.append(c)
    return "".join(out)


def _double(text: str, language: Language, rng: random.Random) -> str:
    if rng.random() < 0.4:
        return html.escape(rng.choice(("<b>{}</b>", "<p>{}</p>", "<i>{}</i>")).format(text))
    return _entities(text, language, rng).replace("&", "&amp;")


def _url(text: str, language: Language, rng: random.Random) -> str:
    site = rng.choice(("example.com", "shop-photos.net", "pics4you.org", "tupian.example.cn"))
    url = rng.choice(
        (f"https://www.{site}/img/{rng.randrange(10**6)}.jpg", f"http://{site}/?p={rng.randrange(9999)}", f"www.{site}")
    )
    mail = f"{rng.choice(('info', 'sales', 'contact.us'))}@{site}"
    return rng.choice(("{t} {u}", "{t} {u}", "{t} - {u}", "{t} | {u}", "{u} {t}", "{t} {m}", "{t} ({u})")).format(
        t=text, u=url, m=mail
    )


def _file_name(text: str, language: Language, rng: random.Random) -> str:
    number = rng.randrange(1000, 9999)
    name = rng.choice(
        (
            f"IMG_{number}.JPG",
            f"DSC_{number}.JPG",
            f"DSC0{number}.jpg",
            f"IMG_20190412_15{number}.jpg",
            f"P101{number}.JPG",
            f"shutterstock_{number}56789.jpg",
            f"istock-{number}5678.jpg",
            f"IMG_{number}",
            f"DSC_{number}",
            f"DSCF{number}.jpg",
        )
    )
    return rng.choice(("{t} {f}", "{t} - {f}", "{f} {t}", "{f} - {t}", "{t} ({f})", "{t} | {f}")).format(t=text, f=name)


def _credit(text: str, language: Language, rng: random.Random) -> str:
    name, agency = rng.choice(_NAMES), rng.choice(_AGENCIES)
    if language == "zh":
        person = rng.choice(_ZH_NAMES)
        return text + rng.choice(
            (
                "（图片来源：新华社）",
                "（图片来源：网络）",
                f" 摄影：{person}",
                f"（摄影：{person}）",
                " 图/视觉中国",
                f" 图片来源：{agency}",
            )
        )
    return text + rng.choice(
        (
            f" (Photo by {name}/{agency})",
            f" (Photo: {name})",
            f" | Photo by {name}",
            f" - Photo: {agency}",
            f" Photo credit: {name}",
            f" © 2019 {name}",
            f" (Image: {agency})",
            f" [Credit: {agency}]",
            f" - Image courtesy of {name}",
            f" Photo by {name} / {agency}",
        )
    )


def _boilerplate(text: str, language: Language, rng: random.Random) -> str:
    if language == "zh":
        return rng.choice(("【图】{}", "{}[图]", "{}（点击查看大图）", "{}【高清】", "[组图]{}")).format(text)
    return rng.choice(
        (
            "[Download] {}",
            "{} [HD]",
            "{} (click to enlarge)",
            "{} [Free Shipping]",
            "[PHOTOS] {}",
            "{} [OC]",
            "{} (Click to view larger image)",
        )
    ).format(text)


def _price(text: str, language: Language, rng: random.Random) -> str:
    price, code = f"{rng.randrange(3, 400)}.{rng.choice(('99', '50', '00', '95'))}", rng.randrange(1000, 99999)
    if language == "zh":
        return text + rng.choice(
            (f" ¥{price}", f" 售价：￥{price}", f" 货号：A{code}", f" 仅售{rng.randrange(9, 99)}元", f" 型号：X{code}")
        )
    return text + rng.choice(
        (
            f" - ${price}",
            f" | ${price}",
            f" - Only ${price}",
            f" £{price}",
            f" SKU: AB-{code}",
            f" - SKU {code}",
            f" (SKU: {code})",
            f" Item #{code}",
            f" - Model No. X{code}",
            f" Price: ${price}",
        )
    )


def _zero_width(text: str, language: Language, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice("\u200b\ufeff\u2060\u00ad\u200e\u200c\x07\x08") + text[at:]
    return text


def _white_space(text: str, language: Language, rng: random.Random) -> str:
    spaces = [i for i, c in enumerate(text) if c == " "]
    if spaces and language == "en":
        for at in sorted(rng.sample(spaces, min(len(spaces), rng.randint(1, 3))), reverse=True):
            text = (
                text[:at] + rng.choice(("  ", "\t", "\n", "\r\n", "\u00a0", "   ", "\u3000", "\u2003")) + text[at + 1 :]
            )
        return text
    return rng.choice(("  {}", "{}\n", "\n{}\n", "\u3000\u3000{}", "\t{} ")).format(text)


_DIRT: dict[str, Callable[[str, Language, random.Random], str]] = {
    "html_tags": _tags,
    "html_entities": _entities,
    "double_escaped": _double,
    "url": _url,
    "file_name": _file_name,
    "photo_credit": _credit,
    "boilerplate": _boilerplate,
    "price_sku": _price,
    "zero_width": _zero_width,
    "white_space": _white_space,
}


def emoji_caption(clean: str, rng: random.Random) -> str:
    """The caption with one to three emoji at its ends or between its words."""
    for _ in range(rng.randint(1, 3)):
        sign = rng.choice(EMOJI)
        at = rng.choice([0, len(clean), *(i for i, c in enumerate(clean) if c == " ")])
        clean = f"{clean[:at]} {sign}{clean[at:]}" if at else f"{sign} {clean}"
    return clean


def short_caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """A caption of at most two English words or three Han characters."""
    thing = scene.things[0]
    if language == "zh":
        return rng.choice(("图片", "配图", "插图", "产品图", "图1", "红星", "封面"))
    return rng.choice(
        (f"{thing.colour} {thing.shape}", thing.shape, "image", "photo 1", "logo", "pic", "a 1 b", "untitled")
    )


def long_caption(scene: Scene, language: Language, rng: random.Random, least: int) -> str:
    """True sentences about the scene, one after the other, until there are `least` characters or more."""
    parts: list[str] = []
    # A megabyte of fresh sentences would take seconds: after 100 they come round again.
    while sum(map(len, parts)) < min(least, 6000):
        parts.append(caption(scene, language, rng).rstrip(".。") + ("。" if language == "zh" else ". "))
    text = "".join(parts)
    return (text * -(-least // len(text))).strip()

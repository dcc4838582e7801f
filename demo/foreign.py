"""Captions in languages that the pipeline does not keep: sentences of a few set forms, each right in its grammar.

The decision behind this module: one noun phrase a thing in the nominative singular, inside sentences that take the
nominative, so that agreement comes from a table of forms. They say which shapes and colours there are, not how many.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from demo.scenes import Colour, Scene, Shape, groups


class Tongue(NamedTuple):
    """A language: nouns with their gender, colours with a form for each gender, and sentences.

    `phrase` joins noun and colour per gender; `ground` names the background's colour where a sentence uses it.
    """

    latin: bool
    nouns: dict[Shape, tuple[str, str]]
    colours: dict[Colour, dict[str, str]]
    phrase: dict[str, str]
    ground: dict[Colour, str] | None
    join: str
    sentences: tuple[str, ...]


_NAMES: tuple[Colour, ...] = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
)
_SHAPES: tuple[Shape, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "hexagon",
    "cross",
    "ring",
    "crescent",
)


def _nouns(text: str) -> dict[Shape, tuple[str, str]]:
    """`m:Kreis n:Quadrat ...` in the order of the shapes; `_` stands for a space."""
    pairs = [entry.partition(":") for entry in text.split()]
    return {shape: (g, n.replace("_", " ")) for shape, (g, _, n) in zip(_SHAPES, pairs, strict=True)}


def _colours(genders: str, text: str) -> dict[Colour, dict[str, str]]:
    """Forms by gender, `rouge/rouge vert/verte ...` in the order of the colours; one form serves every gender."""
    table: dict[Colour, dict[str, str]] = {}
    for colour, entry in zip(_NAMES, text.split(), strict=True):
        forms = entry.replace("_", " ").split("/")
        table[colour] = {g: forms[min(i, len(forms) - 1)] for i, g in enumerate(genders)}
    return table


def _tongue(
    latin: bool, nouns: str, genders: str, colours: str, phrase: str, join: str, sentences: str, ground: str = ""
) -> Tongue:
    patterns = phrase.split("|")
    return Tongue(
        latin,
        _nouns(nouns),
        _colours(genders, colours),
        {g: patterns[min(i, len(patterns) - 1)] for i, g in enumerate(genders)},
        {c: w.replace("_", " ") for c, w in zip(_NAMES, ground.split(), strict=True)} if ground else None,
        join,
        tuple(sentences.split("|")),
    )


TONGUES: dict[str, Tongue] = {
    "de": _tongue(
        True,
        "m:Kreis n:Quadrat n:Dreieck m:Stern n:Herz f:Raute n:Sechseck n:Kreuz m:Ring m:Halbmond",
        "mnf",
        "roter/rotes/rote oranger/oranges/orange gelber/gelbes/gelbe grüner/grünes/grüne blauer/blaues/blaue "
        "violetter/violettes/violette rosafarbener/rosafarbenes/rosafarbene brauner/braunes/braune "
        "schwarzer/schwarzes/schwarze weißer/weißes/weiße grauer/graues/graue",
        "ein {c} {n}|ein {c} {n}|eine {c} {n}",
        " und ",
        "Auf diesem Bild ist {s} zu sehen|Hier sieht man, wie {s} auf {g} Hintergrund gezeichnet ist"
        "|Das ist {s} vor {g} Hintergrund|In der Mitte der Zeichnung ist {s} zu erkennen",
        "rotem orangem gelbem grünem blauem violettem rosafarbenem braunem schwarzem weißem grauem",
    ),
    "fr": _tongue(
        True,
        "m:cercle m:carré m:triangle f:étoile m:cœur m:losange m:hexagone f:croix m:anneau m:croissant",
        "mf",
        "rouge orange jaune vert/verte bleu/bleue violet/violette rose marron noir/noire blanc/blanche gris/grise",
        "un {n} {c}|une {n} {c}",
        " et ",
        "Sur cette image on peut voir {s} sur un fond {g}|Voici {s} dessiné à la main sur fond {g}"
        "|Une illustration avec {s} et un arrière-plan {g}|Cette photo nous montre {s}",
        "rouge orange jaune vert bleu violet rose marron noir blanc gris",
    ),
    "es": _tongue(
        True,
        "m:círculo m:cuadrado m:triángulo f:estrella m:corazón m:rombo m:hexágono f:cruz m:anillo f:media_luna",
        "mf",
        "rojo/roja naranja amarillo/amarilla verde azul morado/morada rosa marrón negro/negra blanco/blanca gris",
        "un {n} {c}|una {n} {c}",
        " y ",
        "En esta imagen se puede ver {s} sobre un fondo {g}|Hay {s} en el dibujo"
        "|Una ilustración con {s} y el fondo de color {g}|La fotografía muestra {s} sobre fondo {g}",
        "rojo naranja amarillo verde azul morado rosa marrón negro blanco gris",
    ),
    "it": _tongue(
        True,
        "m:cerchio m:quadrato m:triangolo f:stella m:cuore m:rombo m:esagono f:croce m:anello f:mezzaluna",
        "mf",
        "rosso/rossa arancione giallo/gialla verde blu viola rosa marrone nero/nera bianco/bianca grigio/grigia",
        "un {n} {c}|una {n} {c}",
        " e ",
        "In questa immagine si vede {s} su uno sfondo {g}|Nel disegno ci sono anche {s}, lo sfondo è {g}"
        "|Illustrazione con {s} su sfondo di colore {g}|La fotografia mostra {s}",
        "rosso arancione giallo verde blu viola rosa marrone nero bianco grigio",
    ),
    "pt": _tongue(
        True,
        "m:círculo m:quadrado m:triângulo f:estrela m:coração m:losango m:hexágono f:cruz m:anel f:lua_crescente",
        "mf",
        "vermelho/vermelha laranja amarelo/amarela verde azul roxo/roxa cor-de-rosa castanho/castanha "
        "preto/preta branco/branca cinzento/cinzenta",
        "um {n} {c}|uma {n} {c}",
        " e ",
        "Nesta imagem podemos ver {s} sobre um fundo {g}|Há {s} no desenho"
        "|Uma ilustração com {s} e um fundo de cor {g}|A fotografia mostra {s} em fundo {g}",
        "vermelho laranja amarelo verde azul roxo cor-de-rosa castanho preto branco cinzento",
    ),
    "nl": _tongue(
        True,
        "c:cirkel n:vierkant c:driehoek c:ster n:hart c:ruit c:zeshoek n:kruis c:ring c:halvemaan",
        "cn",
        "rode/rood oranje gele/geel groene/groen blauwe/blauw paarse/paars roze bruine/bruin zwarte/zwart "
        "witte/wit grijze/grijs",
        "een {c} {n}",
        " en ",
        "Op deze afbeelding zie je {s} op een {g} achtergrond|Er is {s} te zien in de tekening"
        "|Dit is een plaatje van {s} tegen een {g} achtergrond|Hier staat {s} getekend",
        "rode oranje gele groene blauwe paarse roze bruine zwarte witte grijze",
    ),
    "pl": _tongue(
        True,
        "n:koło m:kwadrat m:trójkąt f:gwiazda n:serce m:romb m:sześciokąt m:krzyż m:pierścień m:półksiężyc",
        "mfn",
        "czerwony/czerwona/czerwone pomarańczowy/pomarańczowa/pomarańczowe żółty/żółta/żółte "
        "zielony/zielona/zielone niebieski/niebieska/niebieskie fioletowy/fioletowa/fioletowe "
        "różowy/różowa/różowe brązowy/brązowa/brązowe czarny/czarna/czarne biały/biała/białe szary/szara/szare",
        "{c} {n}",
        " i ",
        "Na tym obrazku jest {s} na {g} tle|Oto {s}, a tło jest proste"
        "|Na rysunku jest widoczny kształt: {s}|To jest {s} na {g} tle",
        "czerwonym pomarańczowym żółtym zielonym niebieskim fioletowym różowym brązowym czarnym białym szarym",
    ),
    "tr": _tongue(
        True,
        "x:daire x:kare x:üçgen x:yıldız x:kalp x:eşkenar_dörtgen x:altıgen x:haç x:halka x:hilal",
        "x",
        "kırmızı turuncu sarı yeşil mavi mor pembe kahverengi siyah beyaz gri",
        "{c} bir {n}",
        " ve ",
        "Bu resimde {g} arka plan üzerinde {s} var|Çizimde {s} görülüyor|{g} zemin üzerine çizilmiş {s}",
        "kırmızı turuncu sarı yeşil mavi mor pembe kahverengi siyah beyaz gri",
    ),
    "id": _tongue(
        True,
        "x:lingkaran x:persegi x:segitiga x:bintang x:hati x:belah_ketupat x:segi_enam x:salib x:cincin x:bulan_sabit",
        "x",
        "merah oranye kuning hijau biru ungu merah_muda cokelat hitam putih abu-abu",
        "sebuah {n} berwarna {c}",
        " dan ",
        "Gambar ini menunjukkan {s} dengan latar belakang {g}|Di dalam gambar terdapat {s}"
        "|Ilustrasi sederhana yang berisi {s} di atas latar {g}",
        "merah oranye kuning hijau biru ungu merah_muda cokelat hitam putih abu-abu",
    ),
    "vi": _tongue(
        True,
        "x:hình_tròn x:hình_vuông x:hình_tam_giác x:ngôi_sao x:hình_trái_tim x:hình_thoi x:hình_lục_giác "
        "x:hình_chữ_thập x:chiếc_vòng x:hình_trăng_khuyết",
        "x",
        "đỏ cam vàng xanh_lá_cây xanh_dương tím hồng nâu đen trắng xám",
        "một {n} màu {c}",
        " và ",
        "Trong bức tranh này có {s} trên nền màu {g}|Đây là hình ảnh của {s}|Bức ảnh cho thấy {s} trên nền {g}",
        "đỏ cam vàng xanh_lá_cây xanh_dương tím hồng nâu đen trắng xám",
    ),
    "ja": _tongue(
        False,
        "x:丸 x:四角形 x:三角形 x:星 x:ハート x:ひし形 x:六角形 x:十字 x:リング x:三日月",
        "x",
        "赤い オレンジ色の 黄色い 緑色の 青い 紫色の ピンクの 茶色い 黒い 白い 灰色の",
        "{c}{n}",
        "と",
        "{g}背景に{s}があります|この画像には{s}が描かれています|{s}のイラストです",
        "赤い オレンジ色の 黄色い 緑色の 青い 紫色の ピンクの 茶色い 黒い 白い 灰色の",
    ),
    "ko": _tongue(
        False,
        "x:원 x:사각형 x:삼각형 x:별 x:하트 x:마름모 x:육각형 x:십자가 x:고리 x:초승달",
        "x",
        "빨간색 주황색 노란색 초록색 파란색 보라색 분홍색 갈색 검은색 흰색 회색",
        "{c} {n}",
        ", ",
        "{g} 배경 위에 있는 도형: {s}|이 그림에서 볼 수 있는 것: {s}|간단한 그림, {s}, {g} 배경",
        "빨간색 주황색 노란색 초록색 파란색 보라색 분홍색 갈색 검은색 흰색 회색",
    ),
    "ru": _tongue(
        False,
        "m:круг m:квадрат m:треугольник f:звезда n:сердце m:ромб m:шестиугольник m:крест n:кольцо m:полумесяц",
        "mfn",
        "красный/красная/красное оранжевый/оранжевая/оранжевое жёлтый/жёлтая/жёлтое зелёный/зелёная/зелёное "
        "синий/синяя/синее фиолетовый/фиолетовая/фиолетовое розовый/розовая/розовое "
        "коричневый/коричневая/коричневое чёрный/чёрная/чёрное белый/белая/белое серый/серая/серое",
        "{c} {n}",
        " и ",
        "На этой картинке есть {s} на {g} фоне|Простой рисунок: {s}|Здесь изображено: {s} на {g} фоне",
        "красном оранжевом жёлтом зелёном синем фиолетовом розовом коричневом чёрном белом сером",
    ),
    "ar": _tongue(
        False,
        "f:دائرة m:مربع m:مثلث f:نجمة m:قلب m:معين m:مسدس m:صليب f:حلقة m:هلال",
        "mf",
        "أحمر/حمراء برتقالي/برتقالية أصفر/صفراء أخضر/خضراء أزرق/زرقاء بنفسجي/بنفسجية وردي/وردية بني/بنية "
        "أسود/سوداء أبيض/بيضاء رمادي/رمادية",
        "{n} {c}",
        " و",
        "في هذه الصورة {s} على خلفية {g}|رسم بسيط فيه {s}|{s} على خلفية {g}",
        "حمراء برتقالية صفراء خضراء زرقاء بنفسجية وردية بنية سوداء بيضاء رمادية",
    ),
    "th": _tongue(
        False,
        "x:วงกลม x:สี่เหลี่ยม x:สามเหลี่ยม x:ดาว x:หัวใจ x:สี่เหลี่ยมขนมเปียกปูน x:หกเหลี่ยม x:กากบาท x:วงแหวน x:พระจันทร์เสี้ยว",
        "x",
        "สีแดง สีส้ม สีเหลือง สีเขียว สีน้ำเงิน สีม่วง สีชมพู สีน้ำตาล สีดำ สีขาว สีเทา",
        "{n}{c}",
        "และ",
        "ในภาพนี้มี{s}บนพื้นหลัง{g}|ภาพวาด{s}แบบง่าย|{s}บนพื้น{g}",
        "สีแดง สีส้ม สีเหลือง สีเขียว สีน้ำเงิน สีม่วง สีชมพู สีน้ำตาล สีดำ สีขาว สีเทา",
    ),
    "hi": _tongue(
        False,
        "m:वृत्त m:वर्ग m:त्रिभुज m:तारा m:दिल m:समचतुर्भुज m:षट्भुज m:क्रॉस m:छल्ला m:अर्धचंद्र",
        "m",
        "लाल नारंगी पीला हरा नीला बैंगनी गुलाबी भूरा काला सफ़ेद स्लेटी",
        "एक {c} {n}",
        " और ",
        "इस चित्र में {s} है|{g} पृष्ठभूमि पर {s}|यह {s} का सरल चित्र है",
        "लाल नारंगी पीली हरी नीली बैंगनी गुलाबी भूरी काली सफ़ेद स्लेटी",
    ),
    "el": _tongue(
        False,
        "m:κύκλος n:τετράγωνο n:τρίγωνο n:αστέρι f:καρδιά m:ρόμβος n:εξάγωνο m:σταυρός m:δακτύλιος n:μισοφέγγαρο",
        "mfn",
        "κόκκινος/κόκκινη/κόκκινο πορτοκαλής/πορτοκαλιά/πορτοκαλί κίτρινος/κίτρινη/κίτρινο "
        "πράσινος/πράσινη/πράσινο μπλε μωβ ροζ καφέ μαύρος/μαύρη/μαύρο λευκός/λευκή/λευκό γκρι",
        "ένας {c} {n}|μία {c} {n}|ένα {c} {n}",
        " και ",
        "Στην εικόνα υπάρχει {s} σε {g} φόντο|Εδώ είναι {s}|Απλό σχέδιο: {s} σε {g} φόντο",
        "κόκκινο πορτοκαλί κίτρινο πράσινο μπλε μωβ ροζ καφέ μαύρο λευκό γκρι",
    ),
}
LATIN = tuple(code for code, tongue in TONGUES.items() if tongue.latin)
OTHER_SCRIPTS = tuple(code for code, tongue in TONGUES.items() if not tongue.latin)


def foreign_caption(scene: Scene, code: str, rng: random.Random) -> str:
    """A sentence about the scene in language `code` (a key of `TONGUES`); KeyError for any other."""
    tongue = TONGUES[code]
    phrases = []
    for group in groups(scene)[:2]:
        gender, noun = tongue.nouns[group.shape]
        phrases.append(tongue.phrase[gender].format(n=noun, c=tongue.colours[group.colour][gender]))
    text = rng.choice(tongue.sentences)
    ground = tongue.ground[scene.background.colour] if tongue.ground else ""
    text = text.format(s=tongue.join.join(phrases), g=ground)
    stop = {"ja": "。", "hi": "।", "th": ""}.get(code, ".")
    return text[0].upper() + text[1:] + rng.choice(("", stop))

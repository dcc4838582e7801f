"""The default rules of the mapper `patterns`, in the order in which they run.

The one decision: what is about the file, the shop or the photographer goes, what is about the picture stays, and in
doubt a caption is left alone. So every rule asks for evidence around its words (a separator, a bracket, a colon, the
end of the caption): "photo of a dog", "credit card", "price of bread" and "iPhone 12" have none. Rules may leave
separators and empty brackets behind; the last ones take those away.

White space is single ASCII spaces once `white_space` has run. `\\1` in a replacement puts back what was matched only as
evidence. RE2 takes the leftmost match, which is how a rule says "not after these words": it matches the words first.
"""

from __future__ import annotations

from filters.pattern_rules import PatternRule

_SPACES = r"\t\n\x0B\f\r\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
_INVISIBLE = (
    r"\x00-\x08\x0E-\x1F\x7F-\x84\x86-\x9F\x{AD}\x{61C}\x{180E}\x{200B}\x{200C}\x{200E}\x{200F}\x{202A}-\x{202E}"
    r"\x{2060}-\x{2064}\x{2066}-\x{206F}\x{FEFF}\x{FFF9}-\x{FFFB}"
)
_OPEN, _CLOSE, _INSIDE = r"[(\[（【〔]", r"[)\]）】〕]", r"[^()\[\]（）【】〔〕]"

# Addresses end at white space, quotes, brackets, Chinese punctuation and Han; a pair of parentheses may be inside.
_URL_CHAR = r"[^\s<>\"'“”‘’()\[\]{}|（）【】《》，。；、！？：\p{Han}]"
_URL_REST = rf"(?:{_URL_CHAR}|\({_URL_CHAR}*\))*"
_DOMAIN = r"(?:[a-z0-9-]+\.)+(?:com|net|org|info|biz|edu|gov|co\.uk|com\.au|com\.cn|cn|de|fr|ru|io|shop|store|blog)"
_URL_LEAD = (
    r"(?:\b(?:via|visit|source|link|url|website|(?:(?:see|read|find|check) )?more (?:at|on)|see)\b ?:? ?"
    r"|(?:网址|網址|链接|連結|来源|來源|原文|详情)[:：]? ?)?"
)

_EXTENSION = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|eps|psd)"
_FILE_CHAR = r"[A-Za-z0-9_%~.()+@&=/-]"
_CAMERA = (
    r"(?:\b(?:IMG|DSC[FIN]?|CIMG|PICT|IMGP|GOPR|SDC|HPIM)_?[0-9]{4,}|\b(?:IMG|DSC)[ -][0-9]{3,}|_(?:MG_|DSC)[0-9]{3,}"
    r"|\b(?:SAM|DJI|MVIMG|PXL|PANO|VID|MOV|WP|FB_IMG|Screenshot|IMG|DSC)_[0-9]{3,}|\bP[0-9]{7}\b|\bimage[_-]?[0-9]{3,})"
)
_STOCK_FILE = (
    r"\b(?:(?:shutterstock|istock(?:photo)?|adobestock|gettyimages|depositphotos|dreamstime|fotolia|alamy|123rf|bigstock)"
    r"[_-](?:[a-z]+[_-])*[0-9]{4,}|stock-(?:photo|vector|illustration|image)-[a-z0-9])"
)

_AGENCY = (
    r"(?:(?i:getty ?images?|shutterstock|istock(?:photo)?|alamy(?: stock)?(?: photos?)?|depositphotos|dreamstime"
    r"|adobe ?stock|fotolia|123rf|unsplash|pexels|pixabay|imago images|picture[ -]alliance)|Reuters|REUTERS|AFP"
    r"|AP Photo|Corbis|Minden Pictures|SuperStock|Flickr|Wikimedia(?: Commons)?)"
)
_PICTURE = r"(?:photo(?:graph)?s?|photography|photographer|images?|pictures?|pics?|foto|illustrations?|bild|artwork)"
# A name of at most twelve words: no end of a sentence inside, but initials, abbreviations and addresses.
_NAME = r"[\p{Lu}\p{Lo}@©0-9](?:(?:[^ .!?。！？|]|\b[A-Z][a-z]{0,2}\.|\.[A-Za-z])* ?){0,12}"
# The end of a caption. As an alternation: RE2 would match a plain `$` backwards from the end, where nearly every
# character could be part of a name, and be a hundred times slower.
_TAIL = r"(?:$|[ .]+$)"
# What may stand before a credit. It is put back: a full stop belongs to the caption, and `edges` takes the rest.
_CUT = r"(^|[.!?…)\]\"”’'»] ?|[。！？」』）】] ?|[|,;:/•·~–—―，；、] ?| -+ )"

_ZH_LABEL = (
    r"(?:(?:图片|圖片|照片)(?:来源|來源|来自|來自|提供|版权|作者)|(?:图|圖)(?:源|自)|来源|來源|(?:图片|圖片)?(?:摄影|攝影)(?:师|師|者)?"
    r"|供图|供圖|资料图片?|資料圖片?|图文|文/图|图/文|图片|圖片|原图)"
)
_ZH_REST = r"[^，。！？（）()【】\[\]]{0,40}"

_MONEY = (
    r"(?:(?:US|CA|AU|HK|NT|[AC])? ?[$€£¥￥] ?[0-9][0-9.,]*(?: ?(?:USD|EUR|GBP|CAD|AUD|元))?\+?"
    r"|(?:USD|EUR|GBP|RMB|CNY|CHF) ?[0-9][0-9.,]*|[0-9][0-9.,]* ?(?:USD|EUR|GBP|RMB|CNY|[€£]))"
)
# A price after these words is part of the sentence ("lobster for $29.99").
_PRICE_WORDS = (
    r"(?i: (?:for|at|of|to|than|over|under|from|with|about|is|are|was|were|costs?|worth|an?|the|and|or|up|save|earn"
    r"|wins?|won|only|just|sold|paid|below|above|around|by|per|tops|exceeds?))+"
)
_CODE = r"[A-Z]*[ -]?[A-Z0-9_./-]*[0-9][A-Z0-9_./-]*[0-9A-Z]"
_CODE_THING = r"(?:Item|Product|Mfg\.? Part|Part|Model|Stock|Ref(?:erence)?|Catalog|Order)"
_CODE_LABEL = (
    rf"(?:\b(?:SKU|MPN|UPC|EAN|ASIN|ISBN|{_CODE_THING})\.?(?:[ -]?(?:no|nr|num(?:ber)?|code|id)\b\.?)? ?[:#]+ ?#?"
    rf"|\b(?:{_CODE_THING}|Art|Article|Artikel|Bestell)\b\.?[ -]?(?:no|nr)\b\.? ?:? ?"
    r"|\b(?:SKU|MPN|UPC|EAN|ASIN|ISBN)\.? "
    r"|(?:商品|产品|產品)?(?:货号|貨號|编号|編號|款号|款號|型号|型號|条码|订货号)[:： ] ?)"
)
_PROMOTION = (
    r"(?:包邮|包郵|正品|现货|現貨|特价|特價|促销|促銷|秒杀|秒殺|新品|新款|热卖|熱賣|爆款|清仓|清倉|限时|限時|限量"
    r"|优惠|優惠|折扣|团购|官方|旗舰店|满[0-9]|滿[0-9]|买[一二三0-9]送|高清|组图|組圖|图集|视频|視頻)"
)

DEFAULT_RULES: tuple[PatternRule, ...] = (
    PatternRule(name="mojibake", use="ftfy"),
    PatternRule(name="invisible", pattern=rf"[{_INVISIBLE}]"),
    # A joiner inside an emoji stays: the emoji filter has to see the sequence that it makes.
    PatternRule(name="stray_joiner", pattern=r"(^|[\p{L}\p{N}\p{P}\p{Z}])\x{200D}+", replace=r"\1"),
    PatternRule(name="white_space", pattern=rf"[ {_SPACES}]*[{_SPACES}][ {_SPACES}]*|  +", replace=" "),
    PatternRule(
        name="url",
        pattern=rf"{_URL_LEAD}(?:\b(?:https?|ftp)://{_URL_REST}|\bwww\.{_URL_CHAR}{_URL_REST}|\b{_DOMAIN}/{_URL_REST})",
        ignore_case=True,
    ),
    PatternRule(
        name="email",
        pattern=(
            r"(?:\b(?:e-?mail|contact|mailto)\b ?:? ?|邮箱[:：]? ?)?"
            r"\b[a-z0-9][a-z0-9._%+-]*@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b"
        ),
        ignore_case=True,
    ),
    PatternRule(
        name="site_name",
        pattern=rf"(?:^|(?: [|–—-]|[|–—]) ?|[|–—-]? ?[(\[（] ?){_DOMAIN}[)\]）]?[ .]*$",
        ignore_case=True,
    ),
    PatternRule(
        name="file_name",
        pattern=(
            r"(?i)(?:\b(?:file ?name|file|name|image|photo) ?: ?)?[-_/]*"
            rf"(?:(?-i:{_CAMERA})[A-Za-z0-9_~-]*(?:\([0-9]+\))?(?:{_EXTENSION}\b)?"
            rf"|{_STOCK_FILE}[a-z0-9_-]*(?:{_EXTENSION}\b)?"
            rf"|\b(?:[0-9]|[a-z0-9_%~]{_FILE_CHAR}*[0-9_%/-]{_FILE_CHAR}*)(?:{_EXTENSION}){{1,2}}\b"
            r"|\b[0-9a-f]{32}\b)"
        ),
    ),
    # "Kay Francis in the trailer.jpg": a name of plain words is a caption once its ending is off.
    PatternRule(
        name="file_extension",
        pattern=rf"(?:^file ?: ?)?([\p{{L}})])(?:{_EXTENSION})+\b",
        replace=r"\1",
        ignore_case=True,
    ),
    PatternRule(
        name="label",
        pattern=(
            rf"^(?:free |royalty[- ]free )?(?:stock )?(?:vector )?(?:{_PICTURE}|file) ?: ?"
            r"|^(?:资料|資料|配)?(?:[图圖]片?|照片) ?[:：] ?"
        ),
        ignore_case=True,
    ),
    PatternRule(
        name="credit_in_brackets",
        pattern=(
            rf"{_OPEN} ?(?:(?i:(?:\w+ )?{_PICTURE}(?: (?:credits?|courtesy|source|taken))?"
            r"(?: ?[:：©]| (?:by|courtesy|credit|via)\b)"
            r"|(?:credits?|source|via) ?[:：©]|(?:courtesy|copyright)(?: ?[:：©]| (?:of|by)\b))"
            rf"|©|\([cC]\)|AP\b ?{_CLOSE}|EPA\b ?{_CLOSE}|{_INSIDE}{{0,80}}(?:{_AGENCY}\b|/ ?(?:AP|EPA)\b))"
            rf"{_INSIDE}{{0,100}}{_CLOSE}?"
        ),
    ),
    PatternRule(
        name="credit_copyright",
        pattern=(
            r"(^|[ |,;/–—-])(?:[Cc]opyright )?(?:©|\([cC]\) ?(?:19|20)[0-9]{2}\b"
            r"|[Cc]opyright (?:19|20)[0-9]{2}\b)[^|]{0,60}$|\b[Aa]ll [Rr]ights [Rr]eserved\b\.?"
        ),
        replace=r"\1",
    ),
    PatternRule(
        name="credit_agency",
        pattern=(
            rf"{_CUT}(?i:(?:{_PICTURE}(?: credits?| courtesy)?|credits?|source) ?[:：] ?)?"
            rf"{_AGENCY}\b(?: ?\.?(?:eps)?,? ?(?:vector|photo|image|illustration)? ?#?[0-9]*"
            rf"|(?: ?[/|,] ?){_NAME}){_TAIL}"
        ),
        replace=r"\1",
    ),
    PatternRule(
        name="credit_by",
        pattern=(
            rf"{_CUT}(?i:{_PICTURE}(?: credits?| courtesy| taken)? ?by|photographed by"
            rf"|(?:{_PICTURE} )?courtesy(?: of| by)):? ?{_NAME}{_TAIL}"
        ),
        replace=r"\1",
    ),
    PatternRule(
        name="credit_label",
        pattern=(
            rf"^(?i:{_PICTURE} )?(?i:credits?) ?: ?{_NAME}{_TAIL}|([.!?…)\]\"”’'»] ?|[|,;:/•·~–—―] ?| -+ )"
            rf"(?i:(?:mandatory |stock )?(?:{_PICTURE}|credits?|source)(?: credits?| source| courtesy)?) ?[:©] ?"
            rf"{_NAME}{_TAIL}"
        ),
        replace=r"\1",
    ),
    # Nothing but a space before it: only capitalised, and not after an article ("The Photo by").
    PatternRule(
        name="credit_unmarked",
        pattern=(
            r"(\b(?i:the|an?|his|her|its|my|our|your|this|that|each|any|one|new|old|and|or|of|for|with|in|on|to) "
            r"(?:Photo|PHOTO|Photograph|Photography|Picture|Image|Foto)\b)"
            r"|([\p{L}0-9\"”’'] )(?:(?:Photo|Image|Picture|Mandatory)(?: [Cc]redits?| CREDIT| [Cc]ourtesy):"
            r"|(?:Photo|Foto|PHOTO):|(?:Photo|PHOTO|Photograph|Photography|Picture)(?: [Cc]redit| [Cc]ourtesy)? ?"
            rf"(?:[Bb]y|BY):?) ?{_NAME}{_TAIL}"
        ),
        replace=r"\1\2",
    ),
    PatternRule(
        name="credit_chinese",
        pattern=(
            rf"{_OPEN} ?(?:(?:{_ZH_LABEL}|[图圖摄攝文])(?: ?[:：/／|｜]|[来來](?:自|源)| ){_INSIDE}{{0,40}}"
            rf"|[图圖]片?(?:来源|來源|来自|來自|自){_INSIDE}{{0,40}}|{_INSIDE}{{1,30}} ?[摄攝]"
            rf"|(?:资料|資料|网络|網路)?[图圖]片?[0-9一二三四五六七八九十]{{0,2}}){_CLOSE}"
            rf"|([，,。.；;！!？?|、 …）)」』”])(?:(?:{_ZH_LABEL}|[图圖摄攝]) ?[:：/／|｜]"
            rf"|[图圖]片?(?:来源|來源|来自|來自|源自)){_ZH_REST}。?$"
            rf"|(?:图片来源|圖片來源|图源|圖源|摄影师?|攝影師?|供图|供圖|图片提供|版权所有) ?[:：]{_ZH_REST}。?$"
        ),
        replace=r"\1",
    ),
    PatternRule(
        name="stock_photo",
        pattern=(
            r"[ ,|–—-]*\b(?:royalty[- ]free (?:stock )?|stock )(?:photos?|photography|photographs?|images?|imagery"
            r"|vectors?|vector (?:image|art|graphic|illustration)s?|illustrations?|footage|pictures?|clip ?arts?)"
            r"(?: ?[-–—:]? ?#? ?[0-9]*)[ .]*$"
        ),
        ignore_case=True,
    ),
    PatternRule(
        name="notice_in_brackets",
        pattern=(
            rf"{_OPEN} ?(?:images?|photos?|pictures?|pics?|(?:full |ultra )?hd|uhd|4k|1080p|720p|video|pdf|gif|enlarge"
            r"|(?:free )?download|free shipping|(?:photo )?gallery|slide ?show|oc|repost|on sale|in stock|best ?seller"
            r"|view larger|official (?:music |lyric )?(?:video|audio|visualizer|trailer)|read more|see more"
            rf"|(?:click|tap) (?:here|to|for|on|image){_INSIDE}{{0,40}}|高清(?:大?图|图片|组图)?|组图|組圖"
            rf"|多图|视频|視頻|(?:点击|點擊){_INSIDE}{{0,12}}|更多图片)[0-9]{{0,3}} ?{_CLOSE}"
            rf"|【{_PROMOTION}[^【】]{{0,10}}】"
        ),
        ignore_case=True,
    ),
    PatternRule(
        name="click_notice",
        pattern=(
            r"^click (?:here |on (?:the )?image )?(?:to|for) (?:view |see |enlarge |a )*(?:larger?|full|high)?"
            r"[a-z -]{0,12}(?:image|photo|picture|view)(?: of)?:? ?"
            r"|[ |,.;–—-]+(?:click (?:(?:on )?(?:the )?(?:image|photo|picture) |here )?(?:to|for) "
            r"(?:enlarge|zoom|view|see|larger|a larger|full)[a-z -]{0,24}|opens in a new (?:window|tab))[ .]*$"
            r"|[，。 ]*(?:点击|點擊)(?:图片|圖片)?(?:查看|放大)(?:大图|原图|大圖|原圖|图片)?。?$"
        ),
        ignore_case=True,
    ),
    PatternRule(
        name="product_code",
        pattern=(
            rf"[ |,;/–—-]*{_CODE_LABEL}{_CODE}[ .]*$|^{_CODE_LABEL}{_CODE} |{_OPEN} ?{_CODE_LABEL}{_CODE} ?{_CLOSE}"
            r"|(?:[ |,;]*#|(?: [–—-]|[|–—]) ?#?)[0-9]{6,}$"
        ),
        ignore_case=True,
    ),
    PatternRule(
        name="price",
        pattern=(
            rf"((?:{_PRICE_WORDS}|:) {_MONEY}[ .]*$)"
            r"|(?: ?[|,;/–—，(（]| -) ?"
            r"(?i:(?:(?:sale |special |retail |list )?price|now|only|rrp|msrp|from|价格|售价)[:：]? ?)*"
            rf"{_MONEY}[)）]?[ .]*$"
            rf"|(?i: price ?: ?){_MONEY}[ .]*$"
            r"| (?:US|CA|AU)?[$€£] ?[0-9][0-9,]*\.[0-9]{2}[ .]*$"
        ),
        replace=r"\1",
    ),
    PatternRule(
        name="price_chinese",
        pattern=(
            r"[，,；;| -]*(?:(?:价格|價格|售价|售價|特价|特價|仅售|僅售|原价|原價|现价|現價|优惠价|促销价|到手价"
            r"|包邮价|只要)[:：]? ?[¥￥]? ?[0-9][0-9.,]* ?元?|[¥￥] ?[0-9][0-9.,]* ?元?)起?。?$"
        ),
    ),
    PatternRule(name="empty_brackets", pattern=r"[(\[{（【〔《「『] *[ ,;|/:，：；、]* *[)\]}）】〕》」』]|“”"),
    PatternRule(
        name="repeated_punctuation",
        pattern=r"(!)!+|(\?)\?+|(,),+|(;);+|(，)，+|(。)。+|(！)！+|(？)？+|(、)、+",
        replace=r"\1\2\3\4\5\6\7\8\9",
    ),
    PatternRule(
        name="repeated_marks",
        pattern=r"(\.\.\.)\.+|(……)…+|(——)—+|(~)~+|(～)～+|(：)：+|(；)；+|(\")\"+|( [-–—|~])(?: [-–—|~])+",
        replace=r"\1\2\3\4\5\6\7\8\9",
    ),
    PatternRule(
        name="rulers",
        pattern=(r" ?(?:-{3,}|_{3,}|={3,}|\*{4,}|#{3,}|\+{3,}|<{3,}|>{3,}|\|{2,}|/{3,}) ?|(?:^| )\*{2,}|\*{2,}(?: |$)"),
        replace=" ",
    ),
    PatternRule(
        name="edges",
        pattern=r"^(?:[ |,;:•·，、；：。]|[-–—/\\*~=_>»+]+ )+|(?:[ |,;:•·，、；：]| [-–—/\\*~=_<«+@#&(\[（【]+)+$",
    ),
)

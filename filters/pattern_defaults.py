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
from filters.pattern_words import (
    AGENCY,
    BEFORE,
    BEFORE_PERSON,
    BEGIN,
    CAMERA,
    CAPITALS,
    CASH,
    CLOSE,
    CODE,
    CODE_LABEL,
    CODE_THING_LABEL,
    CREDIT_BY,
    CREDIT_LABEL,
    CUT,
    DOMAIN,
    EXTENSION,
    FIRST_CODE,
    INSIDE,
    INVISIBLE,
    LETTER,
    MONEY,
    NAME,
    NO_WORD,
    NOBODY,
    OPEN,
    PERSON,
    PHOTO,
    PICTURE,
    PRICE_WORDS,
    PROMOTION,
    SOURCE,
    SPACES,
    STOCK_FILE,
    TAIL,
    TOLD,
    UNTOLD,
    URL,
    URL_LAST_LEAD,
    URL_LEAD,
    ZH_LABEL,
    ZH_REST,
)

DEFAULT_RULES: tuple[PatternRule, ...] = (
    PatternRule(name="mojibake", use="ftfy"),
    PatternRule(name="invisible", pattern=rf"[{INVISIBLE}]"),
    # A joiner inside an emoji stays: the emoji filter has to see the sequence that it makes.
    PatternRule(name="stray_joiner", pattern=r"(^|[\p{L}\p{N}\p{P}\p{Z}])\x{200D}+", replace=r"\1"),
    PatternRule(name="white_space", pattern=rf"[ {SPACES}]*[{SPACES}][ {SPACES}]*|  +", replace=" "),
    PatternRule(
        name="url",
        pattern=rf"{URL_LAST_LEAD}{URL}[ .]*$|{URL_LEAD}{URL}",
        replace=r"\1\2",
        ignore_case=True,
    ),
    PatternRule(
        name="email",
        pattern=(
            rf"(?:{BEGIN}(?:e-?mail|contact|mailto)\b ?:? ?|邮箱[:：]? ?)?"
            rf"[{LETTER}0-9][{LETTER}0-9._%+-]*@[{LETTER}0-9-]+(?:\.[{LETTER}0-9-]+)*\.[a-z]{{2,}}\b"
        ),
        replace=r"\1",
        ignore_case=True,
    ),
    PatternRule(
        name="site_name",
        pattern=rf"(?:^|(?: [|–—-]|[|–—]) ?|[|–—-]? ?[(\[（] ?){DOMAIN}[)\]）]?[ .]*$",
        ignore_case=True,
    ),
    # A camera's, a shop's or a hash's name goes, also at the end of another ("wedding-DSC_0924"); one that tells
    # something loses its ending.
    PatternRule(
        name="file_name",
        pattern=(
            rf"(?i)(?:(^|[{NO_WORD}%~.)+@&=])"
            r"(?:(?:file ?name|file|name|image|photo) ?: ?)?[-_/]*|[-_]*[-/])"
            rf"(?:(?-i:{CAMERA})[{LETTER}0-9_~-]*(?:\([0-9]+\))?(?:{EXTENSION}\b)?"
            rf"|{STOCK_FILE}[a-z0-9_-]*(?:{EXTENSION}\b)?)"
            rf"|(^|[{NO_WORD}])(?:(?:file ?name|file|name|image|photo) ?: ?)?[-_/]*"
            rf"(?:[0-9a-f]{{32}}\b|[0-9a-f]{{8}}-?[0-9a-f]{{4}}-?[0-9a-f-]{{6,}}{EXTENSION}\b|({TOLD}){EXTENSION}\b"
            rf"|(?-i:{UNTOLD})(?:{EXTENSION}){{1,2}}\b)"
        ),
        replace=r"\1\2\3",
    ),
    # "Kay Francis in the trailer.jpg": a name of plain words is a caption once its ending is off.
    PatternRule(
        name="file_extension",
        pattern=rf"(?:^file ?: ?)?([\p{{L}}\p{{M}}\p{{N}})_-])(?:{EXTENSION})+\b",
        replace=r"\1",
        ignore_case=True,
    ),
    PatternRule(
        name="label",
        pattern=(
            rf"^(?i:{PICTURE}) ?: ?{PERSON}(?: ?[/|] ?{CAPITALS})+{TAIL}"
            rf"|^(?i:(?:free |royalty[- ]free )?(?:stock )?(?:vector )?(?:{PICTURE}|file)) ?: ?"
            r"|^(?:资料|資料|配)?(?:[图圖]片?|照片) ?[:：] ?"
        ),
    ),
    # A bracket that the end of the caption cut off has a shorter credit; with neither end nor bracket all of it stays.
    PatternRule(
        name="credit_in_brackets",
        pattern=(
            rf"{OPEN} ?(?:(?i:(?:[\p{{L}}\p{{M}}\p{{N}}_]+ )?{PICTURE}(?: (?:credits?|courtesy|source|taken))?"
            r"(?: ?[:：©]| (?:by|courtesy|credit|via)\b)"
            r"|(?:credits?|source|via) ?[:：©]|(?:courtesy|copyright)(?: ?[:：©]| (?:of|by)\b))"
            rf"|©|\([cC]\)|AP\b ?{CLOSE}|EPA\b ?{CLOSE}"
            rf"|(?:{INSIDE}{{0,80}}[^\p{{L}}\p{{M}}\p{{N}}()\[\]（）【】〔〕])?(?:{AGENCY}\b|/ ?(?:AP|EPA)\b))"
            rf"(?:{INSIDE}{{0,200}}{CLOSE}|{INSIDE}{{0,100}}$)"
        ),
    ),
    # A name, an agency or an address follows, or nothing: "a Corvette © in red" has none.
    PatternRule(
        name="credit_copyright",
        pattern=(
            r"(?:(^|[ |,;/–—-])|(^|[.!?] |[|,;/–—-] ?)(?:Photo|Foto|Image|Picture|Bild)s?(?: by)? ?)"
            r"(?:(?:[Cc]opyright )?©(?: ?(?:[Cc]opyright|by|:))*"
            r"(?: ?(?:19|20)[0-9]{2}(?:-[0-9]{2,4})?\b)?"
            r"|(?:[Cc]opyright )?\([cC]\) ?(?:19|20)[0-9]{2}\b|[Cc]opyright (?:19|20)[0-9]{2}\b)"
            r"(?:[ ,.:;/–—-]*(?:by )?(?:[\p{Lu}\p{Lo}@\"“'‘0-9][^|]{0,60}"
            rf"|(?:{AGENCY}|(?i:{DOMAIN})\b)[^|]{{0,30}})"
            r"|[ ,.–—-]*)$"
            r"|(^|[ |,;/–—-])© ?\p{Ll}[\p{L}\p{M}0-9_.-]*(?: ?[/–—,-] ?[^|]{0,40})?$"
            r"|[ |,;/–—-]*\b[Aa]ll [Rr]ights [Rr]eserved\b[ .!]*$"
        ),
        replace=r"\1\2\3",
    ),
    PatternRule(
        name="credit_agency",
        pattern=(
            rf"(?:{CUT}{CREDIT_LABEL}?|([\p{{L}}0-9\"”’'] )(?:Photo|Foto|Image|Picture|Source)(?: [Cc]redits?)?: ?"
            rf"|(?:({BEFORE_PERSON})|([^\p{{Han}} ]) ?/ ?){CREDIT_LABEL}?{PERSON} ?/ ?(?:{CAPITALS} ?/ ?)*)"
            rf"{AGENCY}\b(?: ?\.?(?:eps)?,? ?(?:vector|photo|image|illustration)? ?#?[0-9]*"
            rf"|(?: ?[/|,] ?){NAME}){TAIL}"
        ),
        replace=r"\1\2\3\4\5",
    ),
    PatternRule(
        name="credit_by",
        pattern=(rf"((?:{BEFORE}| ?/ ?){CREDIT_BY}:? ?{NOBODY})|{CUT}{CREDIT_BY}:? ?{NAME}{TAIL}"),
        replace=r"\1\2\3",
    ),
    # "Image:" alone may begin a second sentence: it takes a source, a sign of copyright or an agency to be a credit.
    PatternRule(
        name="credit_label",
        pattern=(
            rf"(^(?i:{PICTURE} )?(?i:credits?) ?: ?{NOBODY})|^(?i:{PICTURE} )?(?i:credits?) ?: ?{NAME}{TAIL}"
            r"|(?:([.!?…)\]\"”’'»] ?|[|,;:•·~–—―] ?| -+ )| ?/ ?)(?:(?i:(?:mandatory |stock )?"
            rf"(?:{PHOTO}(?: credits?| source| courtesy)?|{PICTURE} (?:credits?|source|courtesy)|{SOURCE})) ?[:©] ?"
            rf"{NAME}"
            rf"|(?i:{PICTURE}) ?(?:© ?{NAME}|: ?{PERSON} ?/ ?{CAPITALS})){TAIL}"
            rf"|([.!?] )Pictures?: {CAPITALS}{TAIL}"
        ),
        replace=r"\1\2\3",
    ),
    # Nothing but a space before it: only capitalised, and not after an article ("The Photo by").
    PatternRule(
        name="credit_unmarked",
        pattern=(
            r"(\b(?i:the|an?|his|her|its|my|our|your|this|that|each|any|one|new|old|and|or|of|for|with|in|on|to) "
            r"(?:Photo|PHOTO|Photograph|Photography|Picture|Image|Foto)\b"
            rf"|[\p{{L}}0-9\"”’'] (?:Photo|PHOTO|Photograph|Photography|Picture) ?(?:[Bb]y|BY):? ?{NOBODY})"
            r"|([\p{L}0-9\"”’'] )(?:(?:Photo|Image|Picture|Mandatory)(?: [Cc]redits?| CREDIT| [Cc]ourtesy):"
            r"|(?:Photo|Foto|PHOTO):|(?:Photo|PHOTO|Photograph|Photography|Picture)(?: [Cc]redit| [Cc]ourtesy)? ?"
            rf"(?:[Bb]y|BY):?) ?{NAME}{TAIL}"
        ),
        replace=r"\1\2",
    ),
    PatternRule(
        name="credit_chinese",
        pattern=(
            rf"{OPEN} ?(?:(?:{ZH_LABEL}|[图圖摄攝文])(?: ?[:：/／|｜]|[来來](?:自|源)| ){INSIDE}{{0,40}}"
            rf"|[图圖]片?(?:来源|來源|来自|來自|自){INSIDE}{{0,40}}|{INSIDE}{{1,30}} ?[摄攝]"
            rf"|(?:资料|資料|网络|網路)?[图圖]片?[0-9一二三四五六七八九十]{{0,2}}){CLOSE}"
            rf"|([，,。.；;！!？?|、 …）)」』”])(?:(?:{ZH_LABEL}|[图圖摄攝]) ?[:：/／|｜]"
            rf"|[图圖]片?(?:来源|來源|来自|來自|源自)){ZH_REST}。?$"
            rf"|(?:图片来源|圖片來源|图源|圖源|摄影师?|攝影師?|供图|供圖|图片提供|版权所有) ?[:：]{ZH_REST}。?$"
        ),
        replace=r"\1",
    ),
    PatternRule(
        name="stock_photo",
        pattern=(
            rf"((?:^|[{NO_WORD}.)/-])(?:live|rolling|gun|wood|rifle|in|chicken|beef|fish|vegetable|soup|paper|card|film|feed|root)"
            r"[ -]stock\b)"
            r"|[ ,|–—-]*\b(?:royalty[- ]free (?:stock )?|stock )(?:photos?|photography|photographs?|images?|imagery"
            r"|vectors?|vector (?:image|art|graphic|illustration)s?|illustrations?|footage|pictures?|clip ?arts?)"
            r"(?: ?[-–—:]? ?#? ?[0-9]*)[ .]*$"
        ),
        replace=r"\1",
        ignore_case=True,
    ),
    PatternRule(
        name="notice_in_brackets",
        pattern=(
            rf"{OPEN} ?(?:images?|photos?|pictures?|pics?|(?:full |ultra )?hd|uhd|4k|1080p|720p|video|pdf|gif|enlarge"
            r"|(?:free )?download|free shipping|(?:photo )?gallery|slide ?show|oc|repost|on sale|in stock|best ?seller"
            r"|view larger|official (?:music |lyric )?(?:video|audio|visualizer|trailer)|read more|see more"
            rf"|(?:click|tap) (?:here|to|for|on|image){INSIDE}{{0,40}}|高清(?:大?图|图片|组图)?|组图|組圖"
            rf"|多图|视频|視頻|(?:点击|點擊){INSIDE}{{0,12}}|更多图片)[0-9]{{0,3}} ?{CLOSE}"
            rf"|【{PROMOTION}[^【】]{{0,10}}】"
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
            rf"{BEGIN}[ |,;/–—-]*(?:{CODE_THING_LABEL}|{CODE_LABEL})(?i:{CODE})[ .]*$"
            rf"|^(?:{CODE_THING_LABEL}{FIRST_CODE}|{CODE_LABEL}{CODE}) "
            rf"|{OPEN} ?(?:{CODE_THING_LABEL}|{CODE_LABEL})(?i:{CODE}) ?{CLOSE}"
            r"|(?:[ |,;]*#|(?: [–—-]|[|–—]) ?#?)[0-9]{6,}$"
        ),
        replace=r"\1",
    ),
    PatternRule(
        name="price",
        pattern=(
            rf"((?:{PRICE_WORDS}|:) {MONEY}[ .]*$|^.*{CASH}[ .]*$)"
            r"|(?: ?[|,;/–—，(（]| -) ?"
            r"(?i:(?:(?:sale |special |retail |list )?price|now|only|rrp|msrp|from|价格|售价)[:：]? ?)*"
            rf"{MONEY}[)）]?[ .]*$"
            rf"|(?i: price ?: ?){MONEY}[ .]*$"
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
    # "SPF50 PA+++" and "KL(P||Q)" mean something.
    PatternRule(
        name="rulers",
        pattern=(
            r" ?(?:-{3,}|_{3,}|={3,}|\*{4,}|#{3,}|<{3,}|>{3,}|\|{3,}|/{3,}) ?|(?:^| )(?:\*{2,}|(?:\+{3,}|\|{2})(?: |$))"
            r"|\*{2,}(?: |$)"
        ),
        replace=" ",
    ),
    # A smile stays, and one sign that means something after its space: "Notes in F #", "Disney +".
    PatternRule(
        name="edges",
        pattern=(
            r"(^[:;]-?[()DP](?: |$)|(?:^| )\([:;]$)|^(?:[ |,;:•·，、；：。]|[-–—/\\*~=_>»+]+ )+"
            r"|(?:[ |,;:•·，、；：]| (?:[-–—/\\~=_<«@&(\[（【]|[*+#]{2})+)+$"
        ),
        replace=r"\1",
    ),
)

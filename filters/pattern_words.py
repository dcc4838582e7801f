"""The vocabulary of the default rules: pieces of RE2 patterns for addresses, file names, credits, codes and prices.

The one decision: pieces are small and plain. A class such as \\p{Latin}, or many counted repetitions, can make RE2 ten
times slower on whole columns, so letters are given as ranges where a rule would scan every word with them.
"""

from __future__ import annotations

SPACES = r"\t\n\x0B\f\r\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
INVISIBLE = (
    r"\x00-\x08\x0E-\x1F\x7F-\x84\x86-\x9F\x{AD}\x{61C}\x{180E}\x{200B}\x{200C}\x{200E}\x{200F}\x{202A}-\x{202E}"
    r"\x{2060}-\x{2064}\x{2066}-\x{206F}\x{FEFF}\x{FFF9}-\x{FFFB}"
)
# Letters of Latin, Greek and Cyrillic with their accents. Ranges: RE2 is many times slower with \p{Latin} and its like.
LETTER = r"A-Za-z\x{C0}-\x{24F}\x{300}-\x{52F}\x{1E00}-\x{1EFF}"
# Where a word may begin: after signs, emoji, and CJK, which has no spaces. RE2's \b knows ASCII alone: it would begin
# one after the "ü" of "für" and cut there. What is in the group is put back.
NO_WORD = (
    r"\x00-$'(*,:;<>?\[-^`{-}\x{7F}-\x{A9}\x{AB}-\x{B4}\x{B6}-\x{B9}\x{BB}-\x{BF}\x{2000}-\x{2BFF}\x{2E00}-\x{D7FF}"
    r"\x{F900}-\x{FFFF}\x{1F000}-\x{3FFFF}"
)
BEGIN = rf"(^|[{NO_WORD}%~.)+@&=/-])"
OPEN, CLOSE, INSIDE = r"[(\[（【〔]", r"[)\]）】〕]", r"[^()\[\]（）【】〔〕]"

# Addresses end at white space, quotes, brackets, Chinese punctuation and Han; a pair of parentheses may be inside.
URL_CHAR = r"[^\s<>\"'“”‘’()\[\]{}|（）【】《》，。；、！？：\p{Han}]"
URL_REST = rf"(?:{URL_CHAR}|\({URL_CHAR}*\))*"
# No begin of a word is asked for: the leftmost match has the whole name.
DOMAIN = (
    rf"(?:[{LETTER}0-9-]+\.)+"
    r"(?:com|net|org|info|biz|edu|gov|co\.uk|com\.au|com\.cn|cn|de|fr|ru|io|shop|store|blog)"
)
URL = rf"(?:[_*]*(?:https?|ftp)://{URL_REST}|\bwww\.{URL_CHAR}{URL_REST}|{DOMAIN}/{URL_REST})"
URL_LEAD = (
    rf"(?:{BEGIN}(?:via|visit|source|link|url|website|(?:(?:see|read|find|check) )?more (?:at|on)|see)\b ?:? ?"
    r"|(?:网址|網址|链接|連結|来源|來源|原文|详情)[:：]? ?)?"
)
# Words that hang in the air once the address at the end is gone.
URL_LAST_LEAD = (
    rf"{BEGIN}(?:(?:full|complete|entire|more|further) (?:review|recipe|story|article|details|info(?:rmation)?|text"
    r"|photos|pictures|gallery|list(?:ing)?|post|report) )?(?:(?:go|over) )?(?:at|by|to|from|on|in|of|with) ?:? ?"
)

EXTENSION = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|eps|psd)"
CAMERA = (
    r"(?:(?:IMG|DSC[FIN]?|CIMG|PICT|IMGP|GOPR|SDC|HPIM)_?[0-9]{4,}|(?:IMG|DSC)[ -][0-9]{3,}|_(?:MG_|DSC)[0-9]{3,}"
    r"|(?:SAM|DJI|MVIMG|PXL|PANO|VID|MOV|WP|FB_IMG|Screenshot|IMG|DSC)_[0-9]{3,}|P[0-9]{7}\b|image[_-]?[0-9]{3,})"
)
STOCK_FILE = (
    r"(?:(?:shutterstock|istock(?:photo)?|adobestock|gettyimages|depositphotos|dreamstime|fotolia|alamy|123rf|bigstock)"
    r"[_-](?:[a-z]+[_-])*[0-9]{4,}|stock-(?:photo|vector|illustration|image)-[a-z0-9])"
)
# File names in letters, other signs (NO_LETTER) and both (ANY).
FILE_SIGNS = r"_%~.()+@&=-"
NO_LETTER, NO_DIGIT = rf"[0-9/{FILE_SIGNS}]", rf"[{LETTER}/{FILE_SIGNS}]"
ANY, ANY_FLAT = rf"[0-9{LETTER}/{FILE_SIGNS}]", rf"[0-9{LETTER}{FILE_SIGNS}]"
# Three words of three letters describe the picture, whatever stands between them.
TOLD = rf"(?:{ANY_FLAT}*[{LETTER}]{{3}}{ANY_FLAT}*[0-9_%~.()+@&=-]){{2}}{ANY_FLAT}*[{LETTER}]{{3}}{ANY_FLAT}*"
# Hashes, shop images ("41aBc._SL500_"), five digits or more, no word of three letters, one word and a number, paths.
UNTOLD = (
    rf"(?:[0-9A-Z][0-9A-Za-z+-]{{8,}}\._[A-Z0-9_,]+_|(?:[{LETTER}]{NO_DIGIT}*)?[0-9](?:{NO_DIGIT}*[0-9]){{4,}}{ANY}*"
    rf"|(?:[0-9]|[{LETTER}]{{1,2}}{NO_LETTER})(?:[{LETTER}]{{0,2}}{NO_LETTER})*[{LETTER}]{{0,2}}"
    rf"|[{LETTER}]+[_~-]?\(?[0-9]{{3,}}\)?[{LETTER}]?|[0-9{LETTER}]{ANY}*/{ANY}*)"
)

AGENCY = (
    r"(?:(?i:getty ?images?|shutterstock|istock(?:photo)?|alamy(?: stock)?(?: photos?)?|depositphotos|dreamstime"
    r"|adobe ?stock|fotolia|123rf|unsplash|pexels|pixabay|imago images|picture[ -]alliance)|Reuters|REUTERS|AFP"
    r"|AP Photo|Corbis|Minden Pictures|SuperStock|Flickr|Wikimedia(?: Commons)?)"
)
PHOTO = r"(?:photo(?:graph)?s?|photography|photographer|fotos?|bild)"
PICTURE = r"(?:photo(?:graph)?s?|photography|photographer|images?|pictures?|pics?|foto|illustrations?|bild|artwork)"
SOURCE = r"(?:credits?|source|(?:bild|foto)?quelle|bildnachweis|fuente)"
# A name of at most twelve words: no end of a sentence inside, but initials, abbreviations and addresses.
NAME = r"[\p{Lu}\p{Lo}@©0-9](?:(?:[^ .!?。！？|]|\b[A-Z][a-z]{0,2}\.|\.[A-Za-z])* ?){0,12}"
# What follows "by" and is nobody: "Photo by the lake", "Photography by Night", but "Photo by A. Smith".
NOBODY = (
    r"(?i:(?:the|an?|night|day|(?:moon|candle|lamp|day|sun)light|hand|numbers?|my|his|her|our|your|their|its|this|that)"
    r"(?: |[ .,!]*$))"
)
# Words that all begin with a capital, but for the small ones in names: a person (two or more), an agency.
CAPITAL = rf"[A-Z\x{{C0}}-\x{{DE}}\x{{100}}-\x{{17F}}\x{{386}}-\x{{3AB}}\x{{400}}-\x{{42F}}][{LETTER}0-9.&'’_-]*"
MORE_CAPITALS = rf" (?:(?:von|van|der|den|de|di|da|del|la|le|el|al|of|for|the|und|and|via|&) )*{CAPITAL}"
PERSON, CAPITALS = rf"{CAPITAL}(?:{MORE_CAPITALS})+", rf"{CAPITAL}(?:{MORE_CAPITALS})*"
CREDIT_LABEL = rf"(?i:(?:{PICTURE}(?: credits?| courtesy)?|{SOURCE}) ?[:：] ?)"
CREDIT_BY = rf"(?i:{PICTURE}(?: credits?| courtesy| taken)? ?by|photographed by|(?:{PICTURE} )?courtesy(?: of| by))"
# The end of a caption. As an alternation: RE2 would match a plain `$` backwards from the end, where nearly every
# character could be part of a name, and be a hundred times slower.
TAIL = r"(?:$|[ .]+$)"
# What may stand before a credit. It is put back: a full stop belongs to the caption, and `edges` takes the rest; but a
# slash between two words `edges` would not take.
BEFORE = r"^|[.!?…)\]\"”’'»] ?|[。！？」』）】] ?|[|,;:•·~–—―，；、] ?| -+ "
BEFORE_PERSON = BEFORE.replace(":", "")
CUT = rf"(?:({BEFORE})|([^\p{{Han}} ]) ?/ ?)"

ZH_LABEL = (
    r"(?:(?:图片|圖片|照片)(?:来源|來源|来自|來自|提供|版权|作者)|(?:图|圖)(?:源|自)|来源|來源|(?:图片|圖片)?(?:摄影|攝影)(?:师|師|者)?"
    r"|供图|供圖|资料图片?|資料圖片?|图文|文/图|图/文|图片|圖片|原图)"
)
ZH_REST = r"[^，。！？（）()【】\[\]]{0,40}"

MONEY = (
    r"(?:(?:US|CA|AU|HK|NT|[AC])? ?[$€£¥￥] ?[0-9][0-9.,]*(?: ?(?:USD|EUR|GBP|CAD|AUD|元))?\+?"
    r"|(?:USD|EUR|GBP|RMB|CNY|CHF) ?[0-9][0-9.,]*|[0-9][0-9.,]* ?(?:USD|EUR|GBP|RMB|CNY|[€£]))"
)
# A price after these words is part of the sentence ("lobster for $29.99").
PRICE_WORDS = (
    r"(?i: (?:for|at|of|to|than|over|under|from|with|about|is|are|was|were|costs?|worth|an?|the|and|or|up|save|earn"
    r"|wins?|won|only|just|sold|paid|below|above|around|by|per|tops|exceeds?))+"
)
# On money itself a round sum is what it is worth: "Germany coin - 2 EUR".
CASH = (
    r"\b(?i:(?:dollar|pound|euro|yen|yuan|peso|rupee|franc) bill|coin|bank ?note|denomination|stamp|cheque|gift card)"
    r"s?\b.*"
    r"(?:[$€£¥￥] ?[0-9]{1,3}(?:,?000)*|[^0-9.,][0-9]+ ?(?:USD|EUR|GBP|[€£]))"
)
CODE = r"[A-Z]*[ -]?[A-Z0-9_./-]*[0-9][A-Z0-9_./-]*[0-9A-Z]"
# In front of a caption: "Model: X-100 red", but "Model: iPhone 12", "Model: 3D printer", "Product: Nike 270".
FIRST_CODE = (
    r"(?:[A-Z][A-Z_./-]*(?:[0-9][A-Z_./-]*){3,}|[0-9](?:[A-Z_./-]*[0-9]){4,}[A-Z]*|[0-9]{3,}[_./-]*[A-Z][A-Z0-9]*)"
    r"[A-Z0-9_./-]*"
)
CODE_THING = r"(?:Item|Product|Mfg\.? Part|Part|Model|Stock|Ref(?:erence)?|Catalog|Order)"
CODE_THING_LABEL = (
    rf"(?i:{CODE_THING}\.?(?:[ -]?(?:no|nr|num(?:ber)?|code|id)\b\.?)? ?[:#]+ ?#?"
    rf"|(?:{CODE_THING}|Art|Article|Artikel|Bestell)\b\.?[ -]?(?:no|nr)\b\.? ?:? ?)"
)
CODE_LABEL = (
    r"(?i:(?:SKU|MPN|UPC|EAN|ASIN|ISBN)\.?(?:[ -]?(?:no|nr|num(?:ber)?|code|id)\b\.?)?(?: ?[:#]+ ?#?| )"
    r"|(?:商品|产品|產品)?(?:货号|貨號|编号|編號|款号|款號|型号|型號|条码|订货号)[:： ] ?)"
)
PROMOTION = (
    r"(?:包邮|包郵|正品|现货|現貨|特价|特價|促销|促銷|秒杀|秒殺|新品|新款|热卖|熱賣|爆款|清仓|清倉|限时|限時|限量"
    r"|优惠|優惠|折扣|团购|官方|旗舰店|满[0-9]|滿[0-9]|买[一二三0-9]送|高清|组图|組圖|图集|视频|視頻)"
)

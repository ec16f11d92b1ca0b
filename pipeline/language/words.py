"""Sentences into words, as coco-caption's PTBTokenizer does, without Java.

Owns what a word is: lower case, split as in the Penn Treebank (`it's` is `it 's`, `don't` is `do n't`, `cannot` is
`can not`, hyphens stay), punctuation dropped. Whoever scores captions splits them here, so that scores are comparable
with the published ones. Does not know what words are for.

Written from the observed behaviour of the Java program (Stanford CoreNLP 3.4.1, PTBTokenizer -lowerCase, then
coco-caption's list of punctuation), quirks included: brackets become the words `-lrb-` and `-rrb-`, `!!` stays, and
the full stop stays on abbreviations and single letters. Differs knowingly where a word would hold a blank (`2 1/2`),
which coco-caption's BLEU and CIDEr split as well.
"""

import re

PUNCTUATION = frozenset(["''", "``", "--", "...", *"'`.?!,:-;", *'"“”‘’«»‹›…–—―‐'])
"""coco-caption's list with the signs that PTBTokenizer writes as one of it; without its brackets in capitals, which
never match, for words are in lower case."""

_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " ", "&mdash;": "--"}
_ENTITY = re.compile("|".join(_ENTITIES))

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_FRACTIONS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_WRITTEN = _BRACKETS | _FRACTIONS | {"€": "$", "¤": "$", "£": "#", "¢": "cents"}
_REWRITTEN = re.compile("[" + re.escape("".join(_WRITTEN)) + "]")

_ABBREVIATIONS = (
    "mr mrs ms dr prof rev gen col capt lt sgt maj gov sen rep hon pres sr jr esq messrs mme mlle supt treas adm atty "
    "cmdr comdr cpl pvt st ste ave blvd rd ct sq mt ft rt bldg det etc vs al cf est dept assn bros co cos corp inc ltd "
    "plc univ tel ext ph.d jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri wm alex "
    "ala ariz calif colo conn fla ga ind kan mich minn mo neb nev okla penn tenn va wis wyo"
).replace(" ", "|")
_CAPITAL_ABBREVIATIONS = "Ill|ILL|Mass|MASS|Miss|MISS|Ore|ORE|Pa|PA|Tex|TEX|Wash|WASH"
_BEFORE_NUMBERS = "no|nos|fig|figs|pp|ca|art|op|prop"
_SENTENCE_STARTS = (
    "The A An In At He She It They We You This That These There Then When While But If So As One Some Many Her Their "
    "Our What Other After Here However"
).replace(" ", "|")

_SIGNS = "¹²³⁰-₟¼-¾⅐-↋①-⓿"
_LETTER = rf"(?:[^\W\d_{_SIGNS}]|[\u0300-\u036f\u0900-\u0fff])"
_ALNUM = rf"(?:{_LETTER}|\d)"
_NO_ALNUM = rf"(?!{_ALNUM})"
_END = rf"{_NO_ALNUM}(?!-{_ALNUM})"
_THING = rf"{_ALNUM}+(?:[-_/\u2010\u2011]{_ALNUM}+)*"

_TOKEN = re.compile(
    "|".join(
        (
            rf"(?i:can(?=not{_END})|(?:gon|wan)(?=na{_END})|got(?=ta{_END})|(?:lem|gim)(?=me{_END}))",
            r"[A-Za-z]+(?!\S)",  # most words, at once
            r"<[/!?]?[A-Za-z][^<>'\s]*(?: [^<>']*)?>",  # a tag, <unk>
            r"(?i:-[lr][rsc]b-)",  # a bracket, already written out
            r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)]",
            r"(?<![\w.+-])[\w.+-]*\w@\w+(?:[.-]\w+)*",  # an e-mail address
            rf"#{_LETTER}+|@{_LETTER}\w*",
            r"&#?\w+;",
            rf"[:;=]['-]?(?:[()]|[DP]{_NO_ALNUM})",  # a face
            r"(?:US|HK|NZ|[AC])\$|[CF]#|[Cc]\+\+",
            # u.s., p.m, u.s.-based
            rf"(?:{_ALNUM}+-)*{_LETTER}(?:\.{_LETTER})+{_NO_ALNUM}\.?+{_NO_ALNUM}(?:-{_ALNUM}+)*",
            rf"(?:(?i:{_ABBREVIATIONS})|{_CAPITAL_ABBREVIATIONS})\.(?!{_LETTER})(?:-{_ALNUM}+)*",
            rf"(?i:{_BEFORE_NUMBERS})\.(?=\s*\d)",
            rf"{_LETTER}\.(?!{_LETTER}|\s+(?:{_SENTENCE_STARTS})\b)",  # an initial
            rf"{_THING}\.(?=[,;:])",
            rf"(?i:{_LETTER}+(?=n['’]t{_NO_ALNUM})|n['’]t{_NO_ALNUM})",
            rf"(?i:['’](?:s|m|d|ll|re|ve)){_NO_ALNUM}",
            rf"(?i:'t(?=(?:is|was){_NO_ALNUM}))",
            rf"(?i:['’]n['’]|['’](?:n|em|cause|till?){_NO_ALNUM})",
            rf"['’]\d\ds?{_NO_ALNUM}",
            rf"(?i:y['’](?=all|know)|ol'|(?:o|d|l|n|qu|jusqu)['’](?!(?:s|m|d|ll|re|ve){_NO_ALNUM}){_LETTER}+(?:-{_ALNUM}+)*)",
            rf"(?i:ma['’]ams?|s['’]mores|c['’](?:mon|est)|e['’]er|ne['’]er|li['’]l|cap['’]n){_NO_ALNUM}",
            rf"[-+]?\d*(?:[.,:]\d+)+(?:-{_ALNUM}+)*",
            rf"[-+]\d+{_NO_ALNUM}",
            r"[A-Z]+(?:&[A-Z]+)+",
            rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",
            _THING,
            r"[?!]{2,}|-{2,}|\*+|_+|@+|#+|<<|>>",
            r"[^\s\x00-\x1f\x7f\u200b-\u200f\ufeff\U00010000-\U0010ffff]",  # any other sign; emoji are dropped
        )
    )
)


def tokenize(text: str) -> list[str]:
    """Split a sentence into lower-case words without punctuation.

    Args:
        text: one sentence or several; a line break is a blank.

    Returns:
        The words; none for a text without any.
    """
    text = _ENTITY.sub(lambda match: _ENTITIES[match[0]], text.replace("\u00ad", ""))
    words: list[str] = []
    for token in _TOKEN.findall(text):
        words += _REWRITTEN.sub(lambda match: _WRITTEN[match[0]], token).lower().replace("’", "'").split()
    return [word for word in words if word not in PUNCTUATION and word.strip("-")]

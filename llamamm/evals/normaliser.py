"""Two ways to write the same words, made one, so that a word error rate counts what was heard wrongly and no more.

    "Um, it's 10 o'clock [laughs]; he won't come."  and  "it is ten o clock he will not come"
    -> it is 10 o clock he will not come

The steps, in this order, each on what the last one left:

    1 characters     quote marks made plain; Unicode's compatible forms (NFKD, which is NFKC with accents apart); small
                     letters; accents dropped, "æ" as "ae"
    2 remarks        what stands in [...], <...> and (...) is a remark about a sound: out
    3 contractions   "won't" "will not", "'ll" " will"; "'s" is " is", of an owner, too: on both sides, at no cost
    4 marks          "$5" "5 dollars", "5%" "5 percent", "&" "and"; "1,000" 1000; a point stays within a number;
                     all other marks are spaces, in words with a hyphen, too
    5 words          "um" and the like out; "gonna" "going to", "mr" "mister"; British spelling as American
    6 numbers        in words, as digits: see `spoken_numbers`
    7 spaces         one between words

What is left are words of small letters and digits, and points in numbers. A second time changes nothing. The figure
for a model depends on this list: say with a word error rate how its texts were normalised.

Whisper's English normaliser is the reference, arXiv:2212.04356, appendix C; the test lists each known difference with
its reason. Used in notebook 17.
"""

from __future__ import annotations

import re
import unicodedata

from llamamm.evals.spoken_numbers import with_digits

QUOTES = str.maketrans(dict.fromkeys("‘’‛ʼ`´′", "'"))
LETTERS = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ß": "ss", "đ": "d", "ð": "d", "þ": "th", "ł": "l"})

REMARKS = re.compile(r"\[[^\]]*\]|<[^>]*>|\([^)]*\)")

CONTRACTIONS = [(re.compile(pattern), text) for pattern, text in (
    (r"\s+(?='(s|t|re|ve|ll|d|m)\b)", ""),  # "he 's" as some write it
    (r"\s+(?=n't\b)", ""),
    (r"\bwon't\b", "will not"), (r"\bcan't\b", "can not"), (r"\bshan't\b", "shall not"), (r"\bain't\b", "aint"),
    (r"\blet's\b", "let us"), (r"\by'all\b", "you all"), (r"\bma'am\b", "madam"),
    (r"'s (?=(been|gone|got)\b)", " has "), (r"'d (?=(been|gone|done)\b)", " had "),
    (r"n't\b", " not"), (r"'t\b", " not"), (r"'re\b", " are"), (r"'s\b", " is"), (r"'d\b", " would"),
    (r"'ll\b", " will"), (r"'ve\b", " have"), (r"'m\b", " am"),
)]  # fmt: skip

CURRENCIES = {"$": "dollar", "£": "pound", "€": "euro"}
AMOUNT = re.compile(r"([$£€]) ?([0-9]+(?:\.[0-9]+)?)((?: (?:thousand|million|billion|trillion)\b)?)")

FILLERS = frozenset("hmm mm mmm mhm uh um".split())
LONG_FORMS = {
    "mr": "mister", "mrs": "missus", "dr": "doctor", "prof": "professor", "ok": "okay", "cannot": "can not",
    "wanna": "want to", "gonna": "going to", "gotta": "got to",
    "woulda": "would have", "coulda": "could have", "shoulda": "should have",
}  # fmt: skip

# British -> American: parts of words, and the endings that they take.
SPELLINGS: dict[str, str] = {
    british + ending: american + ending
    for endings, pairs in {
        ("", "s", "ed", "ing"): (
            "colour color|favour favor|honour honor|labour labor|flavour flavor|harbour harbor"),
        ("ful",): "colour color",
        ("able",): "favour favor|honour honor",
        ("", "s"): (
            "behaviour behavior|humour humor|neighbour neighbor|rumour rumor|vapour vapor|odour odor|theatre theater|"
            "centre center|metre meter|litre liter|kilometre kilometer|centimetre centimeter|fibre fiber|"
            "defence defense|offence offense|aeroplane airplane|moustache mustache|tyre tire|favourite favorite|"
            "neighbourhood neighborhood|traveller traveler|programme program|cheque check"),
        ("e", "es", "ed", "ing"): (
            "realis realiz|organis organiz|apologis apologiz|recognis recogniz|civilis civiliz|memoris memoriz|"
            "specialis specializ|analys analyz|paralys paralyz"),
        ("ation", "ations"): "organis organiz|realis realiz|civilis civiliz|specialis specializ",
        ("er", "ers"): "organis organiz",
        ("ed", "ing"): "travell travel|cancell cancel|modell model|labell label|signall signal|quarrell quarrel",
        ("", "er", "est"): "grey gray",
        ("",): "jewellery jewelry|pyjamas pajamas|sceptical skeptical|plough plow|mould mold|aluminium aluminum",
    }.items()
    for british, american in (pair.split() for pair in pairs.split("|"))
    for ending in endings
}  # fmt: skip


def normalise(text: str) -> str:
    """`text` by the steps above: words of small letters and digits, one space between them; "" if nothing is left."""
    text = _plain_characters(text)
    text = REMARKS.sub(" ", text)
    for pattern, long in CONTRACTIONS:
        text = pattern.sub(long, text)
    words = [new for word in _without_marks(text).split() for new in _plain_word(word).split()]
    return re.sub(r"\bper cent\b", "percent", " ".join(with_digits(words)))


def normal_words(text: str) -> list[str]:
    """The words of `normalise(text)`."""
    return normalise(text).split()


def _plain_characters(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.translate(QUOTES)).lower()
    text = unicodedata.normalize("NFKD", text.translate(LETTERS))
    return "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf"))  # accents, and what is not seen


def _without_marks(text: str) -> str:
    """Marks as words or spaces; what stays is a point between two digits, "0.5" also where ".5" was written."""
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"(?<![\w.])\.(?=[0-9])", "0.", text)
    text = AMOUNT.sub(_amount, text)
    text = text.replace("%", " percent ").replace("&", " and ").replace("¢", " cents ")
    text = re.sub(r"(?<![0-9])\.|\.(?![0-9])", " ", text)
    return "".join(" " if c != "." and unicodedata.category(c)[0] in "MPSC" else c for c in text)


def _amount(match: re.Match[str]) -> str:
    sign, number, scale = match.groups()
    return f" {number}{scale} {CURRENCIES[sign]}{'' if (number, scale) == ('1', '') else 's'} "


def _plain_word(word: str) -> str:
    if word in FILLERS:
        return ""
    return LONG_FORMS.get(word) or SPELLINGS.get(word, word)

"""What counts as another word and what as typography, and in which rate a text is counted."""

from __future__ import annotations

import random
import unicodedata

import pytest

from asrd.evaluation.normalising import metric, normaliser
from asrd.scoring import edits

PAIRS = [  # language, reference, hypothesis, edits
    ("en", "don\u2019t stop, it\u2019s Mr. O\u2019Neil\u2019s", "don't stop, it's Mr. O'Neil's", 0),
    ("en", "don\u02bct we\uff07re", "don't we're", 0),
    ("en", "don\u2019t", "do", 1),
    ("en", "\u200bhello there", "hello there", 0),
    ("en", "\ufeffhello\u2060 there", "hello there", 0),
    ("en", "co\u00adoperate", "cooperate", 0),
    ("en", "hello\u00a0there\u202fyou", "hello there you", 0),
    ("en", "ten\u2011forty five \u2013 yes", "ten-forty five yes", 0),
    ("en", "wait\u2026what", "wait... what", 0),
    ("en", "\u201chello\u201d he said", '"hello" he said', 0),
    ("en", "ｈｅｌｌｏ ｔｈｅｒｅ", "hello there", 0),
    ("en", "the ﬁne oﬀer", "the fine offer", 0),
    ("en", "cafe\u0301", "café", 0),
    ("en", "the cat", "the hat", 1),
    ("fr", "l\u2019homme n\u2019est", "l'homme n'est", 0),
    ("fr", "e\u0301te\u0301", "été", 0),
    ("fr", "été", "ete", 1),
    ("fr", "l\u2019\u0153uvre", "l'oeuvre", 0),
    ("ro", "\u015fi \u0163ar\u0103", "\u0219i \u021bar\u0103", 0),
    ("ro", "s\u0327i", "\u0219i", 0),
    ("ro", "\u0219i", "si", 1),
    ("tr", "\u015fu", "su", 1),
    ("de", "Straße", "STRASSE", 0),
    ("de", "Grüße", "Gruße", 1),
    ("tr", "ISPARTA İzmir", "ısparta izmir", 0),
    ("tr", "sınır", "sinir", 1),
    ("de", "İstanbul", "istanbul", 0),
    ("uk", "п\u02bcять", "п\u2019ять", 0),
    ("el", "ΟΔΟΣ", "οδος", 0),
    ("hi", "कि", "की", 1),
    ("hi", "हिन्दी में किताब", "हिन्दी में किताब", 0),
    ("hi", "हिन्दी में किताब", "हिन्दी मे किताब", 1),
    ("hi", "\u0958लम", "\u0915\u093cलम", 0),
    ("hi", "वह १२ है।", "वह 12 है", 0),
    ("en", "कि", "की", 1),  # the setting's language is another one
    ("ta", "தமிழ் மொழி", "தமிழ் மொழி", 0),
    ("ta", "மொழி", "மொழ", 1),
    ("ml", "അവ\u0d28\u0d4d\u200d", "അവ\u0d7b", 0),
    ("bn", "কি", "কী", 1),
    ("ar", "مَرْحَبًا", "مرحبا", 0),
    ("ar", "مـــرحبا ١٢", "مرحبا 12", 0),
    ("ar", "كتاب", "كتب", 1),
    ("fa", "کتاب ی", "كتاب ي", 0),
    ("fa", "می\u200cروم", "میروم", 0),
    ("he", "שָׁלוֹם", "שלום", 0),
    ("he", "שלום", "שלם", 1),
    ("ko", "한국어 말", unicodedata.normalize("NFD", "한국어 말"), 0),
    ("ko", "한국어 말", "한국말 말", 1),
    ("zh", "今天，天气很好。", "今天天气很好", 0),
    ("zh", "今天天气很好", "今天天汽很好", 1),
    ("zh", "今天 天气", "今天天气", 0),
    ("ja", "ｺｰﾋｰ", "コーヒー", 0),
    ("ja", "コーヒー", "コヒー", 1),
    ("th", "วันนี้", "วันนี", 1),
    ("th", "วัน\u200bนี้", "วันนี้", 0),
    ("my", "ကောင်းတယ်", "ကောင်းတယ်", 0),
    ("km", "ថ្ងៃនេះ", "ថ្ងៃនេ", 1),
    ("vi", "học", unicodedata.normalize("NFD", "học"), 0),
    ("vi", "học", "hoc", 1),
]


@pytest.mark.parametrize(("language", "reference", "hypothesis", "count"), PAIRS)
def test_words_are_counted_and_not_typography(
    language: str, reference: str, hypothesis: str, count: int
) -> None:
    clean = normaliser(language, metric([reference], language))
    assert sum(edits([clean(reference)], [clean(hypothesis)]).errors) == count, (
        clean(reference),
        clean(hypothesis),
    )


WORDS = {
    "en": ["don't", "stop", "the", "cooperation", "it's", "o'neil's", "cafe", "at", "noon"],
    "fr": ["l'homme", "n'est", "été", "déjà", "garçon", "où"],
    "hi": ["हिन्दी", "में", "किताब", "की", "कि", "है", "नहीं"],
    "ar": ["مرحبا", "كيف", "الحال", "كتاب", "سلام"],
    "zh": list("今天天气很好我们去公园"),
}
SIGNS = ["\u200b", "\u00ad", "\ufeff", "\u2060", "\u200e", "\ufe0f"]


def typeset(word: str, dice: random.Random) -> str:
    """Return the same word as another program might write it."""
    word = word.replace("'", dice.choice("'\u2019\u02bc\uff07\u2018"))
    place = dice.randrange(len(word) + 1)
    word = word[:place] + dice.choice(["", *SIGNS]) + word[place:]
    return unicodedata.normalize(dice.choice(["NFC", "NFD"]), word) + dice.choice(
        ["", ",", "\u2026", " \u2013", "!"]
    )


@pytest.mark.parametrize("seed", range(25))
def test_any_typography_of_the_same_words_is_the_same(seed: int) -> None:
    dice = random.Random(seed)
    for language, stock in WORDS.items():
        said = dice.choices(stock, k=8)
        joint = "" if language == "zh" else dice.choice([" ", "\u00a0", "\u3000"])
        clean = normaliser(language, metric(said, language))
        shown = joint.join(typeset(word, dice) for word in said)
        one, other = clean(("" if language == "zh" else " ").join(said)), clean(shown)
        assert one == other, (language, ascii(shown))


@pytest.mark.parametrize(
    ("texts", "language", "kind"),
    [
        (["今天天气很好"], "en", "CER"),
        (["今天 hello there", "天气很好吗"], "zh", "WER"),
        (["今天 ok", "天气很好吗"], "zh", "CER"),
        (["hello there", "今天"], "zh", "WER"),
        (["วันนี้อากาศดี"], "", "CER"),
        (["안녕하세요"], "ko", "WER"),
        (["", "..."], "ja", "CER"),
        ([], "en", "WER"),
    ],
)
def test_most_letters_decide_what_is_counted(texts: list[str], language: str, kind: str) -> None:
    assert metric(texts, language) == kind


def test_a_few_chinese_words_in_a_latin_text_are_counted_letter_by_letter() -> None:
    clean = normaliser("en", "WER")
    assert clean("say 你好世界 now twice").split() == [
        "say",
        "你",
        "好",
        "世",
        "界",
        "now",
        "twice",
    ]

import pytest

from analyticup.augmentation.translators.base import Translation
from analyticup.augmentation.translators.outputs import first_line, judged, refusal, scripts


@pytest.mark.parametrize(
    ("text", "translation", "language", "reason"),
    [
        ("red dress", "rotes Kleid", "de", ""),
        ("red dress", " ", "de", "empty"),
        ("ab", "x" * 48, "de", ""),
        ("ab", "x" * 49, "de", "too long"),
        ("red bag", "Tasche Tasche Tasche Tasche", "de", ""),
        ("red bag", "Tasche Tasche Tasche Tasche Tasche", "de", "repeats"),
        ("bag bag bag", "Tasche Tasche Tasche Tasche Tasche", "de", ""),
        ("red dress", "<pl> czerwona sukienka", "pl", "holds a tag"),
        ("red <de> dress", "rotes <de> Kleid", "de", ""),
        ("red dress", "Translation: rotes Kleid", "de", "explains"),
        ("galaxy note: case", "Galaxy Note: Hülle", "de", ""),
        ("赤いドレス", "赤いドレス", "de", "unchanged"),
        ("ชุด XL", "ชุด  xl", "de", "unchanged"),
        ("Telfar bag", "telfar bag", "de", ""),
        ("15 000", "15 000", "ar", ""),
        ("red dress", "rotes 赤 Kleid", "de", "foreign letters"),
        ("red dress", "Красное платье", "de", "foreign letters"),
        ("赤い Ω ランプ", "rote Ω Lampe 10μm", "de", ""),
        ("red dress", "فستان أحمر", "ar", ""),
        ("nike red dress", "فستان nike أحمر", "ar", ""),
        ("red dress", "robe rouge", "ar", "no letter of its script"),
        ("Nike Air Max", "nike air max", "ar", ""),
        ("robe nike", "nike", "ar", "no letter of its script"),
        ("赤い 12", "12", "de", "no letter of its script"),
        ("red dress", "ชุดเดรสสีแดง", "th", ""),
        ("red dress", "红色连衣裙", "th", "foreign letters"),
        ("red dress", "赤いドレス", "ja", ""),
        ("red dress", "ﾄﾞﾚｽ々", "ja", ""),
        ("red dress", "빨간 드레스", "ja", "foreign letters"),
        ("red dress", "빨간 드레스", "ko", ""),
        ("red dress", "红色连衣裙", "ko", "foreign letters"),
        ("red dress", "đầm đỏ", "vn", ""),
        ("red dress", "красное платье", "ru", ""),
    ],
)
def test_outputs_that_can_be_no_translation(text, translation, language, reason):
    assert refusal(text, translation, language) == reason
    expected = Translation(None, refused=reason) if reason else Translation(translation)
    assert judged(text, translation, language) == expected


def test_scripts_are_those_of_letters_alone():
    assert scripts("Ａ1٣、ー々あ") == {"LATIN", "KATAKANA", "IDEOGRAPHIC", "HIRAGANA"}
    assert scripts("12 %") == set()


def test_the_first_line_with_text_is_taken():
    assert first_line("\n\n „rotes Kleid“ \nmore") == "rotes Kleid"
    assert first_line(" \n") == ""

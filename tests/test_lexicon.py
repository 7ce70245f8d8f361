import pytest

from analyticup.augmentation.translators import build_translator
from analyticup.augmentation.translators.base import Tools, Translation
from analyticup.augmentation.translators.lexicon import LexiconTranslator
from analyticup.errors import UserError
from analyticup.settings.schema import TranslateSettings
from analyticup.training.source import Machine

LANGUAGE_COLUMNS = "en\tfr\tja\tde\tpl\tvn"
CONCEPTS = f"""concept\tpath\taccessory_of\talias_en\t{LANGUAGE_COLUMNS}
phone\ta,b\t\tmobile\tphone\ttéléphone\t携帯電話\thandy\ttelefon\tđiện thoại
case\ta,c\tphone\tcover\tphone case\tcoque téléphone\t携帯電話ケース\thandyhülle\tetui na telefon\tốp lưng
boot\ta,d\t\t\tboot\tbotte\tブーツ\tstiefel\tbut\tbốt
boat\ta,e\t\t\tboat\tbateau\tボート\tboot\tłódź\tthuyền
"""
ATTRIBUTES = f"""kind\tattribute\t{LANGUAGE_COLUMNS}
color\tred\tred\trouge\t赤い\trote\tczerwony\tmàu đỏ
color\tmobile\tmobile\tmobile\tモバイル\tmobil\tmobilny\tdi động
"""


@pytest.fixture
def lexicon(tmp_path):
    (tmp_path / "concepts_a.tsv").write_text(CONCEPTS, encoding="utf-8")
    (tmp_path / "attributes.tsv").write_text(ATTRIBUTES, encoding="utf-8")
    return LexiconTranslator(tmp_path)


@pytest.mark.parametrize(
    ("query", "language", "translation"),
    [
        ("red phone case", "de", "rote handyhülle"),
        ("  RED  Phone Case", "vn", "màu đỏ ốp lưng"),
        ("coque téléphone rouge 15cm", "pl", "etui na telefon czerwony 15cm"),
        ("赤い携帯電話ケース", "de", "rote handyhülle"),
        ("iphone15携帯電話ケースx2", "de", "iphone15 handyhülle x2"),
        ("acme sm-a54 cover, 2 pcs", "de", "acme sm-a54 handyhülle , 2 pcs"),
        ("red", "de", None),
        ("acme 2000", "de", None),
        ("telephone phones", "de", None),
        ("", "de", None),
    ],
)
def test_lexicon_replaces_the_longest_phrases_and_keeps_the_rest(lexicon, query, language, translation):
    refused = "" if translation else "no known phrase"
    assert lexicon.translate([query], language) == [Translation(translation, refused=refused)]


def test_an_ambiguous_phrase_is_a_product_first_then_the_first_by_name(lexicon):
    assert [found.text for found in lexicon.translate(["mobile", "boot"], "fr")] == ["téléphone", "bateau"]


def test_the_lexicon_refuses_languages_and_folders_it_cannot_use(lexicon, tmp_path):
    with pytest.raises(UserError, match="no language 'th'; it has de, en, fr, ja, pl, vn"):
        lexicon.translate(["phone"], "th")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the lexicon needs concepts_"):
        LexiconTranslator(tmp_path / "empty")


def test_the_content_of_the_tables_is_the_identity(lexicon, tmp_path):
    before = LexiconTranslator(tmp_path).identity
    assert lexicon.identity == before
    (tmp_path / "attributes.tsv").write_text(ATTRIBUTES.replace("rouge", "pourpre"), encoding="utf-8")
    assert LexiconTranslator(tmp_path).identity != before


def test_the_lexicon_of_the_sample_corpus_reads_its_own_tables(tmp_path):
    def no_embedder():
        raise AssertionError("the lexicon needs no embedder")

    settings = TranslateSettings(translator="lexicon")
    lexicon = build_translator(settings, Tools(tmp_path, Machine("cpu", None), {}, no_embedder))
    translations = [
        lexicon.translate(["black frying pan 28cm"], code)[0].text for code in ("de", "it", "pl", "ar", "vn", "id")
    ]
    assert all(translation.endswith(" 28cm") and "pan " not in translation for translation in translations)
    assert len(set(translations)) == 6


def test_the_stage_is_identified_by_the_same_tables_as_the_translator():
    from analyticup.augmentation import translate_settings as _translate_identity
    from analyticup.settings.schema import Settings

    part = _translate_identity(Settings(translate=TranslateSettings(translator="lexicon")))
    assert LexiconTranslator().identity == f"lexicon:{part['tables'][:16]}"

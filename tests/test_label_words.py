"""Label words under tokenizers of every make: the one token that the word is after the prompt."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analyticup.errors import UserError
from analyticup.model.prompt import PromptEncoder
from analyticup.settings.schema import PromptSettings

MARK = "▁"


def bpe(blank, words, alphabet):
    """A BPE tokenizer whose merges make each of `words`, written with `blank` for a blank."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    merges = []
    for word in words:
        text = word.replace(" ", blank)
        for end in range(2, len(text) + 1):
            if text[:end] not in vocabulary:
                merges.append((text[: end - 1], text[end - 1]))
                vocabulary[text[:end]] = len(vocabulary)
    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))


CHARACTERS = [*map(chr, range(33, 127)), "\n", MARK]


def llama2(words):
    made = bpe(MARK, words, CHARACTERS)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    return made


def llama2_with_runs_of_blanks(words):
    return llama2([f"{MARK}{MARK}", *words])


def mistral(words):
    made = bpe(MARK, words, CHARACTERS)
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first", split=False)
    return made


def metaspace_always(words):
    made = bpe(MARK, words, CHARACTERS)
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always")
    return made


def gemma(words):
    made = bpe(MARK, words, CHARACTERS)
    made.normalizer = normalizers.Replace(" ", MARK)
    return made


def unigram(words):
    pieces = [("<unk>", 0.0), *((one, -9.0) for one in CHARACTERS), *((w.replace(" ", MARK), -3.0) for w in words)]
    made = Tokenizer(models.Unigram(pieces, 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always")
    return made


def gpt2(words, prefix=False):
    made = bpe("Ġ", words, sorted(pre_tokenizers.ByteLevel.alphabet()))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    return made


def roberta(words):
    return gpt2(words, prefix=True)


def qwen(words):
    made = gpt2(words)
    split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    return made


MAKES = [llama2, llama2_with_runs_of_blanks, mistral, metaspace_always, gemma, unigram, gpt2, roberta, qwen]


def encoder(make, words=(" yes", " no"), **more):
    made = PreTrainedTokenizerFast(tokenizer_object=make(list(words)), unk_token="<unk>")
    return made, PromptEncoder(made, PromptSettings(**more))


@pytest.mark.parametrize("template", [PromptSettings().template, "{target} | {query} ?"])
@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_the_word_after_the_prompt_is_the_token_with_its_blank(make, template):
    tokenizer, encoded = encoder(make, template=template)
    words = encoded.label_words()
    blank = "Ġ" if make in (gpt2, roberta, qwen) else MARK
    assert tokenizer.convert_ids_to_tokens([words.negative, words.positive]) == [f"{blank}no", f"{blank}yes"]
    # As the tokenizer itself goes on from the prompt's end to the word.
    end = template.rpartition("}")[2]
    assert tokenizer(end + " yes", add_special_tokens=False)["input_ids"][-1] == words.positive


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_a_word_of_several_tokens_is_explained(make):
    _, encoded = encoder(make, positive_word="maybe")
    with pytest.raises(UserError, match=r"label word 'maybe' is \d+ tokens .*, also after the prompt"):
        encoded.label_words()


@pytest.mark.parametrize("make", [llama2, mistral, gpt2], ids=lambda make: make.__name__)
def test_words_that_are_one_token_are_refused(make):
    _, encoded = encoder(make, positive_word="no")
    with pytest.raises(UserError, match="are the same token"):
        encoded.label_words()

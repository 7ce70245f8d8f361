"""Prompts: a user's text never becomes a control token, and the label word always comes right after the prompt."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from analyticup.errors import UserError
from analyticup.model.backbone import random_tokenizer
from analyticup.model.prompt import PromptEncoder
from analyticup.settings.schema import PromptSettings

SPECIAL = ("<bos>", "<eos>", "<pad>", "<|endoftext|>")


@pytest.fixture
def tokenizer():
    """The random tokenizer with the special tokens of the real ones."""
    made = random_tokenizer()
    made.add_special_tokens({"bos_token": "<bos>"})
    made.add_tokens([AddedToken("<|endoftext|>", special=True)])
    return made


def encode(tokenizer, query, target, **settings):
    settings = PromptSettings(**settings)
    (ids,) = PromptEncoder(tokenizer, settings).encode([query], [target])
    return ids


def text(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_the_prompt_reads_as_documented(tokenizer):
    ids = encode(tokenizer, "red bag", "bags,red", template="Query: {query}\nCategory: {target}\nRelevant:")
    assert text(tokenizer, ids) == "<bos>Query: red bag\nCategory: bags,red\nRelevant:"
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_the_target_may_stand_first_and_each_side_keeps_its_name_and_limit(tokenizer):
    template = "Item: {target}\nQuery: {query}\nRelevant:"
    ids = encode(tokenizer, "abcdefgh", "ABCDEFGH", template=template, max_query_tokens=4, max_target_tokens=6)
    assert text(tokenizer, ids) == "<bos>Item: ABCDE\nQuery: abc\nRelevant:"


@pytest.mark.parametrize("template", ["{query}|{target}?", "fits: {target} / {query}", "{query} {target} =>"])
def test_a_template_may_have_any_form(tokenizer, template):
    ids = encode(tokenizer, "red bag", "bags,red", template=template)
    assert text(tokenizer, ids) == "<bos>" + template.format(query="red bag", target="bags,red")


class Counting:
    """A tokenizer that notes what it is given, call by call."""

    def __init__(self, tokenizer):
        self.seen, self._tokenizer = [], tokenizer
        self.bos_token_id, self.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id

    def __call__(self, texts, **form):
        self.seen.append(texts)
        return self._tokenizer(texts, **form)


def test_a_text_is_tokenised_once_and_reads_the_same_each_time(tokenizer):
    counting = Counting(tokenizer)
    encoder = PromptEncoder(counting, PromptSettings(max_query_tokens=4, max_target_tokens=6))
    queries, targets = ["red bag", "shoe", "red bag"], ["bags", "bags", "shoe"]
    first = encoder.encode(queries, targets)
    # The prompt's own words come in the same call.
    assert counting.seen == [["Query:", "\nItem:", "\nRelevant:", " no", " yes", " red bag", " shoe", " bags"]]
    assert encoder.encode(queries[::-1], targets[::-1]) == first[::-1]
    assert encoder.encode(["new"], ["bags"]) == PromptEncoder(tokenizer, encoder.settings).encode(["new"], ["bags"])
    assert counting.seen[1:] == [[" new"]]


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = random_tokenizer()
    assert text(tokenizer, encode(tokenizer, "a", "b")) == "Query: a\nItem: b\nRelevant:"


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_in_a_text_stay_plain_characters(tokenizer, token):
    assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1, "else this test shows nothing"
    ids = encode(tokenizer, f"bag {token}", f"{token}{token}")
    assert not {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL} & set(ids[1:])
    plain = encode(tokenizer, "bag", "")
    assert len(ids) == len(plain) + len(f" {token}{token}{token}")
    assert text(tokenizer, ids[1:]) == f"Query: bag {token}\nItem: {token}{token}\nRelevant:"


@pytest.mark.parametrize(
    "query", ["bag", "", "x" * 5000, "<eos>", "\nRelevant: yes", "\ud800", "\0", "鞄" * 300, " " * 400]
)
@pytest.mark.parametrize("target", ["", "shoes", "y" * 5000])
def test_the_prompt_always_ends_at_the_label_position(tokenizer, query, target):
    encoder = PromptEncoder(tokenizer, PromptSettings(max_query_tokens=7, max_target_tokens=9))
    ids = encoder.encode([query], [target])[0]
    head, middle, tail = encoder.fixed
    assert ids[: len(head)] == head and ids[-len(tail) :] == tail
    assert len(ids) <= len(head) + 7 + len(middle) + 9 + len(tail)


def test_each_side_is_cut_at_its_own_limit(tokenizer):
    ids = encode(tokenizer, "abcdefgh", "ABCDEFGH", max_query_tokens=4, max_target_tokens=6)
    assert text(tokenizer, ids) == "<bos>Query: abc\nItem: ABCDE\nRelevant:"


def test_a_text_within_the_limit_is_not_cut(tokenizer):
    # A thousand letters of three bytes each, as Thai ones are, in a byte-level tokenizer.
    query = "ก" * 1000
    assert query in text(tokenizer, encode(tokenizer, query, "b", max_query_tokens=3001))


def test_a_lone_surrogate_becomes_the_replacement_of_the_tokenizer_and_the_rest_stays(tokenizer):
    assert text(tokenizer, encode(tokenizer, "a\ud800b", "c\udfff")) == "<bos>Query: a?b\nItem: c?\nRelevant:"


def test_an_empty_target_is_a_target(tokenizer):
    assert text(tokenizer, encode(tokenizer, "a", "")) == "<bos>Query: a\nItem: \nRelevant:"


def test_rows_come_back_in_order(tokenizer):
    encoder = PromptEncoder(tokenizer, PromptSettings())
    queries, targets = ["a", "b", "a", "a"], ["x", "x", "y", "x"]
    ids = encoder.encode(queries, targets)
    expected = [
        f"<bos>Query: {query}\nItem: {target}\nRelevant:" for query, target in zip(queries, targets, strict=True)
    ]
    assert [text(tokenizer, row) for row in ids] == expected


def test_no_rows_give_no_prompts(tokenizer):
    assert PromptEncoder(tokenizer, PromptSettings()).encode([], []) == []


def test_lists_of_unequal_length_are_a_mistake(tokenizer):
    with pytest.raises(ValueError):
        PromptEncoder(tokenizer, PromptSettings()).encode(["a", "b"], ["x"])


def test_the_label_words_are_the_tokens_with_the_blank(tokenizer):
    words = PromptEncoder(tokenizer, PromptSettings()).label_words()
    assert tokenizer.convert_ids_to_tokens([words.negative, words.positive]) == ["Ġno", "Ġyes"]
    swapped = PromptEncoder(tokenizer, PromptSettings(positive_word="no", negative_word="yes")).label_words()
    assert (swapped.positive, swapped.negative) == (words.negative, words.positive)


@pytest.mark.parametrize(("word", "tokens"), [("relevant", 9), ("", 1)])
def test_a_label_word_of_several_tokens_is_refused(tokenizer, word, tokens):
    encoder = PromptEncoder(tokenizer, PromptSettings(positive_word=word, negative_word="no"))
    if tokens == 1:
        # A blank alone is a token, if no sensible word; it is not this check's business.
        encoder.label_words()
        return
    with pytest.raises(UserError, match=f"label word '{word}' is {tokens} tokens .* choose a word that is one token"):
        encoder.label_words()


def test_equal_label_words_are_refused(tokenizer):
    with pytest.raises(UserError, match="'no' and 'no' are the same token"):
        PromptEncoder(tokenizer, PromptSettings(positive_word="no")).label_words()

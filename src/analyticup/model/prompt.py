"""Rows to token ids: the prompt P(q, c) of Eq. 1 and the two label words."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from analyticup.errors import UserError
from analyticup.settings.schema import PromptSettings


@dataclass(frozen=True)
class LabelWords:
    """Token ids of the two label words, each a single token."""

    negative: int
    positive: int


class PromptEncoder:
    """Encodes `prompt.template`, e.g. `Query: {query}\\nItem: {target}\\nRelevant:`; the label word follows it.

    The prompt's pieces are tokenised apart, so that truncation never touches the label position, and no text of a user
    can become a special token (`<bos>` in a query stays plain characters). A distinct text is tokenised once in the
    encoder's life: folds and stages meet the same ones again and again.
    The wording is assumed: no source gives the paper's prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._known: dict[int, dict[str, array[int]]] = {}
        start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        head, first, middle, second, tail = re.split(r"\{(query|target)\}", settings.template)
        self.target_first = first == "target"
        # A blank before a text belongs to the text's first token.
        self.blank = {name: piece[len(piece.removesuffix(" ")) :] for name, piece in ((first, head), (second, middle))}
        pieces = self._tokens([head.removesuffix(" "), middle.removesuffix(" "), tail])
        self.head, self.middle, self.tail = start + pieces[0], pieces[1], pieces[2]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # A lone surrogate (JSON "\ud800") is no text for a tokenizer; it becomes the replacement character.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        encoded = self.tokenizer(clean, add_special_tokens=False, split_special_tokens=True)
        return [list(ids) for ids in encoded["input_ids"]]

    def encode(self, queries: Sequence[str], targets: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, label word not included.

        Queries and targets have the same length n; returns n lists, each at most
        `max_query_tokens + max_target_tokens` longer than the fixed words.
        """
        by_query = self._distinct(queries, self.blank["query"], self.settings.max_query_tokens)
        by_target = self._distinct(targets, self.blank["target"], self.settings.max_target_tokens)
        pairs = [(by_query[query], by_target[target]) for query, target in zip(queries, targets, strict=True)]
        if self.target_first:
            pairs = [(target, query) for query, target in pairs]
        return [[*self.head, *first, *self.middle, *second, *self.tail] for first, second in pairs]

    def _distinct(self, texts: Sequence[str], blank: str, limit: int) -> Mapping[str, Sequence[int]]:
        # Characters that cannot reach the token limit are cut first: 100k characters cost nothing.
        cut = {text: blank + text[: limit * 16] for text in texts}
        known = self._known.setdefault(limit, {})
        new = [text for text in dict.fromkeys(cut.values()) if text not in known]
        # Lists of numbers would take several times the memory.
        known.update((text, array("i", ids[:limit])) for text, ids in zip(new, self._tokens(new), strict=True))
        return {text: known[short] for text, short in cut.items()}

    def label_words(self) -> LabelWords:
        """The label words' ids, with the blank before them; raises UserError where a word is not one token."""
        words = (self.settings.negative_word, self.settings.positive_word)
        ids = self._tokens([f" {word}" for word in words])
        for word, tokens in zip(words, ids, strict=True):
            if len(tokens) != 1:
                raise UserError(
                    f"prompt: label word {word!r} is {len(tokens)} tokens for this tokenizer; "
                    f"choose a word that is one token"
                )
        if ids[0] == ids[1]:
            raise UserError(f"prompt: label words {words[0]!r} and {words[1]!r} are the same token; make them differ")
        return LabelWords(negative=ids[0][0], positive=ids[1][0])

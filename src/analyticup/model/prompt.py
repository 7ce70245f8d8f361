"""Rows to token ids: the prompt P(q, c) of Eq. 1 and the two label words."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Any, Protocol

from analyticup.corpus.taxonomy import split_path
from analyticup.errors import UserError
from analyticup.settings.schema import PromptSettings


@dataclass(frozen=True)
class LabelWords:
    """Token ids of the two label words, each a single token."""

    negative: int
    positive: int


class TextTokens(Protocol):
    """What prompts need of a tokenizer; those of Transformers have it."""

    bos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, texts: list[str], *, add_special_tokens: bool, split_special_tokens: bool) -> Any: ...


class PromptEncoder:
    """Encodes `prompt.template`, e.g. `Query: {query}\\nItem: {target}\\nRelevant:`; the label word follows it. `texts`
    are the names of the texts in it, in their order.

    The prompt's pieces are tokenised apart, so that truncation never touches the label position, and no text of a user
    can become a special token (`<bos>` in a query stays plain characters). A distinct text is tokenised once in the
    encoder's life: folds and stages meet the same ones again and again.
    The wording is assumed: no source gives the paper's prompt.
    """

    def __init__(self, tokenizer: TextTokens, settings: PromptSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._known: dict[str, array[int]] = {}
        *parts, tail = re.split(r"\{(query|target|reasoning)\}", settings.template)
        before, self.texts = parts[::2], parts[1::2]
        # A blank before a text belongs to the text's first token.
        self.blank = {
            name: piece[len(piece.removesuffix(" ")) :] for name, piece in zip(self.texts, before, strict=True)
        }
        self._pieces = (*(piece.removesuffix(" ") for piece in before), tail)
        self._words = (f" {settings.negative_word}", f" {settings.positive_word}")

    def _learn(self, texts: Sequence[str]) -> None:
        """Tokenises the texts that are new, together with the prompt's own, as a call may cost a process."""
        new = [text for text in dict.fromkeys([*self._pieces, *self._words, *texts]) if text not in self._known]
        if not new:
            return
        # A lone surrogate (JSON "\ud800") is no text for a tokenizer; it becomes the replacement character.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in new]
        encoded = self.tokenizer(clean, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        # Lists of numbers would take several times the memory.
        self._known.update((text, array("i", ids)) for text, ids in zip(new, encoded, strict=True))

    @cached_property
    def fixed(self) -> tuple[list[int], ...]:
        """Ids of the prompt's fixed words: before, between and after its texts."""
        self._learn([])
        start = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        head, *others = (list(self._known[piece]) for piece in self._pieces)
        return start + head, *others

    def encode(
        self, queries: Sequence[str], targets: Sequence[str], reasoning: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Token ids of each prompt, label word not included.

        Queries and targets have the same length n, and so has the reasoning, which is needed where `texts` names it;
        returns n lists, each at most `settings.longest` longer than the fixed words.
        """
        if marker := self.settings.level_marker:
            targets = [_marked(target, marker) for target in targets]
        settings = self.settings
        limits = {
            "query": settings.max_query_tokens,
            "target": settings.max_target_tokens,
            "reasoning": settings.reasoning.max_tokens,
        }
        given = {"query": queries, "target": targets, "reasoning": reasoning or []}
        # Characters that cannot reach the token limit are cut first: 100k characters cost nothing.
        cut = {name: [self.blank[name] + text[: limits[name] * 16] for text in given[name]] for name in self.texts}
        self._learn([text for texts in cut.values() for text in texts])
        head, *others = self.fixed
        columns = [[self._known[text][: limits[name]] for text in texts] for name, texts in cut.items()]
        return [
            [*head, *chain.from_iterable(chain(*pair) for pair in zip(texts, others, strict=True))]
            for texts in zip(*columns, strict=True)
        ]

    def _word(self, word: str) -> Sequence[int]:
        """Ids of a label word with its blank.

        Tokenizers that put a blank before every text (SentencePiece as in Llama 2) see two in " yes" by itself. In the
        prompt there is one, and it belongs to the word: what the word adds to the prompt's end counts then.
        """
        alone, end = self._known[word], self._pieces[-1]
        if len(alone) == 1:
            return alone
        self._learn([end + word])
        before, after = list(self._known[end]), list(self._known[end + word])
        return after[len(before) :] if after[: len(before)] == before and len(after) == len(before) + 1 else alone

    def label_words(self) -> LabelWords:
        """The label words' ids, with the blank before them; raises UserError where a word is not one token."""
        words = (self.settings.negative_word, self.settings.positive_word)
        self._learn([])
        ids = [self._word(word) for word in self._words]
        for word, tokens in zip(words, ids, strict=True):
            if len(tokens) != 1:
                raise UserError(
                    f"prompt: label word {word!r} is {len(tokens)} tokens for this tokenizer, "
                    f"also after the prompt's end; choose a word that is one token"
                )
        if ids[0] == ids[1]:
            raise UserError(f"prompt: label words {words[0]!r} and {words[1]!r} are the same token; make them differ")
        return LabelWords(negative=ids[0][0], positive=ids[1][0])


def _marked(path: str, marker: str) -> str:
    """`[L1] shoes [L2] red shoes` from `shoes,red shoes`."""
    levels = enumerate(split_path(path), 1)
    return " ".join(f"{marker.replace('{n}', str(number))} {level}" for number, level in levels)


class PairEncoder(PromptEncoder):
    """Encodes query and target as an encoder's tokenizer joins two texts, e.g. `<s> query </s></s> target </s>`.

    `prompt.template` is not used. As in a prompt, no text of a user can become a special token.
    """

    def __init__(self, tokenizer: Any, settings: PromptSettings) -> None:
        super().__init__(tokenizer, settings.replace(template="{query}{target}"))

    @cached_property
    def fixed(self) -> tuple[list[int], ...]:
        """Ids of the special tokens before, between and after the two texts; UserError where there are none."""
        joined = self.tokenizer("a", "b", return_special_tokens_mask=True)
        pairs = zip(joined["special_tokens_mask"], joined["input_ids"], strict=True)
        runs = [(bool(special), [id for _, id in run]) for special, run in groupby(pairs, key=lambda pair: pair[0])]
        if [special for special, _ in runs] != [True, False, True, False, True]:
            raise UserError(
                "model.backbone: its tokenizer puts no special tokens around two texts; is it an encoder's?"
            )
        return runs[0][1], runs[2][1], runs[4][1]

    @property
    def pair(self) -> str:
        """How it joins two texts, e.g. `<s> query </s> </s> target </s>`; UserError as `fixed`."""
        start, middle, end = (" ".join(self.tokenizer.convert_ids_to_tokens(ids)) for ids in self.fixed)
        return f"{start} query {middle} target {end}"

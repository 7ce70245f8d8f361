"""The embedded sample corpus: invented queries, paths and titles, written as the competition's own files.

Shares and weights are our choice (assumed) unless a comment says more. Positives are a little rarer than in
the competition's train files (.6895, .624): predicting all positive must score no higher here than there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from analyticup.corpus.languages import LANGUAGES
from analyticup.corpus.rows import TARGET_FIELD
from analyticup.corpus.taxonomy import split_path
from analyticup.corpus.text import query_key
from analyticup.engine.files import write_json_lines
from analyticup.errors import UserError
from analyticup.settings.schema import SampleSettings

_SEEN: Final = {"QC": ("en", "fr", "es", "ko", "pt", "ja"), "QI": ("en", "fr", "es", "pt", "th", "ja", "ko")}
_HELD_OUT: Final = {"QC": (*_SEEN["QC"], "de", "it", "pl", "ar"), "QI": tuple(LANGUAGES)}
POSITIVE_SHARE: Final = {"QC": 0.57, "QI": 0.57}
# Rows per query, 1 to 4. A query has one category, and besides it only ancestors of it: .57 positives,
# nearly all of them that category, leave a mean of 1.8 rows; titles have no such limit: mean 2.5.
_ROW_WEIGHTS: Final = {"QC": (44, 36, 14, 6), "QI": (20, 32, 26, 22)}
_NEGATIVE_WEIGHTS: Final = {
    "QC": {"sibling": 15, "counterpart": 7, "far": 78},
    # Not every query names a color, material or audience to contradict: 30 comes to some 15 % of all.
    # `leafmate`: an accessory in the same category as its product is wrong as an item, not as a category.
    "QI": {"sibling": 20, "counterpart": 8, "leafmate": 8, "contradiction": 14, "far": 90},
}
# Were short paths (the ancestors) rarer among negatives than among positives, length would give the label away.
_FAR_ANCESTOR: Final = 0.1
_ATTRIBUTE_WEIGHTS: Final = (35, 45, 20)
_TYPO, _MIXED, _CODE, _STRAY, _MISTAGGED, _THAI_TITLE = 0.08, 0.08, 0.12, 0.01, 0.02, 0.3
# 453 of 340,000 in the competition's train file; at that rate a small sample would have none to trip over.
_NULL_TITLES: Final = 2
_QUERY_CHARS: Final = (2, 80)  # as the competition's shortest and longest queries
_MAX_TRIES: Final = 200
_NOUN_LAST: Final = frozenset({"en", "ko", "ja", "de"})
_NO_TYPOS: Final = frozenset({"ko", "ja", "th"})
_KIND_ORDER: Final = ("audience", "feature", "size", "color", "material")
_EXCLUSIVE: Final = frozenset({"audience", "color", "material"})
_WEAR: Final = r"^(women's|men's|shoes|apparel|luggage|jewelry|beauty)"
_FABRIC: Final = r"^(women's|men's|shoes|apparel|luggage|mother|home & garden|furniture|pet)"
_HARD: Final = r"^(home|lights|furniture|toys|office|pet|tools|auto|motorcycle|security|music|sports|computer)"
_POWERED: Final = r"^(phones|consumer|computer|home appliances|tools|toys|lights|security|auto|beauty)"
# Category paths on which an attribute makes sense; attributes not named here fit everywhere.
_ONLY_IN: Final = {
    **dict.fromkeys(("cotton", "silk", "wool", "linen", "soft"), _FABRIC),
    **dict.fromkeys(("women", "men"), _WEAR),
    **dict.fromkeys(("kids", "baby"), r"^(shoes|apparel|luggage|toys|furniture|sports|home & garden,bedding)"),
    **dict.fromkeys(("dog", "cat"), r"^(pet|home & garden,bedding)"),
    **dict.fromkeys(("wireless", "rechargeable"), _POWERED),
    **dict.fromkeys(("stainless-steel", "plastic", "magnetic", "adjustable", "foldable"), _HARD),
    **dict.fromkeys(("wood", "glass"), r"^(home & garden|furniture|toys|office|lights)"),
    "xl": r"^(women's|men's|pet|mother)",
    "leather": r"^(men's|shoes|apparel|luggage|furniture|auto|motorcycle|pet)",
    "silicone": r"^(phones|consumer|home & garden|shoes|beauty|mother|pet)",
    "handmade": r"^(women's|apparel|luggage|jewelry|furniture|toys|music)",
}
_AUDIENCES: Final = re.compile(r"\b(wom[ae]n|m[ae]n|lad(y|ies)|bab|kid|mother|matern|dog|cat|fish|aquari)")
_BRAND_HEADS: Final = ("Nor", "Bel", "Quin", "Osk", "Tar", "Plim", "Kes", "Zan", "Mir", "Hul", "Dra", "Yuv")
_BRAND_TAILS: Final = ("vela", "zora", "tavo", "elda", "quilo", "ovan", "idrex", "noxa")
_EXTRAS: Final = ("2 pcs", "new 2024", "high quality", "hot sale", "free shipping", "best seller", "in stock")
_MORE_EXTRAS: Final = ("set of 3", "gift box", "fast delivery", "new arrival", "for daily use", "wholesale")
_WEAR_EXTRAS: Final = ("size M", "size 38", "for party", "fashion design")
_THAI_EXTRAS: Final = ("พร้อมส่ง", "ของแท้", "ส่งฟรี", "รุ่นใหม่ 2024", "2 ชิ้น", "คุณภาพดี", "ขายดี")


@dataclass(frozen=True)
class Concept:
    """A product: `names` by competition language code; `accessory_of` and `alias_en` may be ""."""

    slug: str
    path: str
    accessory_of: str
    alias_en: str
    names: dict[str, str] = field(hash=False)

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """The levels of the path, root first."""
        return tuple(split_path(self.path))

    @cached_property
    def all_names(self) -> frozenset[str]:
        """Every name in every language and the alias, as they are compared."""
        return frozenset(query_key(n) for n in (self.alias_en, *self.names.values()) if n)

    @cached_property
    def word_sets(self) -> tuple[frozenset[str], ...]:
        """The words of each English name."""
        return tuple(frozenset(query_key(n).split()) for n in (self.names["en"], self.alias_en) if n)


@dataclass(frozen=True)
class Attribute:
    """What shoppers add to a product's name; `kind` is color, material, size, audience or feature."""

    kind: str
    slug: str
    names: dict[str, str] = field(hash=False)


@dataclass(frozen=True)
class Query:
    """One query: `language` is the tag of its rows (at times wrong), `code` a brand or model number or ""."""

    text: str
    language: str
    concept: Concept
    attributes: tuple[Attribute, ...]
    code: str


Row = tuple[Query, str | None, int]


def load_concepts() -> list[Concept]:
    """All concepts of `tables/concepts_*.tsv`, by file name and then in file order."""
    return [
        Concept(r["concept"], r["path"], r["accessory_of"], r["alias_en"], {k: r[k] for k in LANGUAGES})
        for r in _table("concepts_")
    ]


def load_attributes() -> list[Attribute]:
    """All attributes of `tables/attributes.tsv`, in file order."""
    return [Attribute(r["kind"], r["attribute"], {k: r[k] for k in LANGUAGES}) for r in _table("attributes")]


def _table(prefix: str) -> list[dict[str, str]]:
    folder = resources.files("analyticup.corpus").joinpath("tables")
    files = sorted((f for f in folder.iterdir() if f.name.startswith(prefix)), key=lambda f: f.name)
    tables = (io.StringIO(f.read_text(encoding="utf-8"), newline="") for f in files)
    return [r for t in tables for r in csv.DictReader(t, delimiter="\t", quoting=csv.QUOTE_NONE)]


def ancestors(path: str) -> list[str]:
    """The paths above a category that still say something, nearest first: those with two levels or more."""
    levels = split_path(path)
    return [",".join(levels[:n]) for n in range(len(levels) - 1, 1, -1)]


def _linked(a: Concept, b: Concept) -> bool:
    return a.accessory_of == b.slug or b.accessory_of == a.slug


def confusable(a: Concept, b: Concept) -> bool:
    """Whether a judge could accept one for the other: then neither may be the other's negative.

    True for the same leaf, a path on the other's way to the root, a shared name, and where one English name
    holds all words of the other (`watch` and `smart watch`) unless one is the other's accessory.
    """
    shared = min(len(a.levels), len(b.levels))
    if a.levels[-1] == b.levels[-1] or a.levels[:shared] == b.levels[:shared] or a.all_names & b.all_names:
        return True
    if _linked(a, b):
        return False
    return any(x <= y or y <= x for x in a.word_sets for y in b.word_sets)


def fits(attribute: Attribute, concept: Concept) -> bool:
    """Whether the attribute makes rough sense for the product, by path and names; never one in its name."""
    if not re.search(_ONLY_IN.get(attribute.slug, ""), concept.path):
        return False
    if attribute.kind == "audience" and _AUDIENCES.search(f"{concept.path} {concept.names['en']}"):
        return False
    return not any(attribute.names[k].casefold() in concept.names[k].casefold() for k in LANGUAGES)


class Catalogue:
    """Concepts with their negatives, `around[slug][kind]`, and attributes, `fitting[slug]`.

    `barred[slug]`: every path that is right for the concept or for one that is confusable with it.
    """

    def __init__(self, concepts: Sequence[Concept], attributes: Sequence[Attribute]) -> None:
        self.concepts = tuple(concepts)
        self.by_slug = {c.slug: c for c in concepts}
        self.fitting = {c.slug: [a for a in attributes if fits(a, c)] for c in concepts}
        self.around = {c.slug: self._neighbours(c) for c in concepts}
        self.barred = {
            c.slug: {p for o in concepts if confusable(c, o) for p in (o.path, *ancestors(o.path))} for c in concepts
        }

    def _neighbours(self, concept: Concept) -> dict[str, list[Concept]]:
        found: dict[str, list[Concept]] = {kind: [] for kind in ("sibling", "counterpart", "leafmate", "far")}
        for other in self.concepts:
            if _linked(concept, other):
                found["leafmate" if confusable(concept, other) else "counterpart"].append(other)
            elif other is concept or confusable(concept, other):
                continue
            elif other.levels[:-1] == concept.levels[:-1]:
                found["sibling"].append(other)
            elif other.levels[0] != concept.levels[0]:
                found["far"].append(other)
        return found


def choose_concepts(concepts: Sequence[Concept], count: int | None, seed: int) -> list[Concept]:
    """At least `count` concepts (None or too many: all), whole families: siblings and products of accessories."""
    families: dict[str, list[Concept]] = {}
    for concept in concepts:
        families.setdefault(",".join(concept.levels[:-1]), []).append(concept)
    order = sorted(families)
    rng_for(seed, "families").shuffle(order)
    by_slug = {concept.slug: concept for concept in concepts}
    chosen: set[str] = set()
    for family in order:
        if count is not None and len(chosen) >= count:
            break
        for concept in families[family]:
            linked: Concept | None = concept
            while linked is not None and linked.slug not in chosen:
                chosen.add(linked.slug)
                linked = by_slug.get(linked.accessory_of)
    return [concept for concept in concepts if concept.slug in chosen]


def rng_for(*parts: object) -> random.Random:
    """A generator seeded by the sha256 of the parts: the same on every machine and in every process."""
    return random.Random(hashlib.sha256("/".join(map(str, parts)).encode()).digest())


def phrase(name: str, attributes: Iterable[tuple[str, str]], language: str) -> str:
    """Product name and (kind, surface) pairs in the word order of the language: noun last, or noun first."""
    ordered = [s for _, s in sorted(attributes, key=lambda pair: _KIND_ORDER.index(pair[0]))]
    return " ".join([*ordered, name] if language in _NOUN_LAST else [name, *reversed(ordered)])


def typo(rng: random.Random, text: str) -> str:
    """The text with a letter dropped, doubled or swapped with the next, in a word of four letters or more."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    word, at = words[i], rng.randrange(1, len(words[i]) - 1)
    a, b = word[at], word[at + 1]
    words[i] = word[:at] + rng.choice((b, a + a + b, b + a if a != b else b)) + word[at + 2 :]
    return " ".join(words)


def _brand(rng: random.Random) -> str:
    return rng.choice(_BRAND_HEADS) + rng.choice(_BRAND_TAILS)


def _model_number(rng: random.Random) -> str:
    return "".join(rng.choices("bdfghkmnprstvwxz", k=2)) + f"-{rng.randrange(10, 100) * 10}"


def _pick_attributes(
    rng: random.Random, pool: Sequence[Attribute], count: int, taken: Iterable[str] = ()
) -> list[Attribute]:
    """Up to `count` attributes of different kinds, none of a kind in `taken`."""
    kinds, picked = set(taken), []
    for attribute in rng.sample(list(pool), len(pool)):
        if len(picked) < count and attribute.kind not in kinds:
            kinds.add(attribute.kind)
            picked.append(attribute)
    return picked


def draw_query(rng: random.Random, concept: Concept, tag: str, written_in: str, catalogue: Catalogue) -> Query:
    """One query for the concept as a shopper might type it in the language `written_in`, tagged as `tag`."""
    count = rng.choices((0, 1, 2), _ATTRIBUTE_WEIGHTS)[0]
    attributes = _pick_attributes(rng, catalogue.fitting[concept.slug], count)
    use_alias = written_in == "en" and concept.alias_en and rng.random() < 0.3
    name = concept.alias_en if use_alias else concept.names[written_in]
    surfaces = [(a.kind, a.names[written_in]) for a in attributes]
    if written_in != "en" and rng.random() < _MIXED:
        place = rng.randrange(len(surfaces) + 1)
        if place == len(surfaces):
            name = concept.names["en"]
        else:
            surfaces[place] = (attributes[place].kind, attributes[place].names["en"])
    text = phrase(name, surfaces, written_in)
    if written_in not in _NO_TYPOS and rng.random() < _TYPO:
        text = typo(rng, text)
    code = ""
    if rng.random() < _CODE:
        code = rng.choice((_brand, _model_number))(rng)
        text = f"{text} {code}" if "-" in code else f"{code} {text}"
    casing: Callable[[str], str] = rng.choices((str.lower, str, _title_case, str.upper), (20, 70, 6, 4))[0]
    text = casing(text) + (" %" if rng.random() < _STRAY else "")
    return Query(text, tag, concept, tuple(attributes), code)


def _title_case(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def draw_queries(seed: int, task: str, split: str, count: int, catalogue: Catalogue, taken: set[str]) -> list[Query]:
    """`count` queries spread evenly over languages and concepts; their keys, all new, join `taken`."""
    rng = rng_for(seed, task, split, "queries")
    languages = (_SEEN if split == "train" else _HELD_OUT)[task]
    tags = list(islice(cycle(languages), count))
    concepts: list[Concept] = []
    while len(concepts) < count:
        concepts += rng.sample(catalogue.concepts, len(catalogue.concepts))
    english = [i for i, tag in enumerate(tags) if tag == "en"]
    mistagged = set(rng.sample(english, round(_MISTAGGED * len(english))))
    queries = []
    for i, (tag, concept) in enumerate(zip(tags, concepts, strict=False)):
        written_in = rng.choice(languages[1:]) if i in mistagged else tag
        for _ in range(_MAX_TRIES):
            query = draw_query(rng, concept, tag, written_in, catalogue)
            if query_key(query.text) not in taken and _QUERY_CHARS[0] <= len(query.text) <= _QUERY_CHARS[1]:
                break
        else:
            raise UserError(
                f"data.sample.{split}_queries={count}: no unused query text is left for {concept.slug} in "
                f"{written_in}; lower it"
            )
        taken.add(query_key(query.text))
        queries.append(query)
    return queries


def _positive_counts(
    rng: random.Random, sizes: Sequence[int], limits: Sequence[int], share: float, one_each: bool
) -> list[int]:
    """Positives per query, round(share * rows) in all if `limits` allow; `one_each`: firsts come first."""
    slots = [(i, n) for i, size in enumerate(sizes) for n in range(min(size, limits[i]))]
    rng.shuffle(slots)
    if one_each:
        slots.sort(key=lambda slot: slot[1] > 0)
    counts = Counter(i for i, _ in slots[: round(share * sum(sizes))])
    return [counts[i] for i in range(len(sizes))]


def _neighbour(rng: random.Random, query: Query, kinds: dict[str, int], catalogue: Catalogue) -> tuple[str, Concept]:
    """A kind of negative and the concept for it, drawn from the kinds that this query has."""
    around = catalogue.around[query.concept.slug]
    pools = {**around, "contradiction": [query.concept] if _contradictions(query, catalogue) else []}
    left = {kind: weight for kind, weight in kinds.items() if pools[kind]}
    kind = rng.choices(list(left), list(left.values()))[0]
    return kind, rng.choice(pools[kind])


def qc_rows(seed: int, split: str, queries: Sequence[Query], catalogue: Catalogue) -> list[Row]:
    """Query and category path with the true label; no path twice for a query, rows of a query together."""
    rng = rng_for(seed, "QC", split, "rows")
    sizes = rng.choices((1, 2, 3, 4), _ROW_WEIGHTS["QC"], k=len(queries))
    limits = [1 + len(ancestors(q.concept.path)) for q in queries]
    rows: list[Row] = []
    counts = _positive_counts(rng, sizes, limits, POSITIVE_SHARE["QC"], one_each=True)
    for query, size, positives in zip(queries, sizes, counts, strict=True):
        above = ancestors(query.concept.path)
        targets = [query.concept.path, *rng.sample(above, len(above))][:positives]
        while len(targets) < size:
            kind, other = _neighbour(rng, query, _NEGATIVE_WEIGHTS["QC"], catalogue)
            shorter = ancestors(other.path) if kind == "far" and rng.random() < _FAR_ANCESTOR else []
            target = rng.choice(shorter or [other.path])
            if target not in targets and target not in catalogue.barred[query.concept.slug]:
                targets.append(target)
        labelled = [(query, target, int(n < positives)) for n, target in enumerate(targets)]
        rows += rng.sample(labelled, size)
    return rows


def _contradictions(query: Query, catalogue: Catalogue) -> list[tuple[Attribute, Attribute]]:
    """Pairs of an attribute asked for and another that rules it out."""
    others = catalogue.fitting[query.concept.slug]
    return [(a, b) for a in query.attributes for b in others if a.kind == b.kind in _EXCLUSIVE and a.slug != b.slug]


def draw_title(
    rng: random.Random, concept: Concept, attributes: Sequence[Attribute], code: str, of: str, language: str
) -> str:
    """An item title, 4 to 14 words, or one in Thai; `of`: English name of what an accessory is for, or ""."""
    name = concept.names[language]
    if language == "en":
        name = concept.alias_en if concept.alias_en and rng.random() < 0.35 else name
        name += f" for {of}" if of else ""
    core = phrase(name, [(a.kind, a.names[language]) for a in attributes], language)
    brand = code if code and "-" not in code else _brand(rng) if rng.random() < 0.75 else ""
    model = code if "-" in code else _model_number(rng) if rng.random() < 0.15 else ""
    wear = _WEAR_EXTRAS if re.search(_WEAR, concept.path) else ()
    extras = rng.sample(_THAI_EXTRAS if language == "th" else (*_EXTRAS, *_MORE_EXTRAS, *wear), 4)
    room = 14 - len(f"{brand} {core} {model}".split())
    wanted = [e for n, e in zip(range(rng.randint(1, 4)), extras, strict=False) if 3 * n + 3 <= room]
    if len(f"{brand} {core} {model} {' '.join(wanted)}".split()) < 4:
        wanted = extras[:3]
    head, tail = (wanted[:1], wanted[1:]) if rng.random() < 0.2 else ([], wanted)
    front, back = (brand, "") if rng.random() < 0.8 else ("", brand)
    text = " ".join(part for part in (*head, front, core, model, *tail, back) if part)
    return text if rng.random() < 0.25 else _title_case(text)


def _positive_title(rng: random.Random, query: Query, catalogue: Catalogue, language: str) -> str:
    concept = query.concept
    kept = [a for a in query.attributes if rng.random() < 0.85]
    free = _pick_attributes(rng, catalogue.fitting[concept.slug], 1, {a.kind for a in query.attributes})
    of = catalogue.by_slug[concept.accessory_of].names["en"] if concept.accessory_of else ""
    kept += free if rng.random() < 0.4 else []
    return draw_title(rng, concept, kept, query.code, of if rng.random() < 0.3 else "", language)


def _negative_title(rng: random.Random, query: Query, catalogue: Catalogue, language: str) -> str:
    kind, other = _neighbour(rng, query, _NEGATIVE_WEIGHTS["QI"], catalogue)
    fitting = catalogue.fitting[other.slug]
    attributes = [a for a in query.attributes if a in fitting and rng.random() < 0.85]
    if kind == "contradiction":
        asked, given = rng.choice(_contradictions(query, catalogue))
        attributes = [given, *(a for a in query.attributes if a is not asked)]
    elif rng.random() < 0.4:
        attributes += _pick_attributes(rng, fitting, 1, {a.kind for a in query.attributes})
    of = query.concept.names["en"] if other.accessory_of == query.concept.slug and rng.random() < 0.5 else ""
    return draw_title(rng, other, attributes, query.code if rng.random() < 0.5 else "", of, language)


def qi_rows(seed: int, split: str, queries: Sequence[Query], catalogue: Catalogue) -> list[Row]:
    """Query and item title with the true label; no title twice for a query; a few train titles are None."""
    rng = rng_for(seed, "QI", split, "rows")
    sizes = rng.choices((1, 2, 3, 4), _ROW_WEIGHTS["QI"], k=len(queries))
    rows: list[Row] = []
    counts = _positive_counts(rng, sizes, sizes, POSITIVE_SHARE["QI"], one_each=False)
    for query, size, positives in zip(queries, sizes, counts, strict=True):
        titles: dict[str, tuple[str, int]] = {}
        while len(titles) < size:
            language = "th" if query.language == "th" and rng.random() < _THAI_TITLE else "en"
            draw = _positive_title if len(titles) < positives else _negative_title
            title = draw(rng, query, catalogue, language)
            titles.setdefault(query_key(title), (title, int(draw is _positive_title)))
        rows += rng.sample([(query, title, label) for title, label in titles.values()], size)
    missing = rng.sample(range(len(rows)), min(_NULL_TITLES, len(rows))) if split == "train" else []
    return [(q, None if n in missing else title, label) for n, (q, title, label) in enumerate(rows)]


def flip_labels(rng: random.Random, labels: Sequence[int], share: float) -> list[int]:
    """The labels (0 or 1) with exactly `round(share * len(labels))` of them flipped."""
    flipped = set(rng.sample(range(len(labels)), round(share * len(labels))))
    return [1 - label if n in flipped else label for n, label in enumerate(labels)]


def write_sample(settings: SampleSettings, seed: int, out_dir: Path) -> None:
    """Write the corpus as the competition's six files, with label files next to them, into the existing `out_dir`.

    `{dev,test}_{task}.labels.txt` hold the true labels, `train_{task}.truth.txt` those of the train rows
    before `settings.label_noise` (a share, 0 to 1) of them were flipped. Same settings and seed, same bytes.
    Held-out files are drawn first: more training queries leave them as they are. UserError where the tables
    have too few query texts.
    """
    sizes = {"test": settings.test_queries, "dev": settings.dev_queries, "train": settings.train_queries}
    catalogue = Catalogue(choose_concepts(load_concepts(), settings.concepts, seed), load_attributes())
    taken: set[str] = set()
    for split, count in sizes.items():
        for task, draw_rows in (("QC", qc_rows), ("QI", qi_rows)):
            queries = draw_queries(seed, task, split, count, catalogue, taken)
            rows = draw_rows(seed, split, queries, catalogue)
            truth = [label for _, _, label in rows]
            labels = None
            if split == "train":
                labels = flip_labels(rng_for(seed, task, "noise"), truth, settings.label_noise)
            _write_rows(out_dir / f"{split}_{task}.txt", task, rows, labels)
            name = f"{split}_{task}.{'truth' if split == 'train' else 'labels'}.txt"
            write_json_lines(out_dir / name, [{"id": n, "label": label} for n, label in enumerate(truth, 1)])


def _write_rows(path: Path, task: str, rows: Sequence[Row], labels: Sequence[int] | None) -> None:
    lines: list[dict[str, object]] = []
    for n, (query, target, _) in enumerate(rows, 1):
        line = {"id": n, "task": task, "language": query.language, "origin_query": query.text}
        lines.append({**line, TARGET_FIELD[task]: target} | ({"label": labels[n - 1]} if labels else {}))
    write_json_lines(path, lines)

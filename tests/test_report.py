"""The report as a page: what it holds, and in a browser that it fits, can be read, and asks for nothing."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Page
from made_reports import ARABIC, TASKS, THAI, made_facts, made_report
from pandas import DataFrame
from rich.console import Console

from analyticup.ensembling.threshold import choose_threshold
from analyticup.report.figures import Report
from analyticup.report.page import to_html
from analyticup.report.scored import side_by_side
from analyticup.report.tables import render
from analyticup.settings.schema import ThresholdSettings

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ["headline", "rows", "languages", "threshold", "ranking", "calibration", "confusion", "scores", "folds"]
SECTIONS += ["examples", "cost", "origin"]
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
# What the style sheet's margins leave of 210 mm, at 96 pixels per inch.
A4 = 688
# npm install axe-core puts it there; the kit has no copy.
AXE = Path(os.environ.get("AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
browsed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def figures() -> Report:
    return made_report()


@pytest.fixture(scope="module")
def file(figures: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(figures, made_facts(figures)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


def test_every_section_is_there_with_a_picture_and_its_numbers(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', text) == SECTIONS
    for key in SECTIONS[1:9]:
        section = text[text.index(f'<section id="{key}"') :].partition("</section>")[0]
        assert section.count("<svg") == section.count("<summary>Numbers") >= len(TASKS), key


def test_a_page_is_small_and_names_no_other_place(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    assert not re.search(r"<script|https?:|@import|url\(", text)


def test_texts_are_shown_as_they_are_or_not_at_all(figures: Report) -> None:
    shown, hidden = (to_html(figures, made_facts(figures, texts)) for texts in (True, False))
    assert f'<bdi dir="auto" lang="ar">{ARABIC}</bdi>' in shown and "query &lt;b&gt;&amp;" in shown
    assert ARABIC not in hidden and "query &lt;b&gt;" not in hidden and "<bdi" not in hidden
    assert "report.rows does not allow them" in hidden


def test_a_fixed_threshold_and_the_swept_one_are_shown_side_by_side() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.5, 0.8])
    table = DataFrame({"label": labels, "score": scores})
    fixed = ThresholdSettings(mode="fixed", value=0.7)
    figures = made_report()
    decision = figures.out_of_fold["QC"]
    assert side_by_side(table, decision) == []
    figures.out_of_fold["QC"] = decision = replace(decision, **vars(choose_threshold(labels, scores, fixed)))
    figures.cuts["out-of-fold QC"] = both = side_by_side(table, decision)
    figures.cuts["test QC"] = side_by_side(table[["score"]], decision)
    assert both == [
        {"threshold": 0.7, "rows": 4, "positive": 1, "f1": pytest.approx(2 / 3)},
        {"threshold": 0.5, "rows": 4, "positive": 2, "f1": 1.0},
    ]
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(render(figures)[-1])
    shown = [line.split() for line in console.export_text().splitlines()]
    assert ["out-of-fold", "QC", "4", "0.70", "1", "0.6667", "0.50", "2", "1.0000"] in shown
    assert ["test", "QC", "4", "0.70", "1", "-", "0.50", "2", "-"] in shown
    text = to_html(figures, made_facts(figures))
    assert "0.50 on out-of-fold QC, 2 yes" in text and "submit-swept.zip is by such ones" in text


def test_the_same_report_gives_the_same_bytes(figures: Report, file: Path, tmp_path: Path) -> None:
    figures.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert to_html(again, made_facts(again)).encode() == file.read_bytes()


@browsed
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_a_browser_finds_no_fault(page: Page, file: Path, width: int, scheme: str) -> None:
    page.load(file, width, scheme)
    assert page.problems == []
    assert page.ask("document.documentElement.scrollWidth") <= width
    paper = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 380) == (scheme == "light")
    # Nothing is drawn outside of its picture, where it would be cut off on paper or lie on other text.
    outside = """[...document.querySelectorAll('svg text')].filter(text => {
        const own = text.getBoundingClientRect(), all = text.closest('svg').getBoundingClientRect();
        return own.left < all.left - 12 || own.right > all.right + 12 || own.bottom > all.bottom + 2;
    }).map(text => text.textContent)"""
    assert page.ask(outside) == []
    page.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.ask("document.documentElement.scrollWidth") <= width


@browsed
def test_nothing_runs_off_the_paper(page: Page, file: Path) -> None:
    page.load(file, A4, "light")
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.ask("document.documentElement.scrollWidth") <= A4
    assert page.ask("getComputedStyle(document.querySelector('details .scroll')).visibility") == "visible"
    page.call("Emulation.setEmulatedMedia", media="")


@browsed
def test_scripts_of_other_directions_are_rendered(page: Page, file: Path) -> None:
    page.load(file, 390, "light")
    shown = "(lang => { const one = document.querySelector(`bdi[lang=${lang}]`), box = one.getBoundingClientRect();"
    shown += " return [one.textContent, getComputedStyle(one).direction, box.width > 20 && box.height > 8] })"
    assert page.ask(f"{shown}('ar')") == [ARABIC, "rtl", True]
    assert page.ask(f"{shown}('th')") == [THAI, "ltr", True]


@browsed
@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm install --no-save axe-core, or AXE=axe.min.js")
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_axe_finds_no_violation(page: Page, file: Path, width: int, scheme: str) -> None:
    page.load(file, width, scheme)
    page.ask(AXE.read_text(encoding="utf-8") + ";0")
    found = page.ask("axe.run().then(all => all.violations.map(one => [one.id, one.nodes[0].html]))")
    assert found == []

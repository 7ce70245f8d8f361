"""The ablation: the rows of the paper's Table 3 on the same data, with intervals, and its Figure 2.

A second table flips labels, so that the wrong ones are known, and compares ways to filter them.

A row is a config under configs/ablation/ that is laid over the given one. Rows share every stage that they have in
common, as any two runs do.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyticup.metrics import FIGURES
from analyticup.results.paired import Entry, Row

# Table 3 of arXiv 2510.21671, per task in its order; DPO is an alternative to SFT, nothing builds on it. Easy
# negatives and the stacks are not in it: one rival found that easy negatives help and hard ones hurt.
PAPER_ROWS = (
    Row("QC", "qc1-sft", "SFT", None),
    Row("QC", "qc2-dpo", "DPO", "qc1-sft"),
    Row("QC", "qc3-translation", "SFT + translation", "qc1-sft"),
    Row("QC", "qc4-negatives", "+ translation + negatives", "qc3-translation"),
    Row("QC", "qc5-filter", "+ translation + negatives + filter", "qc4-negatives"),
    Row("QC", "qc6-threshold", "+ translation + negatives + threshold", "qc4-negatives"),
    Row("QC", "qc7-easy-negatives", "+ translation + easy negatives", "qc3-translation"),
    Row("QC", "qc8-stack", "+ translation + negatives + threshold + stack", "qc6-threshold"),
    Row("QI", "qi1-sft", "SFT", None),
    Row("QI", "qi2-translation", "SFT + translation", "qi1-sft"),
    Row("QI", "qi3-filter", "+ translation + filter", "qi2-translation"),
    Row("QI", "qi4-threshold", "+ translation + filter + threshold", "qi3-filter"),
    Row("QI", "qi5-stack", "+ translation + filter + threshold + stack", "qi4-threshold"),
)
NOISE_ROWS = (
    Row("QC", "noise1-none", "SFT on flipped labels", None),
    Row("QC", "noise2-out-of-fold", "out-of-fold suspects dropped", "noise1-none"),
    Row("QC", "noise3-in-sample", "in-sample suspects dropped", "noise1-none"),
    Row("QC", "noise4-relabel", "out-of-fold suspects relabelled", "noise1-none"),
    Row("QC", "noise5-neighbours", "suspects by neighbours dropped", "noise1-none"),
)
TABLES = {"paper": PAPER_ROWS, "noise": NOISE_ROWS}


def figures_by_name(table: Sequence[Entry]) -> dict[str, float]:
    """The figures as configs/expected.yaml calls them, e.g. "qc1-sft all: auc"."""
    return {
        f"{entry['config']} {entry['languages']}: {name}": entry[name]["value"] for entry in table for name in FIGURES
    }

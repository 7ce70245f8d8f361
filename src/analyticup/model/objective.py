"""Training losses and the score, all from the hidden state at the label position."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from analyticup.model.prompt import LabelWords

OBJECTIVES = ("label_nll", "two_way")


def label_nll(hidden: Tensor, output_matrix: Tensor, words: LabelWords, labels: Tensor) -> Tensor:
    """Eq. 1: -log p(label word | P) over the whole vocabulary; the mean over the batch.

    hidden [rows, width]; output_matrix [vocabulary, width]; labels [rows] of 0/1.
    """
    import torch
    from torch.nn.functional import cross_entropy

    word_ids = torch.where(labels == 1, words.positive, words.negative)
    return cross_entropy((hidden @ output_matrix.T).float(), word_ids)


def two_way(hidden: Tensor, output_matrix: Tensor, words: LabelWords, labels: Tensor) -> Tensor:
    """Cross-entropy over the two label words alone; same arguments as `label_nll`."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(margins(hidden, output_matrix, words), labels.float())


def margins(hidden: Tensor, output_matrix: Tensor, words: LabelWords) -> Tensor:
    """Logit of the positive word minus logit of the negative word, float32 [rows].

    The score of Eq. 2, a softmax over these two logits, is the sigmoid of this difference.
    """
    rows = output_matrix[[words.negative, words.positive]].float()
    logits = hidden.float() @ rows.T
    return logits[:, 1] - logits[:, 0]


def loss_function(name: str):  # noqa: ANN201 - a plain function out of this module
    """The loss called `name`; the schema has already checked the name."""
    return {"label_nll": label_nll, "two_way": two_way}[name]

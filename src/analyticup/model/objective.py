"""Training losses and the score, all from the hidden state at the label position.

Every loss takes the same arguments and gives the mean over the batch, a float32 scalar:
hidden [rows, width]; output_matrix [vocabulary, width]; labels [rows] of 0/1; reference [rows], the margins of the
model without adapters, which only `dpo` reads. `smoothing` in [0, 0.5) is the probability that the target gives to
the other label word: 1 - smoothing on the label's word, smoothing on the other one, nothing on the rest of the
vocabulary; with a teacher one for each row, [rows] in [0, 1]. That form is assumed; where a source spreads its value
over both classes, as PyTorch does, half of it is meant here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from analyticup.model.prompt import LabelWords
from analyticup.settings.schema import TrainSettings

# Objectives that compare the model with itself without adapters.
NEEDS_REFERENCE = ("dpo",)


def loss_function(settings: TrainSettings) -> Callable[..., Tensor]:
    """The loss of `settings.objective`, called as loss(hidden, output_matrix, words, labels, reference or None).

    The schema has already checked the name and the ranges of `label_smoothing` and `dpo_beta`.
    """
    smoothing = settings.label_smoothing
    return {
        "label_nll": partial(label_nll, smoothing=smoothing),
        "two_way": partial(two_way, smoothing=smoothing),
        "dpo": partial(dpo, smoothing=smoothing, beta=settings.dpo_beta),
    }[settings.objective]


def label_nll(
    hidden: Tensor,
    output_matrix: Tensor,
    words: LabelWords,
    labels: Tensor,
    reference: Tensor | None = None,
    smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Eq. 1: -log p(label word | P) over the whole vocabulary."""
    word_ids = torch.where(labels == 1, words.positive, words.negative)
    loss = cross_entropy((hidden @ output_matrix.T).float(), word_ids)
    if isinstance(smoothing, float) and not smoothing:
        return loss
    # Both words share the normaliser: -log p(other) = -log p(label word) + margin of the label word over the other.
    other = (2 * labels - 1) * margins(hidden, output_matrix, words)
    return loss + (smoothing * other.mean() if isinstance(smoothing, float) else (smoothing * other).mean())


def two_way(
    hidden: Tensor,
    output_matrix: Tensor,
    words: LabelWords,
    labels: Tensor,
    reference: Tensor | None = None,
    smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Cross-entropy over only the two label words."""
    return binary_cross_entropy_with_logits(margins(hidden, output_matrix, words), _targets(labels, smoothing))


def dpo(
    hidden: Tensor,
    output_matrix: Tensor,
    words: LabelWords,
    labels: Tensor,
    reference: Tensor,
    smoothing: float | Tensor = 0.0,
    beta: float = 0.1,
) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, Eq. 7): the label's word chosen, the other one rejected.

    -log sigmoid(beta * ((log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected)))). Each difference
    is a margin, as the normaliser over the vocabulary cancels. With smoothing it is the conservative form (Mitchell
    2023): the preference is the other way round with that probability.

    Table 3 of the paper has a DPO row; pairs, reference (the base model) and beta > 0 are assumed. Where a share p of
    equal prompts is positive, the loss is least at the margin reference + log(p / (1 - p)) / beta: a small beta gives
    scores close to 0 and 1, and thresholds mean something else than with the other objectives.
    """
    gains = beta * (margins(hidden, output_matrix, words) - reference)
    return binary_cross_entropy_with_logits(gains, _targets(labels, smoothing))


def _targets(labels: Tensor, smoothing: float | Tensor) -> Tensor:
    """Probability of the positive word, [rows]."""
    return labels.float() * (1 - 2 * smoothing) + smoothing


def margins(hidden: Tensor, output_matrix: Tensor, words: LabelWords) -> Tensor:
    """Logit of the positive word minus logit of the negative word, float32 [rows].

    The score of Eq. 2, a softmax over these two logits, is the sigmoid of this difference.
    """
    # By a list of numbers a GPU would have to be waited for.
    rows = torch.stack([output_matrix[words.negative], output_matrix[words.positive]]).float()
    logits = hidden.float() @ rows.T
    return logits[:, 1] - logits[:, 0]

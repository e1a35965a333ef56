"""RoBERTa and XLM-RoBERTa: BERT's encoder, whose first position follows the padding token's id.

Liu et al. 2019, arXiv 1907.11692; Conneau et al. 2019, arXiv 1911.02116.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.models.bert import BertModel, read_spec, with_score
from octavo.models.encoder import Encoder, EncoderSpec


class RobertaModel(BertModel):
    """Vectors."""


class RobertaForSequenceClassification(Encoder):
    """Scores of pairs of texts."""

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> EncoderSpec:
        """Raises ModelLoadError, also for one with more than a score."""
        head = with_score(config, "roberta.", "classifier.dense", "classifier.out_proj")
        return replace(read_spec(config), **head)

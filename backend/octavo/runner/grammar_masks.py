"""GrammarMasks: brings which tokens may come next in rows that follow a grammar into the device's sampling tables.

Waits for the masks, which others compute; nothing else here waits. Knows no grammar.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from octavo.core.step import NewRow, TokenMask
from octavo.kernels.sampling_tables import RowSampling, SamplingTables, pack_bits
from octavo.runner.device import Device


class GrammarMasks:
    """Owns what each such row allows by itself (allowed_token_ids, bad words), as words of the tables."""

    def __init__(self, device: Device, tables: SamplingTables) -> None:
        self._device = device
        self._tables = tables
        self._own: dict[int, NDArray[np.int32]] = {}

    def set_row(self, new: NewRow, asked: RowSampling) -> None:
        """A sequence takes the row."""
        self._own.pop(new.row, None)
        if new.params.structured_outputs is not None and asked.allowed is not None:
            self._own[new.row] = pack_bits(asked.allowed)

    def launch(self, masks: Mapping[int, TokenMask]) -> None:
        """The masks of those rows that the device draws for, before the step that samples them."""
        rows = [row for row in masks if row in self._own]
        if not rows:
            return
        words = np.stack([_words(masks[row].allowed(), self._own[row]) for row in rows])
        self._device.launch(lambda: self._tables.set_masks(np.array(rows), words))


def _words(allowed: bytes, own: NDArray[np.int32]) -> NDArray[np.int32]:
    """What both allow; tokens beyond those that the mask knows are not allowed."""
    num_bytes = own.nbytes
    return np.frombuffer(allowed[:num_bytes].ljust(num_bytes, b"\0"), np.int32) & own

"""DeviceRunner: an executor whose device computes by itself while the host prepares what comes next.

The host stages numbers, launches and reads results that have arrived; it waits for the device only where a row asks
for what the device's sampler does not have. Knows nothing of scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.core.step import ModelRunnerOutput, NewRow, SchedulerOutput
from octavo.models.decoder import Decoder
from octavo.runner.device import Arrival, Device
from octavo.runner.device_tables import DeviceTables
from octavo.runner.drawn_tokens import AwaitedRow, DrawnStep, DrawnTokens
from octavo.runner.grammar_masks import GrammarMasks
from octavo.runner.graph_ladder import GraphLadder, ladder_sizes
from octavo.runner.host_rows import HostRows
from octavo.runner.input_batch import InputBatch, Integers, StepArrays
from octavo.runner.kv_cache import copy_blocks
from octavo.runner.null_steps import largest_null_step
from octavo.runner.row_sampling import row_sampling
from octavo.runner.staging import StagedStep, Staging
from octavo.runner.step_work import MixedInputs, StepWork

# Steps that may be on their way at once, and one whose result is being read.
_NUM_SLOTS = 3
# Numbers of block tables that one copy brings; more, as long cached prompts may have, take several.
_STAGED_BLOCKS = 1 << 15
# Before the first request: what few users need. The other graphs are captured when there is nothing else to do.
_SIZES_AT_START = 8
_STEPS_BEFORE_CAPTURE = 16


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step on its way: `output` has what is known already, `awaited` are the rows whose tokens are to come."""

    output: ModelRunnerOutput
    awaited: list[AwaitedRow]
    drawn: DrawnStep | None = None
    arrival: Arrival | None = None

    def result(self) -> ModelRunnerOutput:
        """Waits for the device; to be called once, before two more steps are launched."""
        if self.drawn is not None and self.arrival is not None:
            self.arrival.wait()
            self.drawn.add_to(self.output, self.awaited)
        return self.output


class DeviceRunner:
    """A LateExecutor on one device. Owns the rows, their tables' contents, and the captured graphs."""

    def __init__(
        self,
        model: Decoder,
        kv_caches: list[Tensor],
        batch: InputBatch,
        device: Device,
        tables: DeviceTables,
        max_num_batched_tokens: int,
    ) -> None:
        num_rows = tables.max_num_seqs
        self._work = StepWork(model, kv_caches, tables)
        self._batch = batch
        self._device = device
        num_words = 3 * max_num_batched_tokens + 8 * (num_rows + 1) + 2 * _STAGED_BLOCKS
        self._staging = Staging(device, num_words, _NUM_SLOTS)
        self._drawn = DrawnTokens(device, num_rows, _NUM_SLOTS)
        self._host_rows = HostRows(self._work, device, batch)
        self._grammar_masks = GrammarMasks(device, tables.sampling)
        self._ladder = GraphLadder(device, ladder_sizes(num_rows), self._decode_of_size, self._stage_padding)
        self._max_num_batched_tokens = max_num_batched_tokens
        self.num_start_fallbacks = 0
        self._num_ungraphed = self._ungraphed_rows = 0
        self._num_before_capture = _STEPS_BEFORE_CAPTURE

    @property
    def num_blocks(self) -> int:
        """KV blocks in the pool, the null block included."""
        return len(self._work.kv_caches[0])

    @property
    def num_fallbacks(self) -> int:
        """How often a slower way was taken: steps without their graph, rows drawn on the host, graphs not captured."""
        missed = self._num_ungraphed + self._ladder.num_fallbacks
        return self.num_start_fallbacks + missed + self._host_rows.num_rows_drawn

    def shutdown(self) -> None:
        """Waits for the device. No step may follow."""
        self._device.synchronize()

    def make_ready(self) -> bool:
        """Captures the graph of another number of rows; False when there is none left."""
        return self._ladder.capture_next()

    def warm_up(self) -> None:
        """Steps on the null block, and the graphs of the first sizes: what follows compiles and allocates nothing."""
        self._device.launch(self.largest_step())
        self._device.launch(self.largest_decode())
        while self._ladder.largest < _SIZES_AT_START and self._ladder.capture_next():
            pass
        self._device.synchronize()

    def largest_step(self) -> Callable[[], None]:
        """The step that takes the most memory, as work on the null block: all tokens that a step may have."""
        nobody = self._work.tables.max_num_seqs
        # Not what its blocks hold: the model may know no angles for positions beyond.
        longest = self._batch.token_ids.shape[1] - 1
        arrays = largest_null_step(self._max_num_batched_tokens, nobody, nobody, longest)
        places = np.arange(len(arrays.rows))
        staged = self._staging.begin()
        work = self._mixed(staged, arrays, drawing=places, on_host=places)

        def send_and_work() -> None:
            staged.send()
            work()

        return send_and_work

    def largest_decode(self) -> Callable[[], None]:
        """The largest decode step, as work on the null block."""
        self._stage_padding(self._work.tables.max_num_seqs)
        return self._decode_of_size(self._work.tables.max_num_seqs)

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Computes one step and waits for it."""
        return self.launch(step).result()

    @torch.inference_mode()
    def launch(self, step: SchedulerOutput) -> LaunchedStep:
        """Begins a step after those before it."""
        self._capture_missed()
        self._batch.apply(step)
        self._launch_new_rows(step.new_rows)
        self._grammar_masks.launch(step.masks)
        if step.block_copies:
            self._device.launch(lambda: copy_blocks(list(self._work.kv_caches), step.block_copies))
        places, blocks = self._block_deltas(step)
        output = ModelRunnerOutput(step.step_id, [[] for _ in step.rows])
        if not step.rows:
            return LaunchedStep(output, [])
        arrays = self._batch.arrays(step)
        drawing = np.flatnonzero(arrays.samples)
        on_host = self._host_rows.of(step, drawing)
        awaited = [
            AwaitedRow(index, place, self._batch.new_row(step.rows[index]).params.logprobs)
            for place, index in enumerate(drawing.tolist())
            if index not in on_host
        ]
        staged = self._staging.begin()
        is_decode = len(drawing) == len(step.rows) == len(arrays.token_ids) and not on_host
        work = self._decode(staged, arrays) if is_decode else self._mixed(staged, arrays, drawing, on_host)
        drawn = self._drawn.begin(any(row.num_best is not None for row in awaited))
        self._launch(staged, (places, blocks), work, drawn)
        arrival = drawn.fetch()
        self._staging.used_until(arrival)
        for row in awaited:
            self._batch.append_unknown(step.rows[row.index])
        if on_host or self._batch.wants_prompt_logprobs[step.rows].any():
            self._host_rows.draw(step, arrays, on_host, output)
        if arrays.pools.any():
            self._host_rows.pool(step, arrays, output)
        return LaunchedStep(output, awaited, drawn, arrival)

    def _launch(
        self, staged: StagedStep, deltas: tuple[Integers, Integers], work: Callable[[], None], drawn: DrawnStep
    ) -> None:
        tables = self._work.tables
        places, blocks = (staged.put(column) for column in deltas)

        def everything() -> None:
            staged.send()
            if len(places):
                tables.set_blocks(places, blocks)
            work()
            drawn.keep(tables.drawn_words)

        self._device.launch(everything)

    def _launch_new_rows(self, new_rows: Sequence[NewRow]) -> None:
        """What the sequences ask of the sampler, into its tables; not for rows that the host draws for."""
        sampling = self._work.tables.sampling
        vocab_size = self._work.model.spec.vocab_size
        for new in new_rows:
            asked = row_sampling(new, vocab_size)
            self._host_rows.draws_for[new.row] = not asked.fits
            if asked.fits:
                self._grammar_masks.set_row(new, asked)
                self._device.launch(lambda row=new.row, asked=asked: sampling.set_row(row, asked))  # type: ignore[misc]

    def _block_deltas(self, step: SchedulerOutput) -> tuple[Integers, Integers]:
        """(places, blocks) of the device's block table that this step changes; many are sent ahead.

        row b of the table   [ known before | new_blocks ) num_blocks         place = row * max_blocks + column
        """
        batch = self._batch
        max_blocks = batch.block_table.shape[1]
        spans = [(new.row, 0, len(new.block_table)) for new in step.new_rows]
        spans += [(row, int(batch.num_blocks[row]) - len(blocks), len(blocks)) for row, blocks in step.new_blocks]
        places = np.concatenate(
            [np.arange(row * max_blocks + first, row * max_blocks + first + count) for row, first, count in spans]
            or [np.empty(0, np.int64)]
        )
        blocks = batch.block_table.reshape(-1)[places].astype(np.int64)
        while len(places) > _STAGED_BLOCKS:
            staged = self._staging.begin()
            ahead = staged.put(places[:_STAGED_BLOCKS]), staged.put(blocks[:_STAGED_BLOCKS])
            self._device.launch(staged.send)
            self._device.launch(lambda ahead=ahead: self._work.tables.set_blocks(*ahead))  # type: ignore[misc]
            self._device.synchronize()
            places, blocks = places[_STAGED_BLOCKS:], blocks[_STAGED_BLOCKS:]
        return places, blocks

    def _capture_missed(self) -> None:
        """Under load from the first second on no moment is idle: now and then a graph is captured all the same."""
        if self._num_ungraphed >= self._num_before_capture:
            self._num_before_capture = self._num_ungraphed + _STEPS_BEFORE_CAPTURE
            self._ladder.capture_next(self._ungraphed_rows)

    def _decode_of_size(self, size: int) -> Callable[[], None]:
        """The decode step whose numbers lie where `_decode` and `_stage_padding` put them."""
        rows, token_ids, positions = self._staging.place[: 3 * size].view(3, size)
        return lambda: self._work.decode(rows, token_ids, positions)

    def _stage_padding(self, size: int) -> None:
        """Numbers of a decode step that does nothing."""
        staged = self._staging.begin()
        staged.put(np.full(size, self._work.tables.max_num_seqs))
        staged.put(np.zeros(2 * size, np.int64))
        self._device.launch(staged.send)
        self._device.synchronize()

    def _decode(self, staged: StagedStep, arrays: StepArrays) -> Callable[[], None]:
        """One token a row: by the graph of as many rows or a few more, which then pad; else operation by operation."""
        num_rows = len(arrays.rows)
        found = self._ladder.find(num_rows)
        if found is None:
            self._num_ungraphed += 1
            self._ungraphed_rows = num_rows
        size = num_rows if found is None else found[0]
        nobody = self._work.tables.max_num_seqs
        columns = ((arrays.rows, nobody), (arrays.token_ids, 0), (arrays.positions, 0))
        for column, filler in columns:
            staged.put(np.concatenate((column, np.full(size - num_rows, filler))))
        return self._decode_of_size(size) if found is None else found[1]

    def _mixed(
        self, staged: StagedStep, arrays: StepArrays, drawing: Integers, on_host: Sequence[int] | Integers
    ) -> Callable[[], None]:
        """Any step, operation by operation."""
        drawing_rows = arrays.rows[drawing]
        num_scheduled = arrays.num_scheduled_tokens
        longer = np.flatnonzero(num_scheduled > 1)
        inputs = MixedInputs(
            rows=staged.put(arrays.rows),
            seq_lens=staged.put(arrays.seq_lens),
            cu_seqlens_q=staged.put(arrays.cu_seqlens_q),
            token_ids=staged.put(arrays.token_ids),
            positions=staged.put(arrays.positions),
            slot_mapping=staged.put(arrays.slot_mapping),
            last_tokens=staged.put(arrays.cu_seqlens_q[1:][drawing] - 1),
            drawing_rows=staged.put(drawing_rows),
            sampling_rows=staged.put(np.where(np.isin(drawing, on_host), -1, drawing_rows)),
            num_tokens=staged.put(arrays.seq_lens[drawing]),
            num_decode_rows=int(longer[0]) if len(longer) else len(num_scheduled),
            max_seqlen_q=int(num_scheduled.max()),
            max_seq_len=int(arrays.seq_lens.max()),
        )
        return lambda: self._host_rows.remember(self._work.mixed(inputs))

"""min_p, top_k, top_p and the draw from what they leave, one program a row, in the Triton language. Nothing is sorted.

One pass lists the few tokens that can be left at all; limits are then searched for in the list, by counting what
reaches a pivot. Keys are the bits of |scaled logit|: integers that grow as the logit falls. Sums have a fixed order.
"""

from __future__ import annotations

from octavo.kernels.counter_noise import exponential
from octavo.kernels.language import jit, tl
from octavo.kernels.sampling_tables import EDITS, MIN_P_FLOOR, OFF_TOP_P, TEMPERATURE, TOP_K, TOP_P

# A token this far below the best cannot win (noise spans -2.9 .. 22.2), and all such together weigh under 4e-9.
_HOPELESS = tl.constexpr(-32.0)
_LAST_KEY = tl.constexpr(0x7F800000)
_NO_LIMIT = tl.constexpr(1 << 30)
# Behind every key and every token id.
_NONE = tl.constexpr(2**31 - 1)


@jit
def draw_truncated(
    logits: tl.tensor,
    edited: tl.tensor,
    maxima: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    peak: tl.tensor,
    key: tl.tensor,
    vocab_size: tl.tensor,
    num_maxima: tl.tensor,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Time (noise / weight) and id of the token drawn for one row.

    logits, edited, maxima: the row's logits [V], as they came and edited, and the largest of each group of them
    [num_maxima]. values (fp32), ids (int32): scratch of at least V and num_maxima numbers. numbers, integers: the row's
    parameters. peak: the row's largest logit, finite.
    """
    temperature = tl.load(numbers + TEMPERATURE)
    min_floor = tl.maximum(tl.load(numbers + MIN_P_FLOOR), _HOPELESS)
    top_p = tl.load(numbers + TOP_P)
    top_k = tl.load(integers + TOP_K)
    floor = min_floor
    if top_k > 0:
        if top_k <= num_maxima:
            floor = tl.maximum(floor, _kth_maximum(maxima, values, peak, temperature, top_k, num_maxima, TILE))
    elif top_p < OFF_TOP_P:
        # Whatever top_p cuts off weighs more than 1 - p of a total of at least 1, the best token's weight: so the
        # largest of it, at the edge, has more than (1 - p) / V.
        floor = tl.maximum(floor, tl.log((1.0 - top_p) / vocab_size) - 0.1)
    has_edits = tl.load(integers + EDITS) != 0
    count, total = _list(
        logits, edited, has_edits, values, ids, peak, temperature, floor, min_floor, vocab_size, TILE
    )  # fmt: skip
    tl.debug_barrier()
    edge = _key(floor)
    num_ties = tl.full((), _NO_LIMIT, tl.int32)
    if top_k > 0:
        edge = _search(values, count, edge, top_k.to(tl.float64), TILE // 2, False)
        total = _weight(values, count, edge, TILE)
    if top_p < OFF_TOP_P:
        target = total * top_p.to(tl.float64)
        edge = _search(values, count, edge, target, TILE // 2, True)
        missing = (target - _weight(values, count, edge - 1, TILE)).to(tl.float32)
        ties = tl.ceil(missing / tl.exp(-edge.to(tl.float32, bitcast=True)))
        num_ties = tl.maximum(tl.minimum(ties, 1e9).to(tl.int32), 1)
    time, token_id = _draw_listed(values, ids, count, edge, num_ties, key, TILE)
    return time, token_id


@jit
def load_logits(
    logits: tl.tensor, edited: tl.tensor, has_edits: tl.tensor, ids: tl.tensor, vocab_size: tl.tensor
) -> tl.tensor:
    """fp32 logits of one row: the edited ones if there are any; -inf beyond the vocabulary."""
    if has_edits:
        x = tl.load(edited + ids, mask=ids < vocab_size, other=float("-inf"))
    else:
        x = tl.load(logits + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    return x


@jit
def _key(scaled: tl.tensor) -> tl.tensor:
    """int32, 0 for the best token's scaled logit 0, larger for smaller ones. scaled: fp32 <= 0."""
    return tl.abs(scaled).to(tl.int32, bitcast=True)


@jit
def _kth_maximum(
    maxima: tl.tensor,
    values: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    num_maxima: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The top_k-th largest group maximum, scaled: at least top_k tokens reach it, and few more. Overwrites `values`."""
    for start in range(0, num_maxima, TILE):
        groups = start + tl.arange(0, TILE)
        inside = groups < num_maxima
        x = tl.load(maxima + groups, mask=inside, other=float("-inf"))
        tl.store(values + groups, tl.div_rn(x - peak, temperature), mask=inside)
    tl.debug_barrier()
    found = _search(values, num_maxima, tl.full((), _LAST_KEY, tl.int32), top_k.to(tl.float64), TILE // 2, False)
    tl.debug_barrier()
    return -found.to(tl.float32, bitcast=True)


@jit
def _list(
    logits: tl.tensor,
    edited: tl.tensor,
    has_edits: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    floor: tl.tensor,
    min_floor: tl.tensor,
    vocab_size: tl.tensor,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Lists the tokens that reach `floor`, ascending; their number, and the weight of all that reach `min_floor`."""
    lanes = tl.arange(0, TILE)
    weights = tl.zeros([TILE], tl.float64)
    count = tl.full((), 0, tl.int32)
    x = load_logits(logits, edited, has_edits, lanes, vocab_size)
    for start in range(0, vocab_size, TILE):
        # The next tile is on its way while this one is listed.
        following = load_logits(logits, edited, has_edits, start + TILE + lanes, vocab_size)
        scaled = tl.div_rn(x - peak, temperature)
        weights += tl.where(scaled >= min_floor, tl.exp(scaled), 0.0).to(tl.float64)
        is_listed = scaled >= floor
        places = count + tl.cumsum(is_listed.to(tl.int32), 0) - 1
        tl.store(values + places, scaled, mask=is_listed)
        tl.store(ids + places, start + lanes, mask=is_listed)
        count += tl.sum(is_listed.to(tl.int32))
        x = following
    return count, tl.sum(weights)


@jit
def _search(
    values: tl.tensor,
    count: tl.tensor,
    high: tl.tensor,
    target: tl.tensor,
    TILE: tl.constexpr,
    IS_WEIGHTED: tl.constexpr,
) -> tl.tensor:
    """The smallest key up to which `values` number (or weigh) at least `target`; `high` if no smaller one does."""
    low = tl.full((), -1, tl.int32)
    while high - low > 1:
        # low  |  first  |  middle  |  last  |  high      up to low is too little, up to high is (taken to be) enough
        quarter = (high - low) // 4
        middle = low + (high - low) // 2
        first = low + quarter
        last = middle + quarter
        to_first = tl.zeros([TILE], tl.float64)
        to_middle = tl.zeros([TILE], tl.float64)
        to_last = tl.zeros([TILE], tl.float64)
        smallest = tl.full([TILE], _NONE, tl.int32)
        largest = tl.full([TILE], -1, tl.int32)
        for start in range(0, count, TILE):
            places = start + tl.arange(0, TILE)
            inside = places < count
            scaled = tl.load(values + places, mask=inside, other=float("-inf"))
            keys = _key(scaled)
            is_between = inside & (keys > low) & (keys <= high)
            smallest = tl.minimum(smallest, tl.where(is_between, keys, _NONE))
            largest = tl.maximum(largest, tl.where(is_between, keys, -1))
            if IS_WEIGHTED:
                share = tl.exp(scaled).to(tl.float64)
            else:
                share = tl.where(inside, 1.0, 0.0).to(tl.float64)
            to_first += tl.where(keys <= first, share, 0.0)
            to_middle += tl.where(keys <= middle, share, 0.0)
            to_last += tl.where(keys <= last, share, 0.0)
        only = tl.min(smallest, 0)
        if only == tl.max(largest, 0):
            low = only - 1
            high = only
        elif tl.sum(to_middle) >= target:
            if (tl.sum(to_first) >= target) & (first > low):
                high = first
            else:
                low = first
                high = middle
        else:
            if tl.sum(to_last) >= target:
                low = middle
                high = last
            else:
                low = last
    return high


@jit
def _weight(values: tl.tensor, count: tl.tensor, key: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """Sum of exp over the `values` up to a key, fp64."""
    weights = tl.zeros([TILE], tl.float64)
    for start in range(0, count, TILE):
        places = start + tl.arange(0, TILE)
        scaled = tl.load(values + places, mask=places < count, other=float("-inf"))
        weights += tl.where(_key(scaled) <= key, tl.exp(scaled), 0.0).to(tl.float64)
    return tl.sum(weights)


@jit
def _draw_listed(
    values: tl.tensor,
    ids: tl.tensor,
    count: tl.tensor,
    edge: tl.tensor,
    num_ties: tl.tensor,
    key: tl.tensor,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Draws from the listed tokens above the edge and the first `num_ties` on it."""
    best = tl.full([TILE], float("inf"), tl.float32)
    best_ids = tl.full([TILE], _NONE, tl.int32)
    ties_before = tl.full((), 0, tl.int32)
    for start in range(0, count, TILE):
        places = start + tl.arange(0, TILE)
        inside = places < count
        scaled = tl.load(values + places, mask=inside, other=0.0)
        token_ids = tl.load(ids + places, mask=inside, other=0)
        keys = tl.where(inside, _key(scaled), _NONE)
        is_tie = keys == edge
        rank = ties_before + tl.cumsum(is_tie.to(tl.int32), 0)
        is_left = (keys < edge) | (is_tie & (rank <= num_ties))
        ties_before += tl.sum(is_tie.to(tl.int32))
        times = tl.where(is_left, exponential(key, token_ids) * tl.exp(-scaled), float("inf"))
        is_better = times < best
        best = tl.where(is_better, times, best)
        best_ids = tl.where(is_better, token_ids, best_ids)
    time = tl.min(best, 0)
    return time, tl.min(tl.where(best == time, best_ids, _NONE), 0)

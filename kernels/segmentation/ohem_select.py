"""Selection of the hard pixels on the device: threshold, or the n-th largest loss by radix select.

    hard = {p : loss_p > -log(threshold)},   n = floor(min_kept * number of valid pixels)
    ohem = mean of the max(|hard|, n) largest losses

``_ohem_decide_kernel`` adds up what the forward kernel counted. If there are n hard pixels, it is
done, and the kernels after it leave at their first instruction: nothing is read by the host. Else
the n - |hard| largest of the other losses are searched, eight bits of their order a pass: losses
are not negative, so their bit patterns order like their values. Each pass counts the next digit of
the losses that agree with the digits found so far; its programs leave histograms, and those of the
next pass add them up in a fixed order. All sums have a fixed order, so the result is deterministic.

The n-th largest loss T may be shared by more pixels than are wanted. The mean does not depend on
which of them are kept. Its gradient is spread over all of them evenly: a pixel above T has the
weight 1 / n, each of the ``ties`` pixels equal to T has ``wanted / (ties n)``, and the weights add
up to one. (The reference keeps those that its sort happens to put first.)
"""

from __future__ import annotations

import math
import struct

import triton
import triton.language as tl
from torch import Tensor

from ..common.device import on_device_of

_MOST_PROGRAMS = 128  # of a pass
_BLOCK = 2048
_BINS = 256
_SHIFTS = (24, 16, 8, 0)  # a pass's digit is (pattern >> shift) modulo 256
_LAST = len(_SHIFTS) - 1


@triton.jit(do_not_specialize=["slots", "hard_loss", "min_kept_bits", "kl_scale"])
def _ohem_decide_kernel(
    sums_ptr, counts_ptr, ohem_ptr, kl_ptr, selection_ptr, state_ptr,
    slots, hard_loss, min_kept_bits, kl_scale, HAS_TEACHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Final sums, and the selection if it is by threshold; one program.

    ``selection`` is the smallest loss kept, the weight of pixels above it and of those equal to it.
    ``state`` is the number kept, then for each pass the digits before it and how many losses with
    these digits are wanted. Where a search is needed, ``ohem`` holds the sum of the hard losses.

    Args:
        sums_ptr: ``[2, slots]`` float32, of the hard losses and of the divergence.
        counts_ptr: ``[2, slots]`` int32, of the valid and of the hard pixels.
        ohem_ptr: one number, written.
        kl_ptr: one number, the divergence, written.
        selection_ptr: ``[3]`` float32, written.
        state_ptr: ``[1 + 2 passes]`` int32, the first three written.
        slots: programs of the kernel before.
        hard_loss: the loss above which a pixel is hard.
        min_kept_bits: the share that is kept, as the bits of a float64.
        kl_scale: factor of the divergence.
        HAS_TEACHER: there is a divergence.
        BLOCK: slots of a tile.
    """
    valid = tl.zeros((BLOCK,), tl.int64)
    hard = tl.zeros((BLOCK,), tl.int64)
    hard_sum = tl.zeros((BLOCK,), tl.float64)
    kl_sum = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, slots, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < slots
        valid += tl.load(counts_ptr + offs, mask=mask, other=0)
        hard += tl.load(counts_ptr + slots + offs, mask=mask, other=0)
        hard_sum += tl.load(sums_ptr + offs, mask=mask, other=0.0)
        if HAS_TEACHER:
            kl_sum += tl.load(sums_ptr + slots + offs, mask=mask, other=0.0)
    num_hard = tl.sum(hard)
    # min_kept comes as the bits of a float64: as a number it would be rounded to float32
    min_kept = min_kept_bits.to(tl.int64).to(tl.float64, bitcast=True)
    least = (tl.sum(valid).to(tl.float64) * min_kept).to(tl.int64)
    kept = tl.maximum(num_hard, least)
    total = tl.sum(hard_sum)
    ohem = tl.where(num_hard < least, total, total / tl.maximum(kept, 1).to(tl.float64))
    tl.store(ohem_ptr, ohem.to(tl.float32))
    kl = tl.sum(kl_sum) * kl_scale
    tl.store(kl_ptr, tl.where(kl < 0, 0.0, kl).to(tl.float32))
    tl.store(selection_ptr, hard_loss)
    weight = tl.where(kept > 0, 1.0 / tl.maximum(kept, 1).to(tl.float64), 0.0)
    tl.store(selection_ptr + 1, weight.to(tl.float32))
    tl.store(selection_ptr + 2, 0.0)
    tl.store(state_ptr, kept.to(tl.int32))
    tl.store(state_ptr + 1, 0)
    tl.store(state_ptr + 2, tl.maximum(least - num_hard, 0).to(tl.int32))


@triton.jit
def _next_digit(histograms_ptr, state_ptr,
                PASS: tl.constexpr, PROGRAMS: tl.constexpr, BINS: tl.constexpr):  # fmt: skip
    """Take the digit that pass ``PASS`` counted into the prefix.

    Returns the prefix, how many losses with it are wanted, how many there are, and all counts.
    """
    prefix = tl.load(state_ptr + 1 + 2 * PASS)
    wanted = tl.load(state_ptr + 2 + 2 * PASS)
    bins = tl.arange(0, BINS)
    some = tl.arange(0, 16)
    counts = tl.zeros((BINS,), tl.int32)
    histograms_ptr += PASS * PROGRAMS * BINS
    for program in range(0, PROGRAMS, 16):
        ptrs = histograms_ptr + (program + some)[:, None] * BINS + bins[None, :]
        counts += tl.sum(tl.load(ptrs), 0)
    at_least = tl.sum(counts) - tl.cumsum(counts) + counts  # losses with this digit or a larger one
    digit = tl.sum((at_least >= wanted).to(tl.int32)) - 1
    wanted -= tl.sum(tl.where(bins > digit, counts, 0))
    there = tl.sum(tl.where(bins == digit, counts, 0))
    return prefix * BINS + digit, wanted, there, counts


@triton.jit(do_not_specialize=["size", "hard_loss"])
def _ohem_radix_kernel(
    losses_ptr, histograms_ptr, sums_ptr, state_ptr, size, hard_loss,
    PASS: tl.constexpr, SHIFT: tl.constexpr, LAST: tl.constexpr,
    PROGRAMS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Histogram of one digit; the last pass also adds up the losses above the prefix.

    Args:
        losses_ptr: float32, the loss of each pixel, -1 where it does not count.
        histograms_ptr: ``[passes, PROGRAMS, BINS]`` int32; those of this pass are written.
        sums_ptr: ``[PROGRAMS]`` float32, losses above the prefix, written by the last pass.
        state_ptr: int32, see :func:`_ohem_decide_kernel`.
        size: number of losses.
        hard_loss: the loss above which a pixel is hard.
        PASS: number of the pass.
        SHIFT: bits below its digit.
        LAST: it is the last one.
        PROGRAMS: programs of a pass.
        BINS: values of a digit.
        BLOCK: losses of a tile.
    """
    if tl.load(state_ptr + 2) > 0:
        pid = tl.program_id(0)
        if PASS > 0:
            prefix, wanted, _, _ = _next_digit(histograms_ptr, state_ptr, PASS - 1, PROGRAMS, BINS)
            if pid == 0:
                tl.store(state_ptr + 1 + 2 * PASS, prefix)
                tl.store(state_ptr + 2 + 2 * PASS, wanted)
        counts = tl.zeros((BINS,), tl.int32)
        above = tl.zeros((BLOCK,), tl.float32)
        for start in range(pid * BLOCK, size, PROGRAMS * BLOCK):
            offs = start + tl.arange(0, BLOCK)
            loss = tl.load(losses_ptr + offs, mask=offs < size, other=-1.0)
            key = loss.to(tl.int32, bitcast=True)
            searched = (loss >= 0) & (loss <= hard_loss)  # a NaN is hard
            if PASS > 0:
                before = (key >> SHIFT) // BINS
                if LAST:
                    above += tl.where(searched & (before > prefix), loss, 0.0)
                searched = searched & (before == prefix)
            counts += tl.histogram((key >> SHIFT) & (BINS - 1), BINS, mask=searched)
        tl.store(histograms_ptr + (PASS * PROGRAMS + pid) * BINS + tl.arange(0, BINS), counts)
        if LAST:
            tl.store(sums_ptr + pid, tl.sum(above))


@triton.jit
def _ohem_finish_kernel(
    histograms_ptr, sums_ptr, state_ptr, ohem_ptr, selection_ptr,
    PASS: tl.constexpr, PROGRAMS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Value and selection of the search; one program.

    Args:
        histograms_ptr: ``[passes, PROGRAMS, BINS]`` int32.
        sums_ptr: ``[PROGRAMS]`` float32, of the last pass.
        state_ptr: int32, see :func:`_ohem_decide_kernel`.
        ohem_ptr: one number, the mean of the kept losses.
        selection_ptr: ``[3]`` float32.
        PASS: number of the last pass.
        PROGRAMS: programs of a pass.
        BINS: values of a digit.
    """
    if tl.load(state_ptr + 2) > 0:
        key, wanted, ties, counts = _next_digit(histograms_ptr, state_ptr, PASS, PROGRAMS, BINS)
        cutoff = key.to(tl.float32, bitcast=True)
        # losses in a bin of the last pass are all equal
        keys = key // BINS * BINS + tl.arange(0, BINS)
        values = tl.where(keys > key, keys, 0).to(tl.float32, bitcast=True).to(tl.float64)
        total = tl.sum(values * tl.where(keys > key, counts, 0))
        total += tl.sum(tl.load(sums_ptr + tl.arange(0, PROGRAMS)).to(tl.float64))
        total += tl.load(ohem_ptr) + cutoff.to(tl.float64) * wanted
        kept = tl.load(state_ptr).to(tl.float64)
        tl.store(ohem_ptr, (total / kept).to(tl.float32))
        tl.store(selection_ptr, cutoff)
        tl.store(selection_ptr + 2, (wanted / (ties * kept)).to(tl.float32))


def hard_loss(threshold: float) -> float:
    """The loss above which a pixel is hard."""
    return -math.log(threshold)


def ohem_select(
    losses: Tensor,
    sums: Tensor,
    counts: Tensor,
    *,
    threshold: float,
    min_kept: float,
    kl_scale: float,
    has_teacher: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the hard pixels and finish both losses; six launches, nothing read by the host.

    Args:
        losses: cross-entropy of each pixel in any order, float32, contiguous, fewer than 2^31;
            -1 where it does not count.
        sums: ``[2, slots]`` float32, of the hard losses and of the divergence; a slot is a program.
        counts: ``[2, slots]`` int32, of the valid and of the hard pixels.
        threshold: probability below which a pixel is hard.
        min_kept: smallest share of the valid pixels that is kept.
        kl_scale: factor of the divergence.
        has_teacher: whether there is one; else ``sums[1]`` is not read.

    Returns:
        ``ohem`` and ``kl``, float32 scalars, and ``selection [3]``: the smallest loss that is kept,
        the weight of the pixels above it and the weight of those equal to it.
    """
    ohem, kl = sums.new_empty(()), sums.new_empty(())
    selection = sums.new_empty(3)
    state = counts.new_empty(1 + 2 * len(_SHIFTS))
    blocks = triton.next_power_of_2(triton.cdiv(losses.numel(), _BLOCK))
    programs = min(max(blocks, 16), _MOST_PROGRAMS)  # 16 histograms are added up at a time
    histograms = counts.new_empty((len(_SHIFTS), programs, _BINS))
    above = sums.new_empty(programs)
    limit = hard_loss(threshold)
    bits = struct.unpack("<q", struct.pack("<d", min_kept))[0]
    with on_device_of(losses):
        _ohem_decide_kernel[(1,)](
            sums, counts, ohem, kl, selection, state, sums.shape[1], limit, bits, kl_scale,
            HAS_TEACHER=has_teacher, BLOCK=1024, num_warps=8,
        )  # fmt: skip
        for index, shift in enumerate(_SHIFTS):
            _ohem_radix_kernel[(programs,)](
                losses, histograms, above, state, losses.numel(), limit,
                PASS=index, SHIFT=shift, LAST=index == _LAST,
                PROGRAMS=programs, BINS=_BINS, BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
        _ohem_finish_kernel[(1,)](
            histograms, above, state, ohem, selection,
            PASS=_LAST, PROGRAMS=programs, BINS=_BINS, num_warps=8,
        )  # fmt: skip
    return ohem, kl, selection

//! Offsets for intervals: the largest first, each at the lowest place that is free while it lives (the greedy-by-size
//! heuristic of Pisarchyk and Lee 2020, arXiv:2001.03288).

use super::liveness::Storage;
use super::too_large;
use crate::backend::Caps;
use crate::error::Result;

/// An offset for each storage, none of which straddles a multiple of `segment`; first are those whose offset is fixed.
pub fn assign(storages: &[Storage], segment: u64, caps: &Caps) -> Result<Vec<u64>> {
    let mut order: Vec<usize> = (0..storages.len()).collect();
    order.sort_by_key(|&i| {
        (storages[i].fixed.is_none(), std::cmp::Reverse(storages[i].bytes), storages[i].live.first, i)
    });
    let mut offsets = vec![0; storages.len()];
    // Storages that have their offset, sorted by it.
    let mut placed: Vec<usize> = Vec::with_capacity(storages.len());
    for i in order {
        let s = &storages[i];
        if s.bytes > segment {
            return Err(too_large("a value of the step", s.bytes, caps));
        }
        let mut offset = 0;
        for &p in placed.iter().filter(|&&p| storages[p].live.overlaps(s.live)) {
            if fits(offset, s.bytes, segment) + s.bytes <= offsets[p] {
                break;
            }
            offset = offset.max(offsets[p] + storages[p].bytes);
        }
        offsets[i] = s.fixed.unwrap_or_else(|| fits(offset, s.bytes, segment));
        let at = placed.partition_point(|&p| offsets[p] <= offsets[i]);
        placed.insert(at, i);
    }
    Ok(offsets)
}

/// `offset`, or the next segment's start if `bytes` from it would straddle that.
pub fn fits(offset: u64, bytes: u64, segment: u64) -> u64 {
    if offset / segment == (offset + bytes.max(1) - 1) / segment { offset } else { offset.next_multiple_of(segment) }
}

//! The CUDA launches of factors of columns: runs of columns walk over the rows, and sums over them in two passes.

use crate::error::Result;
use crate::ops::{Arg, Attr, CudaLaunch, Lower, launch};

pub fn mul_row(l: &Lower) -> Result<Vec<CudaLaunch>> {
    Ok(vec![launch::with_row(l, "row_factor", "mul_row", &[], 1)])
}

pub fn div_row(l: &Lower) -> Result<Vec<CudaLaunch>> {
    Ok(vec![launch::with_row(l, "row_factor", "div_row", &[], 1)])
}

pub fn mul_row_dv(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let acc = if *l.attr == Attr::Acc(true) { Arg::In(2) } else { Arg::Absent };
    let columns = launch::Columns::new(&l.ins[0]);
    let entries = ["mul_row_dv", "mul_row_dv_sum"];
    Ok(columns.launches("row_factor", entries, vec![Arg::In(0), Arg::In(1)], acc, &[], l.caps))
}

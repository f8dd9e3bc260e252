//! The CUDA launches of dense products and column sums.

use super::{dims, matmul_attr};
use crate::error::Result;
use crate::ops::tiles::Product;
use crate::ops::{Arg, Attr, CudaLaunch, Lower, launch};

pub fn matmul(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let spec = matmul_attr(l.attr);
    let product = Product {
        spec,
        dims: dims(spec, l.ins),
        act: &l.ins[0],
        c: Arg::Out(0),
        a: Arg::In(0),
        lda: l.ins[0].cols(),
        b: Arg::In(1),
        acc: spec.acc.then_some(Arg::In(2)),
        dropout: None,
        factor: None,
        turned: false,
    };
    Ok(product.launches(l.caps))
}

pub fn sum_rows(l: &Lower) -> Result<Vec<CudaLaunch>> {
    let (rows, cols) = (l.ins[0].rows(), l.ins[0].cols());
    let acc = *l.attr == Attr::Acc(true);
    Ok(vec![CudaLaunch {
        file: "sum_rows",
        defines: vec![launch::act(&l.ins[0])],
        entry: "sum_rows",
        grid: launch::grid(cols.div_ceil(32), l.caps),
        block: 512,
        shared: 0,
        args: vec![Arg::Out(0), Arg::In(0), if acc { Arg::In(1) } else { Arg::Absent }],
        params: vec![rows as u32, cols as u32],
        maps: Vec::new(),
        flops: (rows * cols) as u64,
    }])
}

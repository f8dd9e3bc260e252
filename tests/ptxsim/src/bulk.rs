//! Hopper's asynchronous machinery: mbarriers, tensor copies (TMA), and wgmma, as far as bf16 kernels use it.
//!
//! A tensor map is here a struct of this crate's ([`TensorMap`]), not what `cuTensorMapEncodeTiled` makes: that call
//! belongs to the driver. Descriptors of wgmma are decoded from the real integers, so wrong strides, starts and
//! swizzles are found. An mbarrier orders a copy for everyone; the race checker knows no more of it than that.

use std::collections::HashMap;

use crate::decode::{Address, Form, address, elements, result, source_reg};
use crate::operand::Operand;
use crate::program::Reg;

/// A two-dimensional tensor in global memory, and the box that one copy moves. 128 bytes, passed by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Device address of element (0, 0).
    pub base: u64,
    /// Elements along x (contiguous) and y.
    pub size: [u64; 2],
    /// Bytes from one y to the next.
    pub stride: u64,
    /// Elements that a copy moves, along x and y; what lies outside the tensor becomes zero.
    pub tile: [u32; 2],
    /// Bytes of an element.
    pub element: u32,
    /// 16-byte chunks of 128-byte rows exchanged as CU_TENSOR_MAP_SWIZZLE_128B does.
    pub swizzle: bool,
}

impl TensorMap {
    /// The parameter's bytes, for [`crate::Param::Bytes`].
    pub fn bytes(&self) -> Vec<u8> {
        let words = [self.base, self.size[0], self.size[1], self.stride];
        let halves = [self.tile[0], self.tile[1], self.element, u32::from(self.swizzle)];
        let mut out: Vec<u8> = words.iter().flat_map(|v| v.to_le_bytes()).collect();
        out.extend(halves.iter().flat_map(|v| v.to_le_bytes()));
        out.resize(128, 0);
        out
    }

    /// What [`TensorMap::bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8; 128]) -> TensorMap {
        let word = |i: usize| (0..8).fold(0, |v, k| v | u64::from(bytes[8 * i + k]) << (8 * k));
        let half = |i: usize| (word(4 + i / 2) >> (32 * (i % 2))) as u32;
        TensorMap {
            base: word(0),
            size: [word(1), word(2)],
            stride: word(3),
            tile: [half(0), half(1)],
            element: half(2),
            swizzle: half(3) != 0,
        }
    }
}

/// A tensor copy under way.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub map: TensorMap,
    pub to: usize,
    pub at: [i32; 2],
    pub pc: u32,
    pub warp: usize,
    pub lane: usize,
}

/// The state of an mbarrier object.
#[derive(Clone, Debug, Default)]
pub struct Mbarrier {
    pub count: u32,
    pub pending: u32,
    /// Bytes that are still to come.
    pub bytes: i64,
    pub phase: u32,
    pub flights: Vec<Flight>,
}

impl Mbarrier {
    /// Ends the phase if nothing is pending.
    pub fn step(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase ^= 1;
            self.pending = self.count;
        }
    }
}

/// The mbarriers of a block, by shared address.
pub type Mbarriers = HashMap<u64, Mbarrier>;

/// The instructions of this file.
#[derive(Debug)]
pub enum Bulk {
    Init {
        at: Address,
        count: Reg,
    },
    Invalidate {
        at: Address,
    },
    /// Arrives once, expecting so many bytes more.
    Arrive {
        at: Address,
        bytes: Option<Reg>,
    },
    /// Expects bytes without arriving.
    Expect {
        at: Address,
        bytes: Reg,
    },
    /// Whether the phase of this parity is over.
    TryWait {
        at: Address,
        to: Reg,
        parity: Reg,
    },
    Copy {
        to: Address,
        map: Reg,
        at: [Reg; 2],
        barrier: Address,
    },
    /// m64nNk16, f32 += bf16 x bf16, both operands in shared memory.
    Wgmma {
        d: Vec<Reg>,
        a: Reg,
        b: Reg,
        flags: Vec<Reg>,
    },
    /// Ordering between wgmmas, which here are done at once.
    WgmmaOrder,
}

/// The offset of byte `x` of row `y` in a tile of 128-byte rows whose 16-byte chunks are exchanged by row.
pub fn swizzled(at: usize) -> usize {
    at ^ (at >> 7 & 7) << 4
}

fn mbarrier(form: &Form, operands: &[Operand]) -> Result<Bulk, String> {
    let is_memory = |o: &&Operand| matches!(o, Operand::Memory(..));
    let at = address(operands.iter().find(is_memory))?;
    let last = || source_reg(operands.last().ok_or("an operand is missing")?);
    Ok(if form.has("init") {
        Bulk::Init { at, count: last()? }
    } else if form.has("inval") {
        Bulk::Invalidate { at }
    } else if form.has("arrive") {
        if form.has("noComplete") || form.has("drop") || form.mods.iter().any(|m| m.contains("cluster")) {
            return Err("this arrival is not interpreted".into());
        }
        let bytes = if form.has("expect_tx") { Some(last()?) } else { None };
        Bulk::Arrive { at, bytes }
    } else if form.has("expect_tx") {
        Bulk::Expect { at, bytes: last()? }
    } else if form.has("parity") && (form.has("try_wait") || form.has("test_wait")) {
        let to = result(operands.first())?.ok_or("a result is missing")?;
        Bulk::TryWait { at, to, parity: source_reg(operands.get(2).ok_or("an operand is missing")?)? }
    } else {
        return Err("this mbarrier instruction is not interpreted".into());
    })
}

fn wgmma(form: &Form, operands: &[Operand]) -> Result<Bulk, String> {
    if !form.has("mma_async") {
        return Ok(Bulk::WgmmaOrder);
    }
    let shape = form.mods.iter().find_map(|m| m.strip_prefix("m64n")?.strip_suffix("k16"));
    let n: usize = shape.and_then(|s| s.parse().ok()).ok_or("a shape other than m64nNk16")?;
    let bf16 = form.mods.iter().filter(|m| **m == "bf16").count();
    if bf16 != 2 || !form.has("f32") {
        return Err("wgmma other than f32 += bf16 x bf16".into());
    }
    let d: Vec<Reg> = elements(operands.first())?.iter().map(source_reg).collect::<Result<_, _>>()?;
    if d.len() != n / 2 {
        return Err(format!("{} accumulators for n = {n}", d.len()));
    }
    let rest: Vec<Reg> = operands[1..].iter().map(source_reg).collect::<Result<_, _>>()?;
    let [a, b, flags @ ..] = &rest[..] else { return Err("descriptors are missing".into()) };
    Ok(Bulk::Wgmma { d, a: *a, b: *b, flags: flags.to_vec() })
}

/// The instruction, if it is one of this file's.
pub fn decode(form: &Form, operands: &[Operand]) -> Result<Option<Bulk>, String> {
    match form.name {
        "mbarrier" => mbarrier(form, operands).map(Some),
        "wgmma" => wgmma(form, operands).map(Some),
        "cp" if form.has("bulk") => {
            if !form.has("tensor") || !form.has("2d") || !form.has("global") || form.has("im2col") {
                return Err("bulk copies other than 2-D tensors to shared memory".into());
            }
            let Some(Operand::Tensor(map, at)) = operands.get(1) else { return Err("a tensor map is missing".into()) };
            let [Operand::Reg(x), Operand::Reg(y)] = at[..] else { return Err("two coordinates".into()) };
            let (to, barrier) = (address(operands.first())?, address(operands.get(2))?);
            Ok(Some(Bulk::Copy { to, map: *map, at: [x, y], barrier }))
        }
        _ => Ok(None),
    }
}

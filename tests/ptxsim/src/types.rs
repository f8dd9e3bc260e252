//! The scalar types that opcodes name, and integers of a given width inside 64-bit registers.

/// What the bits of an operand mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Predicate,
    Bits,
    Unsigned,
    Signed,
    /// f16, f32, f64 by width.
    Float,
    BFloat,
    /// f32 with a 10-bit mantissa.
    TensorFloat,
    /// Two f16 in 32 bits.
    HalfPair,
    /// Two bf16 in 32 bits.
    BFloatPair,
}

/// A type suffix of an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    pub kind: Kind,
    pub bits: u32,
}

impl Type {
    /// The type that a suffix without its dot names.
    pub fn of(suffix: &str) -> Option<Type> {
        let known = match suffix {
            "pred" => Type { kind: Kind::Predicate, bits: 1 },
            "bf16" => Type { kind: Kind::BFloat, bits: 16 },
            "tf32" => Type { kind: Kind::TensorFloat, bits: 32 },
            "f16x2" => Type { kind: Kind::HalfPair, bits: 32 },
            "bf16x2" => Type { kind: Kind::BFloatPair, bits: 32 },
            _ => {
                let kind = match suffix.as_bytes().first()? {
                    b'b' => Kind::Bits,
                    b'u' => Kind::Unsigned,
                    b's' => Kind::Signed,
                    b'f' => Kind::Float,
                    _ => return None,
                };
                let bits = match &suffix[1..] {
                    "8" => 8,
                    "16" => 16,
                    "32" => 32,
                    "64" => 64,
                    "128" => 128,
                    _ => return None,
                };
                Type { kind, bits }
            }
        };
        Some(known)
    }

    pub fn bytes(self) -> usize {
        self.bits.div_ceil(8) as usize
    }

    pub fn is_float(self) -> bool {
        matches!(self.kind, Kind::Float | Kind::BFloat | Kind::TensorFloat)
    }

    pub fn is_signed(self) -> bool {
        self.kind == Kind::Signed
    }

    pub fn is_integer(self) -> bool {
        matches!(self.kind, Kind::Bits | Kind::Unsigned | Kind::Signed)
    }
}

/// Ones in the low `bits`.
pub const fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// The low `bits` of `v`, zero-extended.
pub fn zero_extend(v: u64, bits: u32) -> u64 {
    v & mask(bits)
}

/// The low `bits` of `v`, sign-extended.
pub fn sign_extend(v: u64, bits: u32) -> i64 {
    let shift = 64 - bits.clamp(1, 64);
    ((v << shift) as i64) >> shift
}

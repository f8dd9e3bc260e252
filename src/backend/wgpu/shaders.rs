//! The shader texts that `build.rs` preprocessed and validated, and which of them a device takes.

use crate::backend::Caps;

/// (file stem, symbols joined by a space, text), ordered.
pub static SHADERS: &[(&str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// The text of one variant.
pub fn shader(stem: &str, defines: &[&str]) -> Option<&'static str> {
    let defines = defines.join(" ");
    let found = SHADERS.binary_search_by(|row| (row.0, row.1).cmp(&(stem, defines.as_str())));
    found.ok().map(|i| SHADERS[i].2)
}

/// Of the variants that compute the same as this one, the one that makes the most of the device: a lowering names the
/// plain one and need not know (`// also:` in a shader's header).
pub fn richest(stem: &str, defines: &[&'static str], entry: &str, caps: &Caps) -> Vec<&'static str> {
    // Cooperative matrices are for the tiled products, those of 16 bits for operands of 16 bits.
    let coop = caps.coop && entry == "tile" && caps.f16 == defines.contains(&"HALF");
    let symbols = [("COOP", coop), ("SUBGROUP", caps.subgroup.is_some())];
    for (symbol, there) in symbols {
        let richer = [defines, &[symbol]].concat();
        if there && shader(stem, &richer).is_some() {
            return richer;
        }
    }
    defines.to_vec()
}

/// Whether accesses of a shader are checked where it runs. Those of the dense products keep within their operands by
/// themselves, whatever the sizes (`tests/shaders/bounds.rs` walks them), and are spared the checks in their loops.
pub fn is_checked(stem: &str) -> bool {
    !matches!(stem, "linear" | "linear_dx" | "linear_row" | "matmul" | "sum_parts")
}

//! The table of docs/kernels.md: what the main loops of the dense products execute, by [`super::count`].

use std::fmt::Write;
use std::path::Path;

use super::count::{Launch, Shader};
use super::preprocess::preprocess;

/// A main loop: its shader, the symbols of the tiles of 64 × 64 and of 128 × 128, what it is called, and the same counts of the
/// shader of commit f1c4bc0, whose tile was 64 × 64.
struct Row {
    shader: &'static str,
    tiles: [&'static str; 2],
    overrides: &'static [(&'static str, u32)],
    /// Columns of the weight beyond a multiple of 64.
    ragged: u32,
    name: &'static str,
    before: Option<[f64; 3]>,
}

const fn weighted(shader: &'static str, tiles: [&'static str; 2], name: &'static str, before: [f64; 3]) -> Row {
    Row { shader, tiles, overrides: &[], ragged: 0, name, before: Some(before) }
}

/// Rows of NF4 that begin within words, and within blocks of 64.
const fn ragged(shader: &'static str, tiles: [&'static str; 2], name: &'static str, before: [f64; 3]) -> Row {
    Row { shader, tiles, overrides: &[], ragged: 4, name, before: Some(before) }
}

/// Activations in f16, which were not taken before.
const fn half(shader: &'static str, tiles: [&'static str; 2], name: &'static str) -> Row {
    Row { shader, tiles, overrides: &[], ragged: 0, name, before: None }
}

const ROWS: [Row; 20] = [
    weighted("linear", ["W_F32 VEC", "W_F32 VEC LARGE"], "f32", [29.25, 2.0, 6.0]),
    weighted("linear", ["W_BF16 VEC", "W_BF16 VEC LARGE"], "bf16", [30.25, 1.5, 6.0]),
    weighted("linear", ["W_F16 F16 VEC", "W_F16 F16 VEC LARGE"], "f16", [36.75, 1.25, 6.0]),
    weighted("linear", ["W_NF4 VEC", "W_NF4 VEC LARGE"], "nf4", [56.0, 1.5, 6.0]),
    weighted("linear", ["W_NF4DQ VEC", "W_NF4DQ VEC LARGE"], "nf4_dq", [64.5, 2.0, 6.0]),
    ragged("linear", ["W_NF4 RAGGED VEC", "W_NF4 RAGGED VEC LARGE"], "nf4, ragged", [54.9, 3.0, 6.0]),
    ragged("linear", ["W_NF4DQ RAGGED VEC", "W_NF4DQ RAGGED VEC LARGE"], "nf4_dq, ragged", [88.9, 5.0, 6.0]),
    half("linear", ["W_BF16 VEC HALF", "W_BF16 VEC LARGE HALF"], "bf16, f16 activations"),
    half("linear", ["W_NF4 VEC HALF", "W_NF4 VEC LARGE HALF"], "nf4, f16 activations"),
    weighted("linear_dx", ["W_F32 VEC", "W_F32 VEC LARGE"], "f32", [31.375, 2.0, 6.0]),
    weighted("linear_dx", ["W_BF16 VEC", "W_BF16 VEC LARGE"], "bf16", [32.375, 1.5, 6.0]),
    weighted("linear_dx", ["W_F16 F16 VEC", "W_F16 F16 VEC LARGE"], "f16", [38.875, 1.25, 6.0]),
    weighted("linear_dx", ["W_NF4 VEC", "W_NF4 VEC LARGE"], "nf4", [58.125, 1.5, 6.0]),
    weighted("linear_dx", ["W_NF4DQ VEC", "W_NF4DQ VEC LARGE"], "nf4_dq", [66.625, 2.0, 6.0]),
    ragged("linear_dx", ["W_NF4 RAGGED VEC", "W_NF4 RAGGED VEC LARGE"], "nf4, ragged", [56.6, 3.0, 6.0]),
    ragged("linear_dx", ["W_NF4DQ RAGGED VEC", "W_NF4DQ RAGGED VEC LARGE"], "nf4_dq, ragged", [90.6, 5.0, 6.0]),
    half("linear_dx", ["W_BF16 VEC HALF", "W_BF16 VEC LARGE HALF"], "bf16, f16 activations"),
    half("linear_dx", ["W_NF4 VEC HALF", "W_NF4 VEC LARGE HALF"], "nf4, f16 activations"),
    Row {
        shader: "matmul",
        tiles: ["VEC", "LARGE VEC"],
        overrides: &[("TA", 1)],
        ragged: 0,
        name: "aᵀ b",
        before: Some([34.5, 2.0, 6.0]),
    },
    Row {
        shader: "matmul",
        tiles: ["VEC", "LARGE VEC"],
        overrides: &[("TB", 1)],
        ragged: 0,
        name: "a bᵀ",
        before: Some([30.625, 2.0, 6.0]),
    },
];

/// What is executed for 64 multiply-adds by 64 more terms of a sum: operations, loads, and loads of shared memory. What a
/// workgroup does before and after its main loop cancels out.
fn in_the_loop(root: &Path, row: &Row, tile: &str) -> [f64; 3] {
    let defines: Vec<String> = tile.split_whitespace().map(String::from).collect();
    let file = format!("{}.wgsl", row.shader);
    let text = preprocess(root, &file, &defines, &mut Vec::new()).unwrap_or_else(|e| panic!("{e}")).text;
    let shader = Shader::new(&text);
    let along = if row.shader == "linear_dx" { "n" } else { "k" };
    let run = |length: u32| {
        let more = |name| if name == "k" { row.ragged } else { 0 };
        let size = |name| (name, more(name) + if name == along { length } else { 4096 });
        let params = &["t", "m", "n", "n_all", "k", "lda", "ldb", "ldc", "step"].map(size);
        let overrides = row.overrides;
        shader.count(&Launch { entry: "tile", overrides, params, workgroup: [0; 3], grid: [1; 3], buffers: None })
    };
    let step = run(192) - run(128);
    assert_eq!(step.stores, 0, "{file} {tile}: a main loop that stores");
    [step.operations, step.loads, step.shared_loads].map(|x| 64.0 * x as f64 / step.multiply_adds as f64)
}

/// The table, as it is in the docs.
pub fn table(root: &Path) -> String {
    let mut text = "| shader | weight | before | 64 × 64 | 128 × 128 |\n|---|---|---|---|---|\n".to_string();
    let cell = |[operations, loads, shared]: [f64; 3]| format!("{operations:.1} / {loads:.2} / {shared:.1}");
    for row in &ROWS {
        let [usual, large] = row.tiles.map(|tile| cell(in_the_loop(root, row, tile)));
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {usual} | {large} |",
            row.shader,
            row.name,
            row.before.map_or("–".into(), cell)
        );
    }
    text
}

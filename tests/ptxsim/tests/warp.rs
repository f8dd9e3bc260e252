//! Matrix instructions and asynchronous copies, by PTX written by hand: fragments against a plain product.

use ptxsim::values::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use ptxsim::{Kind, Launch, Memory, Module, Param, Schedule, run};

/// Runs a kernel of one warp over a `.b8 tile[1024]` in shared memory: `in` and `out` are %rd0 and %rd1, the lane %r0,
/// the tile's address %r1.
fn warp(code: &str, input: &[u8], out_bytes: usize, schedule: Schedule) -> Result<Vec<u8>, ptxsim::Finding> {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b64 %rd<32>; .reg .b32 %r<64>; .reg .f32 %f<32>; .reg .pred %p<8>;\n.shared .align 128 .b8 tile[1024];\n\
         ld.param.u64 %rd0, [in];\nld.param.u64 %rd1, [out];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, tile;\n{code}\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap();
    let mut memory = Memory::new();
    let input = memory.alloc("in", input);
    memory.read_only(input);
    let output = memory.alloc_uninit("out", out_bytes);
    let params = [Param::U64(input), Param::U64(output)];
    let launch = Launch { entry: "k", grid: [1; 3], block: [32, 1, 1], shared_bytes: 0, params: &params, schedule };
    run(&module, &mut memory, &launch).map(|_| memory.read(output).to_vec())
}

/// Each lane loads `n` 32-bit words from `in + at + 4 * n * lane` into %r`first`…
fn load(n: usize, at: usize, first: usize) -> String {
    let step = 4 * n;
    let mut code = format!("mad.wide.u32 %rd2, %r0, {step}, %rd0;\n");
    for k in 0..n {
        code += &format!("ld.global.u32 %r{}, [%rd2+{}];\n", first + k, at + 4 * k);
    }
    code
}

/// Each lane stores %r`first`… to `out + 4 * n * lane`.
fn store(n: usize, first: usize) -> String {
    let step = 4 * n;
    let mut code = format!("mad.wide.u32 %rd3, %r0, {step}, %rd1;\n");
    for k in 0..n {
        code += &format!("st.global.b32 [%rd3+{}], %r{};\n", 4 * k, first + k);
    }
    code
}

/// Element (row, column) of A, B or C as small exact numbers.
fn element(row: usize, column: usize) -> f32 {
    ((row * 7 + column * 3) % 13) as f32 - 6.0
}

#[test]
fn mma_multiplies() {
    // Shape, type, depth, values a register.
    let cases: [(&str, &str, usize, usize); 6] = [
        ("m16n8k16", "bf16", 16, 2),
        ("m16n8k16", "f16", 16, 2),
        ("m16n8k8", "f16", 8, 2),
        ("m16n8k8", "bf16", 8, 2),
        ("m16n8k8", "tf32", 8, 1),
        ("m16n8k4", "tf32", 4, 1),
    ];
    for (shape, kind, depth, per) in cases {
        let word = |values: &[f32]| match kind {
            "tf32" => values[0].to_bits(),
            "f16" => u32::from(f32_to_f16(values[0])) | u32::from(f32_to_f16(values[1])) << 16,
            _ => u32::from(f32_to_bf16(values[0])) | u32::from(f32_to_bf16(values[1])) << 16,
        };
        let (na, nb) = (depth / 2 / per, depth / 4 / per);
        let mut input: Vec<u32> = Vec::new();
        // The fragments as the PTX manual has them: groupID is lane / 4, threadID_in_group lane % 4.
        for l in 0..32 {
            let (group, thread) = (l / 4, l % 4);
            for i in 0..na {
                // a0,a1: row group; a2,a3: row group+8; the second half of the columns after both.
                let (row, column) = (group + 8 * (i % 2), thread * per + i / 2 * (4 * per));
                input.push(word(&[element(row, column), element(row, column + 1)]));
            }
        }
        for l in 0..32 {
            for i in 0..nb {
                let (row, column) = (l % 4 * per + i * (4 * per), l / 4);
                input.push(word(&[element(row + 5, column), element(row + 6, column)]));
            }
        }
        for l in 0..32 {
            input.extend((0..4).map(|i| element(l / 4 + 8 * (i / 2), l % 4 * 2 + i % 2 + 1).to_bits()));
        }
        let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
        let list = |first: usize, n: usize| (first..first + n).map(|r| format!("%r{r}")).collect::<Vec<_>>().join(",");
        let code = format!(
            "{}{}{}mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{{}}}, {{{}}}, {{{}}}, {{{}}};\n{}",
            load(na, 0, 10),
            load(nb, 128 * na, 20),
            load(4, 128 * (na + nb), 30),
            list(40, 4),
            list(10, na),
            list(20, nb),
            list(30, 4),
            store(4, 40),
        );
        let out = warp(&code, &bytes, 512, Schedule::all()[0]).unwrap();
        for l in 0..32 {
            for i in 0..4 {
                let (row, column) = (l / 4 + 8 * (i / 2), l % 4 * 2 + i % 2);
                let sum: f32 = (0..depth).map(|k| element(row, k) * element(k + 5, column)).sum();
                let at = 16 * l + 4 * i;
                let got = f32::from_le_bytes(out[at..at + 4].try_into().unwrap());
                assert_eq!(got, sum + element(row, column + 1), "{shape} {kind} lane {l} result {i}");
            }
        }
    }
}

#[test]
fn tiles_go_through_shared_memory() {
    // stmatrix, then ldmatrix: the same registers; transposed one way, the tile's transpose.
    let input: Vec<u8> = (0..512u32).map(|i| (i * 5 % 251) as u8).collect();
    let address = "mad.lo.u32 %r2, %r0, 16, %r1;\n";
    let code = |stored: &str, loaded: &str| {
        format!(
            "{address}{}stmatrix.sync.aligned.m8n8.x4{stored}.shared.b16 [%r2], {{%r10,%r11,%r12,%r13}};\n\
             bar.warp.sync -1;\nldmatrix.sync.aligned.m8n8.x4{loaded}.shared::cta.b16 {{%r20,%r21,%r22,%r23}}, [%r2];\n{}",
            load(4, 0, 10),
            store(4, 20),
        )
    };
    let run = |stored, loaded| warp(&code(stored, loaded), &input, 512, Schedule::all()[0]).unwrap();
    assert_eq!(run("", ""), input);
    assert_eq!(run(".trans", ".trans"), input);
    let half = |bytes: &[u8], l: usize, tile: usize, h: usize| {
        let at = 16 * l + 4 * tile + 2 * h;
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    };
    for out in [run("", ".trans"), run(".trans", "")] {
        for l in 0..32 {
            for (tile, h) in [(0, 0), (1, 1), (2, 0), (3, 1)] {
                // Lane l's half h is (row, column) = (l/4, 2*(l%4)+h); the transpose's is the element (column, row).
                let (row, column) = (2 * (l % 4) + h, l / 4);
                assert_eq!(half(&out, l, tile, h), half(&input, 4 * row + column / 2, tile, column % 2), "lane {l}");
            }
        }
    }
    // Without the barrier, lanes read what others wrote: a race.
    let finding = warp(&code("", "").replace("bar.warp.sync -1;", ""), &input, 512, Schedule::all()[0]).unwrap_err();
    assert_eq!(finding.kind, Kind::Race, "{finding}");
}

#[test]
fn copies_fill_with_zeros() {
    // 16 bytes a lane, of which only 4 * (lane % 5) are valid; the rest is zero.
    let input: Vec<u8> = (0..512).map(|i| (i % 255 + 1) as u8).collect();
    let code = format!(
        "mad.lo.u32 %r2, %r0, 16, %r1;\nmad.wide.u32 %rd2, %r0, 16, %rd0;\nrem.u32 %r3, %r0, 5;\nshl.b32 %r3, %r3, 2;\n\
         cp.async.cg.shared.global.L2::128B [%r2], [%rd2], 16, %r3;\ncp.async.wait_all;\n\
         ld.shared.v4.b32 {{%r10,%r11,%r12,%r13}}, [%r2];\n{}",
        store(4, 10)
    );
    for schedule in Schedule::all() {
        let out = warp(&code, &input, 512, schedule).unwrap();
        for (i, (got, full)) in out.iter().zip(&input).enumerate() {
            let valid = i % 16 < 4 * (i / 16 % 5);
            assert_eq!(*got, if valid { *full } else { 0 }, "byte {i}");
        }
    }
    let early = code.replace("cp.async.wait_all;", "cp.async.commit_group;");
    assert_eq!(warp(&early, &input, 512, Schedule::all()[0]).unwrap_err().kind, Kind::AsyncInFlight);
}

#[test]
fn atomics_of_every_kind() {
    // All 32 lanes on one word of shared memory; the word after.
    let cases = [
        ("add.u32", 5, 5 + 31 * 16),
        ("min.s32", 5, 0),
        ("max.u32", 5, 31),
        ("or.b32", 64, 95),
        ("and.b32", 0xff, 0),
        ("xor.b32", 0, (0..32).fold(0, |a, b| a ^ b)),
        ("exch.b32", 5, 31),
        ("inc.u32", 40, 31), // 40 is past lane 0's limit of 0, and each next lane's limit is one higher
    ];
    for (kind, start, want) in cases {
        let code = format!(
            "setp.eq.s32 %p0, %r0, 0;\n@%p0 st.shared.u32 [%r1], {start};\nbar.sync 0;\n\
             atom.shared.{kind} %r5, [%r1], %r0;\nred.shared.add.u32 [%r1], 0;\nbar.sync 0;\n\
             ld.shared.u32 %r6, [%r1];\n{}",
            store(1, 6)
        );
        let out = warp(&code, &[0; 4], 128, Schedule::all()[0]).unwrap();
        assert_eq!(u32::from_le_bytes(out[..4].try_into().unwrap()), want, "{kind}");
    }
}

#[test]
fn halves_and_floats_add_atomically() {
    for (kind, one, want) in [
        ("f32", 1f32.to_bits(), 32f32.to_bits()),
        ("noftz.f16x2", 0x3c00_3c00, 0x5000_5000),
        ("noftz.bf16x2", 0x3f80_3f80, 0x4200_4200),
    ] {
        let code = format!(
            "setp.eq.s32 %p0, %r0, 0;\n@%p0 st.shared.u32 [%r1], 0;\nbar.sync 0;\nmov.u32 %r5, {one};\n\
             atom.shared.add.{kind} %r6, [%r1], %r5;\nbar.sync 0;\nld.shared.u32 %r6, [%r1];\n{}",
            store(1, 6)
        );
        let out = warp(&code, &[0; 4], 128, Schedule::all()[0]).unwrap();
        assert_eq!(u32::from_le_bytes(out[..4].try_into().unwrap()), want, "{kind}");
    }
    assert_eq!(f16_to_f32(0x5000), 32.0);
    assert_eq!(bf16_to_f32(0x4200), 32.0);
}

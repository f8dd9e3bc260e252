//! wgmma in all its forms, by PTX written by hand, against a plain product; the layouts are spelled out anew here.

use ptxsim::values::{f32_to_bf16, f32_to_f16};
use ptxsim::{Kind, Launch, Memory, Module, Param, Schedule, run};

/// Bytes of each operand in shared memory.
const ROOM: usize = 32768;

/// The layout of an operand in shared memory: bytes of its swizzle's span (16: none), and whether mn is contiguous.
#[derive(Clone, Copy, Debug)]
struct Layout {
    span: usize,
    transposed: bool,
}

impl Layout {
    /// Where element (mn, k) of a matrix of `rows` is. Rows of the span's length, 8 to a group, 16-byte chunks exchanged by
    /// row; groups follow each other along mn first, or along k first where mn is contiguous.
    fn at(self, rows: usize, mn: usize, k: usize) -> usize {
        let (row, byte, group) = if self.span == 16 {
            // Matrices of 8 rows of 16 bytes: those along mn first.
            let (major, minor) = if self.transposed { (k, mn) } else { (mn, k) };
            (major % 8, minor % 8 * 2, mn / 8 + k / 8 * (rows / 8))
        } else if self.transposed {
            let per = self.span / 2;
            (k % 8, mn % per * 2, k / 8 + mn / per * 2)
        } else {
            (mn % 8, 2 * k, mn / 8)
        };
        let pattern = match self.span {
            128 => row,
            64 => row / 2,
            32 => row / 4,
            _ => 0,
        };
        let chunk = (byte / 16) ^ pattern;
        group * 8 * self.span + row * self.span + chunk * 16 + byte % 16
    }

    /// The upper bits of its descriptor.
    fn descriptor(self, rows: usize) -> u64 {
        let group = 8 * self.span;
        let (leading, stride, mode) = match (self.span, self.transposed) {
            (16, _) => (rows / 8 * group, group, 0),
            (span, true) => (2 * group, group, 128 / span),
            (span, false) => (16, group, 128 / span),
        };
        let mode = [0, 1, 2, 0, 3][mode];
        (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62
    }
}

struct Case {
    n: usize,
    bf16: bool,
    /// `None`: from registers.
    a: Option<Layout>,
    b: Layout,
    keep: bool,
    signs: [i32; 2],
}

fn element(row: usize, column: usize) -> f32 {
    ((row * 7 + column * 3) % 13) as f32 - 6.0
}

fn list(prefix: &str, n: usize) -> String {
    (0..n).map(|i| format!("%{prefix}{i}")).collect::<Vec<_>>().join(",")
}

/// 128 threads copy both operands to shared memory, multiply, and store their accumulators.
fn kernel(case: &Case) -> String {
    let (n, kind) = (case.n, if case.bf16 { "bf16" } else { "f16" });
    let mut code = String::new();
    for i in 0..2 * ROOM / 2048 {
        code += &format!("ld.global.v4.u32 {{%r20,%r21,%r22,%r23}}, [%rd2+{}];\n", 2048 * i);
        code += &format!("st.shared.v4.u32 [%r2+{}], {{%r20,%r21,%r22,%r23}};\n", 2048 * i);
    }
    code += "fence.proxy.async;\nbar.sync 0;\n";
    for i in 0..n / 2 {
        code += &format!("mov.f32 %f{i}, 0f3F000000;\n");
    }
    for i in 0..4 {
        code += &format!("ld.global.u32 %a{i}, [%rd3+{}];\n", 4 * i);
    }
    let a = if case.a.is_some() { "%rd5".to_owned() } else { format!("{{{}}}", list("a", 4)) };
    let transposed = match case.a {
        Some(a) => format!("{}, {}", u8::from(a.transposed), u8::from(case.b.transposed)),
        None => format!("{}", u8::from(case.b.transposed)),
    };
    let descriptor = |to: &str, layout: Layout, rows: usize, at: usize| {
        format!(
            "add.u32 %r3, %r1, {at};\nshr.u32 %r3, %r3, 4;\ncvt.u64.u32 {to}, %r3;\nor.b64 {to}, {to}, {:#x};\n",
            layout.descriptor(rows)
        )
    };
    code += &case.a.map_or(String::new(), |a| descriptor("%rd5", a, 64, 0));
    code += &descriptor("%rd6", case.b, n, ROOM);
    code += &format!(
        "setp.ne.u32 %p0, {}, 0;\nwgmma.fence.sync.aligned;\n\
         wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {{{}}}, {a}, %rd6, %p0, {}, {}, {transposed};\n\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        u8::from(case.keep),
        list("f", n / 2),
        case.signs[0],
        case.signs[1],
    );
    for i in 0..n / 2 {
        code += &format!("st.global.f32 [%rd4+{}], %f{i};\n", 4 * i);
    }
    format!(
        ".version 8.3\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 fragments, .param .u64 out)\n{{\n\
         .reg .b64 %rd<8>; .reg .b32 %r<32>; .reg .b32 %a<4>; .reg .f32 %f<128>; .reg .pred %p<2>;\n\
         .shared .align 1024 .b8 tile[{}];\nld.param.u64 %rd0, [in];\nld.param.u64 %rd1, [fragments];\n\
         ld.param.u64 %rd4, [out];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, tile;\nmad.lo.u32 %r2, %r0, 16, %r1;\n\
         mad.wide.u32 %rd2, %r0, 16, %rd0;\nmad.wide.u32 %rd3, %r0, 16, %rd1;\nmad.wide.u32 %rd4, %r0, {}, %rd4;\n{code}ret;\n}}\n",
        2 * ROOM,
        2 * n,
    )
}

fn check(case: &Case, schedule: Schedule) {
    let half = |v: f32| if case.bf16 { f32_to_bf16(v) } else { f32_to_f16(v) };
    let mut image = vec![0u8; 2 * ROOM];
    let mut put = |at: usize, v: f32| image[at..at + 2].copy_from_slice(&half(v).to_le_bytes());
    for k in 0..16 {
        if let Some(a) = case.a {
            (0..64).for_each(|row| put(a.at(64, row, k), element(row, k)));
        }
        (0..case.n).for_each(|column| put(ROOM + case.b.at(case.n, column, k), element(k + 5, column)));
    }
    // Thread t of a warp has rows t / 4 and 8 more, columns 2 (t % 4) and 8 more, two at a time.
    let pair = |t: usize, i: usize| {
        let (row, k) = (t / 32 * 16 + t % 32 / 4 + i % 2 * 8, t % 4 * 2 + i / 2 * 8);
        u32::from(half(element(row, k))) | u32::from(half(element(row, k + 1))) << 16
    };
    let fragments: Vec<u8> = (0..512).flat_map(|i| pair(i / 4, i % 4).to_le_bytes()).collect();
    let module = Module::parse(&kernel(case)).unwrap();
    let mut memory = Memory::new();
    let input = memory.alloc("in", &image);
    let left = memory.alloc("fragments", &fragments);
    let out = memory.alloc_uninit("out", 4 * 64 * case.n);
    let params = [Param::U64(input), Param::U64(left), Param::U64(out)];
    let launch = Launch { entry: "k", grid: [1; 3], block: [128, 1, 1], shared_bytes: 0, params: &params, schedule };
    run(&module, &mut memory, &launch).unwrap_or_else(|f| panic!("{f}"));
    let got = memory.read(out);
    for (i, got) in got.chunks_exact(4).enumerate() {
        let (t, j) = (i / (case.n / 2), i % (case.n / 2));
        let (row, column) = (t / 32 * 16 + t % 32 / 4 + j / 2 % 2 * 8, j / 4 * 8 + t % 4 * 2 + j % 2);
        let sum: f32 = (0..16).map(|k| element(row, k) * element(k + 5, column)).sum();
        let want = sum * (case.signs[0] * case.signs[1]) as f32 + if case.keep { 0.5 } else { 0.0 };
        let got = f32::from_le_bytes([got[0], got[1], got[2], got[3]]);
        assert_eq!(got, want, "n {} a {:?} b {:?} row {row} column {column}", case.n, case.a, case.b);
    }
}

const PLAIN: Layout = Layout { span: 128, transposed: false };

#[test]
fn every_layout_and_source_of_operands_multiplies() {
    let layouts =
        [16, 32, 64, 128].into_iter().flat_map(|span| [false, true].map(|transposed| Layout { span, transposed }));
    for (i, layout) in layouts.enumerate() {
        let (schedule, bf16) = (Schedule::all()[i % 5], i % 3 > 0);
        let case = |a, b| Case { n: 64, bf16, a, b, keep: i % 2 == 0, signs: [1, 1 - 2 * (i as i32 % 2)] };
        check(&case(Some(layout), PLAIN), schedule);
        check(&case(Some(PLAIN), layout), schedule);
        check(&case(None, layout), schedule);
    }
}

#[test]
fn every_width_multiplies() {
    for n in (8..=256).step_by(8) {
        let case = Case { n, bf16: true, a: Some(PLAIN), b: PLAIN, keep: true, signs: [-1, 1] };
        check(&case, Schedule::all()[n / 8 % 5]);
    }
}

#[test]
fn forms_that_are_none_are_refused() {
    let good = kernel(&Case { n: 8, bf16: true, a: Some(PLAIN), b: PLAIN, keep: true, signs: [1, 1] });
    Module::parse(&good).unwrap();
    for (from, to) in [
        ("m64n8k16", "m64n12k16"),
        ("m64n8k16", "m64n16k16"),
        ("f32.bf16.bf16", "f32.bf16.f16"),
        ("f32.bf16.bf16", "f16.bf16.bf16"),
        (", 1, 1, 0, 0;", ", 1, 1, 0;"),
    ] {
        Module::parse(&good.replace(from, to)).unwrap_err();
    }
    // A sign that is none is only known at run time.
    let module = Module::parse(&good.replace(", 1, 1, 0, 0;", ", 2, 1, 0, 0;")).unwrap();
    let mut memory = Memory::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| Param::U64(memory.alloc(name, &vec![0; 2 * ROOM])));
    let (params, schedule) = ([a, b, c], Schedule::all()[0]);
    let launch = Launch { entry: "k", grid: [1; 3], block: [128, 1, 1], shared_bytes: 0, params: &params, schedule };
    assert_eq!(run(&module, &mut memory, &launch).unwrap_err().kind, Kind::UnknownOpcode);
}

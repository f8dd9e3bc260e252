//! What each instruction computes, by table: PTX written by hand, no compiler needed.

use ptxsim::{Launch, Memory, Module, Param, Schedule, run};

/// A kernel of one thread that reads four 64-bit inputs into registers of every class (`%r0`, `%rd0`, `%f0`, `%fd0`,
/// `%rs0`, `%p0`, …), runs `code`, and stores `out`.
fn evaluate(code: &str, inputs: [u64; 4], out: &str) -> Result<u64, String> {
    let mut text = String::from(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out)\n{\n\
         .reg .b64 %rd<16>; .reg .b32 %r<16>; .reg .b16 %rs<16>; .reg .f32 %f<16>; .reg .f64 %fd<16>; .reg .pred %p<16>;\n\
         ld.param.u64 %rd14, [in];\nld.param.u64 %rd15, [out];\n",
    );
    for i in 0..4 {
        let at = 8 * i;
        text += &format!("ld.global.u64 %rd{i}, [%rd14+{at}];\nld.global.u32 %r{i}, [%rd14+{at}];\n");
        text += &format!("ld.global.u16 %rs{i}, [%rd14+{at}];\nld.global.f32 %f{i}, [%rd14+{at}];\n");
        text += &format!("ld.global.f64 %fd{i}, [%rd14+{at}];\nsetp.ne.s64 %p{i}, %rd{i}, 0;\n");
    }
    text += &format!("{code}\n");
    let class = out.trim_start_matches('%').trim_end_matches(|c: char| c.is_ascii_digit());
    text += &match class {
        "p" => format!("selp.u64 %rd13, 1, 0, {out};\nst.global.u64 [%rd15], %rd13;\n"),
        "rs" => format!("st.global.u16 [%rd15], {out};\n"),
        "r" | "f" => format!("st.global.b32 [%rd15], {out};\n"),
        _ => format!("st.global.b64 [%rd15], {out};\n"),
    };
    text += "ret;\n}\n";
    let module = Module::parse(&text)?;
    let mut memory = Memory::new();
    let input = memory.alloc("in", &inputs.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let output = memory.alloc("out", &[0; 8]);
    let params = [Param::U64(input), Param::U64(output)];
    let schedule = Schedule::all()[0];
    let launch = Launch { entry: "k", grid: [1; 3], block: [1; 3], shared_bytes: 0, params: &params, schedule };
    run(&module, &mut memory, &launch).map_err(|f| f.to_string())?;
    Ok(u64::from_le_bytes(memory.read(output).try_into().unwrap()))
}

fn table(cases: &[(&str, [u64; 4], &str, u64)]) {
    for (code, inputs, out, want) in cases {
        let got = evaluate(code, *inputs, out).unwrap_or_else(|e| panic!("{code}: {e}"));
        assert_eq!(got, *want, "{code} of {inputs:x?}: {got:#x}, not {want:#x}");
    }
}

const fn f(v: f32) -> u64 {
    v.to_bits() as u64
}

const fn d(v: f64) -> u64 {
    v.to_bits()
}

const M1: u64 = u32::MAX as u64;
const NAN: u64 = 0x7fff_ffff;

#[test]
fn integers() {
    let min = 0x8000_0000;
    table(&[
        ("add.s32 %r4, %r0, %r1;", [M1, 2, 0, 0], "%r4", 1),
        ("add.s32 %r4, %r0, -3;", [1, 0, 0, 0], "%r4", M1 - 1),
        ("sub.s64 %rd4, %rd0, %rd1;", [1, 2, 0, 0], "%rd4", u64::MAX),
        ("add.s16 %rs4, %rs0, %rs1;", [0xffff, 2, 0, 0], "%rs4", 1),
        ("mul.lo.s32 %r4, %r0, %r1;", [0x10001, 0x10001, 0, 0], "%r4", 0x20001),
        ("mul.hi.s32 %r4, %r0, %r1;", [M1, 2, 0, 0], "%r4", M1),
        ("mul.hi.u32 %r4, %r0, %r1;", [M1, 2, 0, 0], "%r4", 1),
        ("mul.hi.u64 %rd4, %rd0, %rd1;", [u64::MAX, u64::MAX, 0, 0], "%rd4", u64::MAX - 1),
        ("mul.wide.s32 %rd4, %r0, %r1;", [M1, 5, 0, 0], "%rd4", (-5i64) as u64),
        ("mul.wide.u32 %rd4, %r0, %r1;", [M1, 5, 0, 0], "%rd4", 5 * M1),
        ("mul.wide.u16 %r4, %rs0, %rs1;", [0xffff, 0xffff, 0, 0], "%r4", 0xfffe_0001),
        ("mad.lo.s32 %r4, %r0, %r1, %r2;", [3, 4, 5, 0], "%r4", 17),
        ("mad.wide.s32 %rd4, %r0, %r1, %rd2;", [M1, 4, 5, 0], "%rd4", 1),
        ("div.s32 %r4, %r0, %r1;", [(-7i32) as u32 as u64, 2, 0, 0], "%r4", (-3i32) as u32 as u64),
        ("div.s32 %r4, %r0, %r1;", [min, M1, 0, 0], "%r4", min),
        ("div.u32 %r4, %r0, %r1;", [7, 0, 0, 0], "%r4", M1),
        ("div.u64 %rd4, %rd0, %rd1;", [u64::MAX, 10, 0, 0], "%rd4", u64::MAX / 10),
        ("rem.s32 %r4, %r0, %r1;", [(-7i32) as u32 as u64, 4, 0, 0], "%r4", (-3i32) as u32 as u64),
        ("rem.u64 %rd4, %rd0, %rd1;", [u64::MAX, 10, 0, 0], "%rd4", 5),
        ("min.s32 %r4, %r0, %r1;", [M1, 1, 0, 0], "%r4", M1),
        ("min.u32 %r4, %r0, %r1;", [M1, 1, 0, 0], "%r4", 1),
        ("max.s64 %rd4, %rd0, %rd1;", [u64::MAX, 1, 0, 0], "%rd4", 1),
        ("neg.s32 %r4, %r0;", [1, 0, 0, 0], "%r4", M1),
        ("abs.s32 %r4, %r0;", [M1, 0, 0, 0], "%r4", 1),
        ("sad.s32 %r4, %r0, %r1, %r2;", [M1, 1, 10, 0], "%r4", 12),
        ("add.sat.s32 %r4, %r0, %r1;", [0x7fff_ffff, 1, 0, 0], "%r4", 0x7fff_ffff),
        ("dp4a.s32.s32 %r4, %r0, %r1, %r2;", [0xff02_0304, 0x0101_0101, 10, 0], "%r4", 18),
        ("dp4a.u32.u32 %r4, %r0, %r1, %r2;", [0xff02_0304, 0x0101_0101, 10, 0], "%r4", 274),
    ]);
}

#[test]
fn logic_shifts_and_fields() {
    table(&[
        ("and.b32 %r4, %r0, %r1;", [12, 10, 0, 0], "%r4", 8),
        ("xor.b64 %rd4, %rd0, %rd1;", [12, 10, 0, 0], "%rd4", 6),
        ("not.b32 %r4, %r0;", [0, 0, 0, 0], "%r4", M1),
        ("not.pred %p4, %p0;", [0, 0, 0, 0], "%p4", 1),
        ("or.pred %p4, %p0, %p1;", [0, 5, 0, 0], "%p4", 1),
        ("shl.b32 %r4, %r0, %r1;", [3, 31, 0, 0], "%r4", 0x8000_0000),
        ("shl.b32 %r4, %r0, %r1;", [3, 32, 0, 0], "%r4", 0),
        ("shl.b64 %rd4, %rd0, %r1;", [3, 40, 0, 0], "%rd4", 3 << 40),
        ("shr.s32 %r4, %r0, %r1;", [0x8000_0000, 99, 0, 0], "%r4", M1),
        ("shr.u32 %r4, %r0, %r1;", [0x8000_0000, 4, 0, 0], "%r4", 0x0800_0000),
        ("shr.u64 %rd4, %rd0, 64;", [5, 0, 0, 0], "%rd4", 0),
        ("shf.l.wrap.b32 %r4, %r0, %r1, %r2;", [0x8000_0000, 1, 1, 0], "%r4", 3),
        ("shf.r.clamp.b32 %r4, %r0, %r1, %r2;", [1, 7, 32, 0], "%r4", 7),
        ("shf.r.wrap.b32 %r4, %r0, %r1, %r2;", [1, 7, 32, 0], "%r4", 1),
        ("bfe.u32 %r4, %r0, 4, 8;", [0xabcd, 0, 0, 0], "%r4", 0xbc),
        ("bfe.s32 %r4, %r0, 4, 8;", [0xabcd, 0, 0, 0], "%r4", 0xffff_ffbc),
        ("bfe.s32 %r4, %r0, 28, 8;", [0x8000_0000, 0, 0, 0], "%r4", 0xffff_fff8),
        ("bfe.u64 %rd4, %rd0, 60, 9;", [u64::MAX, 0, 0, 0], "%rd4", 15),
        ("bfi.b32 %r4, %r0, %r1, 8, 4;", [0xf5, 0xffff_ffff, 0, 0], "%r4", 0xffff_f5ff),
        ("bfi.b64 %rd4, %rd0, %rd1, 32, 32;", [7, 9, 0, 0], "%rd4", 7 << 32 | 9),
        ("prmt.b32 %r4, %r0, %r1, 0x6240;", [0x3322_1100, 0x7766_5544, 0, 0], "%r4", 0x6622_4400),
        ("prmt.b32 %r4, %r0, %r1, 0x000b;", [0x8322_1100, 0, 0, 0], "%r4", 0xff),
        ("lop3.b32 %r4, %r0, %r1, %r2, 0x96;", [12, 10, 6, 0], "%r4", 0),
        ("lop3.b32 %r4, %r0, %r1, %r2, 0xe8;", [12, 10, 6, 0], "%r4", 14),
        ("popc.b64 %r4, %rd0;", [u64::MAX, 0, 0, 0], "%r4", 64),
        ("clz.b32 %r4, %r0;", [1, 0, 0, 0], "%r4", 31),
        ("clz.b32 %r4, %r0;", [0, 0, 0, 0], "%r4", 32),
        ("brev.b32 %r4, %r0;", [1, 0, 0, 0], "%r4", 0x8000_0000),
        ("bfind.u32 %r4, %r0;", [0x100, 0, 0, 0], "%r4", 8),
        ("bfind.u32 %r4, %r0;", [0, 0, 0, 0], "%r4", M1),
        ("bfind.shiftamt.u32 %r4, %r0;", [0x100, 0, 0, 0], "%r4", 23),
        ("selp.b32 %r4, %r0, %r1, %p2;", [1, 2, 0, 0], "%r4", 2),
        ("mov.b64 %rd4, {%r0, %r1};", [5, 6, 0, 0], "%rd4", 6 << 32 | 5),
        ("mov.b64 {%r4, %r5}, %rd0;", [6 << 32 | 5, 0, 0, 0], "%r5", 6),
        ("mov.b64 {_, %r5}, %rd0;", [6 << 32 | 5, 0, 0, 0], "%r5", 6),
        ("mov.b32 %r4, {%rs0, %rs1};", [5, 6, 0, 0], "%r4", 6 << 16 | 5),
        ("@%p0 mov.u32 %r1, 7;", [0, 1, 0, 0], "%r1", 1),
        ("@!%p0 mov.u32 %r1, 7;", [0, 1, 0, 0], "%r1", 7),
    ]);
}

#[test]
fn comparisons() {
    table(&[
        ("setp.lt.s32 %p4, %r0, %r1;", [M1, 0, 0, 0], "%p4", 1),
        ("setp.lt.u32 %p4, %r0, %r1;", [M1, 0, 0, 0], "%p4", 0),
        ("setp.hi.u32 %p4, %r0, %r1;", [M1, 0, 0, 0], "%p4", 1),
        ("setp.eq.s16 %p4, %rs0, %rs1;", [0x1_0005, 5, 0, 0], "%p4", 1),
        ("setp.ge.f32 %p4, %f0, %f1;", [f(1.0), NAN, 0, 0], "%p4", 0),
        ("setp.geu.f32 %p4, %f0, %f1;", [f(1.0), NAN, 0, 0], "%p4", 1),
        ("setp.ne.f32 %p4, %f0, %f1;", [f(1.0), NAN, 0, 0], "%p4", 0),
        ("setp.neu.f32 %p4, %f0, %f1;", [f(1.0), NAN, 0, 0], "%p4", 1),
        ("setp.nan.f64 %p4, %fd0, %fd1;", [d(f64::NAN), 0, 0, 0], "%p4", 1),
        ("setp.eq.f32 %p4, %f0, %f1;", [f(-0.0), f(0.0), 0, 0], "%p4", 1),
        ("setp.gt.ftz.f32 %p4, %f0, %f1;", [1, 0, 0, 0], "%p4", 0),
        ("setp.lt.and.s32 %p4, %r0, %r1, %p2;", [1, 2, 0, 0], "%p4", 0),
        ("setp.lt.or.s32 %p4, %r0, %r1, !%p2;", [3, 2, 0, 0], "%p4", 1),
        ("setp.lt.s32 %p4|%p5, %r0, %r1;", [1, 2, 0, 0], "%p5", 0),
        ("set.lt.u32.f32 %r4, %f0, %f1;", [f(1.0), f(2.0), 0, 0], "%r4", M1),
        ("set.gt.f32.s32 %f4, %r0, %r1;", [3, 2, 0, 0], "%f4", f(1.0)),
        ("setp.lt.bf16 %p4, %rs0, %rs1;", [0xbf80, 0x3f80, 0, 0], "%p4", 1),
    ]);
}

#[test]
fn floats() {
    let third = 1.0f32 / 3.0;
    let eps = f32::EPSILON;
    table(&[
        ("add.f32 %f4, %f0, %f1;", [f(1.5), f(2.0), 0, 0], "%f4", f(3.5)),
        ("add.rz.f32 %f4, %f0, %f1;", [f(1.0), f(-eps / 4.0), 0, 0], "%f4", f(1.0 - eps / 2.0)),
        ("add.rp.f32 %f4, %f0, %f1;", [f(1.0), f(1e-30), 0, 0], "%f4", f(1.0 + eps)),
        ("mul.rm.f32 %f4, %f0, %f1;", [f(third), f(3.0), 0, 0], "%f4", f(1.0)),
        ("mul.f32 %f4, %f0, %f1;", [f(0.0), f(f32::INFINITY), 0, 0], "%f4", NAN),
        ("mul.sat.f32 %f4, %f0, %f1;", [f(3.0), f(2.0), 0, 0], "%f4", f(1.0)),
        ("mul.ftz.f32 %f4, %f0, %f1;", [f(1e-20), f(1e-20), 0, 0], "%f4", 0),
        ("fma.rn.f32 %f4, %f0, %f1, %f2;", [f(1.0 + eps), f(1.0 - eps), f(-1.0), 0], "%f4", f(-eps * eps)),
        ("fma.rm.f32 %f4, %f0, %f1, %f2;", [f(0.3), f(252.0), f(12_582_913.0), 0], "%f4", f(12_582_988.0)),
        ("div.rn.f32 %f4, %f0, %f1;", [f(1.0), f(3.0), 0, 0], "%f4", f(third)),
        ("min.f32 %f4, %f0, %f1;", [NAN, f(3.0), 0, 0], "%f4", f(3.0)),
        ("min.NaN.f32 %f4, %f0, %f1;", [NAN, f(3.0), 0, 0], "%f4", NAN),
        ("max.f32 %f4, %f0, %f1;", [f(-0.0), f(0.0), 0, 0], "%f4", 0),
        ("neg.f32 %f4, %f0;", [f(1.0), 0, 0, 0], "%f4", f(-1.0)),
        ("abs.f32 %f4, %f0;", [f(-1.0), 0, 0, 0], "%f4", f(1.0)),
        ("copysign.f32 %f4, %f0, %f1;", [f(-1.0), f(5.0), 0, 0], "%f4", f(-5.0)),
        ("rcp.approx.ftz.f32 %f4, %f0;", [f(4.0), 0, 0, 0], "%f4", f(0.25)),
        ("sqrt.rn.f32 %f4, %f0;", [f(2.0), 0, 0, 0], "%f4", f(2.0f32.sqrt())),
        ("rsqrt.approx.f32 %f4, %f0;", [f(0.25), 0, 0, 0], "%f4", f(2.0)),
        ("ex2.approx.ftz.f32 %f4, %f0;", [f(f32::NEG_INFINITY), 0, 0, 0], "%f4", 0),
        ("ex2.approx.f32 %f4, %f0;", [f(10.0), 0, 0, 0], "%f4", f(1024.0)),
        ("lg2.approx.f32 %f4, %f0;", [f(1024.0), 0, 0, 0], "%f4", f(10.0)),
        ("sin.approx.f32 %f4, %f0;", [0, 0, 0, 0], "%f4", 0),
        ("cos.approx.f32 %f4, %f0;", [0, 0, 0, 0], "%f4", f(1.0)),
        ("tanh.approx.f32 %f4, %f0;", [f(50.0), 0, 0, 0], "%f4", f(1.0)),
        ("testp.subnormal.f32 %p4, %f0;", [1, 0, 0, 0], "%p4", 1),
        ("add.f64 %fd4, %fd0, %fd1;", [d(1.5), d(2.0), 0, 0], "%fd4", d(3.5)),
        ("fma.rn.f64 %fd4, %fd0, %fd1, %fd2;", [d(1.5), d(2.0), d(1.0), 0], "%fd4", d(4.0)),
        ("fma.rp.f64 %fd4, %fd0, %fd1, %fd2;", [d(1.0), d(1.0), d(1e-300), 0], "%fd4", d(1.0 + f64::EPSILON)),
        ("div.rn.f64 %fd4, %fd0, %fd1;", [d(1.0), d(3.0), 0, 0], "%fd4", d(1.0 / 3.0)),
        ("sqrt.rn.f64 %fd4, %fd0;", [d(2.0), 0, 0, 0], "%fd4", d(2.0f64.sqrt())),
    ]);
}

#[test]
fn halves() {
    // f16: 1.0 is 3c00, 2.0 4000, 3.0 4200; bf16: 1.0 is 3f80, 2.0 4000, 3.0 4040.
    table(&[
        ("add.f16 %rs4, %rs0, %rs1;", [0x3c00, 0x4000, 0, 0], "%rs4", 0x4200),
        ("mul.f16 %rs4, %rs0, %rs1;", [0x7bff, 0x4000, 0, 0], "%rs4", 0x7c00),
        ("fma.rn.f16 %rs4, %rs0, %rs1, %rs2;", [0x3c03, 0x3c03, 0xbc00, 0], "%rs4", 0x1e02),
        ("fma.rn.relu.f16 %rs4, %rs0, %rs1, %rs2;", [0x3c00, 0x3c00, 0xc000, 0], "%rs4", 0),
        ("fma.rn.bf16 %rs4, %rs0, %rs1, %rs2;", [0x3f80, 0x4000, 0x3f80, 0], "%rs4", 0x4040),
        ("fma.rn.bf16x2 %r4, %r0, %r1, %r2;", [0x3f80_4000, 0x4000_4000, 0x3f80_0000, 0], "%r4", 0x4040_4080),
        ("add.f16x2 %r4, %r0, %r1;", [0x3c00_4000, 0x4000_3c00, 0, 0], "%r4", 0x4200_4200),
        ("max.bf16x2 %r4, %r0, %r1;", [0x3f80_4000, 0x4000_bf80, 0, 0], "%r4", 0x4000_4000),
        ("neg.bf16 %rs4, %rs0;", [0x3f80, 0, 0, 0], "%rs4", 0xbf80),
        ("abs.f16x2 %r4, %r0;", [0xbc00_3c00, 0, 0, 0], "%r4", 0x3c00_3c00),
        ("min.f16 %rs4, %rs0, %rs1;", [0x3c00, 0xc000, 0, 0], "%rs4", 0xc000),
    ]);
}

#[test]
fn conversions() {
    table(&[
        ("cvt.u32.u16 %r4, %rs0;", [0x1_ffff, 0, 0, 0], "%r4", 0xffff),
        ("cvt.s32.s8 %r4, %r0;", [0x80, 0, 0, 0], "%r4", 0xffff_ff80),
        ("cvt.s64.s32 %rd4, %r0;", [M1, 0, 0, 0], "%rd4", u64::MAX),
        ("cvt.u64.u32 %rd4, %r0;", [M1, 0, 0, 0], "%rd4", M1),
        ("cvt.u16.u32 %rs4, %r0;", [0x1_2345, 0, 0, 0], "%rs4", 0x2345),
        ("cvt.sat.u8.s32 %r4, %r0;", [M1, 0, 0, 0], "%r4", 0),
        ("cvt.sat.s8.s32 %r4, %r0;", [300, 0, 0, 0], "%r4", 127),
        ("cvt.rn.f32.s32 %f4, %r0;", [M1, 0, 0, 0], "%f4", f(-1.0)),
        ("cvt.rn.f32.u32 %f4, %r0;", [M1, 0, 0, 0], "%f4", f(4_294_967_296.0)),
        ("cvt.rz.f32.u32 %f4, %r0;", [M1, 0, 0, 0], "%f4", f(4_294_967_040.0)),
        ("cvt.rn.f64.s64 %fd4, %rd0;", [u64::MAX, 0, 0, 0], "%fd4", d(-1.0)),
        ("cvt.rn.f16.s32 %rs4, %r0;", [3, 0, 0, 0], "%rs4", 0x4200),
        ("cvt.rzi.s32.f32 %r4, %f0;", [f(-2.7), 0, 0, 0], "%r4", (-2i32) as u32 as u64),
        ("cvt.rmi.s32.f32 %r4, %f0;", [f(-2.2), 0, 0, 0], "%r4", (-3i32) as u32 as u64),
        ("cvt.rni.s32.f32 %r4, %f0;", [f(2.5), 0, 0, 0], "%r4", 2),
        ("cvt.rzi.s32.f32 %r4, %f0;", [NAN, 0, 0, 0], "%r4", 0),
        ("cvt.rzi.u32.f32 %r4, %f0;", [f(-5.0), 0, 0, 0], "%r4", 0),
        ("cvt.rzi.u32.f32 %r4, %f0;", [f(1e20), 0, 0, 0], "%r4", M1),
        ("cvt.rzi.s64.f64 %rd4, %fd0;", [d(-1e300), 0, 0, 0], "%rd4", 1 << 63),
        ("cvt.rni.f32.f32 %f4, %f0;", [f(-0.4), 0, 0, 0], "%f4", f(-0.0)),
        ("cvt.rpi.f32.f32 %f4, %f0;", [f(1.2), 0, 0, 0], "%f4", f(2.0)),
        ("cvt.sat.f32.f32 %f4, %f0;", [f(1.2), 0, 0, 0], "%f4", f(1.0)),
        ("cvt.sat.f32.f32 %f4, %f0;", [NAN, 0, 0, 0], "%f4", 0),
        ("cvt.f64.f32 %fd4, %f0;", [f(1.25), 0, 0, 0], "%fd4", d(1.25)),
        ("cvt.rn.f32.f64 %f4, %fd0;", [d(0.1), 0, 0, 0], "%f4", f(0.1)),
        ("cvt.rp.f32.f64 %f4, %fd0;", [d(1.0 + 1e-15), 0, 0, 0], "%f4", f(1.0 + f32::EPSILON)),
        ("cvt.rn.f16.f32 %rs4, %f0;", [f(65520.0), 0, 0, 0], "%rs4", 0x7c00),
        ("cvt.rz.f16.f32 %rs4, %f0;", [f(65520.0), 0, 0, 0], "%rs4", 0x7bff),
        ("cvt.rn.f16.f32 %rs4, %f0;", [f(6e-8), 0, 0, 0], "%rs4", 1),
        ("cvt.f32.f16 %f4, %rs0;", [0xc000, 0, 0, 0], "%f4", f(-2.0)),
        ("cvt.rn.bf16.f32 %rs4, %f0;", [0x3f80_8000, 0, 0, 0], "%rs4", 0x3f80),
        ("cvt.rn.bf16.f32 %rs4, %f0;", [0x3f81_8000, 0, 0, 0], "%rs4", 0x3f82),
        ("cvt.rz.bf16.f32 %rs4, %f0;", [0x3f81_ffff, 0, 0, 0], "%rs4", 0x3f81),
        ("cvt.f32.bf16 %f4, %rs0;", [0x3f81, 0, 0, 0], "%f4", 0x3f81_0000),
        ("cvt.rn.bf16x2.f32 %r4, %f0, %f1;", [f(1.0), f(2.0), 0, 0], "%r4", 0x3f80_4000),
        ("cvt.rn.f16x2.f32 %r4, %f0, %f1;", [f(1.0), f(2.0), 0, 0], "%r4", 0x3c00_4000),
        ("cvt.rn.relu.bf16x2.f32 %r4, %f0, %f1;", [f(-1.0), f(2.0), 0, 0], "%r4", 0x0000_4000),
        ("cvt.rna.tf32.f32 %r4, %f0;", [0x3f80_1000, 0, 0, 0], "%r4", 0x3f80_2000),
    ]);
}

#[test]
fn unknown_forms_are_refused() {
    for code in
        ["frobnicate.b32 %r4, %r0;", "add.s32 %r4, %r0;", "add.cc.s32 %r4, %r0, %r1;", "setp.zz.s32 %p4, %r0, %r1;"]
    {
        let error = evaluate(code, [0; 4], "%r4").unwrap_err();
        assert!(error.contains("PTX line 33"), "{code}: {error}");
    }
    assert!(evaluate("mov.u32 %r4, %smid;", [0; 4], "%r4").unwrap_err().contains("smid"));
    assert!(evaluate("bra NOWHERE;", [0; 4], "%r4").unwrap_err().contains("NOWHERE"));
}

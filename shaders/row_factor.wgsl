// A factor for each column: y = x v or x / v in each row, and the gradient of v, the sum over rows of dy x (+ acc).
// variant: MUL
// variant: MUL INPLACE
// variant: DIV
// variant: DIV INPLACE
// variant: DV
// variant: DV INPLACE
// variant: DV ACC

struct Params {
    // Elements (DV: rows) of this dispatch.
    n: u32,
    cols: u32,
}

#if !DV
const WG: u32 = 64u;
const EACH: u32 = 4u;
@group(0) @binding(next) var<storage, read_write> y: array<f32>;
#if !INPLACE
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> v: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

fn x_at(i: u32) -> f32 {
#if INPLACE
    return y[i];
#else
    return x[i];
#end
}
#end

#if MUL
@compute @workgroup_size(WG)
fn mul_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n { y[i] = x_at(i) * v[i % p.cols]; }
    }
}
#end

#if DIV
@compute @workgroup_size(WG)
fn div_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    for (var k = 0u; k < EACH; k++) {
        let i = ((wg.y * groups.x + wg.x) * EACH + k) * WG + lid;
        if i < p.n { y[i] = x_at(i) / v[i % p.cols]; }
    }
}
#end

#if DV
@group(0) @binding(next) var<storage, read_write> dv: array<f32>;
@group(0) @binding(next) var<storage, read_write> dy: array<f32>;
@group(0) @binding(next) var<storage, read_write> x: array<f32>;
#if ACC
@group(0) @binding(next) var<storage, read_write> acc: array<f32>;
#end
@group(0) @binding(next) var<uniform> p: Params;

// A workgroup sums 16 columns: lane l of a column the rows l, l + 16, l + 32, …, and the lanes are added in a tree.
const COLS: u32 = 16u;
const LANES: u32 = 16u;
var<workgroup> sums: array<f32, COLS * LANES>;

@compute @workgroup_size(COLS, LANES)
fn mul_row_dv(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) lid: vec3<u32>) {
    let c = (wg.y * groups.x + wg.x) * COLS + lid.x;
    let at = lid.y * COLS + lid.x;
    var sum = 0.0;
    if c < p.cols {
        for (var t = lid.y; t < p.n; t += LANES) {
            sum += dy[t * p.cols + c] * x[t * p.cols + c];
        }
    }
    sums[at] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lid.y < half { sums[at] += sums[at + half * COLS]; }
    }
    if lid.y == 0u && c < p.cols {
#if INPLACE
        dv[c] += sums[at];
#end
#if ACC
        dv[c] = sums[at] + acc[c];
#end
#if !INPLACE && !ACC
        dv[c] = sums[at];
#end
    }
}
#end

// Column sums: y[n] = sum over t of x[t,n] (+ acc[n]). A workgroup sums 64 columns; four lanes share a column's rows,
// and their sums are added in order.
// variant:
// variant: ACC
const COLS: u32 = 64u;
const LANES: u32 = 4u;
// Add to what y holds.
override ADD: bool = false;

struct Params {
    rows: u32,
    cols: u32,
}
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
#if ACC
@group(0) @binding(2) var<storage, read_write> add: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;
#else
@group(0) @binding(2) var<uniform> p: Params;
#end

var<workgroup> sums: array<f32, COLS * LANES>;

@compute @workgroup_size(COLS, LANES)
fn sum_rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) lid: vec3<u32>) {
    let n = wg.x * COLS + lid.x;
    var sum = 0.0;
    if n < p.cols {
        for (var t = lid.y; t < p.rows; t += LANES) {
            sum += x[t * p.cols + n];
        }
    }
    sums[lid.y * COLS + lid.x] = sum;
    workgroupBarrier();
    if lid.y == 0u && n < p.cols {
        var total = 0.0;
#if ACC
        total = add[n];
#end
        if ADD { total = y[n]; }
        for (var lane = 0u; lane < LANES; lane++) {
            total += sums[lane * COLS + lid.x];
        }
        y[n] = total;
    }
}

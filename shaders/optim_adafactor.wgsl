// Adafactor for all tensors of a flat stretch (src/ops/optim/adafactor.rs has the equations): sums of rows, of
// columns, r, c and the mean of r, squares of updates by rows, step lengths, update. Rows are taken by 32 invocations,
// columns by 8; who takes one finds its tensor in the table. A dispatch sees elements `lo` to `hi` of the gradient.
// variant: SUMS
// variant: FACTORS
// variant: UPDATES
// variant: STEPS
// variant: UPDATE

#include "common/clip.wgsl"

struct Params {
    lo: u32,
    hi: u32,
    tensors: u32,
    rows: u32,
    cols: u32,
    // Where the sums of columns, the means of r, and the step lengths begin in `work`; sums of rows stand first.
    col_sums: u32,
    means: u32,
    steps: u32,
}
#if UPDATE
@group(0) @binding(next) var<storage, read_write> w: array<f32>;
#end
#if !SUMS && !STEPS
@group(0) @binding(next) var<storage, read_write> r: array<f32>;
@group(0) @binding(next) var<storage, read_write> c: array<f32>;
#end
#if !FACTORS && !STEPS
@group(0) @binding(next) var<storage, read_write> g: array<f32>;
#end
@group(0) @binding(next) var<storage, read_write> work: array<f32>;
// A tensor's beginning, rows, columns, first row and first column.
@group(0) @binding(next) var<storage, read_write> table: array<u32>;
@group(0) @binding(next) var<storage, read_write> sumsq: array<u32>;
@group(0) @binding(next) var<storage, read_write> hyper: array<f32>;
@group(0) @binding(next) var<uniform> p: Params;

const ENTRY: u32 = 5u;
const LANES: u32 = 256u;
const ROWS: u32 = 8u;
const COLS: u32 = 32u;
var<workgroup> room: array<f32, LANES>;

// The last tensor whose word `key` is not above `index`.
fn tensor_of(key: u32, index: u32) -> u32 {
    var first = 0u;
    var end = p.tensors;
    while end - first > 1u {
        let middle = (first + end) / 2u;
        if table[ENTRY * middle + key] <= index { first = middle; } else { end = middle; }
    }
    return first;
}

// The sum over `lanes` neighbours, a power of two, for the first of them.
fn sum_of(lid: u32, lanes: u32, x: f32) -> f32 {
    workgroupBarrier();
    room[lid] = x;
    workgroupBarrier();
    for (var half = lanes / 2u; half > 0u; half /= 2u) {
        if lid % lanes < half { room[lid] += room[lid + half]; }
        workgroupBarrier();
    }
    return room[lid];
}

// A row: its tensor, and the elements of it that this dispatch sees.
struct Row {
    tensor: u32,
    begin: u32,
    end: u32,
    first: u32,
}
fn row_of(i: u32) -> Row {
    var row = Row(0u, 0u, 0u, 0u);
    if i < p.rows {
        row.tensor = tensor_of(3u, i);
        let t = ENTRY * row.tensor;
        row.first = table[t] + (i - table[t + 3u]) * table[t + 2u];
        row.begin = max(row.first, p.lo);
        row.end = max(min(row.first + table[t + 2u], p.hi), row.begin);
    }
    return row;
}

// Sums go on from the dispatch that saw the elements before.
fn add(i: u32, x: f32) {
    if p.lo == 0u { work[i] = x; } else { work[i] += x; }
}

#if SUMS
@compute @workgroup_size(LANES)
fn row_sums(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * ROWS + lid / 32u;
    let clip = clip_factor(sumsq[0], hyper[7]);
    let row = row_of(i);
    var sum = 0.0;
    for (var k = row.begin + lid % 32u; k < row.end; k += 32u) {
        let d = clip * g[k - p.lo];
        sum += d * d;
    }
    sum = sum_of(lid, 32u, sum);
    if i < p.rows && lid % 32u == 0u { add(i, sum); }
}

@compute @workgroup_size(LANES)
fn col_sums(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    // Neighbours take neighbouring columns; the lanes of a column stand 32 apart, and side by side when summed.
    let j = (wg.y * groups.x + wg.x) * COLS + lid % COLS;
    let lane = lid / COLS;
    let clip = clip_factor(sumsq[0], hyper[7]);
    var sum = 0.0;
    if j < p.cols {
        let t = ENTRY * tensor_of(4u, j);
        let cols = table[t + 2u];
        let first = table[t] + j - table[t + 4u];
        let end = min(table[t] + table[t + 1u] * cols, p.hi);
        var row = 0u;
        if p.lo > first { row = (p.lo - first + cols - 1u) / cols; }
        for (var k = first + (row + lane) * cols; k < end; k += (LANES / COLS) * cols) {
            let d = clip * g[k - p.lo];
            sum += d * d;
        }
    }
    room[lid] = sum;
    workgroupBarrier();
    if lane == 0u && j < p.cols {
        for (var other = 1u; other < LANES / COLS; other++) { sum += room[other * COLS + lid]; }
        add(p.col_sums + j, sum);
    }
}
#end

#if FACTORS
@compute @workgroup_size(LANES)
fn factors(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let k = wg.y * groups.x + wg.x;
    let skip = skipped(sumsq[0]);
    var sum = 0.0;
    var rows = 0u;
    if k < p.tensors && !skip {
        let t = ENTRY * k;
        rows = table[t + 1u];
        let cols = table[t + 2u];
        for (var i = lid; i < rows; i += LANES) {
            let at = table[t + 3u] + i;
            r[at] += hyper[1] * (work[at] / f32(cols) + hyper[2] - r[at]);
            sum += r[at];
        }
        for (var j = lid; j < cols; j += LANES) {
            let at = table[t + 4u] + j;
            c[at] += hyper[1] * (work[p.col_sums + at] / f32(rows) + hyper[2] - c[at]);
        }
    }
    sum = sum_of(lid, LANES, sum);
    if lid == 0u && k < p.tensors { work[p.means + k] = sum / f32(max(rows, 1u)); }
}
#end

#if UPDATES
@compute @workgroup_size(LANES)
fn row_updates(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * ROWS + lid / 32u;
    let clip = clip_factor(sumsq[0], hyper[7]);
    let row = row_of(i);
    var sum = 0.0;
    if row.begin < row.end {
        let by_row = inverseSqrt(r[i] / work[p.means + row.tensor]);
        let first_c = table[ENTRY * row.tensor + 4u];
        for (var k = row.begin + lid % 32u; k < row.end; k += 32u) {
            let u = clip * g[k - p.lo] * (by_row * inverseSqrt(c[first_c + k - row.first]));
            sum += u * u;
        }
    }
    sum = sum_of(lid, 32u, sum);
    if i < p.rows && lid % 32u == 0u { add(i, sum); }
}
#end

#if STEPS
@compute @workgroup_size(LANES)
fn step_lengths(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let k = wg.y * groups.x + wg.x;
    var sum = 0.0;
    var count = 1.0;
    if k < p.tensors {
        let t = ENTRY * k;
        count = f32(table[t + 1u]) * f32(table[t + 2u]);
        for (var i = lid; i < table[t + 1u]; i += LANES) { sum += work[table[t + 3u] + i]; }
    }
    sum = sum_of(lid, LANES, sum);
    if lid == 0u && k < p.tensors { work[p.steps + k] = hyper[0] / max(sqrt(sum / count) / hyper[3], 1.0); }
}
#end

#if UPDATE
@compute @workgroup_size(LANES)
fn update(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = (wg.y * groups.x + wg.x) * ROWS + lid / 32u;
    let row = row_of(i);
    if skipped(sumsq[0]) || row.begin >= row.end { return; }
    let clip = clip_factor(sumsq[0], hyper[7]);
    let keep = 1.0 - hyper[0] * hyper[4];
    let step = work[p.steps + row.tensor];
    let by_row = inverseSqrt(r[i] / work[p.means + row.tensor]);
    let first_c = table[ENTRY * row.tensor + 4u];
    for (var k = row.begin + lid % 32u; k < row.end; k += 32u) {
        let u = clip * g[k - p.lo] * (by_row * inverseSqrt(c[first_c + k - row.first]));
        w[k - p.lo] = w[k - p.lo] * keep - step * u;
    }
}
#end

// Which token is the first of its id: sums over the tokens of an id are then one workgroup's, in the tokens' order.
//
// The including file declares `ids: array<i32>` and a uniform `p` with `n`, the tokens of this dispatch, and `first`, where
// they begin in `ids`; and WG, the invocations of a workgroup.

var<workgroup> seen: array<u32, WG>;

// The id of token t of this dispatch; a negative one is a large number, beyond every table. None behind the last token.
fn id_of(t: u32) -> u32 {
    if t < p.n { return bitcast<u32>(ids[p.first + t]); }
    return 0xffffffffu;
}

// Whether no earlier token of this dispatch has token t's id. All invocations of the workgroup call it with the same t.
fn first_of_id(t: u32, lid: u32) -> bool {
    let id = id_of(t);
    var earlier = 0u;
    for (var s = lid; s < min(t, p.n); s += WG) {
        if id_of(s) == id { earlier = 1u; }
    }
    seen[lid] = earlier;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lid < half { seen[lid] |= seen[lid + half]; }
        workgroupBarrier();
    }
    return seen[0] == 0u;
}

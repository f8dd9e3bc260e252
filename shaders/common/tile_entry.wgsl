// The entry point of the tiled products: calls the kernel's block(wg, lid).
@compute @workgroup_size(THREADS)
fn tile(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
#if COOP
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
#end
) {
#if COOP
    for (var round = 0u; round < tile_rounds(subgroups); round++) {
        tile_round(round, subgroup, subgroups);
        block(wg, lid);
    }
#else
    block(wg, lid);
#end
}

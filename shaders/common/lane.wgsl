// The last parameters of an entry point that reduces: each of these builtins by itself, because naga's HLSL loses those
// of subgroups in a struct.
    @builtin(local_invocation_index) lid: u32,
#if SUBGROUP
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
#end

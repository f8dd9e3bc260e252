// The tile of a dense product: plain, or by cooperative matrices.
#if !COOP
#include "common/tile.wgsl"
#end
#if COOP && HALF
#include "common/tile_coop16.wgsl"
#end
#if COOP && !HALF
#include "common/tile_coop.wgsl"
#end

// Columns 4q..4q+4 of four rows of a weight of a plain type, there being `fours` groups of them.
fn load_w(g: u32, h: u32, at: vec4<u32>, q: u32, fours: u32) {
    if q < fours {
        tile_put_b(g, h, weight4(at.x + q), weight4(at.y + q), weight4(at.z + q), weight4(at.w + q));
    } else {
        tile_put_b(g, h, vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<f32>());
    }
}

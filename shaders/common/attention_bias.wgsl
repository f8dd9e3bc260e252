// The bias that is added to scores by the distance of key and query. The file that includes this has the parameter block
// `p` and `bias_at(i)`, element i of the table [2 farthest + 1][heads].
fn biases(head: u32, distance: vec4<i32>) -> vec4<f32> {
    let far = vec4<i32>(i32(p.farthest));
    let at = vec4<u32>(clamp(distance, -far, far) + far) * p.heads + head;
    return vec4<f32>(bias_at(at.x), bias_at(at.y), bias_at(at.z), bias_at(at.w));
}

// What optimizers do about the gradient's norm: clipping as PyTorch's clip_grad_norm_, and skipping a step.

// Whether a sum of squares, given as bits (WGSL may assume that floats are finite), is infinite or no number.
fn skipped(bits: u32) -> bool {
    return (bits & 0x7f800000u) == 0x7f800000u;
}

// What gradients are multiplied by: min(1, largest / (√sumsq + 1e-6)).
fn clip_factor(bits: u32, largest: f32) -> f32 {
    if largest > 0.0 { return min(largest / (sqrt(bitcast<f32>(bits)) + 1e-6), 1.0); }
    return 1.0;
}

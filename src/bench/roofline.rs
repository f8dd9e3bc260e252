//! The picture of a roofline (Williams, Waterman, Patterson 2009): every kernel a point, how many operations it makes of a byte
//! across, how many a second up, under the roofs that were measured beside it.

use std::fmt::Write;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::run::svg::{begin, escaped, number};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = HEIGHT - 52.0;

/// Points: full where operands came from memory.
const STYLE: &str = ".cold{fill:#0969da}.hot{fill:none}@media(prefers-color-scheme:dark){.cold{fill:#58a6ff}}";

/// A kernel.
struct Point {
    name: String,
    op: String,
    intensity: f64,
    rate: f64,
    cold: bool,
}

/// Draws a result of `bench kernels`, in JSON.
pub fn draw(report: &Value) -> Result<String> {
    let wrong = |found: &str| Error::config("roofline", found, "a result of `bench kernels --json`");
    if report["bench"] != "kernels" {
        return Err(wrong("another bench's result"));
    }
    let fact = |key: &str| report["facts"][key].as_f64().filter(|x| *x > 0.0);
    let bandwidth = fact("copy_gb_s").ok_or_else(|| wrong("no bandwidth"))?;
    let roofs = [
        ("multiply-adds in registers", fact("multiply_add_gflop_s")),
        ("product of f32", fact("product_f32_gflop_s")),
        ("product of 16 bits", fact("product_16_bits_gflop_s")),
        ("cuBLASLt's of f32", fact("cublaslt_f32_gflop_s")),
        ("cuBLASLt's of 16 bits", fact("cublaslt_16_bits_gflop_s")),
    ];
    let roofs: Vec<(&str, f64)> = roofs.into_iter().filter_map(|(name, roof)| Some((name, roof?))).collect();
    let point = |row: &Value| {
        let float = |key: &str| row[key].as_f64().filter(|x| *x > 0.0);
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        Some(Point {
            name: text("name"),
            op: text("op"),
            intensity: float("flops")? / float("bytes")?,
            rate: float("gflop_s")?,
            cold: row["cache"] == "cold",
        })
    };
    let points: Vec<Point> = report["rows"].as_array().into_iter().flatten().filter_map(point).collect();
    if points.is_empty() {
        return Err(wrong("no kernel that computes"));
    }

    // Both axes are logarithmic, in whole powers of ten.
    let decades = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, 0f64), |(l, h), v| (l.min(v), h.max(v)));
        (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0))
    };
    let (x0, x1) = decades(&mut points.iter().map(|p| p.intensity).chain(roofs.iter().map(|r| r.1 / bandwidth)));
    let (y0, y1) = decades(&mut points.iter().map(|p| p.rate).chain(roofs.iter().map(|r| r.1)));
    let x = |v: f64| LEFT + (v.log10() - x0) / (x1 - x0) * (RIGHT - LEFT);
    let y = |v: f64| BOTTOM - (v.log10() - y0) / (y1 - y0) * (BOTTOM - TOP);

    let device = report["environment"]["device"].as_str().unwrap_or_default();
    let mut svg = begin([WIDTH, HEIGHT], LEFT, &format!("Kernels under the roofs of {device}"), STYLE);
    let mut line = |[x1, x2, y1, y2]: [f64; 4], power: i32, [x, y]: [f64; 2], anchor: &str| {
        let label = number(10f64.powi(power));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x1:.1}\" x2=\"{x2:.1}\" y1=\"{y1:.1}\" y2=\"{y2:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>"
        );
    };
    for power in x0 as i32..=x1 as i32 {
        let at = x(10f64.powi(power));
        line([at, at, TOP, BOTTOM], power, [at, BOTTOM + 18.0], "middle");
    }
    for power in y0 as i32..=y1 as i32 {
        let at = y(10f64.powi(power));
        line([LEFT, RIGHT, at, at], power, [LEFT - 8.0, at + 4.0], "end");
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">operations a byte</text>\n<text x=\"12\" y=\"{}\">GFLOP/s</text>",
        (LEFT + RIGHT) / 2.0,
        HEIGHT - 12.0,
        TOP - 8.0
    );
    let most = roofs.iter().map(|r| r.1).fold(0.0, f64::max);
    let (low, high) = (10f64.powf(x0), 10f64.powf(x1));
    // The slope begins where the picture does, at the left or at the bottom, and ends at the highest roof.
    let from = low.max(10f64.powf(y0) / bandwidth);
    let _ = writeln!(
        svg,
        "<path class=\"smooth c1\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\">copy, {bandwidth:.1} GB/s</text>",
        x(from),
        y(from * bandwidth),
        x(most / bandwidth),
        y(most),
        x(from) + 8.0,
        y(from * bandwidth) - 10.0
    );
    for (name, roof) in &roofs {
        let _ = writeln!(
            svg,
            "<path class=\"smooth c1\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}, {roof:.0} GFLOP/s</text>",
            x(roof / bandwidth),
            y(*roof),
            x(high),
            y(*roof),
            x(high) - 4.0,
            y(*roof) - 6.0
        );
    }
    // Of each op one point has a name, if there is room for it; the others tell theirs when pointed at.
    let (mut named, mut taken): (Vec<&str>, Vec<(f64, f64, f64)>) = (Vec::new(), Vec::new());
    for p in &points {
        let (px, py, class) = (x(p.intensity), y(p.rate), if p.cold { "cold" } else { "hot" });
        let _ = writeln!(
            svg,
            "<circle class=\"{class} c0\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"><title>{}: {:.1} GFLOP/s</title></circle>",
            escaped(&p.name),
            p.rate
        );
        let width = 7.0 * p.op.chars().count() as f64;
        // To the right of its point, or to the left where the picture ends.
        let (left, x, anchor) = match px + 7.0 + width < RIGHT {
            true => (px + 7.0, px + 7.0, "start"),
            false => (px - 7.0 - width, px - 7.0, "end"),
        };
        let free = |(tx, ty, tw): &(f64, f64, f64)| (py - ty).abs() > 13.0 || left > tx + tw || left + width < *tx;
        if p.cold && !named.contains(&p.op.as_str()) && taken.iter().all(free) {
            let y = py + 4.0;
            let op = escaped(&p.op);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{op}</text>");
            taken.push((left, py, width));
            named.push(&p.op);
        }
    }
    Ok(svg + "</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kernels_are_under_the_roofs() {
        let row = |name: &str, flops: u64, bytes: u64, rate: f64, cache: &str| json!({"name": name, "op": name, "cache": cache, "flops": flops, "bytes": bytes, "gflop_s": rate});
        let report = json!({
            "bench": "kernels",
            "environment": {"device": "a < b"},
            "facts": {"copy_gb_s": 10.0, "multiply_add_gflop_s": 200.0, "product_f32_gflop_s": 400.0},
            "rows": [row("linear", 1000, 10, 300.0, "cold"), row("add", 10, 120, 0.8, "cold"), row("add", 10, 120, 2.0, "hot"),
                {"name": "bad", "wrong": "WRONG"}, row("zero", 0, 10, 0.0, "cold")],
        });
        let svg = draw(&report).unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a &lt; b") && svg.contains("400 GFLOP/s") && svg.contains(">linear</text>"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for wrong in
            [json!({}), json!({"bench": "step"}), json!({"bench": "kernels", "facts": {"copy_gb_s": 1.0}, "rows": []})]
        {
            assert!(draw(&wrong).is_err(), "{wrong}");
        }
    }
}

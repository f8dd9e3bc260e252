//! The loss curve of a run as an SVG picture, drawn by hand: a page of text that every browser shows.

use std::fmt::Write;
use std::path::Path;

use crate::error::Result;
use crate::peft::files::write_whole;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Room for the labels: left, top, right, bottom.
const MARGIN: [f64; 4] = [56.0, 36.0, 16.0, 44.0];
/// Share of the old value in the smoothed line.
const SMOOTHING: f64 = 0.9;

/// Writes the picture of `losses`, the first being that of step 1.
pub fn write(path: &Path, title: &str, losses: &[f32]) -> Result<()> {
    write_whole(path, svg(title, losses).as_bytes())
}

/// Each step's loss, pale, and over it an exponential mean. Losses that are not finite are left out.
pub fn svg(title: &str, losses: &[f32]) -> String {
    let points: Vec<(f64, f64)> = losses
        .iter()
        .enumerate()
        .filter(|(_, loss)| loss.is_finite())
        .map(|(i, &loss)| (i as f64 + 1.0, loss as f64))
        .collect();
    let [left, top, right, bottom] = MARGIN;
    let (low, high) = points.iter().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.1), h.max(p.1)));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let ys = ticks(low, high);
    let (y0, y1) = (ys[0].min(low), ys[ys.len() - 1].max(high));
    let last = losses.len().max(2) as f64;
    let x = |step: f64| left + (step - 1.0) / (last - 1.0) * (WIDTH - left - right);
    let y = |loss: f64| top + (y1 - loss) / (y1 - y0) * (HEIGHT - top - bottom);

    let mut s = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#444\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{left}\" y=\"22\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    // Writing to a String cannot fail.
    for &v in &ys {
        let at = y(v);
        let _ = writeln!(s, "<path d=\"M{left} {at:.1}H{:.1}\" stroke=\"#ddd\"/>", WIDTH - right);
        let _ = writeln!(s, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{v}</text>", left - 8.0, at + 4.0);
    }
    for v in ticks(1.0, last).into_iter().filter(|v| v.fract() == 0.0 && (1.0..=last).contains(v)) {
        let _ = writeln!(s, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{v}</text>", x(v), HEIGHT - bottom + 18.0);
    }
    let _ = writeln!(s, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">step</text>", WIDTH - right, HEIGHT - 8.0);
    let line = |points: &[(f64, f64)], style: &str| {
        let mut d = String::new();
        for (i, p) in points.iter().enumerate() {
            let _ = write!(d, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x(p.0), y(p.1));
        }
        format!("<path d=\"{d}\" fill=\"none\" {style}/>\n")
    };
    s += &line(&points, "stroke=\"#2a6fbb\" stroke-opacity=\"0.35\"");
    s += &line(&smoothed(&points), "stroke=\"#2a6fbb\" stroke-width=\"2\"");
    s + "</svg>\n"
}

/// Exponential mean whose early values are divided by the weight they have so far, as in Adam.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let next = |&(step, loss): &(f64, f64)| {
        sum = SMOOTHING * sum + (1.0 - SMOOTHING) * loss;
        weight = SMOOTHING * weight + (1.0 - SMOOTHING);
        (step, sum / weight)
    };
    points.iter().map(next).collect()
}

/// Round numbers, 1, 2 or 5 times a power of ten apart, from below `low` to above `high`: at least two.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = (high - low).max(1e-3 * high.abs()).max(1e-6);
    let power = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| span / s <= 6.0).unwrap_or(10.0 * power);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    // Through text, so that 3 × 0.1 is 0.3.
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let round = |v: f64| format!("{v:.digits$}").parse().unwrap_or(v);
    (first..=last.max(first + 1)).map(|i| round(i as f64 * step)).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_holds_every_finite_loss() {
        let losses: Vec<f32> = (0..50).map(|i| if i == 7 { f32::NAN } else { 4.0 - 0.02 * i as f32 }).collect();
        let text = svg("a < b & c", &losses);
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        assert!(text.contains("a &lt; b &amp; c") && !text.contains("NaN") && !text.contains("inf"));
        let curves: Vec<&str> = text.lines().filter(|l| l.contains("fill=\"none\"")).collect();
        assert_eq!(curves.len(), 2);
        for curve in curves {
            assert_eq!(curve.matches('L').count(), 48, "49 points");
        }
    }

    #[test]
    fn any_run_can_be_drawn() {
        for losses in [&[][..], &[2.0], &[2.0, 2.0], &[f32::NAN], &[0.0, 0.0], &[1e30, -1e30], &[1e-30]] {
            let text = svg("run", losses);
            assert!(!text.contains("NaN") && !text.contains("inf"), "{losses:?}: {text}");
        }
    }

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(2.1, 4.3), [2.0, 2.5, 3.0, 3.5, 4.0, 4.5]);
        assert_eq!(ticks(0.31, 0.62), [0.3, 0.4, 0.5, 0.6, 0.7]);
        assert_eq!(ticks(1.0, 60.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        for (low, high) in [(0.0, 0.0), (1.0, 1.0), (-5.0, 1e9), (1e-9, 2e-9)] {
            let t = ticks(low, high);
            assert!(t.len() >= 2 && t[0] <= low && *t.last().unwrap() >= high && t.len() < 12, "{low} {high}: {t:?}");
        }
    }
}

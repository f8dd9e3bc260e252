//! Curves as pictures: SVG that needs nothing else and reads well on light and dark pages.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = HEIGHT - 44.0;
/// Points drawn: there are no more pixels to show them.
const POINTS: usize = 1500;

/// How texts, grids and lines look on light and dark pages; `c0` to `c5` are colours of lines.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-size:15px;font-weight:600;fill:#24292f}\
.grid{stroke:#8c959f;stroke-opacity:.25}path{fill:none;stroke-linejoin:round}\
.raw{stroke-opacity:.3}.smooth{stroke-width:2}\
.c0{stroke:#0969da}.c1{stroke:#cf222e}.c2{stroke:#1a7f37}.c3{stroke:#8250df}.c4{stroke:#bf8700}.c5{stroke:#1b7c83}\
@media(prefers-color-scheme:dark){text{fill:#9198a1}.title{fill:#f0f6fc}\
.c0{stroke:#58a6ff}.c1{stroke:#ff7b72}.c2{stroke:#3fb950}.c3{stroke:#bc8cff}.c4{stroke:#d29922}.c5{stroke:#39c5cf}}";
/// Colours in `STYLE`.
const COLOURS: usize = 6;

/// A line of a chart.
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// (step, value) in the order in which they are drawn.
    pub points: Vec<(f64, f64)>,
    /// Each value is faint, and their running mean is on top.
    pub noisy: bool,
}

/// Draws (step, loss) pairs in the order given: each loss faint, their running mean on top.
pub fn loss_curve(title: &str, losses: &[(u64, f32)]) -> String {
    let points = losses.iter().map(|&(step, loss)| (step as f64, f64::from(loss))).collect();
    chart(title, &[Line { name: String::new(), points, noisy: true }])
}

/// Draws lines over steps, with a legend if there are several. Values that are not finite (or might as well not be) are left
/// out.
pub fn chart(title: &str, lines: &[Line]) -> String {
    let shown = |line: &Line| -> Vec<(f64, f64)> { line.points.iter().filter(|p| p.1.abs() < 1e30).copied().collect() };
    let drawn: Vec<Vec<(f64, f64)>> = lines.iter().map(shown).collect();
    let (x0, x1) = range(drawn.iter().flatten().map(|p| p.0));
    let (mut y0, mut y1) = range(drawn.iter().flatten().map(|p| p.1));
    let y_ticks = ticks(y0, y1, 6);
    // The frame ends at round numbers.
    if let [first, .., last] = y_ticks[..] {
        let step = y_ticks[1] - first;
        y0 = if first > y0 { first - step } else { first };
        y1 = if last < y1 { last + step } else { last };
    }
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0) * (RIGHT - LEFT);
    let y = |v: f64| BOTTOM - (v - y0) / (y1 - y0) * (BOTTOM - TOP);

    let mut svg = begin([WIDTH, HEIGHT], LEFT, title, "");
    for tick in ticks(y0, y1, 6) {
        let (at, label) = (y(tick), number(tick));
        let line = format!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let text = format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0);
        svg.push_str(&format!("{line}{text}\n"));
    }
    for tick in ticks(x0, x1, 8).into_iter().filter(|tick| tick.fract() == 0.0) {
        let (at, label) = (x(tick), number(tick));
        svg.push_str(&format!("<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>\n", BOTTOM + 18.0));
    }
    let middle = (LEFT + RIGHT) / 2.0;
    svg.push_str(&format!("<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">step</text>\n", HEIGHT - 8.0));
    for (i, (line, points)) in lines.iter().zip(&drawn).enumerate() {
        let colour = i % COLOURS;
        let smooth = smoothed(points);
        let strokes: &[(&str, &[(f64, f64)])] =
            if line.noisy { &[("raw", points), ("smooth", &smooth)] } else { &[("smooth", points)] };
        for (class, points) in strokes {
            let path = path(points, &x, &y);
            if !path.is_empty() {
                svg.push_str(&format!("<path class=\"{class} c{colour}\" d=\"{path}\"/>\n"));
            }
        }
        if lines.len() > 1 {
            let (at, name) = (TOP + 16.0 * i as f64, escaped(&line.name));
            let (from, to) = (RIGHT - 28.0, RIGHT - 8.0);
            svg.push_str(&format!(
                "<path class=\"smooth c{colour}\" d=\"M{from} {at}L{to} {at}\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\n",
                from - 6.0,
                at + 4.0
            ));
        }
    }
    svg + "</svg>\n"
}

/// What a picture of this width and height begins with: its style, `more` of that, and its title, `left` from the edge.
pub fn begin([width, height]: [f64; 2], left: f64, title: &str, more: &str) -> String {
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>{STYLE}{more}</style>\n<text class=\"title\" x=\"{left}\" y=\"22\">{title}</text>\n"
    )
}

/// The `d` of a path through points. One point is a line of no length, which round ends would show: it gets some.
fn path(points: &[(f64, f64)], x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let stride = points.len().div_ceil(POINTS).max(1);
    // Counted from the end, so that the last point is always there.
    let shown = points.iter().enumerate().filter(|(i, _)| (points.len() - 1 - i).is_multiple_of(stride));
    let mut path = String::new();
    for (i, (_, &(step, value))) in shown.enumerate() {
        let letter = if i == 0 { 'M' } else { 'L' };
        write!(path, "{letter}{:.1} {:.1}", x(step), y(value)).ok();
    }
    if points.len() == 1 {
        path.push_str("h4");
    }
    path
}

/// The mean of each point and its neighbours on either side, about a thirtieth of the run: an exponential mean
/// would trail a falling curve.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 60;
    let mut sums = vec![0.0];
    sums.extend(points.iter().scan(0.0, |sum, p| {
        *sum += p.1;
        Some(*sum)
    }));
    let mean = |i: usize| {
        let (from, to) = (i.saturating_sub(half), (i + half + 1).min(points.len()));
        (points[i].0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    (0..points.len()).map(mean).collect()
}

/// Least and greatest; widened where they are the same.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        d if d.is_finite() && d > high.abs() * 1e-12 => (low, high),
        _ if low.is_finite() => (low - low.abs().max(1.0) / 2.0, low + low.abs().max(1.0) / 2.0),
        _ => (0.0, 1.0),
    }
}

/// About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|&s| s >= rough * 0.999).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil();
    let last = (high / step + 1e-9).floor();
    // `+ 0.0`: no minus before a zero.
    (0..=(last - first).clamp(0.0, 4.0 * count as f64) as usize).map(|i| (first + i as f64) * step + 0.0).collect()
}

/// As short as can be: the ticks are round, so what is beyond ten digits is rounding.
pub fn number(v: f64) -> String {
    match v.abs() {
        a if a != 0.0 && !(1e-4..1e7).contains(&a) => format!("{v:.1e}"),
        _ => format!("{v:.6}").trim_end_matches('0').trim_end_matches('.').to_string(),
    }
}

/// `text` for a page: without control characters, and with nothing in it that is markup.
pub fn escaped(text: &str) -> String {
    let clean = text.chars().filter(|c| !c.is_control() || *c == '\n');
    clean.fold(String::new(), |out, c| match c {
        '<' => out + "&lt;",
        '&' => out + "&amp;",
        '"' => out + "&quot;",
        c => out + c.encode_utf8(&mut [0; 4]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let table: [(f64, f64, &[&str]); 5] = [
            (0.0, 1.0, &["0", "0.2", "0.4", "0.6", "0.8", "1"]),
            (1.93, 7.61, &["2", "3", "4", "5", "6", "7"]),
            (-0.3, 0.3, &["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]),
            (12.0, 4188.0, &["1000", "2000", "3000", "4000"]),
            (1e-9, 3e-9, &["1.0e-9", "1.5e-9", "2.0e-9", "2.5e-9", "3.0e-9"]),
        ];
        for (low, high, want) in table {
            assert_eq!(ticks(low, high, 6).into_iter().map(number).collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn any_losses_give_a_picture() {
        let long: Vec<(u64, f32)> = (0..100_000).map(|i| (i, 7.0 / (1.0 + i as f32 / 1e4))).collect();
        let table: [&[(u64, f32)]; 7] = [
            &[],
            &[(0, 2.5)],
            &[(3, f32::NAN), (4, f32::INFINITY)],
            &[(0, 1.0), (0, 1.0)],
            &[(0, f32::MAX), (u64::MAX, f32::MIN)],
            &[(0, f32::MIN_POSITIVE), (1, 0.0)],
            &long,
        ];
        for losses in table {
            let svg = loss_curve("a < b & \"c\"", losses);
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.len() < 100_000);
            assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let svg = loss_curve("t", &long);
        assert!(svg.matches('L').count() <= 2 * POINTS + 10);
    }
}

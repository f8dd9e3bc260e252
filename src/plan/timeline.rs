//! A picture of the device's memory over one step, as SVG: nodes from left to right, bytes upwards. What is there all
//! the time is a band; each stretch of the arena is a rectangle, as wide as it lives and as high as it is large.

use std::fmt::Write;

use super::account::{Kind, class_name, kind_of};
use super::{Plan, Storage};
use crate::graph::{Graph, LeafKind, Phase};

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 640.0;
const LEFT: f64 = 80.0;
const TOP: f64 = 56.0;
const RIGHT: f64 = 24.0;
const BOTTOM: f64 = 96.0;
/// Rectangles below this height, in pixels, are left out: a picture of a large model stays a small file.
const THIN: f64 = 0.25;

fn class_colour(class: LeafKind) -> &'static str {
    match class {
        LeafKind::Frozen => "#c9d4e0",
        LeafKind::Param => "#8fb8a8",
        LeafKind::Grad => "#d9b48f",
        LeafKind::Optim => "#b9a7d1",
        LeafKind::Io | LeafKind::Cache | LeafKind::Saved => "#dddddd",
    }
}

fn kind_colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Gradient => class_colour(LeafKind::Grad),
        Kind::Activation => "#4c8fd6",
        Kind::Weight => "#6f86a6",
        Kind::Optim => "#8a63c4",
        Kind::Work => "#e8a33d",
    }
}

/// The picture of `plan`, which was made for `g`.
pub fn picture(g: &Graph, plan: &Plan) -> String {
    let bands: Vec<(LeafKind, u64)> = LeafKind::ALL
        .iter()
        .map(|&c| (c, plan.buffers.iter().filter(|b| b.class == Some(c)).map(|b| b.bytes).sum()))
        .filter(|b| b.1 > 0)
        .collect();
    let below: u64 = bands.iter().map(|b| b.1).sum();
    let arena: u64 = plan.buffers.iter().filter(|b| b.class.is_none()).map(|b| b.bytes).sum();
    let (total, nodes) = ((below + arena).max(1) as f64, g.nodes.len().max(1) as f64);
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x = |node: usize| LEFT + width * node as f64 / nodes;
    let y = |bytes: u64| TOP + height * (1.0 - bytes as f64 / total);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">Memory over one step: {}</text>\n\
         <text x=\"{LEFT}\" y=\"42\" fill=\"#666666\">most is in use at {}</text>\n",
        size(below + arena),
        escaped(&plan.account.peak_site)
    );
    let mut rect = |x0: f64, y0: f64, w: f64, h: f64, colour: &str, title: &str| {
        let _ = writeln!(
            svg,
            "<rect x=\"{x0:.1}\" y=\"{y0:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"{colour}\" stroke=\"#ffffff\" \
             stroke-width=\"0.2\"><title>{}</title></rect>",
            w.max(0.4),
            h,
            escaped(title)
        );
    };
    let mut at = 0;
    for &(class, bytes) in &bands {
        let title = format!("{}: {}", class_name(class), size(bytes));
        rect(LEFT, y(at + bytes), width, y(at) - y(at + bytes), class_colour(class), &title);
        at += bytes;
    }
    for storage in &plan.storages {
        let Some(offset) = offset(g, plan, storage) else { continue };
        let (low, high) = (below + offset, below + offset + storage.bytes);
        if y(low) - y(high) < THIN {
            continue;
        }
        let name = match (storage.values.first(), storage.work_of) {
            (Some(&v), _) => format!("{}, {}", g.value(v).name, g.ty(v)),
            (None, Some(node)) => format!("scratch of {}:{}", g.nodes[node].site, g.nodes[node].op.name),
            _ => continue,
        };
        let kind = kind_of(g, storage);
        let title = format!("{name}: {} ({})", size(storage.bytes), kind.name());
        let (first, last) = (x(storage.live.first), x(storage.live.last + 1));
        rect(first, y(high), last - first, y(low) - y(high), kind_colour(kind), &title);
    }
    axes(&mut svg, g, total, &x, &y);
    peak(&mut svg, &plan.account.peak_site, x(plan.account.peak_node));
    legend(&mut svg, g, plan, &bands);
    svg + "</svg>\n"
}

/// How far into the arena `storage` is.
fn offset(g: &Graph, plan: &Plan, storage: &Storage) -> Option<u64> {
    let place = match (storage.values.first(), storage.work_of) {
        (Some(&v), _) => plan.place(g, v).ok()?,
        (None, Some(node)) => plan.work(node)?,
        _ => return None,
    };
    let before = plan.buffers[..place.buffer].iter().filter(|b| b.class.is_none());
    Some(before.map(|b| b.bytes).sum::<u64>() + place.offset)
}

fn label_of(phase: Phase) -> &'static str {
    match phase {
        Phase::MICRO => "micro-batch: forward, then backward",
        Phase::UPDATE => "update",
        Phase::EVAL => "evaluation",
        Phase::ENCODE => "encoder",
        Phase::PREFILL => "prompt",
        Phase::DECODE => "one token",
        _ => "",
    }
}

fn axes(svg: &mut String, g: &Graph, total: f64, x: &dyn Fn(usize) -> f64, y: &dyn Fn(u64) -> f64) {
    for quarter in 0..=4 {
        let bytes = (total * quarter as f64 / 4.0) as u64;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444444\">{}</text>",
            LEFT - 8.0,
            y(bytes) + 4.0,
            size(bytes)
        );
    }
    let bottom = HEIGHT - BOTTOM;
    let label = |svg: &mut String, from: usize, to: usize, text: &str| {
        // A short phase at the end has its name to its left.
        let (middle, anchor) = match x(to) - x(from) {
            w if w < 60.0 => (x(to), "end"),
            _ => ((x(from) + x(to)) / 2.0, "middle"),
        };
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#444444\">{text}</text>\n\
             <line x1=\"{1:.1}\" y1=\"{TOP}\" x2=\"{1:.1}\" y2=\"{bottom}\" stroke=\"#888888\" stroke-width=\"0.5\"/>",
            bottom + 16.0,
            x(to)
        );
    };
    let mut from = 0;
    for nodes in g.nodes.chunk_by(|a, b| a.phase == b.phase) {
        label(svg, from, from + nodes.len(), label_of(nodes[0].phase));
        from += nodes.len();
    }
}

/// Marks where most is in use.
fn peak(svg: &mut String, site: &str, at: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#c0392b\" stroke-width=\"1.2\" \
         stroke-dasharray=\"4 3\"><title>peak: {}</title></line>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#c0392b\">peak</text>",
        HEIGHT - BOTTOM,
        escaped(site),
        at + 4.0,
        TOP + 12.0
    );
}

fn legend(svg: &mut String, g: &Graph, plan: &Plan, bands: &[(LeafKind, u64)]) {
    let mut entries: Vec<(&str, &str)> = bands.iter().map(|&(c, _)| (class_colour(c), class_name(c))).collect();
    for kind in [Kind::Activation, Kind::Weight, Kind::Optim, Kind::Work] {
        if plan.storages.iter().any(|s| kind_of(g, s) == kind) {
            entries.push((kind_colour(kind), kind.name()));
        }
    }
    for (i, (colour, name)) in entries.iter().enumerate() {
        let (column, row) = (i % 5, i / 5);
        let (left, top) = (LEFT + 205.0 * column as f64, HEIGHT - 56.0 + 22.0 * row as f64);
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"#222222\">{name}</text>",
            left + 20.0,
            top + 11.5
        );
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.2} GiB", b as f64 / (1u64 << 30) as f64),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / (1u64 << 20) as f64),
        b => format!("{:.1} KiB", b as f64 / 1024.0),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

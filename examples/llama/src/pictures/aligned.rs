//! What AlignedKV reads and what that does to products: the tables of `align-report`.

use plotters::prelude::*;

use super::Result;
use super::axis::Axis;
use super::band::Band;
use super::canvas::{Canvas, Entry, GUIDE, TOP, WIDTH, part, px, thousands};
use super::data::Side;
use super::lines::{Frame, Line, halves, lines, panel};
use crate::align_report::{AlignReport, Histogram};

const TITLE: &str = "Bits read of keys and values, and what that does to products";

/// Pixels of a row of panels.
const ROW: i32 = 300;
/// Names that the axis of layers has room for.
const LAYERS: usize = 24;
/// Layers up to which every one gets a mark.
const MARKS: usize = 40;

/// The paper's buckets of relative errors.
const BUCKETS: [&str; 6] = ["0", "<1/1024", "<1/512", "<1/256", "<1/128", "more"];

/// Shares of scores and of outputs by their relative error, beside those of 13 bits of every number; and the bits read, layer by layer.
pub fn aligned(report: &AlignReport) -> Result<String> {
    let legend = vec![
        Entry::Line(Side::Keys, "keys, and scores QK".to_owned()),
        Entry::Line(Side::Values, "values, and outputs SV".to_owned()),
        Entry::Guide("13 bits of every number".to_owned()),
    ];
    let subtitle = format!("{} · {} tokens · errors are relative, against reading all 16 bits", report.align, thousands(report.tokens as u64));
    let height = TOP + 2 * ROW;
    Canvas { height, title: TITLE, subtitle, legend }.draw(|area| {
        let total = &report.total;
        let products = [(Side::Keys, "Scores, QK", &total.qk, &total.qk_uniform), (Side::Values, "Outputs, SV", &total.sv, &total.sv_uniform)];
        for (area, (side, title, found, uniform)) in halves(area, TOP + ROW).iter().zip(products) {
            let bars = [found, uniform].map(|histogram: &Histogram| histogram.shares().map(|share| 100.0 * share));
            let y = Axis::linear(bars.as_flattened().iter().copied(), 6);
            let frame = Frame { title, x: Axis::named(&BUCKETS), y, x_title: "relative error", y_title: "share of results, %" };
            let chart = panel(area, frame)?;
            for ((bars, colour), left) in bars.iter().zip([side.colour(), GUIDE]).zip([-0.36, 0.02]) {
                for (place, share) in bars.iter().enumerate() {
                    let from = place as f64 + left;
                    chart.plotting_area().draw(&Rectangle::new([(from, 0.0), (from + 0.34, *share)], colour.filled()))?;
                }
            }
        }
        let drawn = Side::BOTH.map(|side| {
            let bits = report.layers.iter().map(|layer| if side == Side::Keys { layer.k_bits } else { layer.v_bits });
            Line { side, points: bits.enumerate().map(|(place, bits)| (place as f64, Band::of_finite([bits]))).collect() }
        });
        let layers: Vec<u32> = (0..report.layers.len() as u32).collect();
        let frame = Frame {
            title: "Bits read",
            x: Axis::places(&layers, LAYERS),
            y: Axis::marked(7.5, 16.5, &[8, 10, 12, 14, 16]),
            x_title: "layer",
            y_title: "bits of a number",
        };
        let left_out = drawn.iter().map(|line| line.left_out(&frame.y)).sum();
        let below = part(area, (0, TOP + ROW), (WIDTH, ROW));
        let mut chart = panel(&below, frame)?;
        lines(&mut chart, &drawn, px(2), report.layers.len() <= MARKS)?;
        Ok(left_out)
    })
}

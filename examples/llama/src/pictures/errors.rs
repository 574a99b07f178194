//! Errors of quantization over bit widths.

use super::Result;
use super::axis::{Axis, drawable, short};
use super::band::Band;
use super::canvas::{Canvas, Entry, px, subtitle};
use super::data::{Analysis, BitsError, Side};
use super::lines::{Frame, Line, guide, halves, lines, panel};

pub(super) const TITLE: &str = "Errors against bits";

const HEIGHT: i32 = 400;

/// Relative error of keys and values, and of the attention output, over bit widths: mean over layers and heads, with the band
/// between least and greatest, with a grey line that falls to a quarter with every bit.
pub fn errors(analysis: &Analysis) -> Result<String> {
    let legend = vec![
        Entry::Band(Side::Keys, "K, keys".to_owned()),
        Entry::Band(Side::Values, "V, values".to_owned()),
        Entry::Guide("falling as 4⁻ᵇ".to_owned()),
        Entry::Note("line: mean over layers and heads; band: least to greatest".to_owned()),
    ];
    let more = format!(" · {}, groups of {}", super::canvas::shortened(&analysis.codec, 24), analysis.group);
    let canvas = Canvas { height: HEIGHT, title: TITLE, subtitle: subtitle(analysis, &more), legend };
    let widths = analysis.widths();
    let x = Axis::marked(f64::from(widths.first().copied().unwrap_or(2)) - 0.4, f64::from(widths.last().copied().unwrap_or(8)) + 0.4, &widths);
    canvas.draw(|area| {
        let mut left_out = 0;
        let [left, right] = halves(area, HEIGHT);

        let drawn = over_widths(analysis, &widths, |error| error.relative, &mut left_out);
        let slope = slope(&drawn, &widths);
        let y = Axis::log(drawn.iter().flat_map(Line::heights).chain(slope.iter().map(|point| point.1)), 8);
        left_out += drawn.iter().map(|line| line.left_out(&y)).sum::<usize>();
        let frame = Frame { title: "Keys and values themselves", x: x.clone(), y, x_title: "bits a number", y_title: "squared error / squared norm (no unit)" };
        let mut chart = panel(&left, frame)?;
        guide(&mut chart, slope)?;
        lines(&mut chart, &drawn, px(2), true)?;

        let drawn = over_widths(analysis, &widths, |error| error.attention, &mut left_out);
        let y = Axis::log(drawn.iter().flat_map(Line::heights), 8);
        left_out += drawn.iter().map(|line| line.left_out(&y)).sum::<usize>();
        let frame = Frame { title: "Attention output", x, y, x_title: "bits a number", y_title: "squared error / squared output (no unit)" };
        let mut chart = panel(&right, frame)?;
        lines(&mut chart, &drawn, px(2), true)?;
        Ok(left_out)
    })
}

fn over_widths(analysis: &Analysis, widths: &[u32], pick: fn(&BitsError) -> f64, left_out: &mut usize) -> [Line; 2] {
    Side::BOTH.map(|side| {
        let points = widths.iter().map(|&bits| {
            let values = analysis.heads(side).filter_map(|(_, head)| head.at(bits)).map(pick);
            (f64::from(bits), Band::of(values, left_out))
        });
        Line { side, points: points.collect() }
    })
}

/// The law's line through the first point of the first curve that has one.
fn slope(drawn: &[Line], widths: &[u32]) -> Vec<(f64, f64)> {
    let first = drawn.iter().flat_map(|line| &line.points).find_map(|(bits, band)| band.map(|band| (*bits, band.mean)).filter(|(_, mean)| drawable(*mean)));
    let Some((bits, mean)) = first else { return Vec::new() };
    let ends = [widths.first(), widths.last()].into_iter().flatten();
    let points = ends.map(|&end| (f64::from(end), mean * 4_f64.powf(bits - f64::from(end))));
    points.filter(|(_, error)| drawable(*error)).collect()
}

/// The mean over all heads of one side.
pub(super) fn mean(analysis: &Analysis, side: Side, bits: u32, pick: fn(&BitsError) -> f64) -> Option<f64> {
    Band::of_finite(analysis.heads(side).filter_map(|(_, head)| head.at(bits)).map(pick)).map(|band| band.mean)
}

pub(super) fn caption(analysis: &Analysis) -> String {
    let mut caption = "Across: bits a number. Up, logarithmic and without a unit: left the squared error of the keys or values over their squared norm, \
                       right the squared error of the attention output over its own square. The grey line falls to a quarter with every bit, as the error of an even \
                       quantizer does once its steps are small; it starts at the first point of the keys. A curve below it gains more from a bit than \
                       that."
        .to_owned();
    if let Some(&bits) = analysis.widths().first() {
        let told = Side::BOTH.map(|side| {
            let number = |pick| mean(analysis, side, bits, pick).map_or("–".to_owned(), short);
            format!("{} for {}", number(|error| error.attention), side.letter())
        });
        caption.push_str(&format!(" At {bits} bits, the mean error of the attention output is {} and {}.", told[0], told[1]));
    }
    caption
}

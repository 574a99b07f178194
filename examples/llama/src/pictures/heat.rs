//! Which heads need bits: the error of the attention output at few bits, head by head.

use plotters::prelude::*;

use super::Result;
use super::axis::{Axis, drawable, short};
use super::canvas::{Area, Canvas, Entry, FAINT, INK, Look, TOP, WIDTH, part, px, shortened, subtitle, write, write_upwards};
use super::data::{Analysis, HeadAnalysis, Side};

pub(super) const TITLE: &str = "Which heads need bits";

const LEFT: i32 = 56;
const GAP: i32 = 22;
const BAR: i32 = 14;
/// What the colour bar and its names take.
const RIGHT: i32 = 96;
const BOTTOM: i32 = 52;
/// Names that an axis of layers has room for.
const LAYERS: usize = 12;
/// How many heads the caption names.
const NAMED: usize = 5;

/// Bits at which the errors are shown, where there are any.
const BITS: u32 = 2;

/// From little to much: pale to dark, so that what matters stands out on white; lightness alone tells the order.
const COLOURS: [RGBColor; 8] = [
    RGBColor(252, 247, 205),
    RGBColor(254, 207, 146),
    RGBColor(253, 154, 106),
    RGBColor(235, 96, 98),
    RGBColor(192, 58, 118),
    RGBColor(137, 40, 129),
    RGBColor(82, 20, 123),
    RGBColor(28, 12, 66),
];
/// Of a head without a number.
const MISSING: RGBColor = RGBColor(226, 226, 226);

/// The bit width of the picture: 2, or the fewest bits that there are errors of.
fn bits(analysis: &Analysis) -> u32 {
    let widths = analysis.widths();
    if widths.contains(&BITS) { BITS } else { widths.first().copied().unwrap_or(BITS) }
}

/// Relative error of the attention output at 2 bits, a cell for every layer and KV head: keys left, values right, the same
/// logarithmic colours for both.
pub fn heat(analysis: &Analysis) -> Result<String> {
    let bits = bits(analysis);
    let rows = analysis.layers.iter().flat_map(|layer| [layer.keys.len(), layer.values.len()]).max().unwrap_or(0);
    let high = (rows as i32 * 26).clamp(150, 320);
    let height = TOP + 24 + high + BOTTOM;
    let wide = (WIDTH - LEFT - GAP - RIGHT) / 2;

    let legend = vec![Entry::Note(format!(
        "squared error of the attention output over its square when only this head's keys, or values, have {bits} bits; dark heads need more"
    ))];
    let more = format!(" · {}, groups of {}", shortened(&analysis.codec, 24), analysis.group);
    let canvas = Canvas { height, title: TITLE, subtitle: subtitle(analysis, &more), legend };
    canvas.draw(|area| {
        let known = Side::BOTH.iter().flat_map(|&side| analysis.heads(side)).filter_map(|(_, head)| error(head, bits));
        let scale = Axis::log(known, 7);
        let mut left_out = 0;
        for (place, side) in Side::BOTH.into_iter().enumerate() {
            let x = LEFT + place as i32 * (wide + GAP);
            let name = match side {
                Side::Keys => "K, keys",
                Side::Values => "V, values",
            };
            write(area, name, (x, TOP + 4), Look::new(13).bold().colour(side.colour()))?;
            left_out += map(area, analysis, side, &scale, (bits, rows), ((x, TOP + 24), (wide, high)))?;
            write(area, "layer", (x + wide / 2, height - 20), Look::new(12).centred())?;
        }
        write_upwards(area, "KV head", (8, TOP + 24 + high / 2), Look::new(12))?;
        if rows == 0 {
            write(area, "no numbers", (WIDTH / 2, TOP + 60), Look::new(12).faint().centred())?;
        } else {
            bar(area, &scale, (WIDTH - RIGHT + 16, TOP + 24), high)?;
        }
        Ok(left_out)
    })
}

fn error(head: &HeadAnalysis, bits: u32) -> Option<f64> {
    head.at(bits).map(|error| error.attention)
}

/// One panel of cells. Returns how many heads have a number that no colour stands for.
fn map(
    area: &Area<'_>,
    analysis: &Analysis,
    side: Side,
    scale: &Axis,
    (bits, rows): (u32, usize),
    (corner, (wide, high)): ((i32, i32), (i32, i32)),
) -> Result<usize> {
    let names: Vec<u32> = analysis
        .layers
        .iter()
        .map(|layer| side.heads(layer))
        .max_by_key(|heads| heads.len())
        .map_or(Vec::new(), |heads| heads.iter().map(|head| head.head).collect());
    let x = Axis::places(&analysis.layer_numbers(), LAYERS);
    let y = Axis::places(&names, (high / 16) as usize);
    let panel = part(area, corner, (wide, high));
    let columns = analysis.layers.len();
    let edge = |place: usize, count: usize, length: i32| (place as f64 / count.max(1) as f64 * f64::from(px(length))).round() as i32;
    // Wide cells are set apart by a white line. Narrow ones overlap a little instead, or a viewer that smooths edges shows a line
    // where none was meant.
    let inset = |count: usize, length: i32| if count as i32 * 8 <= length { -2 } else { 2 };
    let (inset_x, inset_y) = (inset(columns, wide), inset(rows, high));
    let (cell_wide, cell_high) = (wide / columns.max(1) as i32, high / rows.max(1) as i32);
    let written = cell_wide >= 44 && cell_high >= 18;

    let mut left_out = 0;
    for (column, layer) in analysis.layers.iter().enumerate() {
        for (row, head) in side.heads(layer).iter().enumerate() {
            let number = error(head, bits);
            let shown = number.filter(|number| scale.shows(*number));
            left_out += usize::from(number.is_some() && shown.is_none());
            let colour = shown.map_or(MISSING, |number| colour(scale.part(number)));
            let (left, right) = (edge(column, columns, wide), edge(column + 1, columns, wide) + inset_x);
            let (top, bottom) = (edge(row, rows, high), edge(row + 1, rows, high) + inset_y);
            panel.draw(&Rectangle::new([(left, top), (right, bottom)], colour.filled()))?;
            if let (true, Some(number)) = (written, shown) {
                let ink = if scale.part(number) > 0.45 { WHITE } else { INK };
                let at = ((left + right) / 2, (top + bottom) / 2);
                panel.draw_text(&short(number), &Look::new(11).colour(ink).centred().middle().style(), at)?;
            }
        }
    }
    let centre = |place: f64, count: usize, length: i32| ((place + 0.5) / count.max(1) as f64 * f64::from(length)).round() as i32;
    for (place, name) in x.ticks() {
        write(area, name, (corner.0 + centre(*place, columns, wide), corner.1 + high + 6), Look::new(11).faint().centred())?;
    }
    if side == Side::Keys {
        for (place, name) in y.ticks() {
            write(area, name, (corner.0 - 7, corner.1 + centre(*place, rows, high)), Look::new(11).faint().right().middle())?;
        }
    }
    Ok(left_out)
}

/// The colours, with the numbers they stand for.
fn bar(area: &Area<'_>, scale: &Axis, (x, y): (i32, i32), high: i32) -> Result<()> {
    let panel = part(area, (x, y), (BAR, high));
    let steps = high;
    for step in 0..steps {
        let up = f64::from(steps - 1 - step) / f64::from(steps - 1);
        // One pixel too low each, so that no gap shows between them.
        panel.draw(&Rectangle::new([(0, px(step)), (px(BAR), px(step + 2))], colour(up).filled()))?;
    }
    for (value, name) in scale.ticks() {
        let down = high - (scale.part(*value) * f64::from(high)).round() as i32;
        area.draw(&PathElement::new([(px(x + BAR), px(y + down)), (px(x + BAR + 4), px(y + down))], FAINT.stroke_width(px(1) as u32)))?;
        write(area, name, (x + BAR + 7, y + down), Look::new(11).faint().middle())?;
    }
    write_upwards(area, "relative error (no unit)", (WIDTH - 18, y + high / 2), Look::new(12))
}

/// The colour at a part of the scale.
fn colour(part: f64) -> RGBColor {
    let place = part.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let below = (place as usize).min(COLOURS.len() - 2);
    let (from, to, rest) = (COLOURS[below], COLOURS[below + 1], place - below as f64);
    let mix = |from: u8, to: u8| (f64::from(from) + rest * (f64::from(to) - f64::from(from))).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

pub(super) fn caption(analysis: &Analysis) -> String {
    let bits = bits(analysis);
    let mut caption = format!(
        "Across: layers. Down: KV heads. Colour, logarithmic and without a unit: the squared error of the attention output, over its own square, with {bits} bits for the \
         keys (left) or the values (right) of that head, the same scale for both; grey has no number. Dark \
         cells lose most at so few bits, pale ones can do with them."
    );
    let mut heads: Vec<_> = Side::BOTH
        .into_iter()
        .flat_map(|side| analysis.heads(side).map(move |(layer, head)| (side, layer, head)))
        .filter_map(|(side, layer, head)| Some((error(head, bits).filter(|error| drawable(*error))?, side, layer, head.head)))
        .collect();
    heads.sort_by(|left, right| right.0.total_cmp(&left.0));
    if !heads.is_empty() {
        let named = heads.iter().take(NAMED).map(|(error, side, layer, head)| format!("{} of layer {layer} head {head} ({})", side.letter(), short(*error)));
        caption.push_str(&format!(" The greatest errors: {}.", named.collect::<Vec<_>>().join(", ")));
    }
    caption
}

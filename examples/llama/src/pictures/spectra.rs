//! Singular values, one small panel a layer.

use plotters::prelude::{ChartBuilder, Color, PathElement};

use super::Result;
use super::axis::Axis;
use super::band::Band;
use super::canvas::{Area, Canvas, Entry, FAINT, GRID, Look, TOP, WIDTH, part, px, subtitle, write, write_upwards};
use super::data::{Analysis, LayerAnalysis, Side};
use super::lines::{Line, lines};

pub(super) const TITLE: &str = "Singular values of keys and values, layer by layer";

const LEFT: i32 = 64;
const RIGHT: i32 = 14;
const BOTTOM: i32 = 44;
const GAP: i32 = 8;
/// Values that are drawn without leaving any out: the curve is steepest there.
const HEAD: usize = 8;

/// Panels side by side, and the height of one.
fn grid(layers: usize) -> (usize, i32) {
    match layers {
        0..=1 => (1, 300),
        2..=3 => (layers, 240),
        4 => (2, 210),
        5..=6 => (3, 190),
        7..=12 => (4, 150),
        13..=20 => (5, 124),
        21..=36 => (6, 108),
        37..=64 => (8, 88),
        _ => (10, 82),
    }
}

/// Singular values of keys and values, greatest first: mean over heads, with the band between least and greatest.
pub fn spectra(analysis: &Analysis) -> Result<String> {
    let layers = &analysis.layers;
    let (columns, high) = grid(layers.len());
    let rows = layers.len().div_ceil(columns).max(1);
    let wide = (WIDTH - LEFT - RIGHT - GAP * (columns as i32 - 1)) / columns as i32;
    let height = TOP + rows as i32 * (high + GAP) - GAP + BOTTOM;

    let legend = vec![
        Entry::Band(Side::Keys, "K, keys".to_owned()),
        Entry::Band(Side::Values, "V, values".to_owned()),
        Entry::Note("line: mean over KV heads; band: least to greatest head; same axes everywhere".to_owned()),
    ];
    let canvas = Canvas { height, title: TITLE, subtitle: subtitle(analysis, ""), legend };
    canvas.draw(|area| {
        let mut left_out = 0;
        let all: Vec<[Line; 2]> = layers.iter().map(|layer| Side::BOTH.map(|side| line(layer, side, &mut left_out))).collect();
        let y = Axis::log(all.iter().flatten().flat_map(Line::heights), (high / 20) as usize);
        left_out += all.iter().flatten().map(|line| line.left_out(&y)).sum::<usize>();
        let channels = all.iter().flatten().map(|line| line.points.len()).max().unwrap_or(0);
        let x = channels_axis(channels);

        for (place, (layer, drawn)) in layers.iter().zip(&all).enumerate() {
            let (row, column) = (place / columns, place % columns);
            let corner = (LEFT + column as i32 * (wide + GAP), TOP + row as i32 * (high + GAP));
            panel(area, layer, drawn, (&x, &y), (corner, (wide, high)), wide)?;
            if column == 0 {
                for (value, name) in y.ticks() {
                    let up = (y.part(*value) * f64::from(high)).round() as i32;
                    write(area, name, (LEFT - 6, corner.1 + high - up), Look::new(11).faint().right().middle())?;
                }
            }
            if place + columns >= layers.len() {
                for (value, name) in x.ticks() {
                    let along = (x.part(*value) * f64::from(wide)).round() as i32;
                    write(area, name, (corner.0 + along, corner.1 + high + 5), Look::new(11).faint().centred())?;
                }
            }
        }
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2;
        write(area, "singular value by rank, 1 is the greatest", (middle, height - 18), Look::new(12).centred())?;
        write_upwards(area, "singular value (no unit, logarithmic)", (6, TOP + (height - TOP - BOTTOM) / 2), Look::new(12))?;
        if layers.is_empty() {
            write(area, "no numbers", (middle, TOP + 60), Look::new(12).faint().centred())?;
        }
        Ok(left_out)
    })
}

fn line(layer: &LayerAnalysis, side: Side, left_out: &mut usize) -> Line {
    let heads = side.heads(layer);
    let channels = heads.iter().map(|head| head.singular_values.len()).max().unwrap_or(0);
    let points = (0..channels).map(|rank| {
        let values = heads.iter().filter_map(|head| head.singular_values.get(rank).copied());
        ((rank + 1) as f64, Band::of(values, left_out))
    });
    Line { side, points: points.collect() }
}

/// Ticks at the quarters: never at an end, where two panels' names would meet.
fn channels_axis(channels: usize) -> Axis {
    let channels = channels as u32;
    let ticks: Vec<u32> = if channels < 8 { (1..=channels).collect() } else { (1..4).map(|quarter| quarter * channels / 4).collect() };
    Axis::marked(0.5, f64::from(channels.max(1)) + 0.5, &ticks)
}

type Place = ((i32, i32), (i32, i32));

fn panel(area: &Area<'_>, layer: &LayerAnalysis, drawn: &[Line; 2], (x, y): (&Axis, &Axis), (corner, size): Place, wide: i32) -> Result<()> {
    let area = part(area, corner, size);
    let mut chart = ChartBuilder::on(&area).build_cartesian_2d(x.clone(), y.clone())?;
    chart.configure_mesh().bold_line_style(GRID.stroke_width(px(1) as u32)).disable_axes().draw()?;
    // More points than half pixels are bytes that nobody sees.
    let step = drawn.iter().map(|line| line.points.len()).max().unwrap_or(0).div_ceil(wide as usize).max(1);
    let thinned = drawn.each_ref().map(|line| {
        let last = line.points.len().saturating_sub(1);
        let kept = line.points.iter().enumerate().filter(|(rank, _)| *rank < HEAD || rank % step == 0 || *rank == last);
        Line { side: line.side, points: kept.map(|(_, point)| *point).collect() }
    });
    lines(&mut chart, &thinned, px(3) / 2, false)?;
    let (width, height) = area.dim_in_pixel();
    let (right, bottom) = (width as i32 - 1, height as i32 - 1);
    area.draw(&PathElement::new([(0, 0), (0, bottom), (right, bottom), (right, 0), (0, 0)], FAINT.stroke_width(px(1) as u32 / 2)))?;
    let name = format!("layer {}", layer.layer);
    write(&area, &name, (size.0 - 5, 4), Look::new(if wide < 100 { 10 } else { 12 }).right())
}

/// How many of a head's singular values, greatest first, hold a part of the sum of their squares.
fn holding(values: &[f64], part: f64) -> Option<f64> {
    let energy: f64 = values.iter().map(|value| value * value).sum();
    if !energy.is_finite() || energy <= 0.0 {
        return None;
    }
    let mut sum = 0.0;
    let reached = values.iter().position(|value| {
        sum += value * value;
        sum >= part * energy
    });
    Some(reached.unwrap_or(values.len()) as f64 + 1.0)
}

pub(super) fn caption(analysis: &Analysis) -> String {
    let mut caption = "One panel a layer, all with the same axes. Across: the rank of a singular value, the greatest first. Up, logarithmic and without a \
                       unit: the value. A steep start means that a few directions carry most of the matrix, which a quantizer with one scale for many \
                       channels pays for; a level curve means that the channels are alike. The distance between the curves is the factor by which keys \
                       are larger than values."
        .to_owned();
    let needed = Side::BOTH.map(|side| Band::of_finite(analysis.heads(side).filter_map(|(_, head)| holding(&head.singular_values, 0.9))));
    if let [Some(keys), Some(values)] = needed {
        let told = [keys, values].map(|band| format!("{:.1}", band.mean));
        caption.push_str(&format!(
            " Nine tenths of the sum of squares lie in {} singular values of a head's keys and {} of its values, on average.",
            told[0], told[1]
        ));
    }
    caption
}

//! Panels with axes, and lines with bands in them.

use plotters::coord::cartesian::Cartesian2d;
use plotters::prelude::*;

use super::Result;
use super::axis::Axis;
use super::band::Band;
use super::canvas::{Area, BAND, FAINT, GRID, GUIDE, Look, TOP, WIDTH, mark, part, px, write};
use super::data::Side;

/// A panel to draw in.
pub(super) type Chart<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<Axis, Axis>>;

/// One line, with its band: what there is at every place, from left to right.
pub(super) struct Line {
    pub(super) side: Side,
    pub(super) points: Vec<(f64, Option<Band>)>,
}

impl Line {
    /// Everything that it would draw, to choose an axis by.
    pub(super) fn heights(&self) -> impl Iterator<Item = f64> {
        self.points.iter().filter_map(|(_, band)| *band).flat_map(Band::ends)
    }

    /// What can be drawn on an axis, in pieces without a gap.
    fn pieces<'a>(&'a self, axis: &'a Axis) -> impl Iterator<Item = Vec<(f64, Band)>> + 'a {
        let shown = |band: &Option<Band>| band.filter(|band| axis.shows(band.mean));
        let pieces = self.points.chunk_by(move |(_, left), (_, right)| shown(left).is_some() == shown(right).is_some());
        pieces.map(move |piece| piece.iter().filter_map(|(x, band)| Some((*x, shown(band)?))).collect::<Vec<_>>()).filter(|piece| !piece.is_empty())
    }

    /// How many points the axis has no place for.
    pub(super) fn left_out(&self, axis: &Axis) -> usize {
        self.points.iter().filter(|(_, band)| band.is_some_and(|band| !axis.shows(band.mean))).count()
    }
}

/// What stands around a panel.
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) x_title: &'a str,
    pub(super) y_title: &'a str,
}

/// The left and the right half of a picture, below its legend.
pub(super) fn halves<'a>(area: &Area<'a>, height: i32) -> [Area<'a>; 2] {
    let half = WIDTH / 2;
    [0, half].map(|x| part(area, (x, TOP), (half, height - TOP)))
}

/// Draws axes and their names, and gives the panel between them.
pub(super) fn panel<'a, 'b>(area: &'b Area<'a>, frame: Frame<'_>) -> Result<Chart<'a, 'b>> {
    write(area, frame.title, (66, 4), Look::new(13).bold())?;
    let mut builder = ChartBuilder::on(area);
    builder.margin_top(px(26)).margin_right(px(14)).margin_bottom(px(6)).margin_left(px(8));
    builder.x_label_area_size(px(40)).y_label_area_size(px(58));
    let mut chart = builder.build_cartesian_2d(frame.x, frame.y)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.stroke_width(px(1) as u32))
        .axis_style(FAINT.stroke_width(px(1) as u32))
        .label_style(Look::new(11).faint().style())
        .axis_desc_style(Look::new(12).style())
        .set_all_tick_mark_size(px(3))
        .x_desc(frame.x_title)
        .y_desc(frame.y_title)
        .draw()?;
    Ok(chart)
}

/// Draws the lines: their bands first, so that no band hides a line, and the keys' line last.
pub(super) fn lines(chart: &mut Chart<'_, '_>, lines: &[Line], width: i32, marks: bool) -> Result<()> {
    let y = chart.as_coord_spec().y_spec().clone();
    for line in lines.iter().rev() {
        for piece in line.pieces(&y) {
            let there = piece.iter().map(|(x, band)| (*x, band.greatest));
            let back = piece.iter().rev().map(|(x, band)| (*x, band.least));
            let outline: Vec<_> = there.chain(back).collect();
            chart.plotting_area().draw(&Polygon::new(outline, line.side.colour().mix(BAND)))?;
        }
    }
    for line in lines.iter().rev() {
        for piece in line.pieces(&y) {
            let means: Vec<_> = piece.iter().map(|(x, band)| (*x, band.mean)).collect();
            let alone = means.len() == 1;
            if !alone {
                chart.draw_series(LineSeries::new(means.iter().copied(), line.side.colour().stroke_width(width as u32)))?;
            }
            if marks || alone {
                // Marks keep their size, whatever the axes: they are drawn where the points are, not in the axes' numbers.
                let area = chart.plotting_area().strip_coord_spec();
                let (x0, y0) = area.get_base_pixel();
                for point in &means {
                    let (x, y) = chart.plotting_area().map_coordinate(point);
                    mark(&area, line.side, (x - x0, y - y0))?;
                }
            }
        }
    }
    if lines.iter().all(|line| line.pieces(&y).next().is_none()) {
        nothing(chart)?;
    }
    Ok(())
}

/// A thin grey line, to compare with.
pub(super) fn guide(chart: &mut Chart<'_, '_>, points: impl IntoIterator<Item = (f64, f64)>) -> Result<()> {
    chart.draw_series(LineSeries::new(points, GUIDE.stroke_width(px(1) as u32)))?;
    Ok(())
}

/// Says that there is nothing to see.
pub(super) fn nothing(chart: &Chart<'_, '_>) -> Result<()> {
    let area = chart.plotting_area().strip_coord_spec();
    let (width, height) = area.dim_in_pixel();
    Ok(area.draw_text("no numbers", &Look::new(12).faint().centred().middle().style(), (width as i32 / 2, height as i32 / 2))?)
}

//! What all pictures share: size, colours, text, heading and legend.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::data::{Analysis, Side};
use super::{Error, Result};

/// Steps to a pixel. The library draws in whole numbers, which shows as stairs in a flat curve; so it draws a larger picture,
/// which is then said to be smaller.
const STEPS: i32 = 4;
/// What the library divides a font's size by before it writes it.
const FONT: f64 = 1.24;

/// Pixels from left to right.
pub(super) const WIDTH: i32 = 900;
/// Pixels that the heading and the legend take.
pub(super) const TOP: i32 = 78;

/// Blue and vermilion: eyes that cannot tell red from green tell these apart.
pub(super) const KEYS: RGBColor = RGBColor(0, 104, 173);
pub(super) const VALUES: RGBColor = RGBColor(213, 94, 0);
pub(super) const GUIDE: RGBColor = RGBColor(125, 125, 125);
pub(super) const INK: RGBColor = RGBColor(34, 34, 34);
pub(super) const FAINT: RGBColor = RGBColor(92, 92, 92);
pub(super) const GRID: RGBColor = RGBColor(230, 230, 230);
/// How much of a band's colour covers what lies below it.
pub(super) const BAND: f64 = 0.18;

/// A part of a picture.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl From<DrawingAreaErrorKind<std::io::Error>> for Error {
    fn from(error: DrawingAreaErrorKind<std::io::Error>) -> Self {
        Self::Draw(error.to_string())
    }
}

impl Side {
    pub(super) fn colour(self) -> RGBColor {
        match self {
            Self::Keys => KEYS,
            Self::Values => VALUES,
        }
    }
}

/// Pixels in the library's steps.
pub(super) fn px(pixels: i32) -> i32 {
    pixels * STEPS
}

/// How a text looks.
#[derive(Clone, Copy)]
pub(super) struct Look {
    size: i32,
    colour: RGBColor,
    bold: bool,
    across: HPos,
    along: VPos,
}

impl Look {
    pub(super) fn new(size: i32) -> Self {
        Self { size, colour: INK, bold: false, across: HPos::Left, along: VPos::Top }
    }

    pub(super) fn faint(self) -> Self {
        Self { colour: FAINT, ..self }
    }

    pub(super) fn colour(self, colour: RGBColor) -> Self {
        Self { colour, ..self }
    }

    pub(super) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(super) fn right(self) -> Self {
        Self { across: HPos::Right, ..self }
    }

    pub(super) fn centred(self) -> Self {
        Self { across: HPos::Center, ..self }
    }

    pub(super) fn middle(self) -> Self {
        Self { along: VPos::Center, ..self }
    }

    pub(super) fn style(self) -> TextStyle<'static> {
        let size = f64::from(px(self.size)) * FONT;
        let style = if self.bold { FontStyle::Bold } else { FontStyle::Normal };
        let font = ("sans-serif", size, style).into_font();
        TextStyle { font, color: self.colour.to_backend_color(), pos: Pos::new(self.across, self.along) }
    }
}

/// Writes at a place, in pixels.
pub(super) fn write(area: &Area<'_>, text: &str, (x, y): (i32, i32), look: Look) -> Result<()> {
    Ok(area.draw_text(text, &look.style(), (px(x), px(y)))?)
}

/// Writes upwards, centred on a place.
pub(super) fn write_upwards(area: &Area<'_>, text: &str, (x, y): (i32, i32), look: Look) -> Result<()> {
    Ok(area.draw_text(text, &look.centred().style().transform(FontTransform::Rotate270), (px(x), px(y)))?)
}

/// A rectangle of the area, in pixels.
pub(super) fn part<'a>(area: &Area<'a>, (x, y): (i32, i32), (width, height): (i32, i32)) -> Area<'a> {
    area.clone().shrink((px(x), px(y)), (px(width), px(height)))
}

/// What a legend says of one colour.
pub(super) enum Entry {
    /// A line with its band; the side says colour and mark.
    Band(Side, String),
    /// A line without one.
    Line(Side, String),
    /// A grey line.
    Guide(String),
    /// A remark, without a colour.
    Note(String),
}

/// A picture, with what stands above it and what is said to those who cannot see it.
pub(super) struct Canvas<'a> {
    pub(super) height: i32,
    pub(super) title: &'a str,
    pub(super) subtitle: String,
    pub(super) legend: Vec<Entry>,
}

impl Canvas<'_> {
    /// Draws it. `draw` returns how many numbers it left out.
    pub(super) fn draw(&self, draw: impl FnOnce(&Area<'_>) -> Result<usize>) -> Result<String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (px(WIDTH) as u32, px(self.height) as u32)).into_drawing_area();
            area.fill(&WHITE)?;
            write(&area, self.title, (14, 12), Look::new(16).bold())?;
            write(&area, &self.subtitle, (14, 34), Look::new(12).faint())?;
            self.legend(&area)?;
            let left_out = draw(&area)?;
            if left_out > 0 {
                let numbers = if left_out == 1 { "number" } else { "numbers" };
                let note = format!("left out: {left_out} {numbers}, not finite or too small to draw");
                write(&area, &note, (WIDTH - 12, 14), Look::new(10).faint().right())?;
            }
            area.present()?;
        }
        let said = format!("<title>{}</title>\n<desc>{}</desc>\n", escape(self.title), escape(&self.subtitle));
        Ok(shrunk(&svg, &said, self.height))
    }

    fn legend(&self, area: &Area<'_>) -> Result<()> {
        let y = 60;
        let mut x = 14;
        for entry in &self.legend {
            let text = match entry {
                Entry::Band(side, text) | Entry::Line(side, text) => {
                    let colour = side.colour();
                    if matches!(entry, Entry::Band(..)) {
                        area.draw(&Rectangle::new([(px(x), px(y - 6)), (px(x + 26), px(y + 6))], colour.mix(BAND).filled()))?;
                    }
                    area.draw(&PathElement::new([(px(x), px(y)), (px(x + 26), px(y))], colour.stroke_width(px(2) as u32)))?;
                    mark(area, *side, (px(x + 13), px(y)))?;
                    x += 32;
                    text
                }
                Entry::Guide(text) => {
                    area.draw(&PathElement::new([(px(x), px(y)), (px(x + 26), px(y))], GUIDE.stroke_width(px(1) as u32)))?;
                    x += 32;
                    text
                }
                Entry::Note(text) => text,
            };
            let look = Look::new(12).middle();
            write(area, text, (x, y), if matches!(entry, Entry::Note(_)) { look.faint() } else { look })?;
            // No font is at hand to measure with; this is what wide ones take.
            x += text.chars().count() as i32 * 7 + 22;
        }
        Ok(())
    }
}

/// The dot of one side: round for keys, square for values, so that they differ without colours too.
pub(super) fn mark(area: &Area<'_>, side: Side, (x, y): (i32, i32)) -> Result<()> {
    let colour = side.colour().filled();
    match side {
        Side::Keys => area.draw(&Circle::new((x, y), px(3), colour))?,
        Side::Values => {
            let half = px(5) / 2;
            area.draw(&Rectangle::new([(x - half, y - half), (x + half, y + half)], colour))?;
        }
    }
    Ok(())
}

/// The library's large picture, said to be of the size meant.
fn shrunk(svg: &str, said: &str, height: i32) -> String {
    let body = svg.split_once('>').map_or("", |(_, body)| body);
    let (wide, high) = (px(WIDTH), px(height));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {wide} {high}\" role=\"img\">\n{said}{}\n",
        body.trim()
    )
}

/// The line below a heading.
pub(super) fn subtitle(analysis: &Analysis, more: &str) -> String {
    let model = shortened(&analysis.model, 56);
    let text = shortened(&analysis.text, 40);
    format!("{model} · {} tokens of {text}{more}", thousands(analysis.tokens))
}

/// Shortens a text to the number of characters given, without its middle if it is longer, and without what XML forbids.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let text: Vec<char> = text.chars().map(allowed).collect();
    if text.len() <= most {
        return text.into_iter().collect();
    }
    let (head, tail) = (most / 2, most - most / 2 - 1);
    text[..head].iter().chain(&['…']).chain(&text[text.len() - tail..]).collect()
}

/// The character, or the one that stands for a lost one where XML has no way to write it.
fn allowed(character: char) -> char {
    if character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}') { char::REPLACEMENT_CHARACTER } else { character }
}

/// A text as XML and HTML want it, in an element or in an attribute.
pub(super) fn escape(text: &str) -> String {
    text.chars().map(allowed).fold(String::with_capacity(text.len()), |mut escaped, character| {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
        escaped
    })
}

/// A number with its thousands apart.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    digits.chars().enumerate().fold(String::new(), |mut text, (index, digit)| {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
        text
    })
}

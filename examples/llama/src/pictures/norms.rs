//! Norms over layers: of keys and values, and of the matrices that make them.

use super::Result;
use super::axis::Axis;
use super::band::Band;
use super::canvas::{Canvas, Entry, px, subtitle};
use super::data::{Analysis, HeadAnalysis, Side, WeightAnalysis};
use super::lines::{Frame, Line, halves, lines, panel};

pub(super) const TITLE: &str = "Norms of keys and values, layer by layer";
pub(super) const WEIGHTS_TITLE: &str = "Norms of the matrices that make keys and values";

const HEIGHT: i32 = 390;
/// Names that the axis of layers has room for.
const LAYERS: usize = 12;
/// Layers up to which every one gets a mark.
const MARKS: usize = 40;

/// The two norms that are drawn.
const FROBENIUS: &str = "Frobenius norm";
const SPECTRAL: &str = "Spectral norm";

/// Frobenius and spectral norms of keys and values over the layers: mean over heads, with the band between least and greatest.
pub fn norms(analysis: &Analysis) -> Result<String> {
    let legend = vec![
        Entry::Band(Side::Keys, "K, keys".to_owned()),
        Entry::Band(Side::Values, "V, values".to_owned()),
        Entry::Note("line: mean over KV heads; band: least to greatest head".to_owned()),
    ];
    let of = |pick: fn(&HeadAnalysis) -> f64| {
        move |side: Side, left_out: &mut usize| {
            let layers = analysis.layers.iter();
            layers.map(|layer| Band::of(side.heads(layer).iter().map(pick), left_out)).collect::<Vec<_>>()
        }
    };
    let panels = [(FROBENIUS, of(|head| head.frobenius)), (SPECTRAL, of(|head| head.spectral))];
    over_layers(analysis, TITLE, legend, "norm of a head's matrix (no unit)", panels)
}

/// Frobenius and spectral norms of the key and value matrices over the layers, if the analysis has any.
pub fn weights(analysis: &Analysis) -> Result<Option<String>> {
    if !analysis.layers.iter().any(|layer| layer.key_weights.is_some() || layer.value_weights.is_some()) {
        return Ok(None);
    }
    let legend = vec![Entry::Line(Side::Keys, "W_K, makes keys".to_owned()), Entry::Line(Side::Values, "W_V, makes values".to_owned())];
    let of = |pick: fn(&WeightAnalysis) -> f64| {
        move |side: Side, left_out: &mut usize| {
            let layers = analysis.layers.iter();
            layers.map(|layer| Band::of(side.weights(layer).map(pick), left_out)).collect::<Vec<_>>()
        }
    };
    let panels = [(FROBENIUS, of(|weights| weights.frobenius)), (SPECTRAL, of(|weights| weights.spectral))];
    over_layers(analysis, WEIGHTS_TITLE, legend, "norm of the whole matrix (no unit)", panels).map(Some)
}

/// Two panels over the same layers. `pick` gives what there is at every layer of one side.
fn over_layers(
    analysis: &Analysis,
    title: &str,
    legend: Vec<Entry>,
    unit: &str,
    panels: [(&str, impl Fn(Side, &mut usize) -> Vec<Option<Band>>); 2],
) -> Result<String> {
    let canvas = Canvas { height: HEIGHT, title, subtitle: subtitle(analysis, ""), legend };
    canvas.draw(|area| {
        let mut left_out = 0;
        for (area, (title, pick)) in halves(area, HEIGHT).iter().zip(&panels) {
            let drawn = Side::BOTH.map(|side| {
                let points = pick(side, &mut left_out).into_iter().enumerate().map(|(place, band)| (place as f64, band)).collect();
                Line { side, points }
            });
            let y = Axis::fitting(drawn.iter().flat_map(Line::heights), 6);
            left_out += drawn.iter().map(|line| line.left_out(&y)).sum::<usize>();
            let title = if y.is_log() { format!("{title} (logarithmic)") } else { (*title).to_owned() };
            let x = Axis::places(&analysis.layer_numbers(), LAYERS);
            let mut chart = panel(area, Frame { title: &title, x, y, x_title: "layer", y_title: unit })?;
            lines(&mut chart, &drawn, px(2), analysis.layers.len() <= MARKS)?;
        }
        Ok(left_out)
    })
}

/// The mean over the heads of one side.
pub(super) fn mean(heads: &[HeadAnalysis], pick: fn(&HeadAnalysis) -> f64) -> Option<f64> {
    Band::of_finite(heads.iter().map(pick)).map(|band| band.mean)
}

/// A sentence that says in how many layers the left number is the greater one; nothing where no layer has both.
fn wins(who: &str, norm: &str, pairs: impl Iterator<Item = (Option<f64>, Option<f64>)>) -> String {
    let pairs: Vec<(f64, f64)> = pairs.filter_map(|(left, right)| Some((left?, right?))).collect();
    match pairs.len() {
        0 => String::new(),
        layers => format!(" {who} the greater {norm} norm in {} of {layers} layers.", pairs.iter().filter(|(left, right)| left > right).count()),
    }
}

pub(super) fn caption(analysis: &Analysis) -> String {
    let count = |norm, pick: fn(&HeadAnalysis) -> f64| {
        wins("Keys have", norm, analysis.layers.iter().map(|layer| (mean(&layer.keys, pick), mean(&layer.values, pick))))
    };
    format!(
        "Across: layers. Up: the norm of one head's matrix of tokens by channels, without a unit; left the Frobenius norm (root of the sum of \
         squares), right the spectral norm (greatest singular value). Both grow with the number of tokens, so compare only within the picture. At \
         equal bits, the squared error of quantization grows with the square of the norm: the higher curve loses more. What an error of that size \
         does to the output is in the pictures of attention errors, not in this one.{}{}",
        count("Frobenius", |head| head.frobenius),
        count("spectral", |head| head.spectral)
    )
}

pub(super) fn weights_caption(analysis: &Analysis) -> String {
    let count = |norm, pick: fn(&WeightAnalysis) -> f64| {
        wins("W_K has", norm, analysis.layers.iter().map(|layer| (layer.key_weights.as_ref().map(pick), layer.value_weights.as_ref().map(pick))))
    };
    format!(
        "Across: layers. Up: the norm of the whole matrix W_K or W_V, without a unit. Where a model normalises its keys after W_K, these curves say \
         nothing of the keys' size; compare them with the norms of the keys themselves.{}{}",
        count("Frobenius", |weights| weights.frobenius),
        count("spectral", |weights| weights.spectral)
    )
}

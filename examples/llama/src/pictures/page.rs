//! The page: all pictures and the numbers behind the first of them, in one file.

use super::Picture;
use super::axis::short;
use super::band::Band;
use super::canvas::{escape, thousands};
use super::data::{Analysis, HeadAnalysis, LayerAnalysis, Side};
use super::errors::mean;

const STYLE: &str = "\
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; background: #fafafa; color: #222; font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 2rem; }
dt { font-size: .8rem; color: #5c5c5c; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 2rem; padding: .5rem; background: #fff; border: 1px solid #ddd; border-radius: 6px; }
.wide { overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { margin: .5rem .5rem .25rem; max-width: 50rem; font-size: .92rem; color: #444; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
caption { padding: .25rem 0 .5rem; text-align: left; font-size: .92rem; color: #444; }
th, td { padding: .2rem .55rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid #999; vertical-align: bottom; }
tbody tr:nth-child(even) { background: #f2f2f2; }
.range { color: #5c5c5c; }
.tables > div { margin: 0 0 2rem; }
@media print { body { background: #fff; } figure { break-inside: avoid; } }
";

/// One page that shows everything and asks for no other file.
pub fn page(analysis: &Analysis, pictures: &[Picture]) -> String {
    let model = escape(&analysis.model);
    let figures: String = pictures.iter().map(figure).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Keys and values of {model}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Keys and values of {model}</h1>\n\
         {facts}{figures}<div class=\"tables\">\n{errors}{norms}</div>\n</main>\n</body>\n</html>\n",
        facts = facts(analysis),
        errors = errors_table(analysis),
        norms = norms_table(analysis),
    )
}

fn facts(analysis: &Analysis) -> String {
    let heads = analysis.layers.iter().map(|layer| layer.keys.len().max(layer.values.len())).max().unwrap_or(0);
    let channels = Side::BOTH.iter().flat_map(|&side| analysis.heads(side)).map(|(_, head)| head.singular_values.len()).max().unwrap_or(0);
    let facts = [
        ("text", escape(&analysis.text)),
        ("tokens", thousands(analysis.tokens)),
        ("layers", analysis.layers.len().to_string()),
        ("KV heads a layer", heads.to_string()),
        ("channels a head", channels.to_string()),
        ("codec", escape(&analysis.codec)),
        ("numbers a scale", analysis.group.to_string()),
    ];
    let facts: String = facts.iter().map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n")).collect();
    format!("<dl>\n{facts}</dl>\n")
}

fn figure(picture: &Picture) -> String {
    format!("<figure id=\"{}\">\n<div class=\"wide\">\n{}</div>\n<figcaption>{}</figcaption>\n</figure>\n", picture.name, picture.svg, escape(&picture.caption))
}

fn table(caption: &str, names: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: String = names.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    let body: String = rows
        .map(|row| {
            let cells = row.iter().enumerate().map(|(index, cell)| match index {
                0 => format!("<th scope=\"row\">{cell}</th>"),
                _ => format!("<td>{cell}</td>"),
            });
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        })
        .collect();
    format!(
        "<div class=\"wide\">\n<table>\n<caption>{}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n",
        escape(caption)
    )
}

fn errors_table(analysis: &Analysis) -> String {
    let widths = analysis.widths();
    if widths.is_empty() {
        return String::new();
    }
    let rows = widths.iter().map(|&bits| {
        let number = |side, pick| mean(analysis, side, bits, pick).map_or("–".to_owned(), short);
        vec![
            bits.to_string(),
            number(Side::Keys, |error| error.relative),
            number(Side::Values, |error| error.relative),
            number(Side::Keys, |error| error.mse),
            number(Side::Values, |error| error.mse),
            number(Side::Keys, |error| error.attention),
            number(Side::Values, |error| error.attention),
        ]
    });
    let names = [
        "Bits a number",
        "K squared error<br>/ squared norm",
        "V squared error<br>/ squared norm",
        "K mean<br>squared error",
        "V mean<br>squared error",
        "K error of<br>attention output",
        "V error of<br>attention output",
    ];
    table("Errors at every bit width: means over layers and heads.", &names, rows)
}

fn norms_table(analysis: &Analysis) -> String {
    let weights = analysis.layers.iter().any(|layer| layer.key_weights.is_some() || layer.value_weights.is_some());
    let mut names = vec!["Layer", "K<br>Frobenius", "V<br>Frobenius", "K / V", "K<br>spectral", "V<br>spectral", "K / V"];
    if weights {
        names.extend(["W_K<br>Frobenius", "W_V<br>Frobenius", "W_K<br>spectral", "W_V<br>spectral"]);
    }
    let rows = analysis.layers.iter().map(|layer| {
        let mut row = vec![layer.layer.to_string()];
        for pick in [(|head| head.frobenius) as fn(&HeadAnalysis) -> f64, |head| head.spectral] {
            let bands = Side::BOTH.map(|side| Band::of_finite(side.heads(layer).iter().map(pick)));
            row.extend(bands.map(told));
            row.push(ratio(bands));
        }
        if weights {
            row.extend(matrices(layer));
        }
        row
    });
    table("Norms, layer by layer: mean over KV heads (least to greatest head), and the ratio of the means.", &names, rows)
}

fn told(band: Option<Band>) -> String {
    let Some(band) = band else { return "–".to_owned() };
    format!("{} <span class=\"range\">({} to {})</span>", short(band.mean), short(band.least), short(band.greatest))
}

fn ratio([keys, values]: [Option<Band>; 2]) -> String {
    match (keys, values) {
        (Some(keys), Some(values)) if values.mean > 0.0 => short(keys.mean / values.mean),
        _ => "–".to_owned(),
    }
}

fn matrices(layer: &LayerAnalysis) -> [String; 4] {
    let [keys, values] = Side::BOTH.map(|side| side.weights(layer));
    let number = |number: Option<f64>| number.map_or("–".to_owned(), short);
    [
        number(keys.map(|keys| keys.frobenius)),
        number(values.map(|values| values.frobenius)),
        number(keys.map(|keys| keys.spectral)),
        number(values.map(|values| values.spectral)),
    ]
}

//! The pictures of `analyze`: whole, escaped, and undisturbed by odd numbers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sample;

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};
use sample::analysis;
use wgkv_llama::align_report::{AlignReport, Histogram, Layer};
use wgkv_llama::pictures::{Analysis, aligned, errors, heat, norms, pictures, spectra, weights, write};

const KEYS: &str = "#0068AD";
const VALUES: &str = "#D55E00";

/// An empty folder of this name.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pictures").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Elements of one name and colour.
fn count(document: &Document<'_>, tag: &str, colour: &str) -> usize {
    let coloured = |node: &Node<'_, '_>| [node.attribute("stroke"), node.attribute("fill")].contains(&Some(colour));
    document.descendants().filter(|node| node.has_tag_name(tag) && coloured(node)).count()
}

fn texts<'a>(document: &'a Document<'_>) -> Vec<&'a str> {
    document.descendants().filter(|node| node.has_tag_name("text")).filter_map(|node| node.text()).map(str::trim).collect()
}

/// Parses a picture and makes sure that all of it lies inside.
fn parsed(svg: &str) -> Document<'_> {
    let document = Document::parse(svg).unwrap();
    let root = document.root_element();
    let size: Vec<f64> = root.attribute("viewBox").unwrap().split(' ').map(|number| number.parse().unwrap()).collect();
    for node in document.descendants() {
        for (names, most) in [(["x", "x1", "x2", "cx"], size[2]), (["y", "y1", "y2", "cy"], size[3])] {
            for value in names.iter().filter_map(|name| node.attribute(*name)) {
                let value: f64 = value.parse().unwrap();
                assert!((0.0..=most).contains(&value), "{node:?}");
            }
        }
        for pair in node.attribute("points").unwrap_or_default().split_whitespace() {
            let (x, y) = pair.split_once(',').unwrap();
            assert!((0.0..=size[2]).contains(&x.parse().unwrap()) && (0.0..=size[3]).contains(&y.parse().unwrap()), "{node:?}");
        }
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    document
}

#[test]
fn norms_have_a_line_and_a_band_a_side_in_both_panels() {
    let svg = norms(&analysis(6, 4, 16)).unwrap();
    let document = parsed(&svg);
    for colour in [KEYS, VALUES] {
        assert_eq!(count(&document, "polygon", colour), 2);
        let lines = document.descendants().filter(|node| node.has_tag_name("polyline") && node.attribute("stroke") == Some(colour));
        assert_eq!(lines.filter(|line| line.attribute("points").unwrap().split_whitespace().count() == 6).count(), 2);
    }
    // A mark a layer and panel, and the legend's.
    assert_eq!(count(&document, "circle", KEYS), 2 * 6 + 1);
    let texts = texts(&document);
    for name in ["0", "5", "layer", "Frobenius norm (logarithmic)", "K, keys", "V, values"] {
        assert!(texts.contains(&name), "{name}: {texts:?}");
    }
}

#[test]
fn spectra_have_a_panel_a_layer() {
    for layers in [1, 6, 7, 33, 80] {
        let svg = spectra(&analysis(layers, 2, 128)).unwrap();
        let document = parsed(&svg);
        for colour in [KEYS, VALUES] {
            assert_eq!(count(&document, "polygon", colour), layers as usize);
        }
        let texts = texts(&document);
        assert!((0..layers).all(|layer| texts.contains(&format!("layer {layer}").as_str())));
    }
}

#[test]
fn errors_name_the_widths_there_are() {
    let svg = errors(&analysis(3, 2, 8)).unwrap();
    let document = parsed(&svg);
    let texts = texts(&document);
    for bits in ["2", "3", "4", "8"] {
        assert_eq!(texts.iter().filter(|text| **text == bits).count(), 2, "{bits}: {texts:?}");
    }
    assert_eq!(count(&document, "polygon", KEYS) + count(&document, "polygon", VALUES), 4);
}

#[test]
fn the_heat_map_has_a_cell_a_head() {
    // The paper and the colour bar are rectangles, too, so only differences count.
    let rectangles = |layers, heads| {
        let svg = heat(&analysis(layers, heads, 4)).unwrap();
        let document = parsed(&svg);
        document.descendants().filter(|node| node.has_tag_name("rect")).count()
    };
    assert_eq!(rectangles(6, 4) - rectangles(5, 4), 2 * 4);
    assert_eq!(rectangles(80, 3) - rectangles(79, 3), 2 * 3);
}

#[test]
fn names_of_an_axis_lie_apart() {
    for layers in [1, 6, 32, 80, 127] {
        for svg in [norms(&analysis(layers, 8, 128)).unwrap(), heat(&analysis(layers, 8, 128)).unwrap(), spectra(&analysis(layers, 8, 128)).unwrap()] {
            let document = parsed(&svg);
            let mut names: Vec<(f64, f64, f64)> = document
                .descendants()
                .filter(|node| node.has_tag_name("text") && node.attribute("text-anchor") == Some("middle") && node.attribute("transform").is_none())
                .map(|node| {
                    let number = |name| node.attribute(name).unwrap().parse::<f64>().unwrap();
                    let half = node.text().unwrap().trim().chars().count() as f64 * number("font-size") * 0.65 / 2.0;
                    (number("y"), number("x") - half, number("x") + half)
                })
                .collect();
            names.sort_by(|left, right| left.partial_cmp(right).unwrap());
            for pair in names.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                assert!(pair[0].2 < pair[1].1, "{layers} layers: {pair:?}");
            }
        }
    }
}

#[test]
fn weights_are_drawn_where_there_are_any() {
    let mut some = analysis(6, 2, 8);
    let document = weights(&some).unwrap().unwrap();
    assert_eq!(count(&parsed(&document), "circle", KEYS), 2 * 6 + 1);
    assert_eq!(pictures(&some).unwrap().len(), 5);
    for layer in &mut some.layers {
        (layer.key_weights, layer.value_weights) = (None, None);
    }
    assert_eq!(weights(&some).unwrap(), None);
    assert_eq!(pictures(&some).unwrap().len(), 4);
}

/// Puts a number everywhere, or in every second head only.
fn spoilt(mut analysis: Analysis, number: f64, everywhere: bool) -> Analysis {
    for layer in &mut analysis.layers {
        for head in layer.keys.iter_mut().chain(&mut layer.values).filter(|head| everywhere || head.head % 2 == 1) {
            (head.frobenius, head.spectral) = (number, number);
            head.singular_values.fill(number);
            for error in &mut head.errors {
                (error.relative, error.mse, error.attention) = (number, number, number);
            }
        }
        for weights in [&mut layer.key_weights, &mut layer.value_weights].into_iter().flatten().filter(|_| everywhere) {
            (weights.frobenius, weights.spectral) = (number, number);
        }
    }
    analysis
}

#[test]
fn odd_numbers_do_not_break_a_picture() {
    for number in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 5e-324, 1e-300, 1.0] {
        for everywhere in [false, true] {
            for picture in pictures(&spoilt(analysis(5, 3, 16), number, everywhere)).unwrap() {
                parsed(&picture.svg);
            }
        }
    }
}

#[test]
fn what_is_left_out_is_said() {
    let said = |number| norms(&spoilt(analysis(5, 2, 16), number, false)).unwrap().contains("left out: 20 numbers");
    assert!(said(f64::NAN));
    assert!(!said(1.0));
}

#[test]
fn analyses_without_layers_heads_or_errors_are_drawn() {
    let mut bare = analysis(4, 2, 8);
    for layer in &mut bare.layers {
        layer.values.clear();
        layer.keys.iter_mut().for_each(|head| head.errors.clear());
    }
    for analysis in [bare, analysis(0, 0, 0), analysis(3, 0, 0), analysis(1, 1, 1), analysis(2, 1, 0)] {
        for picture in pictures(&analysis).unwrap() {
            parsed(&picture.svg);
        }
    }
}

#[test]
fn texts_are_escaped() {
    let mut odd = analysis(2, 2, 4);
    odd.model = "<script>alert(\"1\" & '2')</script>\u{0}\u{1b}\u{ffff}".to_owned();
    odd.text = "</svg>]]><!--".to_owned();
    odd.codec = "<i>".to_owned();
    let folder = folder("escaped");
    write(&odd, &folder).unwrap();
    let page = std::fs::read_to_string(folder.join("index.html")).unwrap();
    assert!(!page.contains("<script") && !page.contains("]]><!--") && !page.contains("<i>"));
    assert!(page.contains("<h1>Keys and values of &lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt;"));
    for picture in pictures(&odd).unwrap() {
        assert!(texts(&parsed(&picture.svg)).iter().any(|text| text.starts_with("<script>alert(\"1\" & '2')")));
    }
}

#[test]
fn aligned_has_a_bar_a_bucket_and_product_and_a_line_a_side() {
    let histogram = |most: u64| Histogram { counts: [most, 30, 8, 4, 2, 0] };
    let layer = |n: u32| Layer {
        k_bits: 14.0 - f64::from(n) / 4.0,
        v_bits: 9.0 + f64::from(n) / 8.0,
        qk: histogram(50),
        qk_uniform: histogram(20),
        sv: histogram(70),
        sv_uniform: histogram(10),
    };
    let report = |layers: u32| AlignReport {
        align: "phi-k:16,phi-v:64".into(),
        total: layer(0),
        layers: (0..layers).map(layer).collect(),
        tokens: 1024,
        seconds: 1.0,
        adapter: "a & b".into(),
    };
    let svg = aligned(&report(6)).unwrap();
    let document = parsed(&svg);
    for colour in [KEYS, VALUES] {
        // A bar a bucket; of values the legend's mark and those of the layers besides.
        let marks = if colour == VALUES { 6 + 1 } else { 0 };
        assert_eq!(count(&document, "rect", colour), 6 + marks);
    }
    assert_eq!(count(&document, "rect", "#7D7D7D"), 2 * 6);
    assert_eq!(count(&document, "circle", KEYS), 6 + 1);
    let texts = texts(&document);
    for name in ["<1/1024", "more", "Scores, QK", "Outputs, SV", "Bits read", "16", "share of results, %"] {
        assert!(texts.contains(&name), "{name}: {texts:?}");
    }
    for layers in [0, 1, 80] {
        parsed(&aligned(&report(layers)).unwrap());
    }
}

#[test]
fn the_page_needs_no_other_file() {
    let folder = folder("page");
    let inner = folder.join("new/folder");
    let files = write(&analysis(6, 4, 16), &inner).unwrap();
    let names: Vec<_> = files.iter().map(|file| file.strip_prefix(&inner).unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["analysis.json", "norms.svg", "spectra.svg", "errors.svg", "heat.svg", "weights.svg", "index.html"]);
    assert!(files.iter().all(|file| file.is_file()));
    let page = std::fs::read_to_string(inner.join("index.html")).unwrap();
    assert_eq!((page.matches("<h1").count(), page.matches("<svg").count(), page.matches("<table").count()), (1, 5, 2));
    for asked in ["src=", "href=", "url(", "@import", "<link", "<script"] {
        assert!(!page.contains(asked), "{asked}");
    }
    let addresses = page.matches("http").count();
    assert_eq!(addresses, page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = folder("refused");
    let file = folder.join("file");
    std::fs::write(&file, "").unwrap();
    let error = write(&analysis(1, 1, 4), &file.join("folder")).unwrap_err().to_string();
    assert!(error.starts_with("cannot write") && error.contains("file"), "{error}");
}

#[test]
fn json_brings_the_numbers_back() {
    let mut analysis = analysis(3, 2, 4);
    // Halves and quarters are the same in decimal and in binary; other numbers may differ in the last bit.
    for layer in &mut analysis.layers {
        (layer.key_weights, layer.value_weights) = (None, None);
        for head in layer.keys.iter_mut().chain(&mut layer.values) {
            let quarters = |number: f64| (number * 4.0).round() / 4.0;
            (head.frobenius, head.spectral) = (quarters(head.frobenius), quarters(head.spectral));
            head.singular_values.iter_mut().for_each(|value| *value = quarters(*value));
            head.errors.iter_mut().for_each(|error| (error.relative, error.mse, error.attention) = (0.5, 0.25, 0.125));
        }
    }
    let folder = folder("json");
    write(&analysis, &folder).unwrap();
    let text = std::fs::read_to_string(folder.join("analysis.json")).unwrap();
    assert_eq!(serde_json::from_str::<Analysis>(&text).unwrap(), analysis);

    analysis.layers[0].keys[0].frobenius = f64::INFINITY;
    analysis.layers[0].keys[0].singular_values[1] = f64::NAN;
    let back: Analysis = serde_json::from_str(&serde_json::to_string(&analysis).unwrap()).unwrap();
    assert!(back.layers[0].keys[0].frobenius.is_nan() && back.layers[0].keys[0].singular_values[1].is_nan());
}

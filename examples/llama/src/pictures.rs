//! What `analyze` shows: pictures of a model's keys and values, the numbers behind them, and a page with all of it. And the picture of
//! `align-report`.
//!
//! Every picture is one SVG, drawn in the same two colours: keys are blue, values are orange. Numbers that cannot be drawn (not
//! finite, or zero on a logarithmic axis) are left out, and the picture says how many they were.

mod aligned;
mod axis;
mod band;
mod canvas;
mod data;
mod errors;
mod heat;
mod lines;
mod norms;
mod page;
mod spectra;

use std::path::{Path, PathBuf};

pub use aligned::aligned;
pub use data::{Analysis, BitsError, HeadAnalysis, LayerAnalysis, WeightAnalysis};
pub use errors::errors;
pub use heat::heat;
pub use norms::{norms, weights};
pub use page::page;
pub use spectra::spectra;

/// Why the pictures could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A picture could not be drawn.
    #[error("cannot draw: {0}")]
    Draw(String),
    /// The numbers could not be written as JSON.
    #[error("cannot write the analysis as JSON")]
    Json(#[from] serde_json::Error),
    /// A file or its folder could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Shorthand for this module's results.
pub type Result<T> = std::result::Result<T, Error>;

/// A picture, and what a reader of the page should know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Name of its file, without the ending.
    pub name: &'static str,
    /// What it shows, in a few words.
    pub title: &'static str,
    /// Its axes, and what to see.
    pub caption: String,
    /// The SVG.
    pub svg: String,
}

/// All pictures that the analysis has numbers for, in the order of the page.
pub fn pictures(analysis: &Analysis) -> Result<Vec<Picture>> {
    let mut pictures = vec![
        Picture { name: "norms", title: norms::TITLE, caption: norms::caption(analysis), svg: norms(analysis)? },
        Picture { name: "spectra", title: spectra::TITLE, caption: spectra::caption(analysis), svg: spectra(analysis)? },
        Picture { name: "errors", title: errors::TITLE, caption: errors::caption(analysis), svg: errors(analysis)? },
        Picture { name: "heat", title: heat::TITLE, caption: heat::caption(analysis), svg: heat(analysis)? },
    ];
    if let Some(svg) = weights(analysis)? {
        pictures.push(Picture { name: "weights", title: norms::WEIGHTS_TITLE, caption: norms::weights_caption(analysis), svg });
    }
    Ok(pictures)
}

/// Writes `analysis.json`, one SVG a picture, and `index.html`, which shows them all and needs no other file.
pub fn write(analysis: &Analysis, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.to_owned(), source })?;
    let pictures = pictures(analysis)?;
    let mut json = serde_json::to_string(analysis)?;
    json.push('\n');
    let mut files = vec![("analysis.json".to_owned(), json)];
    files.extend(pictures.iter().map(|picture| (format!("{}.svg", picture.name), picture.svg.clone())));
    files.push(("index.html".to_owned(), page(analysis, &pictures)));
    files
        .into_iter()
        .map(|(name, content)| {
            let path = folder.join(name);
            match std::fs::write(&path, content) {
                Ok(()) => Ok(path),
                Err(source) => Err(Error::Write { path, source }),
            }
        })
        .collect()
}

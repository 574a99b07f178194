//! Joins the plain WGSL parts of a kernel into one module, and finds the part a line came from.

use std::hash::{Hash, Hasher};

/// Whose WGSL a module is. They differ in one line: operations on subgroups need the directive `enable subgroups;` by the
/// standard, and naga knows the operations but refuses the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// What naga reads: wgpu on native adapters, and browsers that are made with it, which offer no subgroups.
    Naga,
    /// The standard's: Chromium, whose compiler is Tint.
    Standard,
}

impl Dialect {
    /// What the compiler of this target reads.
    pub const TARGET: Self = if cfg!(target_arch = "wasm32") { Self::Standard } else { Self::Naga };
}

/// A WGSL text of its own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The path below `shaders/`.
    pub path: &'static str,
    /// The text.
    pub source: &'static str,
}

/// By the path alone: pipelines are looked up for every dispatch, and texts are long.
impl Hash for Part {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}

/// The parts of one module, joined.
#[derive(Clone, Debug)]
pub struct Linked {
    /// The whole module.
    pub source: String,
    /// (first line, path) of each part, in order.
    lines: Vec<(usize, &'static str)>,
}

impl Linked {
    /// Joins parts below a header of directives. WGSL's module scope has no order, so any order does.
    pub fn new(header: &str, parts: &[Part]) -> Self {
        let mut source = String::from(header);
        let mut lines = Vec::new();
        for part in parts {
            lines.push((source.lines().count() + 1, part.path));
            source.push_str(part.source);
            source.push('\n');
        }
        Self { source, lines }
    }

    /// The file and line that a line of the joined module (from 1) came from.
    pub fn place(&self, line: usize) -> Option<(&'static str, usize)> {
        let (first, path) = self.lines.iter().rev().find(|(first, _)| *first <= line)?;
        Some((path, line - first + 1))
    }

    /// Replaces the places `wgsl:LINE:` of a naga message by the file and line of the part.
    pub fn locate(&self, message: &str) -> String {
        let mut located = String::new();
        let mut rest = message;
        while let Some(at) = rest.find("wgsl:") {
            let (before, after) = rest.split_at(at + "wgsl:".len());
            let digits = after.chars().take_while(char::is_ascii_digit).count();
            match after[..digits].parse().ok().and_then(|line| self.place(line)) {
                Some((path, line)) => {
                    located.push_str(&before[..before.len() - "wgsl:".len()]);
                    located.push_str(&format!("shaders/{}.wgsl:{line}", path.trim_end_matches(".wgsl")));
                }
                None => located.push_str(&before[..before.len()]),
            }
            rest = if self.place(after[..digits].parse().unwrap_or(0)).is_some() { &after[digits..] } else { after };
        }
        located + rest
    }
}

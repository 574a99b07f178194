//! Kernels as data, their variants, and the linker: it joins the plain WGSL parts of a kernel into
//! one module, and finds the part that a line came from.

use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A dialect of WGSL. The two differ in one line: operations on subgroups need the directive
/// `enable subgroups;` by the standard, and naga knows the operations but refuses the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// What naga reads: wgpu on native adapters, and browsers that are made with it, which offer no
    /// subgroups.
    Naga,
    /// The standard's: Chromium, whose compiler is Tint.
    Standard,
}

impl Dialect {
    /// What the compiler of this target reads.
    pub const TARGET: Self = if cfg!(target_arch = "wasm32") { Self::Standard } else { Self::Naga };
}

/// A WGSL text from a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path below `shaders/`.
    pub path: &'static str,
    /// The text.
    pub source: &'static str,
}

impl Source {
    /// Returns a part's name: its path below `shaders/part/`, without the ending.
    pub fn name(&self) -> &'static str {
        self.path.trim_start_matches("part/").trim_end_matches(".wgsl")
    }

    /// Returns the folder of a part: the slot that it fills, or `shared`.
    pub fn slot(&self) -> &'static str {
        self.name().rsplit_once('/').map_or("", |(slot, _)| slot)
    }
}

/// Hashes the path alone, since texts are long.
impl Hash for Source {
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
    /// Joins parts below a header of directives. WGSL's module scope has no order, so any order
    /// does.
    pub fn new(header: &str, parts: &[Source]) -> Self {
        let mut source = String::from(header);
        let mut lines = Vec::new();
        for part in parts {
            lines.push((source.lines().count() + 1, part.path));
            source.push_str(part.source);
            source.push('\n');
        }
        Self { source, lines }
    }

    /// Returns the file and line that a line of the joined module (from 1) came from.
    pub fn place(&self, line: usize) -> Option<(&'static str, usize)> {
        let (first, path) = self.lines.iter().rev().find(|(first, _)| *first <= line)?;
        Some((path, line - first + 1))
    }

    /// Replaces the places `wgsl:LINE:` of a naga message by the file and line of the part.
    pub fn locate(&self, message: &str) -> String {
        let mut pieces = message.split("wgsl:");
        let mut located = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let digits = piece.chars().take_while(char::is_ascii_digit).count();
            let (line, rest) = piece.split_at(digits);
            match line.parse().ok().and_then(|line| self.place(line)) {
                Some((path, line)) => located += &format!("shaders/{}.wgsl:{line}{rest}", path.trim_end_matches(".wgsl")),
                None => located += &format!("wgsl:{piece}"),
            }
        }
        located
    }
}

/// What a binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    /// The parameters, in a buffer of their own.
    Uniform,
    /// The parameters, at an offset that each dispatch gives.
    Dynamic,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer that is read and written.
    Write,
}

/// Name and kind of the bindings of a group, in order.
pub type Bindings = &'static [(&'static str, Binding)];

/// Where the caller's rows lie, for variants of kernels that take them with strides: two `Layout`s
/// of `shaders/part/layout/strided.wgsl`, in a bind group after the kernel's own.
const LAYOUTS: Bindings = &[("layouts", Binding::Uniform)];

/// A kernel: what its shader file declares.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The one name of shader file, entry point, module, twin and test.
    pub name: &'static str,
    /// The shader file's text.
    pub source: &'static str,
    /// Name and kind of each binding, by group, in order.
    pub groups: &'static [Bindings],
    /// Bytes of the parameters.
    pub params_bytes: usize,
    /// Whether it relies on workgroup memory being zero at the start.
    pub zeroed: bool,
}

/// Hashes the name alone, which no two kernels share.
impl Hash for Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// A kernel with the parts and constants that one plan needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The parts joined to its source.
    pub parts: Vec<Source>,
    /// The values of overrides by name, including those that only a part declares which this
    /// variant does not link. They are the bits of f64 numbers, so that variants can be compared
    /// and hashed.
    constants: Vec<(&'static str, u64)>,
    /// Whether it uses subgroup operations.
    pub subgroups: bool,
    /// Whether it computes in halves (the feature `shader-f16`).
    pub halves: bool,
    /// Whether it multiplies cooperative matrices, which are of halves.
    pub matrices: bool,
    /// Whether it takes the caller's rows with strides, and binds where they lie.
    pub strided: bool,
}

/// The declaration of an override, on a line of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Override<'a> {
    /// Its name.
    name: &'a str,
    /// Its type.
    kind: &'a str,
}

impl<'a> Override<'a> {
    /// Reads a line, and returns its declaration if it has one.
    pub fn of(line: &'a str) -> Option<Self> {
        let (declaration, _) = line.strip_prefix("override ")?.split_once(';')?;
        let (name, kind) = declaration.split_once(": ")?;
        Some(Self { name, kind })
    }
}

impl Variant {
    /// Makes the variant of these parts and values of overrides, without optional features of WGSL.
    pub fn new(kernel: &'static Kernel, parts: &[Source], constants: &[(&'static str, f64)]) -> Self {
        let constants = constants.iter().map(|(n, x)| (*n, x.to_bits())).collect();
        Self { kernel, parts: parts.to_vec(), constants, subgroups: false, halves: false, matrices: false, strided: false }
    }

    /// Returns its bindings, by group.
    pub fn groups(&self) -> Vec<Bindings> {
        self.kernel.groups.iter().copied().chain(self.strided.then_some(LAYOUTS)).collect()
    }

    /// Returns the values of overrides, by name.
    pub fn constants(&self) -> Vec<(&'static str, f64)> {
        self.constants.iter().map(|(n, x)| (*n, f64::from_bits(*x))).collect()
    }

    /// Links the whole WGSL module, for a compiler that reads this dialect.
    pub fn link(&self, dialect: Dialect) -> Linked {
        let subgroups = if self.subgroups && dialect == Dialect::Standard { "enable subgroups;\n" } else { "" };
        let halves = if self.halves || self.matrices { "enable f16;\n" } else { "" };
        let matrices = if self.matrices { "enable wgpu_cooperative_matrix;\n" } else { "" };
        let mut parts = vec![Source { path: self.kernel.name, source: self.kernel.source }];
        parts.extend_from_slice(&self.parts);
        let mut linked = Linked::new(&format!("{halves}{subgroups}{matrices}requires packed_4x8_integer_dot_product;\n"), &parts);
        let mut declared = HashSet::new();
        linked.source = linked.source.lines().map(|line| self.fix(line, &mut declared) + "\n").collect();
        linked
    }

    /// Turns the first declaration of an override into one of a constant, and later ones, by parts
    /// that use it too, into empty lines, so that line numbers stay the same. naga's handling of
    /// overrides as array sizes cannot be relied on (it can lose the order of types), drivers fold
    /// constants sooner, and a variant has a module of its own anyway, since its parts differ.
    fn fix(&self, line: &str, declared: &mut HashSet<String>) -> String {
        let Some(Override { name, kind }) = Override::of(line) else {
            return line.to_owned();
        };
        if !declared.insert(name.to_owned()) {
            return String::new();
        }
        match (self.constants().iter().find(|(n, _)| *n == name), kind) {
            (Some((_, x)), "bool") => format!("const {name} = {};", *x != 0.0),
            (Some((_, x)), "u32") => format!("const {name} = {}u;", *x as u32),
            (Some((_, x)), _) => format!("const {name} = {:?}f;", *x as f32),
            (None, _) => line.to_owned(),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kernel.name)?;
        for part in &self.parts {
            write!(f, "+{}", part.name())?;
        }
        for (name, x) in self.constants() {
            write!(f, "/{name}={x}")?;
        }
        Ok(())
    }
}

//! Every variant as naga has read and proven it.

use crate::plans;
use naga::Module;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use std::fmt::Write as _;
use std::sync::OnceLock;
use wgkv::low_level::kernel::Variant;
use wgkv::low_level::{Dialect, Linked};

/// A variant that naga has read and found valid.
pub struct Proven {
    pub variant: Variant,
    pub module: Module,
    pub info: ModuleInfo,
}

/// Reads and validates with the capabilities that the variant declares and no other: subgroups, halves, cooperative matrices. Packed dot products need none.
/// `unpack2x16float` is core WGSL, and naga's flag for it stands for what every WebGPU adapter has (only some of OpenGL's
/// lack it): halves in 32-bit words are how all kernels read scales.
pub fn prove(linked: &Linked, subgroups: bool, halves: bool, matrices: bool) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(&linked.source).map_err(|e| linked.locate(&e.emit_to_string(&linked.source)))?;
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    capabilities.set(Capabilities::SHADER_FLOAT16, halves || matrices);
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, matrices);
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module).map_err(|e| linked.locate(&e.emit_to_string(&linked.source)))?;
    Ok((module, info))
}

/// Returns every variant once, proven; fails with the whole list of complaints if one is not.
pub fn all() -> &'static [Proven] {
    static ALL: OnceLock<Result<Vec<Proven>, String>> = OnceLock::new();
    let proven = ALL.get_or_init(|| {
        let mut proven = Vec::new();
        let mut complaints = String::new();
        for variant in plans::variants().unwrap() {
            match prove(&variant.link(Dialect::Naga), variant.subgroups, variant.halves, variant.matrices) {
                Ok((module, info)) => proven.push(Proven { variant, module, info }),
                Err(complaint) => _ = writeln!(complaints, "{variant}:\n{complaint}"),
            }
        }
        if complaints.is_empty() { Ok(proven) } else { Err(complaints) }
    });
    match proven {
        Ok(proven) => proven,
        Err(complaints) => panic!("{complaints}"),
    }
}

/// Looks at every variant, then fails with all complaints and the variants they are about.
pub fn every(mut complaint: impl FnMut(&Proven) -> Vec<String>) {
    let mut complaints = String::new();
    for proven in all() {
        for text in complaint(proven) {
            _ = writeln!(complaints, "{}: {text}", proven.variant);
        }
    }
    assert!(complaints.is_empty(), "{complaints}");
}

pub fn unequal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Vec<String> {
    if got == wanted { Vec::new() } else { vec![format!("{what} is {got:?}, but {wanted:?} is wanted")] }
}

//! Every variant is valid WGSL, within the limits of the portable ones. No GPU.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use naga::valid::{Capabilities, ValidationFlags, Validator};
use wgkv::low_level::Dialect;
use wgkv_decoder::kernel;

#[test]
fn every_variant_is_valid() {
    let mut wrong = Vec::new();
    let variants = kernel::variants();
    for variant in &variants {
        let linked = variant.link(Dialect::Naga);
        let module = match naga::front::wgsl::parse_str(&linked.source) {
            Ok(module) => module,
            Err(error) => {
                wrong.push(format!("{variant}: {}", linked.locate(&error.emit_to_string(&linked.source))));
                continue;
            }
        };
        // Nothing that a portable device lacks, unless the variant says so.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        if variant.subgroups {
            capabilities |= Capabilities::SUBGROUP;
        }
        if variant.matrices {
            capabilities |= Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
        }
        if let Err(error) = Validator::new(ValidationFlags::all(), capabilities).validate(&module) {
            wrong.push(format!("{variant}: {}", linked.locate(&error.emit_to_string(&linked.source))));
        }
        let invocations: u32 = module.entry_points[0].workgroup_size.iter().product();
        assert!(invocations <= 256, "{variant} has {invocations} invocations");
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup)
            .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
            .sum();
        assert!(variant.matrices || bytes <= 16384, "{variant} has {bytes} bytes of workgroup memory");
        let storage = module.global_variables.iter().filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. })).count();
        assert!(storage <= 8, "{variant} has {storage} storage buffers");
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), variants.len(), wrong.join("\n"));
}

#[test]
fn every_kernel_has_its_files_and_every_shader_is_a_kernel_s() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |folder: &str| -> String {
        let files = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "rs")).map(|path| std::fs::read_to_string(path).unwrap()).collect()
    };
    let (tests, benches) = (text("tests"), text("benches"));
    for kernel in kernel::ALL {
        let name = kernel.name;
        assert!(root.join(format!("shaders/{name}.wgsl")).is_file(), "no shader of {name}");
        assert!(root.join(format!("src/kernel/{name}.rs")).is_file(), "no wrapper of {name}");
        assert!(tests.contains(&format!("{name}::")), "no test names {name}");
        assert!(benches.contains(name), "no bench names {name}");
    }
    for entry in std::fs::read_dir(root.join("shaders")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(path.is_dir() || kernel::ALL.iter().any(|kernel| kernel.name == name), "{name} is no kernel's shader");
    }
}

//! Every language that a driver may want, and the validator of one of them.

use crate::proven::{Proven, every};
use naga::ShaderStage;
use naga::back::{glsl, hlsl, msl, spv};
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::process::Command;

/// Variants that naga's GLSL writer cannot write as `310 es` compute, each a part of the variant's label, with the reason.
/// Packed dot products are polyfilled and subgroups have an extension. One that starts to pass fails the test.
const GLSL_EXCLUDED: [(&str, &str); 3] = [
    ("restore/straight", "GLSL ES has no halves, and devices of OpenGL never offer the feature"),
    ("restore/shuffled", "the same"),
    ("attend_matrices", "nor cooperative matrices"),
];

/// What wgpu asks of naga on Vulkan: 1.0 with every packed dot product taken apart, and 1.3 with the instruction.
fn spirv(Proven { variant, module, info }: &Proven, modern: bool) -> Result<Vec<u32>, spv::Error> {
    let mut capabilities = vec![spv::Capability::Shader];
    if variant.subgroups {
        use spv::Capability::{GroupNonUniform, GroupNonUniformArithmetic, GroupNonUniformBallot, GroupNonUniformShuffle};
        capabilities.extend([GroupNonUniform, GroupNonUniformArithmetic, GroupNonUniformBallot, GroupNonUniformShuffle]);
    }
    if variant.halves || variant.matrices {
        capabilities.push(spv::Capability::Float16);
    }
    if variant.matrices {
        capabilities.extend([spv::Capability::CooperativeMatrixKHR, spv::Capability::VulkanMemoryModel]);
    }
    if modern {
        capabilities.extend([spv::Capability::DotProduct, spv::Capability::DotProductInput4x8BitPacked]);
    }
    let options = spv::Options {
        // Cooperative matrices are of Vulkan 1.3.
        lang_version: match (modern || variant.matrices, variant.subgroups) {
            (true, _) => (1, 6),
            (false, true) => (1, 3),
            (false, false) => (1, 0),
        },
        capabilities: Some(capabilities.into_iter().collect()),
        flags: spv::WriterFlags::empty(),
        ..Default::default()
    };
    spv::write_vec(module, info, &options, Some(&spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: variant.kernel.name.to_owned() }))
}

#[test]
fn variants_translate_to_spirv() {
    every(|proven| [false, true].into_iter().filter_map(|modern| spirv(proven, modern).err().map(|e| format!("SPIR-V: {e}"))).collect());
}

#[test]
fn variants_translate_to_msl() {
    every(|Proven { variant, module, info }| {
        let mut complaints = Vec::new();
        // 2.1 is the oldest with packed dot products and subgroups, 2.3 with matrices; 3.1 is a recent one.
        for lang_version in [if variant.matrices { (2, 3) } else { (2, 1) }, (3, 1)] {
            let options = msl::Options { lang_version, ..Default::default() };
            let pipeline = msl::PipelineOptions { entry_point: Some((ShaderStage::Compute, variant.kernel.name.to_owned())), ..Default::default() };
            match msl::write_string(module, info, &options, &pipeline) {
                Ok((_, translated)) => complaints.extend(translated.entry_point_names.into_iter().filter_map(Result::err).map(|e| format!("MSL: {e}"))),
                Err(e) => complaints.push(format!("MSL {lang_version:?}: {e}")),
            }
        }
        complaints
    });
}

#[test]
fn variants_translate_to_hlsl() {
    every(|Proven { variant, module, info }| {
        let mut complaints = Vec::new();
        // HLSL has no cooperative matrices. 6.0 takes packed dot products apart, 6.4 has the instruction; 5.1 (the old compiler) has no subgroups, and halves are since 6.2.
        let models = [
            (hlsl::ShaderModel::V5_1, !variant.subgroups && !variant.halves),
            (hlsl::ShaderModel::V6_0, !variant.halves),
            (hlsl::ShaderModel::V6_2, variant.halves),
            (hlsl::ShaderModel::V6_4, true),
        ];
        for (shader_model, _) in models.into_iter().filter(|(_, serves)| *serves && !variant.matrices) {
            let options = hlsl::Options { shader_model, ..Default::default() };
            let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, variant.kernel.name.to_owned())) };
            let mut text = String::new();
            let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
            match writer.write(module, info, None) {
                Ok(translated) => complaints.extend(translated.entry_point_names.into_iter().filter_map(Result::err).map(|e| format!("HLSL: {e}"))),
                Err(e) => complaints.push(format!("HLSL {shader_model:?}: {e}")),
            }
        }
        complaints
    });
}

#[test]
fn variants_translate_to_glsl_es() {
    let mut excluded = BTreeSet::new();
    every(|Proven { variant, module, info }| {
        let options = glsl::Options { version: glsl::Version::new_gles(310), ..Default::default() };
        let pipeline = glsl::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: variant.kernel.name.to_owned(), multiview: None };
        let mut text = String::new();
        let written =
            glsl::Writer::new(&mut text, module, info, &options, &pipeline, naga::proc::BoundsCheckPolicies::default()).and_then(|mut writer| writer.write());
        let label = variant.to_string();
        let known = GLSL_EXCLUDED.iter().find(|(part, _)| label.contains(part));
        match (written, known) {
            (Ok(_), None) => Vec::new(),
            (Ok(_), Some((part, _))) => vec![format!("is in GLSL_EXCLUDED by {part:?}, but passes")],
            (Err(_), Some((part, _))) => {
                excluded.insert(*part);
                Vec::new()
            }
            (Err(e), None) => vec![format!("GLSL: {e}")],
        }
    });
    assert_eq!(excluded.len(), GLSL_EXCLUDED.len(), "an entry of GLSL_EXCLUDED fits no variant");
}

/// Khronos' validator on one variant of each combination of parts and head dimension; on every variant, which takes minutes, with
/// `WGKV_EVERY_VARIANT` set, as `cargo xtask lint-shaders` does.
#[test]
fn spirv_val_agrees() {
    let version = Command::new("spirv-val").arg("--version").output();
    assert!(version.is_ok(), "spirv-val is not on PATH (`cargo xtask test` installs it; Debian, Ubuntu: apt-get install spirv-tools)");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shaders");
    std::fs::create_dir_all(&folder).unwrap();
    let every_variant = std::env::var_os("WGKV_EVERY_VARIANT").is_some();
    let mut seen = HashSet::new();
    let mut runs = 0;
    every(|proven| {
        let head_dim = proven.variant.constants().iter().find(|(name, _)| *name == "HEAD_DIM").map(|(_, x)| x.to_bits());
        let alike = (proven.variant.kernel.name, proven.variant.parts.clone(), head_dim.filter(|_| proven.variant.kernel.name != "attend_split"));
        if !seen.insert(alike) && !every_variant {
            return Vec::new();
        }
        let mut complaints = Vec::new();
        for (modern, target) in [(false, if proven.variant.matrices { "vulkan1.3" } else { "vulkan1.1" }), (true, "vulkan1.3")] {
            let path = folder.join(format!("{runs}.spv"));
            let bytes: Vec<u8> = spirv(proven, modern).unwrap().into_iter().flat_map(u32::to_le_bytes).collect();
            std::fs::write(&path, bytes).unwrap();
            let output = Command::new("spirv-val").args(["--target-env", target]).arg(&path).output().unwrap();
            // Validators of before 2023 do not know cooperative matrices.
            let unknown = proven.variant.matrices && String::from_utf8_lossy(&output.stderr).contains("Invalid capability operand: 6022");
            if !output.status.success() && !unknown {
                complaints.push(format!("spirv-val for {target}: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            runs += 1;
        }
        complaints
    });
    println!("spirv-val accepted {runs} modules");
}

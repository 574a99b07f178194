//! Files that can be read, to begin with.

use wgkv::bits::{BitBudget, BitPlan, BitRule, Sensitivity};
use wgkv::learned::Reach;
use wgkv::{Bits, Capability, Capacity, ChannelOrder, Codec, Format, Means, Plan, Precision, Protection, Result, Rope, Shape};

/// Tokens of the snapshots that are read: sinks, and a page that is not full.
pub const SNAPSHOT_TOKENS: usize = 40;

fn shape(layers: u32) -> Shape {
    Shape { layers, query_heads: 2, kv_heads: 2, head_dim: 64, rope: Rope::none() }
}

/// The plan of the snapshots that are read.
///
/// # Panics
/// If there can be no such plan.
pub fn snapshot_plan() -> Plan {
    let format = Format::new(Codec::Hadamard, Bits::Two, Bits::Two, 64);
    let budget = Capacity::tokens(2, 256);
    Plan::builder(shape(1), format)
        .protection(Protection { window: 0, ..Protection::default() })
        .capacity(budget)
        .build(&Capability::webgpu_default())
        .expect("a plan")
}

/// What was measured on one layer of two heads.
const SENSITIVITY: &str = r#"{"format":"wgkv-sensitivity","version":1,"model":"m","storage":{"codec":"hadamard","scales":"f16","clip":0.9,"heads_per_group":null},
"layers":1,"kv_heads":2,"head_dim":64,"tokens":9,"queries":3,"candidates":["2/64","4/64","16"],"weight_norms":[[1.5,2]],"layer_weights":[1],
"heads":[{"norms":[1,2],"code_errors":[[3,2,0],[4,2,0]],"output_errors":[[0.3,0.2,0],[0.4,0.2,0]],"output":0.7},
{"norms":[2,1],"code_errors":[[3e-2,2,0],[4,2,0]],"output_errors":[[0.1,0.01,0],[4,2,0]],"output":0.5}]}"#;

/// Files of a target, with names. Those of `snapshot` take a GPU, and are made by the test.
///
/// # Errors
/// What the library refuses to make.
pub fn seeds(target: &str) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let (one, two) = (shape(1), shape(2));
    Ok(match target {
        "words" => [
            ("codec", "rotate-kv"),
            ("scales", "symmetric"),
            ("precision", "4/128"),
            ("sinks", "massive:20"),
            ("alignment", "phi-k:64,phi-v:0.5"),
            ("published", "published-k,phi-v:1e3"),
            ("measured", "measured:layer:fill"),
            ("fixed", "fixed:K4/128,V16"),
            ("repo", "repo-norm:64.5"),
            ("short", "K4V2"),
        ]
        .map(|(name, word)| (name, word.as_bytes().to_vec()))
        .to_vec(),
        "calibration" => {
            let sums = vec![(0..128).map(|n| f64::from(n * 37 % 128)).collect()];
            vec![
                ("natural", ChannelOrder::natural(&one, 2)?.to_bytes()?),
                ("local", ChannelOrder::from_sums(&one, 1, Reach::Local, "\"m\"", 7, sums)?.to_bytes()?),
            ]
        }
        "centre" => vec![("natural", Means::natural(&one).to_bytes()?)],
        "allocation" => {
            let of = |bits, group| Precision::new(bits, group);
            let mixed = |layer, head| if (layer + head) % 2 == 0 { [of(Bits::Two, 32), Precision::F16] } else { [of(Bits::Eight, 64), of(Bits::Three, 64)] };
            let sensitivity = Sensitivity::from_json(SENSITIVITY)?;
            vec![
                ("mixed", BitPlan::new(&two, Format::new(Codec::Rtn, Bits::Four, Bits::Four, 64), mixed)?.to_json()?.into_bytes()),
                ("rotated", BitPlan::uniform(&one, Format::new(Codec::RotateKv, Bits::Two, Bits::Two, 128).with_heads_per_group(2))?.to_json()?.into_bytes()),
                ("measured", BitPlan::choose(&one, &sensitivity, BitBudget::BitsPerElement(3.5), BitRule::default())?.to_json()?.into_bytes()),
            ]
        }
        "sensitivity" => vec![("measured", SENSITIVITY.as_bytes().to_vec())],
        _ => Vec::new(),
    })
}

//! Bit plans as JSON.

use super::{BitPlan, Kind, Report, Unit};
use crate::error::{Error, Result, Thing};
use crate::format::file::Json;
use crate::format::{FormatWords, Precision, Rope, Shape};
use serde::{Deserialize, Serialize};

/// 80 layers of 8 heads are 200 kB.
const FILE: Json = Json { thing: Thing::BitPlan, format: "wgkv-allocation", version: 1, file_bytes: 1 << 26 };

/// Layers times KV heads at most.
const HEADS: u64 = 1 << 20;

// These copies of the types have words where the types have enums: a word that means nothing here
// is an error of its own, not one of JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    model: String,
    storage: FormatWords,
    layers: u32,
    kv_heads: u32,
    head_dim: u32,
    /// `[layer, kv_head]`: keys, values.
    precisions: Vec<[String; 2]>,
    report: Option<ReportFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportFile {
    allocator: String,
    allowed_bits: u64,
    spent_bits: u64,
    elements: u64,
    error: f64,
    bound: Option<f64>,
    multiplier: Option<f64>,
    units: Vec<UnitFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitFile {
    layer: u32,
    head: u32,
    heads: u32,
    kind: String,
    precision: String,
    bits: u64,
    error: f64,
    error_before: f64,
}

fn wrong<T>(name: impl Into<std::borrow::Cow<'static, str>>, wanted: impl ToString, had: impl ToString) -> Result<T> {
    Err(Error::mismatch(Thing::BitPlan, name, wanted, had))
}

impl ReportFile {
    fn of(report: &Report) -> Self {
        Self {
            allocator: report.allocator.clone(),
            allowed_bits: report.allowed,
            spent_bits: report.spent,
            elements: report.elements,
            error: report.error,
            bound: report.bound,
            multiplier: report.multiplier,
            units: report.units.iter().map(UnitFile::of).collect(),
        }
    }

    /// Refuses numbers that no error can be. JSON has no word for what is not finite.
    fn check(&self) -> Result<()> {
        let units = self.units.iter().flat_map(|unit| [unit.error, unit.error_before]);
        match units.chain([self.error]).chain(self.bound).chain(self.multiplier).find(|x| !(x.is_finite() && *x >= 0.0)) {
            Some(bad) => wrong("numbers of the report", "finite and 0 or more", bad),
            None => Ok(()),
        }
    }

    /// Returns the report, if it can be one of this plan. Its numbers are taken as they are, but
    /// its units must exist.
    fn report(self, of: &BitPlan) -> Result<Report> {
        self.check()?;
        let spent = self.units.iter().try_fold(0_u64, |sum, unit| sum.checked_add(unit.bits));
        if spent != Some(self.spent_bits) {
            return wrong("bits of all units", format!("{}, as spent", self.spent_bits), spent.map_or("too many".into(), |bits| bits.to_string()));
        }
        Ok(Report {
            allocator: self.allocator,
            allowed: self.allowed_bits,
            spent: self.spent_bits,
            elements: self.elements,
            error: self.error,
            bound: self.bound,
            multiplier: self.multiplier,
            units: self.units.into_iter().map(|unit| unit.unit(of)).collect::<Result<_>>()?,
        })
    }
}

impl UnitFile {
    fn of(unit: &Unit) -> Self {
        let Unit { layer, head, heads, kind, precision, bits, error, error_before } = *unit;
        Self { layer, head, heads, kind: kind.to_string(), precision: precision.to_string(), bits, error, error_before }
    }

    /// Returns the unit, if this plan has such heads.
    fn unit(self, of: &BitPlan) -> Result<Unit> {
        let Self { layer, head, heads, kind, precision, bits, error, error_before } = self;
        if layer >= of.layers || heads == 0 || head.checked_add(heads).is_none_or(|end| end > of.kv_heads) {
            let wanted = format!("within {} layers of {} heads", of.layers, of.kv_heads);
            return wrong("units", wanted, format!("{heads} heads from head {head} of layer {layer}"));
        }
        let Some(kind) = Kind::BOTH.into_iter().find(|known| known.name() == kind) else {
            return wrong("kind of a unit", "K or V", format!("{kind:?}"));
        };
        Ok(Unit { layer, head, heads, kind, precision: precision.parse()?, bits, error, error_before })
    }
}

impl BitPlan {
    /// Returns the plan as JSON, which [`BitPlan::from_json`] reads: `format`, `version`, the
    /// model's name, codec, clip and scales, the shape, the precision of every head's keys and
    /// values (`BITS/GROUP`), and the report, if a rule made it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a number of the report is not finite, which JSON has no word for.
    pub fn to_json(&self) -> Result<String> {
        let file = File {
            format: FILE.format.into(),
            version: FILE.version,
            model: self.model.clone(),
            storage: FormatWords::of(&self.format),
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            precisions: self.precisions.iter().map(|two| two.map(|p| p.to_string())).collect(),
            report: self.report.as_ref().map(ReportFile::of),
        };
        file.report.iter().try_for_each(ReportFile::check)?;
        FILE.write(&file, true)
    }

    /// Reads what [`BitPlan::to_json`] wrote. What is stored follows from the precisions alone; the
    /// report comes back as it was.
    ///
    /// # Errors
    /// [`Error::Mismatch`] of the bit plan for another format or version, numbers that do not fit
    /// each other, and heads that the codec cannot tell apart; of an argument, [`Error::Bits`],
    /// [`Error::Codec`] and [`Error::Group`] for words and numbers that mean nothing here.
    pub fn from_json(text: &str) -> Result<Self> {
        let file: File = FILE.read(text, |file: &File| (&file.format, file.version))?;
        let count = u64::from(file.layers) * u64::from(file.kv_heads);
        if count == 0 || count > HEADS || file.precisions.len() as u64 != count {
            return wrong("precisions", format!("layers times kv_heads, {count}, 1 to {HEADS}"), file.precisions.len());
        }
        let shape = Shape { layers: file.layers, query_heads: file.kv_heads, kv_heads: file.kv_heads, head_dim: file.head_dim, rope: Rope::none() };
        shape.check()?;
        let two = |[key, value]: &[String; 2]| Ok::<_, Error>([key.parse::<Precision>()?, value.parse::<Precision>()?]);
        let precisions: Vec<[Precision; 2]> = file.precisions.iter().map(two).collect::<Result<_>>()?;
        let [key, value] = precisions[0];
        let format = file.storage.format()?.with_precisions(key, value);
        let read = Self::new(&shape, format, |layer, head| precisions[(layer * shape.kv_heads + head) as usize])?;
        let report = file.report.map(|report| report.report(&read)).transpose()?;
        Ok(Self { model: file.model, report, ..read })
    }

    /// Writes [`BitPlan::to_json`] to a file.
    ///
    /// # Errors
    /// Those of [`BitPlan::to_json`], and [`Error::Io`] where the file cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        FILE.save(path.as_ref(), &self.to_json()?)
    }

    /// Reads a file that [`BitPlan::save`] wrote.
    ///
    /// # Errors
    /// Those of [`BitPlan::from_json`], and [`Error::Io`] where the file cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_json(&FILE.load(path.as_ref())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What wgkv 0.1 wrote.
    const OLD: &str = r#"{
  "format": "wgkv-allocation",
  "version": 1,
  "model": "a model",
  "storage": {
    "codec": "hadamard",
    "scales": "f8",
    "clip": 0.5,
    "heads_per_group": null
  },
  "layers": 1,
  "kv_heads": 2,
  "head_dim": 64,
  "precisions": [
    [
      "4/64",
      "2/32"
    ],
    [
      "4/64",
      "16"
    ]
  ],
  "report": {
    "allocator": "measured:fill",
    "allowed_bits": 2000,
    "spent_bits": 1756,
    "elements": 256,
    "error": 3.25,
    "bound": 3.0,
    "multiplier": null,
    "units": [
      {
        "layer": 0,
        "head": 0,
        "heads": 2,
        "kind": "K",
        "precision": "4/64",
        "bits": 544,
        "error": 1.0,
        "error_before": 16.0
      },
      {
        "layer": 0,
        "head": 0,
        "heads": 1,
        "kind": "V",
        "precision": "2/32",
        "bits": 188,
        "error": 2.25,
        "error_before": 2.25
      },
      {
        "layer": 0,
        "head": 1,
        "heads": 1,
        "kind": "V",
        "precision": "16",
        "bits": 1024,
        "error": 0.0,
        "error_before": 2.5
      }
    ]
  }
}"#;

    #[test]
    fn a_file_of_an_older_version_is_read_and_written_byte_for_byte() {
        let plan = BitPlan::from_json(OLD).unwrap();
        assert_eq!((plan.model(), plan.format().codec(), plan.format().clip(crate::Bits::Four)), ("a model", crate::Codec::Hadamard, 0.5));
        assert_eq!(plan.of(0, 0), [Precision::new(crate::Bits::Four, 64), Precision::new(crate::Bits::Two, 32)]);
        assert_eq!(plan.of(0, 1), [Precision::new(crate::Bits::Four, 64), Precision::F16]);
        let report = plan.report().unwrap();
        assert_eq!((report.allowed, report.spent, report.bound, report.multiplier, report.units.len()), (2000, 1756, Some(3.0), None, 3));
        assert_eq!(plan.to_json().unwrap(), OLD);
    }
}

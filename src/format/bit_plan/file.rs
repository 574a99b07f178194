//! Allocations as JSON.

use super::{BitPlan, Kind, Report, Unit};
use crate::error::{Error, Result, Thing};
use crate::format::{FormatWords, Precision, Rope, Shape, tensors};
use serde::{Deserialize, Serialize};

const FORMAT: &str = "wgkv-allocation";
const VERSION: u32 = 1;

/// Bytes of a file at most. 80 layers of 8 heads are 200 kB.
const FILE_BYTES: usize = 1 << 26;

/// Layers times KV heads at most.
const HEADS: u64 = 1 << 20;

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
        let unit = |unit: &Unit| UnitFile {
            layer: unit.layer,
            head: unit.head,
            heads: unit.heads,
            kind: unit.kind.to_string(),
            precision: unit.precision.to_string(),
            bits: unit.bits,
            error: unit.error,
            error_before: unit.error_before,
        };
        Self {
            allocator: report.allocator.clone(),
            allowed_bits: report.allowed,
            spent_bits: report.spent,
            elements: report.elements,
            error: report.error,
            bound: report.bound,
            multiplier: report.multiplier,
            units: report.units.iter().map(unit).collect(),
        }
    }

    /// Refuses what no error can be. JSON has no word for what is not finite.
    fn check(&self) -> Result<()> {
        let units = self.units.iter().flat_map(|unit| [unit.error, unit.error_before]);
        match units.chain([self.error]).chain(self.bound).chain(self.multiplier).find(|x| !(x.is_finite() && *x >= 0.0)) {
            Some(bad) => wrong("numbers of the report", "finite and 0 or more", bad),
            None => Ok(()),
        }
    }

    /// The report, if it can be one of this allocation: what it tells is not checked, but that it is of units that exist.
    fn report(self, of: &BitPlan) -> Result<Report> {
        self.check()?;
        let spent = self.units.iter().try_fold(0_u64, |sum, unit| sum.checked_add(unit.bits));
        if spent != Some(self.spent_bits) {
            return wrong("bits of all units", format!("{}, as spent", self.spent_bits), spent.map_or("too many".into(), |bits| bits.to_string()));
        }
        let unit = |unit: UnitFile| {
            let end = unit.head.checked_add(unit.heads).filter(|end| unit.layer < of.layers && unit.heads > 0 && *end <= of.kv_heads);
            if end.is_none() {
                let wanted = format!("within {} layers of {} heads", of.layers, of.kv_heads);
                return wrong("units", wanted, format!("{} heads from head {} of layer {}", unit.heads, unit.head, unit.layer));
            }
            let kind = match unit.kind.as_str() {
                "K" => Kind::Key,
                "V" => Kind::Value,
                other => return wrong("kind of a unit", "K or V", format!("{other:?}")),
            };
            let UnitFile { layer, head, heads, bits, error, error_before, .. } = unit;
            Ok(Unit { layer, head, heads, kind, precision: unit.precision.parse()?, bits, error, error_before })
        };
        Ok(Report {
            allocator: self.allocator,
            allowed: self.allowed_bits,
            spent: self.spent_bits,
            elements: self.elements,
            error: self.error,
            bound: self.bound,
            multiplier: self.multiplier,
            units: self.units.into_iter().map(unit).collect::<Result<_>>()?,
        })
    }
}

impl BitPlan {
    /// As JSON, which [`BitPlan::from_json`] reads: `format`, `version`, the model's name, codec, clip and scales, the shape, the
    /// precision of every head's keys and values (`BITS/GROUP`), and the report, if a rule made it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a number of the report is not finite, which JSON has no word for.
    pub fn to_json(&self) -> Result<String> {
        let file = File {
            format: FORMAT.into(),
            version: VERSION,
            model: self.model.clone(),
            storage: FormatWords::of(&self.format),
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            precisions: self.precisions.iter().map(|two| two.map(|p| p.to_string())).collect(),
            report: self.report.as_ref().map(ReportFile::of),
        };
        file.report.iter().try_for_each(ReportFile::check)?;
        serde_json::to_string_pretty(&file).or_else(|e| wrong("file", "numbers that JSON has", e))
    }

    /// From what [`BitPlan::to_json`] wrote. What is stored follows from the precisions alone; the report is told again as it was.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another format or version, numbers that do not fit each other, and heads that the codec cannot tell
    /// apart; [`Error::Mismatch`], [`Error::Bits`], [`Error::Codec`], [`Error::Mismatch`] and [`Error::Group`] for words and numbers that mean
    /// nothing here.
    pub fn from_json(text: &str) -> Result<Self> {
        if text.len() > FILE_BYTES {
            return wrong("file", format!("{FILE_BYTES} bytes at most"), format!("{} bytes long", text.len()));
        }
        let file: File = serde_json::from_str(text).or_else(|e| wrong("file", "what wgkv writes", e))?;
        if file.format != FORMAT {
            return wrong("format", FORMAT, format!("{:?}", file.format));
        }
        if file.version != VERSION {
            return wrong("version", VERSION, file.version);
        }
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
    /// As [`BitPlan::to_json`], and [`Error::Io`](crate::Error::Io) where the file cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        tensors::save(path.as_ref(), self.to_json()?.as_bytes())
    }

    /// Reads a file that [`BitPlan::save`] wrote.
    ///
    /// # Errors
    /// As [`BitPlan::from_json`], and [`Error::Io`](crate::Error::Io) where the file cannot be read.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let bytes = tensors::load(path.as_ref(), FILE_BYTES)?;
        Self::from_json(std::str::from_utf8(&bytes).or_else(|e| wrong("file", "UTF-8", e))?)
    }
}

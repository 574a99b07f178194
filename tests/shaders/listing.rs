//! `shaders/PARTS.md`: which parts each kernel links, and for which plans. Made from the plans, not by hand.

use super::plans::planless_variants;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use wgkv::low_level::kernel::{self, Variant};
use wgkv::low_level::{Reduce, Restore};
use wgkv::{Codec, Plan, Scales};

const HEADER: &str = "\
# Parts

Which parts of `part/` each kernel links, by slot, and for which plans. `cargo xtask shader --list`
writes this file from the plans of `tests/shaders/plans.rs`, and `tests/shaders` keeps it up to date.
`cargo xtask shader attend_split --codec centred --bits 2,2` prints the parts of one variant, and
with `--link` the module.

A part that has no condition is linked by every variant of the kernel.
";

/// What the parts of a variant may depend on, in the order in which conditions are looked for: how a condition is written, `{}` standing
/// for the values, and the value. What a kernel does not know of is empty.
type Traits = Vec<(&'static str, String)>;

fn traits(plan: Option<&Plan>, turns: bool, variant: &Variant) -> Traits {
    let constant = |wanted| variant.constants().iter().find(|(name, _)| *name == wanted).map(|(_, x)| *x);
    let of = |value: &dyn Fn(&Plan) -> String| plan.map(value).unwrap_or_default();
    let scales = |plan: &Plan| match plan.format().scales() {
        Scales::Half => "half",
        Scales::Byte => "byte",
        _ => "symmetric",
    };
    let restore = |plan: &Plan| match plan.restore() {
        _ if plan.format().codec() != Codec::RotateKv => "nothing restored",
        Restore::Shuffled => "keys restored by shuffles",
        Restore::Straight => "keys restored as straight-line code",
        Restore::Rolled => "keys restored in loops",
    };
    // Of a kernel that is linked for keys and again for values.
    let planned = |keys: bool| move |plan: &Plan| if keys { plan.format().key() } else { plan.format().value() }.bits.get().to_string();
    let choose = |on: bool, yes: &str, no: &str| if on { yes } else { no }.to_owned();
    vec![
        ("{}", of(&|_| choose(turns, "means that turn", "no means that turn"))),
        ("{}", of(&|plan| plan.format().codec().to_string())),
        ("{} scales", of(&|plan| scales(plan).to_owned())),
        ("keys of {} bits", of(&|plan| plan.format().key().bits.get().to_string())),
        ("values of {} bits", of(&|plan| plan.format().value().bits.get().to_string())),
        ("keys by a {} code", of(&|plan| plan.format().key().code.to_string())),
        ("values by a {} code", of(&|plan| plan.format().value().code.to_string())),
        ("query heads a reading: {}", of(&|plan| plan.heads_per_reading().to_string())),
        ("{}", of(&|plan| choose(plan.reduce() == Reduce::Subgroup, "subgroups", "no subgroups"))),
        ("{}", of(&|plan| choose(plan.straight(), "straight-line code", "loops"))),
        ("{}", of(&|plan| restore(plan).to_owned())),
        ("{} channels", constant("HEAD_DIM").map(|x| x.to_string()).unwrap_or_default()),
        ("{} heads rotated together", of(&|plan| plan.group_heads().to_string())),
        ("{}", choose(variant.strided, "rows with strides", "dense rows")),
        ("planes of {} bits", constant("FOR_KEYS").map(|keys| of(&planned(keys != 0.0))).unwrap_or_default()),
    ]
}

/// Which of the traits the codec is.
const CODEC: usize = 1;

/// `a`, `a or b`, `a, b or c`.
fn or(values: &[&str]) -> String {
    match values {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Numbers by size, words as they are.
fn sorted(values: BTreeSet<&str>) -> Vec<&str> {
    let mut values: Vec<&str> = values.into_iter().collect();
    values.sort_by_key(|value| value.parse::<u32>().unwrap_or_default());
    values
}

/// Returns the fewest traits whose values tell the variants that link a part from those that do not.
fn condition(taken: &BTreeSet<&Traits>, left: &BTreeSet<&Traits>) -> Option<String> {
    let phrases: Vec<&str> = taken.first()?.iter().map(|(phrase, _)| *phrase).collect();
    let values = |of: &BTreeSet<&Traits>, n: usize| -> BTreeSet<String> { of.iter().map(|traits| traits[n].1.clone()).collect() };
    let had: Vec<BTreeSet<String>> = (0..phrases.len()).map(|n| values(taken, n)).collect();
    let mut sets: Vec<Vec<usize>> = (1_u32..1 << phrases.len()).map(|bits| (0..phrases.len()).filter(|n| bits >> n & 1 == 1).collect()).collect();
    sets.sort_by_key(|set| (set.len(), set.clone()));
    let tells = |set: &&Vec<usize>| !left.iter().any(|traits| set.iter().all(|n| had[*n].contains(&traits[*n].1)));
    let set = sets.iter().find(tells)?;
    let conditions = set.iter().map(|n| {
        let others: BTreeSet<String> = values(left, *n).difference(&had[*n]).cloned().collect();
        // Codecs are many: one that is left out says more than all the others.
        let (values, but) = if *n == CODEC && others.len() < had[*n].len() { (&others, "any but ") } else { (&had[*n], "") };
        phrases[*n].replace("{}", &format!("{but}{}", or(&sorted(values.iter().map(String::as_str).collect()))))
    });
    Some(conditions.collect::<Vec<_>>().join(", "))
}

/// The traits of a kernel's variants, and by slot and part those of the variants that link it.
type KernelTraits<'a> = (BTreeSet<Traits>, BTreeMap<(&'a str, &'a str), BTreeSet<Traits>>);

/// Returns the text of `shaders/PARTS.md` for these plans.
pub fn listing(plans: &[Plan]) -> String {
    let mut kernels: BTreeMap<&str, KernelTraits<'_>> = BTreeMap::new();
    let mut add = |plan: Option<&Plan>, turns: bool, variant: &Variant| {
        let traits = traits(plan, turns, variant);
        let (all, parts) = kernels.entry(variant.kernel.name).or_default();
        all.insert(traits.clone());
        for part in &variant.parts {
            let alternative = part.name().trim_start_matches(part.slot()).trim_start_matches('/');
            parts.entry((part.slot(), alternative)).or_default().insert(traits.clone());
        }
    };
    for plan in plans {
        let variants = kernel::variants(plan);
        let turns = variants.iter().any(|variant| variant.kernel.name == kernel::position::KERNEL.name);
        variants.iter().for_each(|variant| add(Some(plan), turns, variant));
    }
    planless_variants().iter().for_each(|variant| add(None, false, variant));
    let mut text = HEADER.to_owned();
    for (kernel, (all, parts)) in &kernels {
        _ = writeln!(text, "\n## {kernel}\n");
        if parts.is_empty() {
            _ = writeln!(text, "None.");
            continue;
        }
        _ = writeln!(text, "| slot | part | linked for |\n|---|---|---|");
        for ((slot, part), taken) in parts {
            let left: BTreeSet<&Traits> = all.difference(taken).collect();
            let condition = if left.is_empty() { String::new() } else { condition(&taken.iter().collect(), &left).unwrap_or_else(|| "some".to_owned()) };
            _ = writeln!(text, "| {slot} | `{part}` | {condition} |");
        }
    }
    text
}

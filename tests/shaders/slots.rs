//! The house rules of parts: what the alternatives of a slot have in common, and what their functions are called.

use crate::proven::all;
use crate::{listing, plans};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use wgkv::low_level::Source;

/// Name and signature of each function of a file.
fn functions(source: &str) -> impl Iterator<Item = (&str, &str)> {
    source.lines().filter_map(|line| {
        let signature = line.strip_prefix("fn ")?.split('{').next()?.trim_end();
        Some((signature.split('(').next()?, signature))
    })
}

/// The words of a file's code.
fn words(source: &str) -> HashSet<&str> {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).collect()
}

/// Every part that some variant links.
fn parts() -> BTreeMap<&'static str, Source> {
    all().iter().flat_map(|p| &p.variant.parts).map(|part| (part.name(), *part)).collect()
}

/// Calls `visit` with each part, each of its functions, and each other file that calls it in some variant.
fn callers(mut visit: impl FnMut(&Source, &'static str, &'static str)) {
    let mut seen = HashSet::new();
    let mut known: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for variant in all().iter().map(|p| &p.variant) {
        if !seen.insert((variant.kernel.name, variant.parts.clone())) {
            continue;
        }
        let kernel = Source { path: variant.kernel.name, source: variant.kernel.source };
        for part in &variant.parts {
            for caller in variant.parts.iter().chain([&kernel]).filter(|caller| caller.path != part.path) {
                let called = known.entry(caller.path).or_insert_with(|| words(caller.source));
                functions(part.source).filter(|(name, _)| called.contains(name)).for_each(|(name, _)| visit(part, name, caller.name()));
            }
        }
    }
}

/// What files outside of a slot's folder call is the slot's interface: one alternative can stand for another.
#[test]
fn alternatives_of_a_slot_define_the_same_functions() {
    let mut interfaces: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    callers(|part, function, caller| {
        if part.slot() != "shared" && !caller.starts_with(&format!("{}/", part.slot())) {
            interfaces.entry(part.slot()).or_default().insert(function);
        }
    });
    let mut complaints = BTreeSet::new();
    for (slot, functions_of) in &interfaces {
        let alternatives: Vec<Source> = parts().into_values().filter(|part| part.slot() == *slot).collect();
        assert!(alternatives.len() > 1, "{slot} has no alternatives: its file belongs in shaders/part/shared/");
        for function in functions_of {
            // A part that fills a slot within this slot may have it for them.
            let within: Vec<Source> = parts().into_values().filter(|part| part.slot().starts_with(&format!("{slot}/"))).collect();
            let signatures = alternatives.iter().map(|part| {
                let all = functions(part.source).chain(within.iter().flat_map(|part| functions(part.source)));
                (part.name(), all.into_iter().find(|(name, _)| name == function).map(|(_, signature)| signature))
            });
            let signatures: Vec<_> = signatures.collect();
            if signatures.iter().any(|(_, signature)| *signature != signatures[0].1 || signature.is_none()) {
                complaints.insert(format!("{slot}: {function} is {signatures:?}"));
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
    let slots: BTreeSet<&str> = parts().into_values().map(|part| part.slot()).filter(|slot| *slot != "shared").collect();
    assert_eq!(slots, interfaces.into_keys().collect(), "left: folders of shaders/part/, right: those whose functions somebody calls");
}

/// The namespace of a module is flat: a function that other files call says where it is from.
#[test]
fn functions_begin_with_the_name_of_their_part() {
    let mut complaints = BTreeSet::new();
    callers(|part, function, _| {
        // The slot's name or the part's own, or a type that the part defines.
        let names = part.name().split('/').filter(|name| *name != "shared");
        let names = names.flat_map(|name| [name, name.rsplit('_').next().unwrap_or(name)]).flat_map(|name| [name, name.trim_end_matches('s')]);
        let types = part.source.lines().filter_map(|line| line.strip_prefix("struct ").or(line.strip_prefix("alias ")));
        let types = types.filter_map(|line| line.split([' ', '{']).next()).map(str::to_lowercase);
        let mut prefixes = names.map(str::to_owned).chain(types);
        if !prefixes.any(|prefix| function == prefix || function.starts_with(&format!("{prefix}_"))) {
            complaints.insert(format!("{}: {function}", part.path));
        }
    });
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_list_of_parts_is_up_to_date() {
    let listed = listing::listing(&plans::plans().unwrap());
    // Git may have given the file other ends of lines.
    let kept = include_str!("../../shaders/PARTS.md").replace("\r\n", "\n");
    assert!(kept == listed, "shaders/PARTS.md is not what `cargo xtask shader --list` writes");
}

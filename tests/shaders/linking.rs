//! How a variant's parts become one module: files, overrides, dialects, places.

use crate::proven::{Proven, all, every, prove, unequal};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use wgkv::low_level::kernel::{self, Variant};
use wgkv::low_level::{Dialect, Linked, Source};

/// Adds the files `*.wgsl` of a folder, by their path below `top` without the ending, and with `deep` those of the folders in it.
fn files(top: &Path, folder: &Path, deep: bool, found: &mut BTreeSet<String>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() && deep {
            files(top, &path, deep, found);
        } else if path.extension().is_some_and(|e| e == "wgsl") {
            found.insert(path.with_extension("").strip_prefix(top).unwrap().to_str().unwrap().replace('\\', "/"));
        }
    }
}

#[test]
fn every_file_is_linked_by_some_variant() {
    let shaders = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let (mut kernel_files, mut part_files) = (BTreeSet::new(), BTreeSet::new());
    files(&shaders, &shaders, false, &mut kernel_files);
    files(&shaders.join("part"), &shaders.join("part"), true, &mut part_files);
    let kernels: BTreeSet<String> = all().iter().map(|p| p.variant.kernel.name.to_owned()).collect();
    assert_eq!(kernels, kernel_files, "left: kernels that a variant links, right: files in shaders/");
    assert_eq!(kernels, kernel::ALL.iter().map(|k| k.name.to_owned()).collect(), "right: kernel::ALL");
    let parts: BTreeSet<String> = all().iter().flat_map(|p| &p.variant.parts).map(|part| part.name().to_owned()).collect();
    assert_eq!(parts, part_files, "left: parts that a variant links, right: files in shaders/part/");
    println!("{} variants of {} kernels with {} parts", all().len(), kernels.len(), parts.len());
}

#[test]
fn the_table_reaches_every_choice_of_attend_split() {
    let split: Vec<&Variant> = all().iter().map(|p| &p.variant).filter(|v| v.kernel.name == "attend_split").collect();
    // How RotateKV's keys are restored belongs to the keys.
    let filling = |variant: &Variant, slot: &str| -> Vec<&'static str> {
        let tops = if slot == "keys" { vec!["keys", "restore"] } else { vec![slot] };
        variant.parts.iter().map(Source::name).filter(|name| tops.contains(&name.split('/').next().unwrap())).collect()
    };
    let straight = |parts: &[&str]| {
        let any = |names: &[&str]| names.iter().any(|name| parts.contains(name));
        let walks = any(&["keys/walk/straight", "values/walk/straight", "restore/straight", "restore/shuffled"]);
        (walks || any(&["keys/walk/rolled", "values/walk/rolled", "restore/rolled"])).then_some(walks)
    };
    for (one, other) in [
        ("keys", "values"),
        ("heads", "reduce"),
        ("heads", "keys"),
        ("reduce", "keys"),
        ("reduce", "values"),
        ("heads", "values"),
        ("scales", "keys"),
        ("scales", "values"),
    ] {
        let pairs: BTreeSet<_> = split.iter().map(|v| (filling(v, one), filling(v, other))).collect();
        let (ones, others): (BTreeSet<_>, BTreeSet<_>) = pairs.iter().cloned().unzip();
        let missing: Vec<_> = ones
            .iter()
            .flat_map(|a| others.iter().map(move |b| (a, b)))
            // The walk is straight for both or for neither; halves have none.
            .filter(|(a, b)| straight(a).zip(straight(b)).is_none_or(|(a, b)| a == b))
            // Keys are shuffled between the lanes of a subgroup.
            .filter(|(a, b)| !(a.contains(&"reduce/workgroup") && b.contains(&"restore/shuffled")))
            // Neither f16 nor 8 bits have scales of a byte.
            .filter(|(a, b)| {
                let wide = ["keys/f16", "values/f16", "keys/bits/8", "values/bits/8", "restore/codes/8", "restore/words/8"];
                !(a.contains(&"scales/byte") && b.iter().any(|part| wide.contains(part)))
            })
            // Nor has any other codec a trellis.
            .filter(|(a, b)| {
                let trellis = |parts: &[&str]| parts.iter().any(|part| part.ends_with("bits/trellis"));
                let other = ["keys/restored", "scales/half", "scales/byte"];
                !([a, b].iter().any(|parts| trellis(parts)) && [a, b].iter().any(|parts| parts.iter().any(|part| other.contains(part))))
            })
            // Centred restores nothing.
            .filter(|(a, b)| !(a.contains(&"scales/symmetric") && b.contains(&"keys/restored")))
            .filter(|(a, b)| !pairs.contains(&((*a).clone(), (*b).clone())))
            .collect();
        assert!(missing.is_empty(), "attend_split is never linked with {missing:?}");
    }
}

/// Name and type of each override that a file declares.
fn declared(source: &str) -> impl Iterator<Item = (&str, &str)> {
    source.lines().filter_map(|line| line.trim_start().strip_prefix("override ")?.split_once(';')?.0.split_once(": "))
}

#[test]
fn overrides_are_constants_that_the_variant_passes() {
    // Whether a part of its own declares it or not: what a kernel passes is declared by it or by a part that it can link.
    let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for variant in all().iter().map(|p| &p.variant) {
        let sources = variant.parts.iter().map(|part| part.source).chain([variant.kernel.source]);
        known.entry(variant.kernel.name).or_default().extend(sources.flat_map(declared).map(|(name, _)| name));
    }
    every(|Proven { variant, .. }| {
        let source = variant.link(Dialect::Naga).source;
        let mut complaints: Vec<String> =
            source.lines().filter(|l| l.trim_start().starts_with("override ")).map(|l| format!("remains after linking: {l}")).collect();
        let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, kind) in variant.parts.iter().map(|part| part.source).chain([variant.kernel.source]).flat_map(declared) {
            if kinds.insert(name, kind).is_some_and(|other| other != kind) {
                complaints.push(format!("{name} is declared with different types"));
            }
        }
        let passed: BTreeSet<&str> = variant.constants().iter().map(|(name, _)| *name).collect();
        complaints.extend(kinds.keys().filter(|name| !passed.contains(*name)).map(|name| format!("{name} is declared, but not passed")));
        complaints.extend(passed.difference(&known[variant.kernel.name]).map(|name| format!("{name} is passed, but declared nowhere")));
        complaints.extend(unequal("the number of constants", variant.constants().len(), passed.len()));
        complaints
    });
}

/// A part declares what it uses, so that a kernel declares no override for the sake of parts.
#[test]
fn every_file_declares_the_overrides_that_it_uses() {
    let mut complaints = BTreeSet::new();
    for variant in all().iter().map(|p| &p.variant) {
        let passed: BTreeSet<&str> = variant.constants().iter().map(|(name, _)| *name).collect();
        for (path, source) in variant.parts.iter().map(|part| (part.path, part.source)).chain([(variant.kernel.name, variant.kernel.source)]) {
            let names: BTreeSet<&str> = declared(source).map(|(name, _)| name).collect();
            let code = source.lines().filter(|line| !line.starts_with("override ")).map(|line| line.split("//").next().unwrap_or_default());
            let words: HashSet<&str> = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).collect();
            let constants: HashSet<&str> = source.lines().filter_map(|line| line.strip_prefix("const ")?.split([' ', ':']).next()).collect();
            for name in passed.iter().filter(|name| words.contains(*name) && !names.contains(*name) && !constants.contains(*name)) {
                complaints.insert(format!("{path} uses {name} without declaring it"));
            }
            for name in names.iter().filter(|name| !words.contains(*name)) {
                complaints.insert(format!("{path} declares {name} without using it"));
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn variants_that_differ_have_labels_that_differ() {
    let labels: HashSet<String> = all().iter().map(|p| p.variant.to_string()).collect();
    assert_eq!(labels.len(), all().len());
}

#[test]
fn subgroups_are_declared_where_they_are_used_and_only_there() {
    every(|Proven { variant, .. }| {
        let refused = prove(&variant.link(Dialect::Naga), false, variant.halves, variant.matrices).is_err();
        unequal("the need of subgroups", refused, variant.subgroups)
    });
}

#[test]
fn the_dialects_differ_in_the_line_that_enables_subgroups() {
    every(|Proven { variant, .. }| {
        let [naga, standard] = [Dialect::Naga, Dialect::Standard].map(|dialect| variant.link(dialect).source);
        let without: String = standard.lines().filter(|line| *line != "enable subgroups;").map(|line| line.to_owned() + "\n").collect();
        let mut complaints = unequal("the use of the standard's line", standard != without, variant.subgroups);
        complaints.extend(unequal("what else differs", without == naga, true));
        complaints
    });
}

#[test]
fn halves_are_declared_where_they_are_used_and_only_there() {
    every(|Proven { variant, .. }| {
        let refused = prove(&variant.link(Dialect::Naga), variant.subgroups, false, false).is_err();
        unequal("the need of halves", refused, variant.halves || variant.matrices)
    });
}

#[test]
fn a_mistake_is_reported_by_file_and_line() {
    let kernel = Source { path: "sum", source: "@compute @workgroup_size(1)\nfn sum() { _ = part_twice(1u); }" };
    let part = Source { path: "part/twice.wgsl", source: "fn part_twice(x: u32) -> u32 {\n    return x * missing;\n}" };
    let linked = Linked::new("requires packed_4x8_integer_dot_product;\n", &[kernel, part]);
    let message = prove(&linked, false, false, false).unwrap_err();
    assert!(message.contains("shaders/part/twice.wgsl:2"), "{message}");
    assert_eq!(linked.place(1), None);
    assert_eq!(linked.place(3), Some(("sum", 2)));
}

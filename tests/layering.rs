//! Every module of `src/` imports what its contract in `docs/architecture.md` allows, and nothing else.
#![allow(clippy::unwrap_used, reason = "a file that cannot be read fails the test")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Entries of the first level of `src/`, at most: eight modules and lib.rs.
const FIRST_LEVEL: usize = 9;

/// Which paths below `crate::` a module may name.
#[derive(Debug, Default, PartialEq)]
struct Contract {
    allowed: Vec<String>,
    forbidden: Vec<String>,
}

impl Contract {
    /// Whether a path such as `gpu::rows::Rows` is allowed: it or something that it lies in is, and nothing that it lies in is forbidden.
    /// What a forbidden path lies in may not be named whole, since the path could be reached through it.
    fn allows(&self, path: &str) -> bool {
        let path = path.trim_end_matches("::*").trim_end_matches("::self");
        let within = |outer: &String| path == outer || path.strip_prefix(outer.as_str()).is_some_and(|rest| rest.starts_with("::"));
        let holds = |inner: &String| inner.strip_prefix(path).is_some_and(|rest| rest.starts_with("::"));
        self.allowed.iter().any(within) && !self.forbidden.iter().any(|path| within(path) || holds(path))
    }
}

/// The words between backticks.
fn code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Reads the table whose header begins with `| module | contract |`: the module, what it is for, and what it may import (`a`, `b::C`,
/// but not `a::d`).
fn contracts(text: &str) -> BTreeMap<String, Contract> {
    let table = text.lines().skip_while(|line| !line.starts_with("| module | contract |")).skip(2).take_while(|line| line.starts_with('|'));
    table
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (allowed, forbidden) = cells[3].split_once("but not").unwrap_or((cells[3], ""));
            (code(cells[1]).concat(), Contract { allowed: code(allowed), forbidden: code(forbidden) })
        })
        .collect()
}

/// The code of a file: no comments, no strings, and nothing from its unit tests on.
fn stripped(source: &str) -> String {
    let source = source.split("\n#[cfg(test)]").next().unwrap_or_default();
    let mut code = String::new();
    for line in source.lines() {
        let mut parts = line.split('"');
        // A `//` before the first quote begins a comment; strings are left out.
        let first = parts.next().unwrap_or_default();
        let (before, comment) = first.split_once("//").map_or((first, false), |(before, _)| (before, true));
        code.push_str(before);
        if !comment {
            parts.skip(1).step_by(2).for_each(|part| code.push_str(part.split("//").next().unwrap_or_default()));
        }
        code.push('\n');
    }
    code
}

/// The paths that follow `root` in a text, with the groups of a `use` taken apart: `gpu::{A, b::C}` is `gpu::A` and `gpu::b::C`.
fn paths(code: &str, root: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let whole_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        if whole_word {
            expand("", &code[at + root.len()..], &mut found);
        }
    }
    found
}

/// Adds the paths of one tree of a `use`; returns what follows it.
fn expand<'a>(prefix: &str, text: &'a str, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(prefix, rest, found).trim_start();
            match rest.strip_prefix(',') {
                Some(next) if next.trim_start().starts_with('}') => return &next.trim_start()[1..],
                Some(next) => rest = next,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    match rest.strip_prefix("::") {
        Some(rest) => expand(&path, rest, found),
        None => {
            found.push(path);
            // `as Name` belongs to this path.
            rest.strip_prefix(" as ").map_or(rest, |renamed| renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    }
}

/// What of a file's imports its module's contract does not allow. `file` is its path below `src/`.
fn violations(file: &str, source: &str, contracts: &BTreeMap<String, Contract>) -> Vec<String> {
    let mut segments: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if segments.last() == Some(&"mod") {
        segments.pop();
    }
    let module = segments[0];
    let Some(contract) = contracts.get(module) else {
        return vec![format!("{file}: no contract names the module {module}")];
    };
    let code = stripped(source);
    // Other names of the root would hide what is named through them.
    let hidden = ["crate as ", "super as ", "::self as ", "{self as ", "super::{super", "extern crate self"].iter().filter(|text| code.contains(**text));
    let mut wrong: Vec<String> = hidden.map(|text| format!("{file} may not say `{text}`")).collect();
    // What comes after the unit tests would not be read.
    let item = |line: &str| ["use ", "pub", "fn ", "impl", "mod ", "struct ", "enum ", "#["].iter().any(|start| line.starts_with(start));
    let last = |tests: &str| tests.starts_with("\nmod tests {\n") && !tests.lines().skip(2).any(item);
    if source.split_once("\n#[cfg(test)]").is_some_and(|(_, tests)| !last(tests)) {
        wrong.push(format!("{file} must end with its unit tests, `mod tests`"));
    }
    let mut named = paths(&code, "crate::");
    // As many `super::` as the file lies deep lead to the crate's root.
    named.extend(paths(&code, &"super::".repeat(segments.len())));
    // Macros that the crate exports to itself have no path below a module.
    let own = |path: &String| path == module || path.starts_with(&format!("{module}::"));
    wrong.extend(named.into_iter().filter(|path| !own(path) && !contract.allows(path)).map(|path| format!("{file} may not import crate::{path}")));
    wrong
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documented() -> BTreeMap<String, Contract> {
    contracts(&std::fs::read_to_string(root().join("docs/architecture.md")).unwrap())
}

#[test]
fn modules_import_what_their_contracts_allow() {
    let contracts = documented();
    let src = root().join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut wrong = String::new();
    let mut read = 0;
    for path in all {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        // lib.rs only says what is public.
        if file != "lib.rs" {
            for violation in violations(&file, &std::fs::read_to_string(&path).unwrap(), &contracts) {
                writeln!(wrong, "{violation}").unwrap();
            }
            read += 1;
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(read > 80, "only {read} files were read");
}

#[test]
fn every_module_has_a_contract_and_there_are_eight_at_most() {
    let contracts = documented();
    let entries: Vec<String> = std::fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(entries.len() <= FIRST_LEVEL, "{entries:?}");
    for name in entries.iter().filter(|name| name.as_str() != "lib.rs") {
        assert!(contracts.contains_key(name.trim_end_matches(".rs")), "{name} has no contract in docs/architecture.md");
    }
    assert_eq!(contracts.len(), entries.len() - 1, "contracts of modules that are not there: {contracts:?}");
}

#[test]
fn contracts_are_in_an_order_without_circles() {
    let contracts = documented();
    let mut left: Vec<&String> = contracts.keys().collect();
    while !left.is_empty() {
        let module = |path: &String| path.split("::").next().unwrap_or_default().to_owned();
        let free = left.iter().position(|name| contracts[*name].allowed.iter().all(|path| !left.iter().any(|other| **other == module(path))));
        let Some(free) = free else { panic!("a circle among {left:?}") };
        left.remove(free);
    }
}

#[test]
fn what_should_not_be_there_is_found() {
    let table =
        "\n| module | contract | may import |\n|---|---|---|\n| `low` | x | nothing |\n| `high` | y | `low`, `mid::Part` but not `low::secret` |\n\nend";
    let contracts = contracts(table);
    assert_eq!(contracts["high"].allowed, ["low", "mid::Part"]);
    assert_eq!(contracts["high"].forbidden, ["low::secret"]);
    let found = |file: &str, source: &str| violations(file, source, &contracts);
    for (file, source, wrong) in [
        ("low.rs", "use crate::high::Thing;", 1),
        ("low/a.rs", "use super::b;\nfn f() { crate::low::g(); }", 0),
        ("low/a.rs", "use super::super::high::Thing;", 1),
        ("low/a/b.rs", "use super::super::c;", 0),
        ("low/a.rs", "fn f() { crate::high::g(); }", 1),
        ("high/mod.rs", "use crate::{low::{A, secret::B}, mid::Other};", 2),
        ("high/mod.rs", "use crate::mid::Part as P;\npub(crate) use crate::low::{\n    C,\n    d::E as F,\n};", 0),
        ("high/mod.rs", "use crate::Root;", 1),
        ("low/a.rs", "// crate::high is not imported\nconst A: &str = \"crate::high::x\"; // crate::high", 0),
        ("low/a.rs", "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::high::Thing;\n}", 0),
        ("high/mod.rs", "use crate::low;", 1),
        ("high/mod.rs", "use crate::low::*;", 1),
        ("low/a.rs", "use crate as root;", 1),
        ("low/a.rs", "#[cfg(test)]\nuse std::fmt;\nuse crate::high::Thing;", 1),
        ("low/a.rs", "fn f() {}\n#[cfg(test)]\nuse std::fmt;\nuse crate::high::Thing;", 1),
        ("unknown/a.rs", "", 1),
    ] {
        assert_eq!(found(file, source).len(), wrong, "{file}: {source}: {:?}", found(file, source));
    }
}

//! Versions as programs and packages print them.

use std::cmp::Ordering;
use std::fmt;

/// A version: the numbers at its beginning count, and what follows them is only shown.
#[derive(Clone, Debug)]
pub struct Version {
    text: String,
    numbers: Vec<u64>,
}

impl Version {
    /// Finds the first version in what a program prints, or reads that of a package.
    ///
    /// Debian writes an epoch before a package's version and its own changes behind it. Neither
    /// counts here: only the program's own numbers say what it can do.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse)
    }

    fn parse(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let word = match word.split_once(':') {
            Some((epoch, rest)) if epoch.parse::<u64>().is_ok() => rest,
            _ => word,
        };
        let end = word.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(word.len());
        let mut numbers = Vec::new();
        for number in word[..end].split('.').take_while(|number| !number.is_empty()) {
            numbers.push(number.parse().ok()?);
        }
        if numbers.is_empty() {
            return None;
        }
        // 153 and 153.0 are the same.
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Some(Self { text: word.to_owned(), numbers })
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }
}

impl Eq for Version {}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    fn found(text: &str) -> String {
        Version::find(text).map(|version| version.to_string()).unwrap_or_default()
    }

    fn version(text: &str) -> Version {
        Version::find(text).unwrap()
    }

    #[test]
    fn a_version_is_found_in_what_programs_print() {
        assert_eq!(found("Mozilla Firefox 153.7.0esr\n"), "153.7.0esr");
        assert_eq!(found("Chromium 148.0.7778.167 built on Debian GNU/Linux 12 (bookworm)"), "148.0.7778.167");
        assert_eq!(found("v20.20.2"), "20.20.2");
        assert_eq!(found("11.19.1"), "11.19.1");
        assert_eq!(found("SPIRV-Tools v2022.4 unknown hash, 2022-10-12T15:29:54\nTargets:\n  SPIR-V 1.0"), "2022.4");
        assert_eq!(found("wasm-opt version 108 (version_108)"), "108");
        assert_eq!(found("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), "1.96.0");
        assert_eq!(found("Mesa 22.3.6 (LLVM 15.0.6)"), "22.3.6");
        for nothing in ["", "(none)", "snap", "version", ":", ".5", "99999999999999999999999"] {
            assert_eq!(found(nothing), "", "{nothing}");
        }
    }

    #[test]
    fn a_version_of_a_package_is_that_of_its_program() {
        assert_eq!(version("1.96.0+dfsg1-1~deb12u2"), version("1.96"));
        assert_eq!(version("140.10.2esr-1~deb12u1"), version("Mozilla Firefox 140.10.2esr"));
        assert_eq!(version("9.2.0~ds1-1"), version("9.2.0"));
        assert_eq!(version("20.20.2-1nodesource1+repack1"), version("v20.20.2"));
        // A package of Ubuntu that only names another one.
        assert_eq!(version("2:1snap1-0ubuntu2"), version("1"));
    }

    #[test]
    fn versions_compare_number_by_number() {
        let ordered = ["1.85.0+dfsg3-1~deb12u3", "1.95", "1.95.1", "1.96.0+dfsg1-1~deb12u2", "1.100", "9.2", "20", "108"].map(version);
        assert!(ordered.is_sorted_by(|a, b| a < b));
        assert!(version("153.7.0esr") >= version("153") && version("140.10.2esr") < version("153"));
        assert!(version("153") == version("153.0.0") && version("153") < version("153.0.1"));
        assert!(version("2022.4") < version("2023.1") && version("22.3.6-1+deb12u1") >= version("22.3"));
    }
}

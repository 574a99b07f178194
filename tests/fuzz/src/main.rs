//! libFuzzer on one target, which the environment's `WGKV_FUZZ` names: `cargo xtask fuzz`.
#![no_main]
#![allow(clippy::expect_used, reason = "who runs it without a target must be told")]

use std::sync::LazyLock;
use wgkv_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("WGKV_FUZZ").unwrap_or_default();
    wgkv_fuzz::target(&name).expect("WGKV_FUZZ must name a target")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (TARGET.read)(bytes);
});

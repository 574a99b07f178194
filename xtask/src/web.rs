//! `cargo xtask web`: the page and the npm package, built, served and tested.

mod browser;
mod build;
mod hosts;
mod serve;
mod test;
mod toolchain;

use crate::command::target;
use crate::setup;
use crate::tool::{Had, RUSTC_WEB};
use anyhow::Result;
use browser::Kind;
use std::path::{Path, PathBuf};

/// Options of `web`.
#[derive(clap::Args)]
pub struct Options {
    /// Serve the page when it is built.
    #[arg(long, conflicts_with = "test")]
    serve: bool,
    /// Port to serve on.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Run it in headless browsers: against the CPU twins, the native run, and wrong input.
    #[arg(long)]
    test: bool,
    /// Test in this browser only.
    #[arg(long, requires = "test")]
    browser: Option<Kind>,
    /// Tokens that the tests let a text grow to: the model's whole context without it.
    #[arg(long, requires = "test", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(512..=2048))]
    context: u32,
    /// Also test the npm package in Node.js and Deno, and beside onnxruntime-web, fetched by npm.
    #[arg(long, requires = "test")]
    hosts: bool,
    /// Where the page and the package are written; `web` in cargo's target directory without it.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    /// The options of `cargo xtask test`: a quarter of the context, since software adapters write
    /// ten tokens a second.
    pub const TEST: Self = Self { serve: false, port: 0, test: true, browser: None, context: 512, hosts: false, out: None };
}

/// Returns which compiler there is for WebAssembly, without making one.
pub fn compiler(target: &Path) -> Result<Result<String, Had>> {
    if toolchain::is_ordinary()? {
        return Ok(Ok(format!("not needed: rustc has {}", toolchain::TARGET)));
    }
    Ok(match toolchain::kept(&toolchain::cache(target)) {
        Some((path, version)) if RUSTC_WEB.takes(&version) => Ok(format!("{version}, {}", path.display())),
        Some((path, version)) => Err(format!("{} is {version}", path.display())),
        None if crate::apt::is_debian() => Err("not there yet; the first build for the web fetches it".into()),
        None => Err("not there".into()),
    })
}

/// Makes sure that everything `run` needs is there, before anything slow begins: the compiler, and
/// for tests an adapter and the browsers, which are returned.
pub fn run_setup(options: &Options) -> Result<Vec<(Kind, PathBuf)>> {
    let browsers = if options.test {
        setup::run_setup()?;
        test::find(&options.browser.map_or(Kind::ALL.to_vec(), |kind| vec![kind]))?
    } else {
        Vec::new()
    };
    toolchain::compiler(&toolchain::cache(&target()?.0))?;
    Ok(browsers)
}

/// Builds the page and the package, then serves or tests them.
pub fn run(options: &Options) -> Result<()> {
    let (target, version) = target()?;
    let out = options.out.clone().unwrap_or_else(|| target.join("web"));
    let browsers = run_setup(options)?;
    let site = build::build(&target, &out, &version)?;
    if options.test {
        test::run(&site, &browsers, options.context)?;
    }
    if options.hosts {
        let folder = target.join("web-hosts");
        hosts::test(&site, &folder)?;
        hosts::test_onnx(&site, &folder)?;
    }
    if options.serve {
        let port = serve::serve(site.page.clone(), options.port)?;
        println!("http://localhost:{port} (Ctrl-C ends it)");
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

//! What must hold in a browser.

#[path = "../../../examples/web/tests/tiny/mod.rs"]
mod tiny;

use super::browser::{Browser, Kind};
use super::build::{Site, copy};
use super::serve;
use crate::command::root;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes by which scripts, workers, WebAssembly and the GPU's process may each grow while a context
/// fills: what is kept of compiled code, and garbage that is not collected yet. A leak of one
/// token's scores alone would be 64 MiB, of 512 tokens' 16 MiB.
const SLACK: u64 = 12 << 20;

/// Finds the browsers' programs. Installs those that are missing or too old if it may, and
/// otherwise stops with what to type.
pub fn find(browsers: &[Kind]) -> Result<Vec<(Kind, PathBuf)>> {
    browsers.iter().map(|kind| Ok((*kind, kind.tool().provide()?))).collect()
}

/// Runs everything in every browser, and a text of `tokens` tokens; pictures of the page are
/// written beside it.
pub fn run(site: &Site, browsers: &[(Kind, PathBuf)], tokens: u32) -> Result<()> {
    let out = site.page.parent().context("the page has no folder")?;
    let (tests, pictures) = (out.join("tests"), &out.join("screenshots"));
    copy(&root().join("examples/web/tests"), &tests, |name| !name.ends_with(".rs"))?;
    fs::write(tests.join("tiny.gguf"), tiny::gguf())?;
    fs::create_dir_all(pictures)?;
    let port = serve::serve(out.to_owned(), 0)?;
    // Each is slow by itself, and keeps little more than one core busy.
    std::thread::scope(|scope| {
        let run = |kind: Kind, program: &Path| in_one(kind, program, port, pictures, tokens).with_context(|| kind.to_string());
        let running: Vec<_> = browsers.iter().map(|(kind, program)| scope.spawn(move || run(*kind, program))).collect();
        let ended: Vec<Result<()>> = running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a browser's test panicked"))).collect();
        ended.into_iter().collect()
    })
}

/// Runs everything in one browser.
fn in_one(kind: Kind, program: &Path, port: u16, pictures: &Path, tokens: u32) -> Result<()> {
    let start = Instant::now();
    let mut browser = Browser::open(kind, program)?;
    in_browser(&mut browser, kind, port)?;
    context(&mut browser, kind, tokens)?;
    page(&mut browser, kind, port, pictures).context("the page")?;
    println!("    {kind}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn number(value: &Value, place: &str) -> Result<u64> {
    value.pointer(place).and_then(Value::as_u64).with_context(|| format!("there is no number {place} in {value}"))
}

fn in_browser(browser: &mut Browser, kind: Kind, port: u16) -> Result<()> {
    browser.visit(&format!("http://localhost:{port}/tests/"))?;
    browser.wait("document.body?.dataset.state === 'ready'", Duration::from_secs(60)).context("the tests could not be loaded")?;
    println!("    {kind}: {}", browser.evaluate("tests.open()")?);
    browser.evaluate("tests.load()")?;

    let formats = browser.evaluate("tests.formats()")?;
    for format in formats.as_array().context("a list of formats")? {
        let report = browser.evaluate(&format!("tests.twin(...{format})"))?;
        if report["agrees"] != true {
            bail!("not as the CPU twin: {report}");
        }
        println!(
            "    {kind}: {}: append {} of {} words otherwise, attention off by {}",
            report["format"], report["words"][0], report["words"][1], report["errors"]
        );
    }
    // Of the snapshots that `examples/web/tests/native.rs` wrote on lavapipe.
    for (codec, bits) in [("hadamard", 4), ("centred", 2), ("rotate-kv", 2)] {
        let report = browser.evaluate(&format!("tests.exchange('{codec}', {bits})"))?;
        if report["agrees"] != true {
            bail!("the snapshot of another device is another here: {report}");
        }
        println!("    {kind}: {}: a snapshot of another device is the same, attention off by {}", report["format"], report["error"]);
    }
    let compiled = browser.evaluate("tests.subgroups()")?;
    // SwiftShader has subgroups, of 4 lanes; Firefox offers none.
    if kind == Kind::Chromium && compiled == 0 {
        bail!("subgroups were not granted");
    }
    println!("    {kind}: {compiled} kernels with subgroups compile");

    let wrong = browser.evaluate("tests.continuations()")?;
    if wrong != Value::Array(Vec::new()) {
        bail!("texts go on otherwise than natively: {wrong}");
    }
    println!("    {kind}: texts go on as natively");
    let opened = browser.evaluate("tests.file()")?;
    if opened["wrong"] != Value::Array(Vec::new()) {
        bail!("a model from a file writes otherwise than natively: {opened}");
    }
    println!("    {kind}: a GGUF file of {} parameters writes as natively; wrong ones: {}", opened["about"]["parameters"], opened["refusals"]);
    package(browser, kind)
}

/// The npm package: with arrays, on a device of the page's, and as its README tells.
fn package(browser: &mut Browser, kind: Kind) -> Result<()> {
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    let late = browser.evaluate("tests.early()")?;
    println!("    {kind}: npm package: the device refuses buffers from before the import, and {} calls tell it", count(&late));
    let refusals = browser.evaluate("tests.package()")?;
    println!("    {kind}: npm package: attention agrees, {} wrong inputs are refused", count(&refusals));
    let own = browser.evaluate("tests.ownDevice()")?;
    println!("    {kind}: npm package: an engine decodes on its own device; of wrong buffers and devices {} are refused", count(&own["texts"]));
    println!("    {kind}: npm package: buffers and bind groups that a step makes: {}", own["steps"]);
    println!("    {kind}: npm package: {} recipes run", browser.evaluate("tests.recipes()")?);
    if kind == Kind::Chromium {
        println!("    {kind}: npm package: {}", browser.evaluate("tests.tooMuch()")?);
    }
    Ok(())
}

/// Lets a text grow to `wanted` tokens, and checks what memory grows by meanwhile.
fn context(browser: &mut Browser, kind: Kind, wanted: u32) -> Result<()> {
    let start = Instant::now();
    let begun = browser.evaluate(&format!("tests.beginLong({wanted})"))?;
    let before = browser.gpu_memory()?;
    let ended = browser.evaluate("tests.endLong()")?;
    let after = browser.gpu_memory()?;
    let (tokens, allocated) = (number(&ended, "/progress/tokens")?, number(&ended, "/progress/allocated")?);
    // What follows the last token is not computed, so that token is not cached.
    if tokens + 1 < wanted.into() {
        bail!("the text ended at {tokens} tokens, of {wanted}");
    }
    if number(&begun, "/first/allocated")? != allocated || number(&ended, "/progress/bytes")? > allocated {
        bail!("the cache holds more than it said: {begun}, {ended}");
    }
    println!("    {kind}: {tokens} tokens in {:.0} s; the cache holds {allocated} bytes from the beginning to the end", start.elapsed().as_secs_f64());
    for (what, place) in [("WebAssembly", "/memory/wasm"), ("scripts and workers", "/memory/all")] {
        // Firefox does not give the second.
        if let (Ok(first), Ok(last)) = (number(&begun, place), number(&ended, place)) {
            grows(kind, what, first, last)?;
        }
    }
    if let (Some(first), Some(last)) = (before, after) {
        grows(kind, "the process that talks to the GPU", first, last)?;
    }
    Ok(())
}

fn grows(kind: Kind, what: &str, first: u64, last: u64) -> Result<()> {
    println!("    {kind}: {what}: {first} bytes before, {last} after");
    if last > first + SLACK {
        bail!("{what} grew by {} bytes, more than {SLACK}", last - first);
    }
    Ok(())
}

/// Uses the page as a reader does.
fn page(browser: &mut Browser, kind: Kind, port: u16, pictures: &Path) -> Result<()> {
    let picture = |name: &str| pictures.join(format!("{}-{name}.png", kind.to_string().to_lowercase()));
    let state = |name: &str| format!("document.body?.dataset.state === '{name}'");
    let minute = Duration::from_secs(120);
    browser.visit(&format!("http://localhost:{port}/page/"))?;
    browser.wait(&state("ready"), minute)?;
    // Software adapters write a few tokens a second.
    browser.evaluate("document.querySelector('#tokens').value = 60, document.querySelector('#write').click()")?;
    browser.wait(&state("written"), minute)?;
    browser.screenshot(&picture("page"))?;
    browser.resize(420, 900)?;
    browser.screenshot(&picture("narrow"))?;
    browser.resize(1280, 900)?;

    open_file(browser, &picture)?;
    println!("    {kind}: the page opens a file, chats, and stops");

    browser.evaluate("page.engine.call('lose')")?;
    browser.wait(&state("lost"), minute)?;
    browser.screenshot(&picture("lost"))?;
    browser.evaluate("document.querySelector('#restart').click()")?;
    browser.wait(&state("ready"), minute)?;
    println!("    {kind}: the page survives the loss of its device");

    if kind == Kind::Chromium {
        // A page that does not come over https has no WebGPU.
        browser.visit(&format!("http://insecure.test:{port}/page/"))?;
        browser.wait(&state("unsupported"), minute)?;
        browser.screenshot(&picture("unsupported"))?;
        println!("    {kind}: without WebGPU the page says so");
    }
    Ok(())
}

/// Opens files on the page, talks with a model, and goes back.
fn open_file(browser: &mut Browser, picture: &impl Fn(&str) -> PathBuf) -> Result<()> {
    let minute = Duration::from_secs(120);
    let state = |names: &str| format!("[{names}].includes(document.body.dataset.state)");
    let text = |place: &str| format!("document.querySelector('{place}').textContent");
    let choose = |blob: &str| {
        format!(
            "(async () => {{ const given = new DataTransfer(); given.items.add(new File([{blob}], 'tiny.gguf')); \
             const input = document.querySelector('#file'); input.files = given.files; input.dispatchEvent(new Event('change')); }})()"
        )
    };
    browser.evaluate(&choose("'not a model'"))?;
    browser.wait(&format!("{}.includes('GGUF')", text("#model-error")), minute)?;
    browser.wait(&state("'written'"), minute)?;
    browser.evaluate(&choose("await (await fetch('/tests/tiny.gguf')).arrayBuffer()"))?;
    browser.wait(&format!("{} === 'tiny.gguf'", text("#model-name")), minute)?;
    browser.wait(&state("'ready'"), minute)?;

    let send = |tokens: u32, message: &str| {
        format!(
            "document.querySelector('#tokens').value = {tokens}, document.querySelector('#prompt').value = '{message}', \
             document.querySelector('#write').click()"
        )
    };
    browser.evaluate(&send(8, "Where does the river rise?"))?;
    browser.wait(&state("'written'"), minute)?;
    browser.evaluate(&send(200, "And where does it end?"))?;
    browser.wait("document.querySelectorAll('#talk p').length === 4 && Number(document.querySelector('#held').textContent) > 60", minute)?;
    browser.evaluate("document.querySelector('#stop').click()")?;
    browser.wait(&state("'written'"), minute)?;
    browser.screenshot(&picture("chat"))?;
    if browser.evaluate(&text("#status"))? != "stopped" {
        bail!("the answer was not stopped, but: {}", browser.evaluate(&text("#status"))?);
    }
    browser.evaluate("document.querySelector('#anew').click()")?;
    browser.wait("document.querySelectorAll('#talk p').length === 0", minute)?;
    browser.evaluate("document.querySelector('#own').click()")?;
    browser.wait(&format!("{} === 'wiki-8m'", text("#model-name")), minute)
}

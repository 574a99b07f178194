//! A headless browser under remote control: Chromium by the DevTools protocol, Firefox by WebDriver
//! BiDi. Both exchange JSON messages over a WebSocket whose address the browser prints.

use crate::tool::{CHROMIUM, FIREFOX, Tool};
use anyhow::{Context, Result, bail};
use base64::Engine;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// How long a browser may take to start, and to reply.
const START: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(600);

/// Which browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// With SwiftShader, its own software adapter.
    Chromium,
    /// With the system's Vulkan adapter, which may be lavapipe.
    Firefox,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Chromium, Self::Firefox];

    /// Returns the tool that lists which versions of it will do.
    pub fn tool(self) -> &'static Tool {
        match self {
            Self::Chromium => &CHROMIUM,
            Self::Firefox => &FIREFOX,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.tool().name)
    }
}

/// A running browser with one page.
pub struct Browser {
    kind: Kind,
    child: Child,
    profile: PathBuf,
    socket: WebSocket<TcpStream>,
    sent: u64,
    /// The page: Chromium's session, Firefox's context.
    page: String,
}

/// Preferences of Firefox: WebGPU, also on software adapters; no first-run pages, no calls home.
const PREFERENCES: &str = r#"
user_pref("dom.webgpu.enabled", true);
user_pref("gfx.webgpu.ignore-blocklist", true);
user_pref("app.update.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
"#;

/// Options of Chromium: WebGPU on its software adapter, which it does not offer by default; no
/// calls home. `insecure.test` is this machine under a name without certificates, and so without
/// WebGPU.
const SWITCHES: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-port=0",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-blink-features=ForceEagerMeasureMemory",
    "--host-resolver-rules=MAP insecure.test 127.0.0.1",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

impl Browser {
    /// Starts one with an empty profile.
    pub fn open(kind: Kind, program: &Path) -> Result<Self> {
        let profile = std::env::temp_dir().join(format!("wgkv-{kind}-{}", std::process::id()));
        fs::create_dir_all(&profile)?;
        let mut command = Command::new(program);
        match kind {
            Kind::Chromium => {
                command.args(SWITCHES).arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
            }
            Kind::Firefox => {
                fs::write(profile.join("user.js"), PREFERENCES)?;
                command.args(["--headless", "--no-remote", "--remote-debugging-port=0", "--profile"]).arg(&profile);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let connected = address(&mut child).and_then(|address| connect(kind, &address));
        let socket = match connected {
            Ok(socket) => socket,
            Err(error) => {
                let _ = child.kill();
                return Err(error.context(format!("{kind} did not start")));
            }
        };
        let mut browser = Self { kind, child, profile, socket, sent: 0, page: String::new() };
        browser.page = browser.first_page()?;
        browser.resize(1280, 900)?;
        Ok(browser)
    }

    fn first_page(&mut self) -> Result<String> {
        let (answer, place) = match self.kind {
            Kind::Chromium => {
                let target = self.call("Target.createTarget", json!({ "url": "about:blank" }))?;
                (self.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }))?, "/sessionId")
            }
            Kind::Firefox => {
                self.call("session.new", json!({ "capabilities": {} }))?;
                (self.call("browsingContext.getTree", json!({}))?, "/contexts/0/context")
            }
        };
        answer.pointer(place).and_then(Value::as_str).map(str::to_owned).context("the browser has no page")
    }

    /// Sends a command and waits for its reply; any other message in the meantime goes to `heard`.
    fn call_hearing(&mut self, method: &str, params: Value, mut heard: impl FnMut(&Value)) -> Result<Value> {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if self.kind == Kind::Chromium && !self.page.is_empty() {
            message["sessionId"] = json!(self.page);
        }
        self.socket.send(Message::text(message.to_string()))?;
        loop {
            let message = self.hear().with_context(|| format!("no answer to {method}"))?;
            if message["id"] != self.sent {
                heard(&message);
                continue;
            }
            if message.get("error").is_some() {
                bail!("{method}: {}", message["error"]);
            }
            return Ok(message["result"].clone());
        }
    }

    fn hear(&mut self) -> Result<Value> {
        loop {
            if let Message::Text(text) = self.socket.read()? {
                return Ok(serde_json::from_str(&text)?);
            }
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.call_hearing(method, params, |_| ())
    }

    /// Goes to a page.
    pub fn visit(&mut self, url: &str) -> Result<()> {
        match self.kind {
            Kind::Chromium => {
                let answer = self.call("Page.navigate", json!({ "url": url }))?;
                if let Some(error) = answer["errorText"].as_str() {
                    bail!("{url}: {error}");
                }
            }
            Kind::Firefox => {
                self.call("browsingContext.navigate", json!({ "context": self.page, "url": url, "wait": "complete" }))?;
            }
        }
        // Chromium replies before the page's modules have run.
        self.wait("document.readyState === 'complete'", Duration::from_secs(60))
    }

    /// Evaluates an expression of JavaScript, promises awaited.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let expression = format!("(async () => JSON.stringify((await ({expression})) ?? null))()");
        let (answer, value, failed) = match self.kind {
            Kind::Chromium => {
                let answer = self.call("Runtime.evaluate", json!({ "expression": expression, "awaitPromise": true, "returnByValue": true }))?;
                let failed = answer.pointer("/exceptionDetails/exception/description").cloned();
                (answer.clone(), answer.pointer("/result/value").cloned(), failed)
            }
            Kind::Firefox => {
                let target = json!({ "context": self.page });
                let answer = self.call("script.evaluate", json!({ "expression": expression, "awaitPromise": true, "target": target }))?;
                let failed = answer.pointer("/exceptionDetails/text").cloned();
                (answer.clone(), answer.pointer("/result/value").cloned(), failed)
            }
        };
        if let Some(failed) = failed {
            bail!("{}", failed.as_str().unwrap_or_default());
        }
        let text = value.as_ref().and_then(Value::as_str).with_context(|| format!("the page returns {answer}"))?;
        Ok(serde_json::from_str(text)?)
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, expression: &str, most: Duration) -> Result<()> {
        let start = Instant::now();
        while self.evaluate(expression)? != true {
            if start.elapsed() > most {
                bail!("{expression} is not true after {} s", most.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Gives the window another size.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        match self.kind {
            Kind::Chromium => {
                self.call("Emulation.setDeviceMetricsOverride", json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false }))
            }
            Kind::Firefox => self.call("browsingContext.setViewport", json!({ "context": self.page, "viewport": { "width": width, "height": height } })),
        }
        .map(|_| ())
    }

    /// Writes a picture of the whole page.
    pub fn screenshot(&mut self, path: &Path) -> Result<()> {
        let answer = match self.kind {
            Kind::Chromium => {
                let mut clip = self.call("Page.getLayoutMetrics", json!({}))?["cssContentSize"].take();
                clip["scale"] = json!(1);
                self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true, "clip": clip }))?
            }
            Kind::Firefox => self.call("browsingContext.captureScreenshot", json!({ "context": self.page, "origin": "document" }))?,
        };
        let data = answer["data"].as_str().context("the browser gives no picture")?;
        fs::write(path, base64::engine::general_purpose::STANDARD.decode(data)?)?;
        println!("    {}", path.display());
        Ok(())
    }

    /// Returns the bytes that only the process that talks to the GPU holds, by the browser's own
    /// count. Firefox does not report it.
    pub fn gpu_memory(&mut self) -> Result<Option<u64>> {
        if self.kind == Kind::Firefox {
            return Ok(None);
        }
        // The count is the whole browser's, not the page's.
        let page = std::mem::take(&mut self.page);
        let events = self.trace_memory();
        self.page = page;
        let events = events?;
        let named = |event: &&Value| event["name"] == "process_name" && event.pointer("/args/name").is_some_and(|name| name == "GPU Process");
        let pid = &events.iter().find(named).context("Chromium names no GPU process")?["pid"];
        let count = |event: &Value| event.pointer("/args/dumps/process_totals/private_footprint_bytes")?.as_str().map(str::to_owned);
        let counted = events.iter().filter(|event| event["pid"] == *pid).find_map(count);
        Ok(Some(u64::from_str_radix(&counted.context("Chromium does not count its GPU process")?, 16)?))
    }

    /// Returns a dump of every process's memory, as events.
    fn trace_memory(&mut self) -> Result<Vec<Value>> {
        let config = json!({ "includedCategories": ["disabled-by-default-memory-infra"], "excludedCategories": ["*"], "memoryDumpConfig": {} });
        self.call("Tracing.start", json!({ "traceConfig": config, "transferMode": "ReportEvents" }))?;
        self.call("Tracing.requestMemoryDump", json!({ "deterministic": true, "levelOfDetail": "detailed" }))?;
        let mut heard = Vec::new();
        self.call_hearing("Tracing.end", json!({}), |message| heard.push(message.clone()))?;
        while heard.last().is_none_or(|message| message["method"] != "Tracing.tracingComplete") {
            heard.push(self.hear()?);
        }
        Ok(heard.iter().filter_map(|message| message.pointer("/params/value")?.as_array()).flatten().cloned().collect())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.page.clear();
        let close = if self.kind == Kind::Chromium { "Browser.close" } else { "browser.close" };
        // It may be gone already, and then there is nothing to close.
        let _ = self.call(close, json!({}));
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

/// Returns the address that a browser prints when it is ready.
fn address(child: &mut Child) -> Result<String> {
    let stderr = child.stderr.take().context("the browser has no standard error")?;
    let (sender, receiver) = mpsc::channel();
    // Reads on to the end, or the browser would wait for a reader.
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(|line| line.ok()) {
            // Nobody listens any more once the address is known.
            let _ = sender.send(line);
        }
    });
    let start = Instant::now();
    let mut said = Vec::new();
    while let Ok(line) = receiver.recv_timeout(START.saturating_sub(start.elapsed())) {
        if let Some(at) = line.find("ws://") {
            return Ok(line[at..].trim().to_owned());
        }
        said.push(line);
    }
    bail!("it prints no address, but: {}", said.join("\n"))
}

fn connect(kind: Kind, address: &str) -> Result<WebSocket<TcpStream>> {
    let host = address.trim_start_matches("ws://").split('/').next().unwrap_or_default();
    let url = if kind == Kind::Firefox { format!("ws://{host}/session") } else { address.to_owned() };
    let stream = TcpStream::connect(host).with_context(|| format!("{host} cannot be reached"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let (socket, _) = tungstenite::client(url, stream).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(socket)
}

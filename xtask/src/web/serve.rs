//! A folder over http, for this machine alone.

use anyhow::{Result, anyhow};
use std::fs::File;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tiny_http::{Request, Server};

/// Serves until the process ends; returns the port. Port 0 takes a free one.
pub fn serve(folder: PathBuf, port: u16) -> Result<u16> {
    let server = Arc::new(Server::http(("127.0.0.1", port)).map_err(|error| anyhow!("port {port} cannot be served: {error}"))?);
    let port = server.server_addr().to_ip().map_or(port, |address| address.port());
    // A browser requests several files at once.
    for _ in 0..4 {
        let (server, folder) = (server.clone(), folder.clone());
        std::thread::spawn(move || {
            for request in server.incoming_requests() {
                // A browser that goes away in the middle of a file does no harm.
                let _ = answer(request, &folder);
            }
        });
    }
    Ok(port)
}

/// Returns the file that a request names, if it lies in the folder.
fn file(folder: &Path, url: &str) -> Option<PathBuf> {
    let path = url.split(['?', '#']).next().unwrap_or_default().trim_start_matches('/');
    let relative = Path::new(path);
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let file = folder.join(relative);
    let file = if file.is_dir() { file.join("index.html") } else { file };
    (inside && file.is_file()).then_some(file)
}

fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}

/// Replies, and has the browser close the connection: tiny_http may leave a new one waiting for a
/// thread that a kept one holds, which is minutes.
fn answer(request: Request, folder: &Path) -> Result<()> {
    let found = file(folder, request.url()).map(|path| Ok::<_, std::io::Error>((kind(&path), File::open(path)?))).transpose()?;
    let mut writer = request.into_writer();
    let Some((kind, mut file)) = found else {
        write!(writer, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        return Ok(writer.flush()?);
    };
    write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n", file.metadata()?.len())?;
    for (name, value) in [
        ("Content-Type", kind),
        ("Cache-Control", "no-store"),
        // Only an isolated page may read how much memory it takes.
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
    ] {
        write!(writer, "{name}: {value}\r\n")?;
    }
    write!(writer, "\r\n")?;
    std::io::copy(&mut file, &mut writer)?;
    Ok(writer.flush()?)
}

#[cfg(test)]
mod tests {
    use super::file;
    use std::path::Path;

    #[test]
    fn only_files_of_the_folder_are_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(file(folder, "/Cargo.toml?x=1"), Some(folder.join("Cargo.toml")));
        assert_eq!(file(folder, "/src/web/serve.rs"), Some(folder.join("src/web/serve.rs")));
        for outside in ["/../Cargo.toml", "//etc/passwd", "/src/../../Cargo.toml", "/src", "/nothing"] {
            assert_eq!(file(folder, outside), None, "{outside}");
        }
    }
}

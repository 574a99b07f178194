//! The server as a process that can be killed, and a line to it that can be held in the middle of
//! an object.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub const BUCKET: &str = "prefixes";
pub const ACCESS_KEY: &str = "a reader and writer";
pub const SECRET_KEY: &str = "what only it knows";

/// A server with a bucket in an empty folder of the test's own.
pub struct Server {
    pub folder: PathBuf,
    pub port: u16,
    process: Child,
}

impl Server {
    pub fn start(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("s3").join(name);
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{e}"),
            _ => std::fs::create_dir_all(folder.join(BUCKET)).unwrap(),
        }
        let (process, port) = spawn(&folder, 0);
        Self { folder, port, process }
    }

    /// Ends it at once, whatever it is doing.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again after [`Server::kill`], with what is in its folder, on the same port.
    pub fn restart(&mut self) {
        (self.process, _) = spawn(&self.folder, self.port);
    }

    /// Where it keeps an object.
    pub fn file(&self, place: &str) -> PathBuf {
        self.folder.join(BUCKET).join(place)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn spawn(folder: &Path, port: u16) -> (Child, u16) {
    let mut server = Command::new(env!("CARGO_BIN_EXE_wgkv-s3"));
    server.arg(folder).args([&port.to_string(), ACCESS_KEY, SECRET_KEY]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = server.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (process, line.trim().parse().expect("the server's port"))
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    ToServer,
    ToClient,
}

#[derive(Default)]
struct State {
    /// Bytes that may still pass a way before it is held.
    hold: Option<(Way, usize)>,
    held: bool,
    connections: usize,
}

/// A line to a server through a port of its own, which passes everything on until it is told to
/// hold.
#[derive(Clone)]
pub struct Line {
    pub port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Line {
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let line = Self { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let at = line.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                at.lock().connections += 1;
                // Where no server listens, the client's connection ends as it began.
                let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server))) else { continue };
                for (way, [from, to]) in [(Way::ToServer, [&client, &server]), (Way::ToClient, [&server, &client])] {
                    let [from, to] = [from, to].map(|stream| stream.try_clone().unwrap());
                    let at = at.clone();
                    std::thread::spawn(move || at.pass(way, from, to));
                }
            }
        });
        line
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    fn pass(&self, way: Way, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            let mut state = self.lock();
            if let Some((_, left)) = state.hold.as_mut().filter(|(held, _)| *held == way) {
                *left = left.saturating_sub(n);
                if *left == 0 {
                    state.held = true;
                    self.state.1.notify_all();
                    drop(self.state.1.wait_while(state, |state| state.hold.is_some()).unwrap());
                    break;
                }
            }
            drop(state);
            if to.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        _ = to.shutdown(Shutdown::Both);
        _ = from.shutdown(Shutdown::Both);
    }

    /// Holds what comes after some more bytes of a way.
    pub fn hold_after(&self, way: Way, bytes: usize) {
        let mut state = self.lock();
        (state.hold, state.held) = (Some((way, bytes)), false);
    }

    /// Waits until it is held.
    pub fn wait_until_held(&self) {
        let started = Instant::now();
        let (state, _) = self.state.1.wait_timeout_while(self.lock(), Duration::from_secs(60), |state| !state.held).unwrap();
        assert!(state.held, "not as many bytes within {:?}", started.elapsed());
    }

    /// Ends the connections that it holds, and passes on what comes by others.
    pub fn cut(&self) {
        self.lock().hold = None;
        self.state.1.notify_all();
    }

    /// Connections since it was asked last.
    pub fn connections(&self) -> usize {
        std::mem::take(&mut self.lock().connections)
    }
}

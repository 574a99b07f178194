//! A server that speaks S3 and keeps objects in a folder: `wgkv-s3 FOLDER PORT ACCESS_KEY
//! SECRET_KEY`. Port 0 is any that is free. The first line of its output is its port; it ends with
//! its input, so that it does not outlive the test.

use hyper_util::rt::TokioIo;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::{S3Result, s3_error};
use std::error::Error;
use std::path::PathBuf;
use tokio::net::TcpListener;

/// Lets who has the key do anything, but in buckets that are there: the file system would make
/// them.
struct Buckets(PathBuf);

#[async_trait::async_trait]
impl S3Access for Buckets {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied));
        }
        match context.s3_path().get_bucket_name() {
            Some(bucket) if !self.0.join(bucket).is_dir() => Err(s3_error!(NoSuchBucket)),
            _ => Ok(()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, port, access_key, secret_key] = &arguments[..] else {
        return Err("usage: wgkv-s3 FOLDER PORT ACCESS_KEY SECRET_KEY".into());
    };
    let files = s3s_fs::FileSystem::new(folder).map_err(|e| format!("{folder}: {e:?}"))?;
    let mut service = s3s::service::S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(access_key.as_str(), secret_key.as_str()));
    service.set_access(Buckets(folder.into()));
    let service = service.build();
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    println!("{}", listener.local_addr()?.port());
    std::thread::spawn(|| {
        let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(i32::from(ended.is_err()));
    });
    loop {
        let (socket, _) = listener.accept().await?;
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service.clone());
        // What becomes of a connection is its client's matter.
        tokio::spawn(async { _ = connection.await });
    }
}

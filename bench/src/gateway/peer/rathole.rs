//! rathole, both ends of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::certificate::Certificate;
use super::{Peer, start_upstream};
use crate::Result;
use crate::by_hand::free_address;
use crate::gateway::install::{from_crates, from_debian, sources_from_crates};
use crate::gateway::program::Program;
use crate::server::beside;

const VERSION: &str = "0.5.0";
const FEATURES: &str = "server,client,tls";
const TLS_VERSION: &str = "0.2.18";

const SERVER: &str = "
[server]
bind_addr = '{control}'
default_token = 'bench'
[server.transport]
{transport}
[server.services.app]
bind_addr = '{address}'
";

const CLIENT: &str = "
[client]
remote_addr = '{control}'
default_token = 'bench'
[client.transport]
{transport}
[client.services.app]
local_addr = '{upstream}'
";

const IN_THE_CLEAR: &str = "type = 'tcp'";

const PASSWORD: &str = "bench";

pub fn start(_: &Path) -> Result<Option<Peer>> {
    match install()? {
        None => Ok(None),
        Some(rathole) => both_ends(&rathole, "rathole", IN_THE_CLEAR, IN_THE_CLEAR, None),
    }
}

pub fn start_with_tls(_: &Path) -> Result<Option<Peer>> {
    let (Some(rathole), Some(openssl)) = (install()?, from_debian("openssl")?) else {
        return Ok(None);
    };
    let dir = TempDir::with_prefix("dwell-bench-")?;
    let Certificate { certificate, key } = Certificate::make(dir.path())?;
    let identity = dir.path().join("identity.p12");
    let packed = Command::new(openssl)
        .args(["pkcs12", "-export", "-passout"])
        .arg(format!("pass:{PASSWORD}"))
        .arg("-in")
        .arg(&certificate)
        .arg("-inkey")
        .arg(key)
        .arg("-out")
        .arg(&identity)
        .status()?;
    if !packed.success() {
        return Err(format!("openssl packs no certificate: {packed}").into());
    }
    let (identity, certificate) = (identity.display(), certificate.display());
    let of_server =
        format!("type = 'tls'\ntls.pkcs12 = '{identity}'\ntls.pkcs12_password = '{PASSWORD}'");
    let of_client =
        format!("type = 'tls'\ntls.trusted_root = '{certificate}'\ntls.hostname = 'localhost'");
    both_ends(&rathole, "rathole, TLS", &of_server, &of_client, Some(dir))
}

/// What is in `dir` is needed as long as they run.
fn both_ends(
    rathole: &Path,
    name: &'static str,
    of_server: &str,
    of_client: &str,
    dir: Option<TempDir>,
) -> Result<Option<Peer>> {
    let upstream = start_upstream()?;
    let address = free_address().ok_or("no port is free")?.to_string();
    let control = free_address().ok_or("no port is free")?.to_string();
    let config = |end: &str, transport: &str| {
        end.replace("{control}", &control)
            .replace("{transport}", transport)
            .replace("{address}", &address)
            .replace("{upstream}", &upstream.address)
    };
    let server = config(SERVER, of_server);
    let server = Program::spawn(rathole, &["--server", "{config}"], &server)?;
    let client = config(CLIENT, of_client);
    let client = Program::start(rathole, &["--client", "{config}"], &client, &address)?;
    let (ends, app) = ([server.pid(), client.pid()], upstream.pid());
    let running = (client, server, upstream, dir);
    Peer::new(name, vec![address], &ends, &[app], running).map(Some)
}

/// As published, but for one word: its TLS is that of native-tls, whose servers speak at
/// most TLS 1.2, and that with ChaCha20. With it they speak what Dwell does, TLS 1.3 with
/// AES-256-GCM.
fn install() -> Result<Option<PathBuf>> {
    let dir = beside("peers")?.join("rathole");
    let Some(sources) = sources_from_crates(&dir, "native-tls", TLS_VERSION)? else {
        return Ok(None);
    };
    let file = sources.join("src/imp/openssl.rs");
    let before = std::fs::read_to_string(&file)?;
    let after = before.replace("::mozilla_intermediate(", "::mozilla_intermediate_v5(");
    std::fs::write(&file, after)?;
    let patch = format!("patch.crates-io.native-tls.path=\"{}\"", sources.display());
    let options = [
        "--no-default-features",
        "--features",
        FEATURES,
        "--config",
        &patch,
    ];
    from_crates(&dir, "rathole", VERSION, &options)
}

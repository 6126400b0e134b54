//! From asking for an app in a container to its answering: as a session, and by
//! `docker run`.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::dockerd::Dockerd;
use crate::http::until_it_answers;
use crate::server::{Server, Session, data_dir};
use crate::statistics::{Sample, millis};
use crate::{Figure, Result};

const ROUNDS: usize = 20;
const IMAGE: &str = "dwell-bench/web:1";
/// The first process of a container is deaf to TERM, unless it says what to do then.
const APP: &str = "trap exit TERM; httpd -f -p {port} -h /www & wait";

/// Where containers are that are not told another.
const USUAL_NETWORK: &str = "bridge";
/// As sessions are: on a network that somebody made, Docker serves names besides.
const OWN_NETWORK: &str = "own";

/// One at a time, in turn, by the same engine: the same image, the same app.
pub fn containers(dwell: &Path) -> Result<Vec<Figure>> {
    if std::env::var_os("DWELL_TEST_OUTSIDE").is_none() {
        return Err("`make bench-containers` keeps the host's network out of this".into());
    }
    let engine = Dockerd::start(data_dir(dwell)?)?;
    import(&engine)?;
    engine.create_network(OWN_NETWORK)?;
    let launcher = format!(
        "[[launcher]]\nkind = \"docker\"\nhost = \"{}\"\n",
        engine.host()
    );
    let server = Server::start_at("127.0.0.1:0", dwell, data_dir(dwell)?, 4, &launcher)?;
    let mut api = server.connect()?;
    let command = ["sh", "-c", APP].map(str::to_owned);
    let mut sessions = Sample::default();
    let mut by_hand = [USUAL_NETWORK, OWN_NETWORK].map(|network| (network, Sample::default()));
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let session = Session::create_with(&mut api, &command, json!({"image": IMAGE}))?;
        until_it_answers(&session.address)?;
        sessions.push(began.elapsed());
        session.end(&mut api)?;

        for (network, sample) in &mut by_hand {
            let began = Instant::now();
            let run = engine.run(network, IMAGE, &command)?;
            until_it_answers(&run.address)?;
            sample.push(began.elapsed());
            run.end()?;
        }
    }
    let mut figures = vec![Figure {
        what: "create → URL answers, busybox httpd in a container".to_owned(),
        measured: sessions.summary(),
    }];
    figures.extend(by_hand.map(|(network, sample)| {
        let more = millis(sessions.quantile(0.5)) - millis(sample.quantile(0.5));
        Figure {
            what: format!("docker run --network {network}"),
            measured: format!("{}; {more:+.1} ms", sample.summary()),
        }
    }));
    Ok(figures)
}

/// An image with a web server and something to serve.
fn import(engine: &Dockerd) -> Result<()> {
    let tree = tempfile::tempdir()?;
    let at = |name: &str| tree.path().join(name);
    for part in ["bin", "www"] {
        fs::create_dir(at(part))?;
    }
    fs::copy("/bin/busybox", at("bin/busybox"))?;
    for applet in ["sh", "httpd"] {
        std::os::unix::fs::symlink("busybox", at("bin").join(applet))?;
    }
    fs::write(at("www/index.html"), "hello")?;
    engine.import(tree.path(), IMAGE)
}

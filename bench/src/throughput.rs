//! Many clients at once on a store that holds many sessions.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwell::data_dir::DataDir;
use dwell::store::StoreAt;
use dwell_core::id::SessionId;

use crate::cluster::Cluster;
use crate::http::Connection;
use crate::server::{Server, beside, data_dir};
use crate::statistics::{Sample, millis};
use crate::stored::{STORED, fill, fill_store};
use crate::{Figure, Result};

const CLIENTS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(8);

pub fn throughput(dwell: &Path) -> Result<Vec<Figure>> {
    let dir = data_dir(dwell)?;
    let ids = fill(&DataDir(dir.path().to_owned()))?;
    // One slot: what is created stays in the queue and is measured without its app.
    let server = Server::start(dwell, dir, 1)?;
    creates_and_reads(&[server], &ids, "")
}

/// The same with Postgres on this machine, with one server and with three, after the same
/// with SQLite.
pub fn postgres(dwell: &Path) -> Result<Vec<Figure>> {
    let mut figures = throughput(dwell)?;
    let dir = data_dir(dwell)?;
    let beside = dwell.parent().ok_or("the binary is in no directory")?;
    let cluster = Cluster::start_in(beside, "listen_addresses = ''\n");
    let url = cluster.url(&cluster.database());
    let store = StoreAt::Postgres(url.parse()?);
    let ids = fill_store(&store, &DataDir(dir.path().to_owned()))?;
    let mut servers = vec![Server::start_on(&url, dwell, dir, 1)?];
    figures.extend(creates_and_reads(&servers, &ids, ", Postgres")?);
    for _ in 0..2 {
        servers.push(servers[0].another()?);
    }
    let what = ", Postgres, 3 servers";
    figures.extend(creates_and_reads(&servers, &ids, what)?);
    Ok(figures)
}

fn creates_and_reads(servers: &[Server], ids: &[SessionId], what: &str) -> Result<Vec<Figure>> {
    let get = |api: &mut Connection, turn: usize| {
        // Far apart from one to the next.
        let id = ids.get(turn * 7_919 % ids.len()).ok_or("no session")?;
        expect_200(api.get(&format!("/session/{id}"))?.status)
    };
    let reads = load(servers, get)?;
    let hello = beside("hello")?.display().to_string();
    let body = serde_json::json!({"command": [hello], "gpu": "CPU"}).to_string();
    let creates = load(servers, |api, _| {
        expect_200(api.send("POST", "/session/dynamic", &body)?.status)
    })?;
    let stored = format!("{CLIENTS} clients, {STORED} sessions stored{what}");
    Ok(vec![
        Figure {
            what: format!("durable creates, {stored}"),
            measured: creates,
        },
        Figure {
            what: format!("reads of one session, {stored}"),
            measured: reads,
        },
    ])
}

fn expect_200(status: u16) -> Result<()> {
    match status {
        200 => Ok(()),
        status => Err(format!("the server answered {status}").into()),
    }
}

/// Every client asks again as soon as it has its answer, each one server. Requests a
/// second, and how long one takes.
fn load(
    servers: &[Server],
    ask: impl Fn(&mut Connection, usize) -> Result<()> + Sync,
) -> Result<String> {
    let (measuring, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (measuring, over, ask) = (&measuring, &over, &ask);
    let client = move |number: usize| -> Result<Sample> {
        let mut api = servers[number % servers.len()].connect()?;
        let mut sample = Sample::default();
        let mut turn = number;
        while !over.load(Ordering::Relaxed) {
            let began = Instant::now();
            ask(&mut api, turn)?;
            if measuring.load(Ordering::Relaxed) {
                sample.push(began.elapsed());
            }
            turn += CLIENTS;
        }
        Ok(sample)
    };
    let (sample, took) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        std::thread::sleep(WARM_UP);
        measuring.store(true, Ordering::Relaxed);
        let began = Instant::now();
        std::thread::sleep(MEASURED);
        over.store(true, Ordering::Relaxed);
        let took = began.elapsed();
        let samples: Result<Sample> = clients
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a client died")?)
            .collect();
        samples.map(|sample| (sample, took))
    })?;
    #[expect(clippy::cast_precision_loss, reason = "not so many")]
    let per_second = sample.len() as f64 / took.as_secs_f64();
    Ok(format!(
        "{per_second:.0} a second; median {:.1} ms, p99 {:.1} ms",
        millis(sample.quantile(0.5)),
        millis(sample.quantile(0.99)),
    ))
}

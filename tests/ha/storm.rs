//! Clients at work behind a haproxy while servers are killed, paused and cut off from the
//! network at random. `DWELL_HA_SECONDS` is for how long, `DWELL_HA_SEED` which storm,
//! `DWELL_HA_SESSIONS` how many sessions stand all the while.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Client, Door, number};
use crate::cluster::Cluster;
use crate::group::{host_of, visit_at, web_socket_at};
use crate::harness::{Api, PATIENCE, Server, agents_in, app_processes, here, signal};
use crate::ledger::{
    Ledger, every_app_was_started_once_at_most, every_end_has_a_reason, no_gpu_was_held_twice,
};
use crate::network::Namespace;
use crate::switch::{Switch, lead_to, plug_in, unplug};

const SERVERS: usize = 3;
const CLIENTS: usize = 6;

/// The servers, each on a host of its own, and what stands before and behind them.
struct World {
    servers: Vec<Server>,
    hosts: Vec<Namespace>,
    front: Front,
    api: Api,
    database: String,
    dir: TempDir,
    _away: Namespace,
    _switch: Switch,
}

impl World {
    async fn new() -> Self {
        let switch = Switch::new();
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::shared();
        let database = cluster.database();
        let postgres = lead_to(cluster.socket(), switch.ours()).await;
        let (away, _) = switch.host(0);
        let [program, word] = away.enter();
        let (hosts, listens): (Vec<_>, Vec<_>) = (0..SERVERS)
            .map(|of| {
                let (host, address) = switch.host(u8::try_from(of + 1).unwrap());
                (host, format!("{address}:8080"))
            })
            .unzip();
        let front = Front::start(dir.path(), &switch, &listens);
        let config = format!(
            "store = \"postgres://dwell@{ours}:{postgres}/{database}?sslmode=disable\"\n\
             domain = \"http://dwell.test\"\naccess = \"link\"\n\
             [gpus]\nCPU = 220\nA10G = 4\n\
             [prices]\nCPU = 3600.0\nA10G = 7200.0\n\
             [limits]\nsessions_per_machine = 300\ngrace_seconds = 1\n\
             heartbeat_seconds = 1\nrelaunch_after_seconds = 4\nlost_after_seconds = 60\n\
             [[launcher]]\nkind = \"local\"\nstart_with = [\"{program}\", \"{word}\"]\n\
             server_url = \"http://{front}\"\nsessions_dir = {sessions:?}\n",
            ours = switch.ours(),
            front = front.at,
            sessions = dir.path().join("sessions"),
        );
        let mut servers: Vec<Server> = Vec::new();
        for (of, (host, listen)) in hosts.iter().zip(&listens).enumerate() {
            let data = dir.path().join(format!("server-{of}"));
            let server = Server::try_start_behind(&host.enter(), &data, &config, listen, &[], &[]);
            servers.push(server.unwrap());
        }
        let api = Api::new(&format!("http://{}", front.at), &servers[0].api.key);
        Self {
            servers,
            hosts,
            front,
            api,
            database,
            dir,
            _away: away,
            _switch: switch,
        }
    }

    /// A test app that puts down whose it is when it is started.
    fn app(&self, name: &str) -> Value {
        let (starts, app) = (self.starts_file(), here(&format!("tests/apps/{name}")));
        let line = format!(
            "echo $DWELL_SESSION_ID >> {}; exec python3 -S {} {}",
            starts.display(),
            app.display(),
            self.dir.path().display()
        );
        json!(["sh", "-c", line])
    }

    fn starts_file(&self) -> std::path::PathBuf {
        self.dir.path().join("starts")
    }

    fn starts(&self) -> Vec<String> {
        let lines = std::fs::read_to_string(self.starts_file()).unwrap_or_default();
        lines.lines().map(str::to_owned).collect()
    }

    fn agents(&self) -> Vec<u32> {
        agents_in(&self.dir.path().join("sessions"))
    }

    /// Ask until somebody answers something else than "later".
    async fn ask(&self, method: Method, path: &str, body: Value) -> crate::harness::Answer {
        let began = Instant::now();
        loop {
            let asked = self
                .api
                .try_send(method.clone(), path, body.to_string())
                .await;
            match asked {
                Ok(answer) if answer.status != 503 => return answer,
                other => assert!(began.elapsed() < PATIENCE, "{path}: still {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn running(&self, id: &str) -> Value {
        let began = Instant::now();
        loop {
            let session = self.get(&format!("/session/{id}")).await;
            if session["status"] == "running" {
                return session;
            }
            assert_ne!(session["status"], "ended", "{session}");
            assert!(began.elapsed() < PATIENCE, "still {session}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.ask(Method::GET, path, json!(null)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &self.servers {
            signal(server.pid(), Signal::SIGKILL);
        }
        for agent in self.agents() {
            signal(agent, Signal::SIGKILL);
        }
    }
}

/// A haproxy before all servers.
struct Front {
    at: String,
    haproxy: Child,
}

impl Front {
    fn start(dir: &Path, switch: &Switch, servers: &[String]) -> Self {
        loop {
            let free = std::net::TcpListener::bind((switch.ours(), 0)).unwrap();
            let at = free.local_addr().unwrap().to_string();
            drop(free);
            let mut config = format!(
                "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 1s\n  \
                 timeout client 1h\n  timeout server 1h\n  timeout check 2s\n  retries 3\n  \
                 option redispatch\nlisten front\n  bind {at}\n  balance roundrobin\n  \
                 option httpchk GET /healthz\n  default-server check inter 500ms fall 2 rise 1 \
                 on-marked-down shutdown-sessions\n"
            );
            for (number, server) in servers.iter().enumerate() {
                config += &format!("  server s{number} {server}\n");
            }
            let file = dir.join("haproxy.cfg");
            std::fs::write(&file, config).unwrap();
            let mut haproxy = Command::new("haproxy")
                .args(["-db", "-f"])
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("haproxy is installed by `make test-ha`");
            let began = Instant::now();
            while haproxy.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(&at).is_ok() {
                    return Self { at, haproxy };
                }
                assert!(began.elapsed() < PATIENCE, "haproxy does not listen");
                std::thread::sleep(Duration::from_millis(10));
            }
            // Somebody else has taken the port meanwhile.
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.haproxy.kill();
        let _ = self.haproxy.wait();
    }
}

/// What happens to servers.
struct Storm {
    world: World,
    rng: Rng,
    /// How often, by server.
    killed: [usize; SERVERS],
    paused: usize,
    unplugged: usize,
}

impl Storm {
    fn rage(mut self, until: Instant) -> Self {
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(self.rng.u64(500..3_000)));
            let of = self.rng.usize(..SERVERS);
            let span = Duration::from_millis(self.rng.u64(500..7_000));
            match self.rng.u8(..3) {
                0 => {
                    self.world.servers[of].kill();
                    std::thread::sleep(span / 4);
                    self.world.servers[of].restart();
                    self.killed[of] += 1;
                }
                1 => {
                    // Past the lease, more often than not.
                    signal(self.world.servers[of].pid(), Signal::SIGSTOP);
                    std::thread::sleep(span);
                    signal(self.world.servers[of].pid(), Signal::SIGCONT);
                    self.paused += 1;
                }
                _ => {
                    unplug(&self.world.hosts[of]);
                    std::thread::sleep(span);
                    plug_in(&self.world.hosts[of]);
                    self.unplugged += 1;
                }
            }
        }
        self
    }
}

/// Looks at one session after another, by whichever server. What is served is the
/// session's own; that there is none nobody says.
async fn look_around(front: String, hosts: Vec<String>, goes_on: Arc<AtomicBool>) -> (u64, u64) {
    let (served, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let odd = Mutex::new(BTreeSet::new());
    while goes_on.load(Ordering::Relaxed) {
        for host in &hosts {
            let visit = tokio::time::timeout(Duration::from_secs(2), visit_at(&front, host));
            match visit.await {
                Ok(Ok(answer)) if answer.status == 200 => {
                    assert_eq!(answer.text, "hello");
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Ok(answer)) => {
                    odd.lock().unwrap().insert(answer.status);
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Err(_)) | Err(_) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
    let odd = odd.into_inner().unwrap();
    assert!(!odd.contains(&404), "a session was said not to be there");
    (served.into_inner(), failed.into_inner())
}

/// Holds a WebSocket by way of one server, and another when that one breaks. How often one
/// broke, and how many words came back.
async fn hold(server: String, host: String, goes_on: Arc<AtomicBool>) -> (usize, u64) {
    let (mut broken, mut echoed) = (0, 0);
    while goes_on.load(Ordering::Relaxed) {
        let Ok(mut socket) = web_socket_at(&server, &host).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while goes_on.load(Ordering::Relaxed) {
            let word = Message::text(echoed.to_string());
            let sent = socket.send(word.clone()).await;
            match (sent, socket.next().await) {
                (Ok(()), Some(Ok(back))) => {
                    assert_eq!(back, word);
                    echoed += 1;
                }
                _ => {
                    broken += 1;
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    (broken, echoed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_servers_acknowledge_in_a_storm_holds_and_no_session_is_disturbed() {
    let seed = number("DWELL_HA_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = number("DWELL_HA_SECONDS").unwrap_or(60);
    let standing = number("DWELL_HA_SESSIONS").unwrap_or(200);
    eprintln!("storm {seed} for {seconds} s; again with DWELL_HA_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let world = World::new().await;

    let body = json!({"command": world.app("serve.py"), "gpu": "CPU", "timeout": 60});
    let mut made: Vec<String> = Vec::new();
    let mut hosts = Vec::new();
    while made.len() < usize::try_from(standing).unwrap() {
        // All at once would keep the machine from anything else.
        let some = join_all((0..10).map(|_| async {
            let answer = world
                .ask(Method::POST, "/session/dynamic", body.clone())
                .await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.json()["session_id"].as_str().unwrap().to_owned()
        }))
        .await;
        for id in &some {
            hosts.push(host_of(&world.running(id).await));
        }
        made.extend(some);
    }
    let held = json!({"command": world.app("streams.py"), "gpu": "CPU", "timeout": 60});
    let answer = world.ask(Method::POST, "/session/dynamic", held).await;
    made.push(answer.json()["session_id"].as_str().unwrap().to_owned());
    let held = host_of(&world.running(&made[made.len() - 1]).await);
    let before: BTreeSet<u32> = app_processes(&made).into_iter().collect();
    eprintln!("{} sessions stand", made.len());

    let until = Instant::now() + Duration::from_secs(seconds);
    let goes_on = Arc::new(AtomicBool::new(true));
    let looking = tokio::spawn(look_around(
        world.front.at.clone(),
        hosts,
        Arc::clone(&goes_on),
    ));
    let holding: Vec<_> = world
        .servers
        .iter()
        .map(|server| {
            let held = hold(server.listen.clone(), held.clone(), Arc::clone(&goes_on));
            tokio::spawn(held)
        })
        .collect();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let door = Door::to(Api::new(&world.api.url, &world.api.key));
            let client = Client::new(door, |name| world.app(name), rng.fork());
            tokio::spawn(client.work(until))
        })
        .collect();
    let storm = Storm {
        world,
        rng,
        killed: [0; SERVERS],
        paused: 0,
        unplugged: 0,
    };
    let storm = tokio::task::spawn_blocking(move || storm.rage(until));
    let storm = storm.await.unwrap();
    let mut ledger = Ledger::default();
    for client in clients {
        ledger.sessions.extend(client.await.unwrap().sessions);
    }
    goes_on.store(false, Ordering::Relaxed);
    let (served, failed) = looking.await.unwrap();
    let Storm {
        world,
        killed,
        paused,
        unplugged,
        ..
    } = storm;
    eprintln!(
        "{} sessions came and went; servers killed {killed:?}, paused {paused}, unplugged \
         {unplugged}; visits served {served}, failed {failed}",
        ledger.sessions.len()
    );
    assert!(
        ledger.sessions.len() > CLIENTS,
        "the storm kept all from working"
    );

    // What comes back by a WebSocket is one's own, through every server, and one that broke
    // with its server can be had again.
    for (holding, killed) in holding.into_iter().zip(killed) {
        let (broken, echoed) = holding.await.unwrap();
        eprintln!("a server killed {killed} times: {broken} WebSockets broke, {echoed} echoes");
        assert!(echoed > 0, "a server let no WebSocket through");
    }
    // Nobody who stood was disturbed.
    for id in &made {
        let session = world.get(&format!("/session/{id}")).await;
        assert_eq!(session["status"], "running", "{session}");
        ledger.created(id, 60);
    }
    let after: BTreeSet<u32> = app_processes(&made).into_iter().collect();
    assert_eq!(after, before);
    audit(&world, &ledger).await;
}

/// End what is open, wait until all is at rest, and check that nothing is left and all is
/// true.
async fn audit(world: &World, ledger: &Ledger) {
    let mut asked = BTreeSet::new();
    let began = Instant::now();
    loop {
        let open = world.get("/sessions").await;
        let open = open.as_array().unwrap();
        if open.is_empty() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "still open: {open:?}");
        for id in ledger.not_cancelled(open) {
            let path = format!("/session/{id}");
            if asked.insert(id) {
                world.ask(Method::DELETE, &path, json!(null)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for id in ledger.sessions.keys() {
        ledger.check(&world.get(&format!("/session/{id}")).await);
    }
    let bodies = Cluster::shared().sql(&world.database, "SELECT body FROM sessions");
    let sessions: Vec<Value> = bodies
        .lines()
        .map(|body| serde_json::from_str(body).unwrap())
        .collect();
    let ids: Vec<String> = sessions
        .iter()
        .map(|session| session["id"].as_str().unwrap().to_owned())
        .collect();
    let began = Instant::now();
    loop {
        let mut left = world.agents();
        left.extend(app_processes(&ids));
        if left.is_empty() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "left: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    every_end_has_a_reason(&sessions);
    every_app_was_started_once_at_most(&world.starts(), &sessions);
    no_gpu_was_held_twice(&sessions);
}

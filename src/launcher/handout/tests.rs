//! What becomes of the script in a job, by each shell that there is here.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use dwell_core::gpu::GpuType;
use dwell_core::id::SessionId;
use dwell_core::time::Millis;
use rcgen::CertifiedKey;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::*;
use crate::agent::spec::AppLimits;
use crate::keys::hex;

/// What the script needs besides something to fetch with, and to check with.
const PROGRAMS: [&str; 6] = ["chmod", "id", "mkdir", "mktemp", "mv", "rm"];

/// It says that it is one, and repeats what it was told.
const AGENT: &str = "#!/bin/sh
case $* in
  'agent --version') echo dwell agent 1 ;;
  'agent job') printf %s \"$DWELL_AGENT\" ;;
  *) exit 2 ;;
esac
";

/// Text that shells, JSON and bytes of shells' own could trip over.
const ASSIGNMENT: &str =
    "{\"a\":\"it's '\\''$HOME `id` \\\\ \\n\",\n\t\"ā\":\"\u{81}\u{88}🦀\r\"}\n";

/// Every shell that there is here, with its words.
fn shells() -> Vec<Vec<PathBuf>> {
    let shells = [["sh", ""], ["dash", ""], ["bash", ""], ["busybox", "sh"]];
    let there = shells.iter().filter_map(|[program, word]| {
        let words = (!word.is_empty()).then(|| PathBuf::from(word));
        Some([find(program)?].into_iter().chain(words).collect())
    });
    there.collect()
}

/// Those that have nothing of their own where `PATH` has none: BusyBox's has.
fn those_without_programs() -> impl Iterator<Item = Vec<PathBuf>> {
    shells().into_iter().filter(|words| words.len() == 1)
}

/// The system's own first: what stands before it may need an environment.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap();
    let dirs = ["/usr/bin".into(), "/bin".into()].into_iter();
    dirs.chain(std::env::split_paths(&path))
        .map(|dir: PathBuf| dir.join(program))
        .find(|path| path.is_file())
}

/// A node, and a job on it.
struct Node {
    dir: tempfile::TempDir,
}

/// What a job said, and how it ended.
struct Ended {
    status: i32,
    out: String,
    err: String,
}

impl Node {
    /// One with these programs, besides those that the script needs in any case.
    fn with(programs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        for program in PROGRAMS.iter().chain(programs) {
            let at = find(program).unwrap_or_else(|| panic!("there is no {program}"));
            symlink(at, bin.join(program)).unwrap();
        }
        let node = Self { dir };
        // Nobody waits for a server that is not there.
        node.put("bin/sleep", "true");
        node
    }

    /// Have this program be called `name`.
    fn put(&self, name: &str, program: &str) {
        symlink(find(program).unwrap(), self.dir.path().join(name)).unwrap();
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("home/.cache/dwell/agents")
    }

    fn start(&self, shell: &[PathBuf], script: &str) -> Child {
        let path = self.dir.path().join(Uuid::new_v4().to_string());
        fs::write(&path, script).unwrap();
        let (program, words) = shell.split_first().unwrap();
        Command::new(program)
            .args(words)
            .arg(path)
            .env_clear()
            .env("PATH", self.dir.path().join("bin"))
            .env("HOME", self.dir.path().join("home"))
            .env("TMPDIR", self.dir.path().join("tmp"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, shell: &[PathBuf], script: &str) -> Ended {
        end_of(self.start(shell, script))
    }
}

fn end_of(job: Child) -> Ended {
    let output = job.wait_with_output().unwrap();
    Ended {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ended {
    /// It became the agent, which was told what it was to be told.
    fn became_agent(&self) {
        assert_eq!((self.status, self.err.as_str()), (0, ""));
        assert_eq!(self.out, ASSIGNMENT);
    }

    fn came_to_none(&self, name: &str) {
        let named = TROUBLES.iter().find(|(_, it, _)| *it == name);
        let (status, _, sentence) = named.unwrap();
        assert_eq!(self.status, *status, "{}", self.err);
        assert!(
            self.err.ends_with(&format!("dwell: {sentence}\n")),
            "{}",
            self.err
        );
        assert_eq!(trouble(self.status), Some(*sentence));
        assert_eq!(self.out, "");
    }
}

/// A server that answers one request after the other with what it was given.
struct Source {
    address: SocketAddr,
    scheme: &'static str,
    asked: Arc<AtomicUsize>,
    serving: Option<JoinHandle<()>>,
    goes: Arc<Mutex<bool>>,
}

impl Source {
    /// `answer` is told how many came before.
    fn new(answer: impl Fn(usize) -> Option<Vec<u8>> + Send + 'static) -> Self {
        Self::with("http", move |stream, before| {
            respond(stream, answer(before));
        })
    }

    /// One that has a certificate that nobody vouches for.
    fn encrypted(body: &'static str) -> Self {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        Self::with("https", move |stream, _| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            respond(StreamOwned::new(connection, stream), Some(body.into()));
        })
    }

    fn with(scheme: &'static str, serve: impl Fn(TcpStream, usize) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let goes = Arc::new(Mutex::new(false));
        let serving = std::thread::spawn({
            let (asked, goes) = (Arc::clone(&asked), Arc::clone(&goes));
            move || {
                for stream in listener.incoming() {
                    if *goes.lock().unwrap() {
                        return;
                    }
                    serve(stream.unwrap(), asked.fetch_add(1, Ordering::Relaxed));
                }
            }
        });
        Self {
            address,
            scheme,
            asked,
            serving: Some(serving),
            goes,
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn order(&self) -> Order {
        order(&format!("{}://{}", self.scheme, self.address))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        *self.goes.lock().unwrap() = true;
        drop(TcpStream::connect(self.address));
        self.serving.take().unwrap().join().unwrap();
    }
}

/// What is asked for is not looked at; no body is what is not there.
fn respond(stream: impl std::io::Read + Write, body: Option<Vec<u8>>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
        line.clear();
    }
    let mut stream = reader.into_inner();
    let status = if body.is_some() {
        "200 OK"
    } else {
        "503 Not Now"
    };
    let body = body.unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Who asked may have gone.
    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    let _ = stream.flush();
}

/// An order whose agent is [`AGENT`].
fn order(server_url: &str) -> Order {
    let sha256 = hex(&Sha256::digest(AGENT));
    Order {
        session: SessionId(Uuid::from_u128(7)),
        name: "dwell-a-b".to_owned(),
        gpu_type: GpuType::cpu(),
        container: None,
        time_limit: Millis(1),
        grace: Millis(1),
        limits: AppLimits::default(),
        server_url: server_url.to_owned(),
        agent: Handout::of(server_url, &sha256),
        assignment: ASSIGNMENT.to_owned(),
    }
}

/// The same, whose agent is this.
fn order_of(agent: &str, order: Order) -> Order {
    let sha256 = hex(&Sha256::digest(agent));
    Order {
        agent: Handout::of(&order.server_url, &sha256),
        ..order
    }
}

/// Those of these programs that there are.
fn there<const N: usize>(programs: [&str; N]) -> impl Iterator<Item = &str> {
    programs.into_iter().filter(|it| find(it).is_some())
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_job_fetches_the_agent_once_and_tells_it_exactly_what_it_was_told() {
    for shell in shells() {
        for program in there(["curl", "wget", "python3"]) {
            let node = Node::with(&[program, "sha256sum"]);
            let source = Source::new(|_| Some(AGENT.into()));
            let script = script(&source.order(), None, None);
            node.run(&shell, &script).became_agent();
            node.run(&shell, &script).became_agent();
            assert_eq!(source.asked(), 1, "{shell:?} {program}");
            assert_eq!(names_in(&node.cache()), [source.order().agent.sha256]);
        }
    }
}

#[test]
fn whatever_can_tell_a_hash_is_good_to_check_with() {
    for shell in shells() {
        for program in there(["sha256sum", "openssl", "busybox", "python3"]) {
            let node = Node::with(&["curl", program]);
            let source = Source::new(|_| Some(AGENT.into()));
            node.run(&shell, &script(&source.order(), None, None))
                .became_agent();
            let source = Source::new(|_| Some("another".into()));
            let order = order_of("another one", source.order());
            node.run(&shell, &script(&order, None, None))
                .came_to_none("WRONG_HASH");
        }
    }
}

#[test]
fn one_program_that_fetches_nothing_leaves_it_to_the_next() {
    for shell in shells() {
        let node = Node::with(&["wget", "sha256sum"]);
        node.put("bin/curl", "false");
        let source = Source::new(|_| Some(AGENT.into()));
        node.run(&shell, &script(&source.order(), None, None))
            .became_agent();
    }
}

#[test]
fn whose_certificate_a_server_has_does_not_matter_for_what_is_known_by_its_hash() {
    // BusyBox's wget has a way to speak TLS on some systems only.
    let [shell, ..] = &shells()[..] else {
        panic!("there is no shell")
    };
    for program in there(["curl", "wget", "python3"]) {
        let node = Node::with(&[program, "sha256sum"]);
        let source = Source::encrypted(AGENT);
        node.run(shell, &script(&source.order(), None, None))
            .became_agent();
    }
}

#[test]
fn what_comes_damaged_is_asked_for_once_more_and_never_run() {
    for shell in shells() {
        let node = Node::with(&["curl", "sha256sum"]);
        let source = Source::new(|before| {
            let cut = if before == 0 { 40 } else { AGENT.len() };
            Some(AGENT[..cut].into())
        });
        let ended = node.run(&shell, &script(&source.order(), None, None));
        assert_eq!((ended.status, ended.out.as_str()), (0, ASSIGNMENT));
        assert!(ended.err.contains("asking once more"), "{}", ended.err);
        assert_eq!(source.asked(), 2);

        let source = Source::new(|_| Some("#!/bin/sh\necho mine\n".into()));
        let order = order_of("something new", source.order());
        let ended = node.run(&shell, &script(&order, None, None));
        ended.came_to_none("WRONG_HASH");
        assert_eq!(source.asked(), 2);
        // Nothing of it stays.
        assert_eq!(names_in(&node.cache()).len(), 1);
    }
}

#[test]
fn an_agent_that_was_damaged_where_it_lay_is_fetched_anew() {
    for shell in shells() {
        let node = Node::with(&["curl", "sha256sum"]);
        let source = Source::new(|_| Some(AGENT.into()));
        let order = source.order();
        let script = script(&order, None, None);
        node.run(&shell, &script).became_agent();
        fs::write(node.cache().join(&order.agent.sha256), "#!/bin/sh\n").unwrap();
        node.run(&shell, &script).became_agent();
        assert_eq!(source.asked(), 2);
    }
}

#[test]
fn a_server_that_comes_back_is_waited_for_and_one_that_does_not_is_named() {
    for shell in those_without_programs() {
        let node = Node::with(&["curl", "sha256sum"]);
        let source = Source::new(|before| (before >= 4).then(|| AGENT.into()));
        let ended = node.run(&shell, &script(&source.order(), None, None));
        assert_eq!((ended.status, ended.out.as_str()), (0, ASSIGNMENT));

        let node = Node::with(&["curl", "wget", "sha256sum"]);
        let source = Source::new(|_| None);
        let order = source.order();
        let ended = node.run(&shell, &script(&order, None, None));
        assert!(ended.err.contains(&order.agent.url), "{}", ended.err);
        ended.came_to_none("NOT_FETCHED");
        assert!(names_in(&node.cache()).is_empty());
    }
}

#[test]
fn a_node_with_nothing_to_fetch_with_says_what_to_do() {
    for shell in those_without_programs() {
        let node = Node::with(&["sha256sum"]);
        let source = Source::new(|_| Some(AGENT.into()));
        node.run(&shell, &script(&source.order(), None, None))
            .came_to_none("NO_PROGRAM");
        let node = Node::with(&["curl"]);
        node.run(&shell, &script(&source.order(), None, None))
            .came_to_none("NO_PROGRAM");
    }
}

#[test]
fn jobs_that_start_at_once_on_one_file_system_all_get_theirs() {
    for shell in shells() {
        let node = Node::with(&["curl", "sha256sum"]);
        let source = Source::new(|_| Some(AGENT.into()));
        let script = script(&source.order(), None, None);
        let jobs: Vec<_> = (0..8).map(|_| node.start(&shell, &script)).collect();
        for job in jobs {
            end_of(job).became_agent();
        }
        assert_eq!(names_in(&node.cache()).len(), 1);
    }
}

#[test]
fn a_home_that_cannot_be_had_is_done_without() {
    for shell in shells() {
        let node = Node::with(&["curl", "sha256sum"]);
        // Nothing can be made below a file, whoever tries.
        fs::write(node.dir.path().join("home"), "").unwrap();
        let source = Source::new(|_| Some(AGENT.into()));
        node.run(&shell, &script(&source.order(), None, None))
            .became_agent();
        let [dir] = &names_in(&node.dir.path().join("tmp"))[..] else {
            panic!("it is not where it should be")
        };
        assert!(dir.starts_with("dwell-agents-"), "{dir}");
    }
}

#[test]
fn a_directory_that_others_could_have_made_is_not_trusted() {
    for shell in shells() {
        let node = Node::with(&["curl", "sha256sum"]);
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir_all(node.cache().parent().unwrap()).unwrap();
        symlink(elsewhere.path(), node.cache()).unwrap();
        let source = Source::new(|_| Some(AGENT.into()));
        node.run(&shell, &script(&source.order(), None, None))
            .became_agent();
        assert!(names_in(elsewhere.path()).is_empty());
    }
}

#[test]
fn an_agent_that_cannot_run_there_is_none() {
    for shell in shells() {
        let node = Node::with(&["curl", "sha256sum"]);
        let other_machines = "\u{7f}ELF for another kind of machine";
        let source = Source::new(move |_| Some(other_machines.into()));
        let order = order_of(other_machines, source.order());
        node.run(&shell, &script(&order, None, None))
            .came_to_none("CANNOT_RUN");
    }
}

#[test]
fn an_agent_that_is_named_is_run_and_no_other() {
    for shell in shells() {
        let node = Node::with(&["curl", "sha256sum"]);
        let source = Source::new(|_| Some(AGENT.into()));
        let fetched = source.order();
        node.run(&shell, &script(&fetched, None, None))
            .became_agent();
        // As the nodes' owner has called it.
        let at = node.dir.path().join("it's dwell's agent");
        fs::rename(node.cache().join(&fetched.agent.sha256), &at).unwrap();
        let order = order("http://127.0.0.1:1");
        node.run(&shell, &script(&order, at.to_str(), None))
            .became_agent();
        let ended = node.run(&shell, &script(&order, Some("/nowhere/dwell-agent"), None));
        assert!(ended.err.contains("/nowhere/dwell-agent"), "{}", ended.err);
        ended.came_to_none("CANNOT_RUN");
    }
}

#[test]
fn every_trouble_of_the_script_has_a_sentence_and_no_other_status_has() {
    for (_, name, _) in TROUBLES {
        assert!(FIND_AGENT.contains(&format!("${name}")), "{name}");
    }
    for status in [0, 1, 2, 126, 127, 143] {
        assert_eq!(trouble(status), None);
    }
}

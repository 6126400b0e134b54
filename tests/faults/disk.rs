//! Disks that are full, read-only or locked, and journals that are damaged.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::audit::audit;
use super::harness::{Answer, PATIENCE, app_processes, signal};
use super::ledger::Ledger;
use super::world::{CONFIG, World};

// --- Disks ------------------------------------------------------------------------

/// A file system on a directory, seen by this thread and what it starts alone.
struct Disk {
    at: PathBuf,
}

impl Disk {
    /// A disk of so many bytes for a world's data.
    fn of_memory(world_dir: &Path, bytes: u64) -> Self {
        let disk = Self::at(world_dir);
        let none: Option<&str> = None;
        let size = format!("size={bytes}");
        mount(
            none,
            &disk.at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .unwrap();
        disk
    }

    fn at(world_dir: &Path) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "a disk can be mounted by root alone; run `make test-faults`, or this under \
             `unshare --user --map-root-user --mount`"
        );
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        let at = world_dir.join("data");
        std::fs::create_dir(&at).unwrap();
        Self { at }
    }

    /// A disk that can break. `None` where this host has none to give.
    fn of_image(world_dir: &Path) -> Option<Self> {
        let disk = Self::at(world_dir);
        let image = world_dir.join("image");
        std::fs::write(&image, vec![0; 32 << 20]).unwrap();
        let is_made = succeeds(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        (is_made && disk.mount_image()).then_some(disk)
    }

    fn mount_image(&self) -> bool {
        let image = self.at.with_file_name("image");
        let mut mount = Command::new("mount");
        succeeds(
            mount
                .args(["-o", "loop,errors=remount-ro"])
                .arg(image)
                .arg(&self.at),
        )
    }

    /// From now on it can be read only, whoever has files open for writing.
    fn breaks(&self) {
        let mut mount = Command::new("mount");
        assert!(succeeds(mount.args(["-o", "remount,abort"]).arg(&self.at)));
    }

    /// Nobody uses it any more.
    fn is_repaired(&self) {
        let began = Instant::now();
        while let Err(error) = umount2(&self.at, MntFlags::empty()) {
            assert!(began.elapsed() < PATIENCE, "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(self.mount_image());
    }

    fn fill(&self) {
        let mut ballast = std::fs::File::create(self.at.join("ballast")).unwrap();
        let mut size = 64 << 10;
        while size > 0 {
            if ballast.write_all(&vec![0; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn free_again(&self) {
        std::fs::remove_file(self.at.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

/// A world whose data is on a small disk. The disk goes before the world, whose
/// directory it is in.
fn world_on_small_disk() -> (World, Disk) {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::of_memory(place.path(), 4 << 20);
    (World::begin(place, CONFIG, None), disk)
}

fn world_on_fragile_disk() -> Option<(World, Disk)> {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::of_image(place.path())?;
    Some((World::begin(place, CONFIG, None), disk))
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_and_disturbs_nothing_that_runs() {
    let (mut world, disk) = world_on_small_disk();
    let mut tenants = Tenants::move_in(&mut world).await;
    disk.fill();
    tenants.are_refused(&mut world, "its disk is full").await;
    tenants.are_shown(&world).await;
    tenants.live_to_their_deadline(&world).await;
    tenants.are_shown(&world).await;
    disk.free_again();
    tenants.are_served_again(&mut world).await;
    let short = world.until(text(&tenants.short["id"]), has_ended).await;
    assert_eq!(short["end_reason"], "timed_out", "{short}");
    audit(&mut world, &tenants.ledger).await;
}

#[tokio::test]
async fn a_disk_that_breaks_refuses_what_is_new_disturbs_nothing_and_keeps_what_was_acknowledged() {
    let Some((mut world, disk)) = world_on_fragile_disk() else {
        eprintln!("not tested: this host lets nobody mount an ext4 image (not root itself?)");
        return;
    };
    let mut tenants = Tenants::move_in(&mut world).await;
    disk.breaks();
    // What the kernel could not write it forgets: even reading may fail after a while.
    tenants.are_refused(&mut world, "disk").await;
    tenants.live_to_their_deadline(&world).await;
    // Such a disk is good again only after its host was.
    world.kill();
    world.kill_all();
    disk.is_repaired();
    world.start();
    audit(&mut world, &tenants.ledger).await;
}

#[tokio::test]
async fn a_store_that_is_locked_by_a_backup_refuses_and_works_when_it_is_released() {
    let mut world = World::new(CONFIG);
    let mut tenants = Tenants::move_in(&mut world).await;
    let backup = Backup::begin(&world.data_dir().join("store.db"));
    tenants
        .are_refused(&mut world, "is locked by another program (a backup?)")
        .await;
    tenants.are_shown(&world).await;
    backup.end();
    tenants.are_served_again(&mut world).await;
    audit(&mut world, &tenants.ledger).await;
}

/// Another program that holds the store's lock.
struct Backup(Child);

impl Backup {
    fn begin(store: &Path) -> Self {
        let program = "import sqlite3, sys\n\
            store = sqlite3.connect(sys.argv[1], timeout=30)\n\
            store.execute('BEGIN EXCLUSIVE')\n\
            print('locked', flush=True)\n\
            sys.stdin.readline()";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .arg(store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        Self(child)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// --- Who lives there --------------------------------------------------------------

/// Two sessions that run: one until its deadline, which is near, and one that stays.
struct Tenants {
    ledger: Ledger,
    short: Value,
    long: Value,
}

impl Tenants {
    async fn move_in(world: &mut World) -> Self {
        let mut ledger = Ledger::default();
        let short = running(world, &mut ledger, "stubborn.py", 1).await;
        let long = running(world, &mut ledger, "stubborn.py", 5).await;
        Self {
            ledger,
            short,
            long,
        }
    }

    /// Within seconds, with a sentence; and what was there before goes on.
    async fn are_refused(&mut self, world: &mut World, why: &str) {
        let id = text(&self.long["id"]).to_owned();
        let create = json!({"command": world.app("serve.py"), "timeout": 5});
        let began = Instant::now();
        // Some of it may still fit.
        let refused = loop {
            let path = "/session/dynamic";
            let answer = promptly(world, Method::POST, path, &create).await;
            if answer.status != 200 {
                break answer;
            }
            self.ledger
                .created(answer.json()["session_id"].as_str().unwrap(), 5);
            assert!(began.elapsed() < PATIENCE, "nothing is ever refused");
        };
        let store = world.data_dir().join("store.db").display().to_string();
        let names_the_store = |answer: &Answer| {
            let sentence = answer.detail();
            let is_so = sentence.contains(&store) && sentence.contains(why);
            assert!(answer.status == 503 && is_so, "{answer:?}");
        };
        names_the_store(&refused);
        let path = format!("/session/{id}/increase-timeout");
        names_the_store(&promptly(world, Method::POST, &path, &json!({"minutes": 1})).await);
        let path = format!("/session/{id}");
        names_the_store(&promptly(world, Method::DELETE, &path, &json!(null)).await);
        self.urls_answer(world).await;
    }

    async fn urls_answer(&self, world: &World) {
        let url = text(&self.long["url"]);
        let page = promptly(world, Method::GET, url, &json!(null)).await;
        assert_eq!(page.text, "hello");
    }

    async fn are_shown(&self, world: &World) {
        let path = format!("/session/{}", text(&self.long["id"]));
        let shown = promptly(world, Method::GET, &path, &json!(null))
            .await
            .json();
        assert_eq!(shown["status"], "running", "{shown}");
        self.ledger.check(&shown);
        assert_eq!(shown["url"], self.long["url"], "{shown}");
    }

    async fn live_to_their_deadline(&self, world: &World) {
        let id = text(&self.short["id"]).to_owned();
        let deadline: jiff::Timestamp = text(&self.short["timeout_end"]).parse().unwrap();
        let late = || jiff::Timestamp::now().as_millisecond() - deadline.as_millisecond();
        while !app_processes(std::slice::from_ref(&id)).is_empty() {
            assert!(late() < 2_500, "{} ms late and still there", late());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(late() > -1_100, "{} ms too early", -late());
        self.urls_answer(world).await;
    }

    /// Without a restart.
    async fn are_served_again(&mut self, world: &mut World) {
        running(world, &mut self.ledger, "serve.py", 5).await;
        let long = text(&self.long["id"]).to_owned();
        let path = format!("/session/{long}/increase-timeout");
        let answer = world.ask(Method::POST, &path, json!({"minutes": 2})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        self.ledger.of(&long).minutes += 2;
        self.are_shown(world).await;
        self.urls_answer(world).await;
    }
}

/// The server's answer; it does not leave one waiting.
async fn promptly(world: &World, method: Method, path: &str, body: &Value) -> Answer {
    let began = Instant::now();
    let door = world.door();
    let answer = door.try_send(method, path, body).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}: {answer:?}",
        began.elapsed()
    );
    answer
}

// --- Journals ---------------------------------------------------------------------

#[tokio::test]
async fn a_journal_that_is_damaged_or_gone_still_ends_with_a_sentence_and_a_closed_event() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 6] = [
        |journal| journal.clear(),
        |journal| journal.truncate(journal.len() - 1),
        |journal| journal.truncate(journal.len() - 12),
        |journal| journal.extend(b"{\"event\":\"ended\",\"status\":{\"held_ms\":99"),
        |journal| journal.extend([0; 4_096]),
        |journal| {
            journal.truncate(journal.len() - 3);
            journal.extend(b"\xff\xfe\n\n}{\0\n[1]\n\"ended\"");
        },
    ];
    let mut world = World::new(CONFIG);
    let mut ledger = Ledger::default();
    for _ in &damages {
        running(&mut world, &mut ledger, "stubborn.py", 5).await;
    }
    world.kill();
    for agent in world.agents() {
        signal(agent, Signal::SIGKILL);
    }
    for (id, damage) in ledger.sessions.keys().zip(damages) {
        let file = world
            .data_dir()
            .join("sessions")
            .join(id)
            .join("journal.jsonl");
        let mut journal = std::fs::read(&file).unwrap();
        damage(&mut journal);
        std::fs::write(&file, journal).unwrap();
    }
    world.start();
    for id in ledger.sessions.keys() {
        let ended = world.until(id, has_ended).await;
        assert_eq!(ended["end_reason"], "failed", "{ended}");
        assert!(ended["error"].is_string(), "{ended}");
    }
    audit(&mut world, &ledger).await;
}

/// A session of this app, once it runs.
async fn running(world: &mut World, ledger: &mut Ledger, app: &str, minutes: u64) -> Value {
    let body = json!({"command": world.app(app), "timeout": minutes, "gpu": "CPU"});
    let answer = world.ask(Method::POST, "/session/dynamic", body).await;
    let id = answer.json()["session_id"].as_str().unwrap().to_owned();
    ledger.created(&id, minutes);
    world.until(&id, |shown| shown["status"] == "running").await
}

fn has_ended(session: &Value) -> bool {
    session["status"] == "ended"
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

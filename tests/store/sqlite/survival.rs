//! What is left when the process is killed, or may write no more.
//!
//! Each test runs a second time as its own child, which plays the server.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dwell::store::Store;
use dwell::store::sqlite::Sqlite;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::Directory;
use crate::conformance::Home;
use crate::rows::*;

/// In the child: the file to play with.
const FILE: &str = "DWELL_TEST_STORE";
/// In the child: the first session to make.
const FIRST: &str = "DWELL_TEST_FIRST_SESSION";

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    if let Some(file) = file_to_play_with() {
        return commit_for_ever(&file).await;
    }
    let home = Directory::fresh().await;
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut server = this_test_as_child(
            "sqlite::survival::what_was_acknowledged_survives_a_kill",
            &home.file(),
            round * 1_000_000,
        );
        let mut said = lines(&mut server);
        // At no particular moment: it goes on while we count.
        acknowledged.extend(said.by_ref().take(fastrand::usize(1..300)));
        server.kill().unwrap();
        server.wait().unwrap();
        acknowledged.extend(said);

        let store = home.open().await;
        for n in &acknowledged {
            let found = store.session(&ann(), session_id(*n)).await.unwrap();
            assert_eq!(found.map(|record| record.session), Some(session(*n)));
        }
    }
    assert!(acknowledged.len() >= 5);
}

/// Eight commits at a time, each acknowledged in a line of its own.
async fn commit_for_ever(file: &Path) {
    let first: u32 = std::env::var(FIRST).unwrap().parse().unwrap();
    let store = Sqlite::open(file).unwrap();
    let mut sessions = first..;
    let commit = |n: u32| {
        let changes = vec![put(&session(n))];
        let store = &store;
        async move {
            store.commit(changes).await.unwrap();
            n
        }
    };
    let mut waiting: FuturesUnordered<_> = sessions.by_ref().take(8).map(commit).collect();
    while let Some(done) = waiting.next().await {
        // Fails, and ends us, when the parent is gone.
        writeln!(std::io::stdout(), "acknowledged {done}").unwrap();
        waiting.extend(sessions.next().map(commit));
    }
}

#[tokio::test]
async fn a_disk_that_takes_no_more_loses_nothing_and_is_used_again_when_it_does() {
    if let Some(file) = file_to_play_with() {
        return write_to_the_limit_and_beyond(&file).await;
    }
    let home = Directory::fresh().await;
    let mut server = this_test_as_child(
        "sqlite::survival::\
         a_disk_that_takes_no_more_loses_nothing_and_is_used_again_when_it_does",
        &home.file(),
        0,
    );
    let acknowledged: Vec<_> = lines(&mut server).collect();
    assert!(server.wait().unwrap().success());
    let kept = home.open().await.load().await.unwrap().sessions;
    assert_eq!(kept.len(), acknowledged.len());
    assert!(kept.len() > 100);
}

/// The kernel refuses to let a file grow beyond a limit, as it does on a full disk.
async fn write_to_the_limit_and_beyond(file: &Path) {
    let store = Sqlite::open(file).unwrap();
    // SAFETY: `SIG_IGN` runs no code of ours.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, most).unwrap();

    let mut n = 0;
    let refusal = loop {
        match store.commit(vec![put(&session(n))]).await {
            Ok(()) => writeln!(std::io::stdout(), "acknowledged {n}").unwrap(),
            Err(refusal) => break refusal,
        }
        n += 1;
    };
    assert!(
        refusal.0.starts_with(&file.display().to_string()) && refusal.0.contains("disk"),
        "{refusal}"
    );
    let open = store.open_sessions(&ann(), None).await.unwrap();
    assert_eq!(open.len(), n as usize, "all but the refused one");
    assert!(store.commit(vec![put(&session(n))]).await.is_err());

    setrlimit(Resource::RLIMIT_FSIZE, most, most).unwrap();
    for n in n..n + 100 {
        store.commit(vec![put(&session(n))]).await.unwrap();
        writeln!(std::io::stdout(), "acknowledged {n}").unwrap();
    }
}

fn file_to_play_with() -> Option<PathBuf> {
    std::env::var_os(FILE).map(PathBuf::from)
}

fn this_test_as_child(name: &str, file: &Path, first: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(FILE, file)
        .env(FIRST, first.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The sessions that the child acknowledges, up to its end. A line that it was
/// killed in does not count.
fn lines(child: &mut Child) -> impl Iterator<Item = u32> + use<> {
    let mut output = BufReader::new(child.stdout.take().unwrap());
    std::iter::from_fn(move || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line.ends_with('\n').then_some(line)
    })
    // The test harness has its own lines, and its word before our first.
    .filter_map(|line| Some(line.rsplit_once("acknowledged ")?.1.trim().parse().unwrap()))
}

//! What is left when the process is killed, or may write no more.

use std::io::Write;
use std::path::Path;

use dwell::store::Store;
use dwell::store::sqlite::Sqlite;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::Directory;
use crate::child::{commit_for_ever, place_to_play_with, sessions_acknowledged, this_test};
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    if let Some(file) = place_to_play_with() {
        return commit_for_ever(Sqlite::open(file.as_ref()).unwrap()).await;
    }
    let home = Directory::fresh().await;
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut server = this_test(
            "sqlite::survival::what_was_acknowledged_survives_a_kill",
            home.file().as_os_str(),
            round * 1_000_000,
        );
        let mut said = sessions_acknowledged(&mut server);
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

#[tokio::test]
async fn a_disk_that_takes_no_more_loses_nothing_and_is_used_again_when_it_does() {
    if let Some(file) = place_to_play_with() {
        return write_to_the_limit_and_beyond(file.as_ref()).await;
    }
    let home = Directory::fresh().await;
    let mut server = this_test(
        "sqlite::survival::\
         a_disk_that_takes_no_more_loses_nothing_and_is_used_again_when_it_does",
        home.file().as_os_str(),
        0,
    );
    let acknowledged: Vec<_> = sessions_acknowledged(&mut server).collect();
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

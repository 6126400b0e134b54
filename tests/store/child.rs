//! A test that runs a second time as its own child, which plays the server.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use dwell::store::Store;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::rows::*;

/// In the child: the store to play with.
const PLACE: &str = "DWELL_TEST_STORE";
/// In the child: the first session to make.
const FIRST: &str = "DWELL_TEST_FIRST_SESSION";

/// In the child, and there alone.
pub fn place_to_play_with() -> Option<OsString> {
    std::env::var_os(PLACE)
}

/// The test of this name, as a child.
pub fn this_test(name: &str, place: &OsStr, first: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(PLACE, place)
        .env(FIRST, first.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Eight commits at a time, each acknowledged in a line of its own.
pub async fn commit_for_ever(store: impl Store) {
    let first: u32 = std::env::var(FIRST).unwrap().parse().unwrap();
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

/// The sessions that the child acknowledges, up to its end. A line that it was
/// killed in does not count.
pub fn sessions_acknowledged(child: &mut Child) -> impl Iterator<Item = u32> + use<> {
    let mut output = BufReader::new(child.stdout.take().unwrap());
    std::iter::from_fn(move || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line.ends_with('\n').then_some(line)
    })
    // The test harness has its own lines, and its word before our first.
    .filter_map(|line| Some(line.rsplit_once("acknowledged ")?.1.trim().parse().unwrap()))
}

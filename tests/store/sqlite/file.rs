//! The file itself: who may read it, and what is said of one that cannot be used.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use dwell::store::Store;
use dwell::store::sqlite::Sqlite;

use super::Directory;
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn nobody_else_may_read_the_file() {
    let home = Directory::fresh().await;
    let store = home.open().await;
    store.commit(vec![put(&session(1))]).await.unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(home.0.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
        files += 1;
    }
    assert!(files > 1, "the log is there too");
}

#[tokio::test]
async fn a_closed_store_is_one_file() {
    let home = Directory::fresh().await;
    let store = home.open().await;
    store.commit(vec![put(&session(1))]).await.unwrap();
    drop(store);
    let files: Vec<_> = std::fs::read_dir(home.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files, [home.file()]);
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let home = Directory::fresh().await;
    drop(home.open().await);
    let newer = rusqlite::Connection::open(home.file()).unwrap();
    newer.pragma_update(None, "user_version", 7).unwrap();
    newer.close().unwrap();
    let before = std::fs::read(home.file()).unwrap();

    let expected = format!(
        "{} was written by a newer version of dwell (schema 7, this one knows 2); upgrade dwell",
        home.file().display()
    );
    assert_eq!(refusal(&home.file()), expected);
    assert_eq!(std::fs::read(home.file()).unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_as_it_is() {
    let home = Directory::fresh().await;
    let letter = "Dear store,\n".repeat(1_000);
    std::fs::write(home.file(), &letter).unwrap();
    let expected = format!(
        "{} is damaged, or its disk is, or it is no store of dwell's; look at the disk first, \
         then restore the file from a backup, or move it away to begin anew",
        home.file().display()
    );
    assert_eq!(refusal(&home.file()), expected);
    assert_eq!(std::fs::read_to_string(home.file()).unwrap(), letter);
}

#[tokio::test]
async fn damage_is_said_and_not_served() {
    let home = Directory::fresh().await;
    let store = home.open().await;
    let many = (0..500).map(|n| put(&session(n)));
    store.commit(many.collect()).await.unwrap();
    drop(store);
    // All but the first page, which says what the file is.
    let file = std::fs::File::options()
        .write(true)
        .open(home.file())
        .unwrap();
    let length = file.metadata().unwrap().len();
    let noise = vec![0xA5; usize::try_from(length).unwrap() - 4_096];
    file.write_all_at(&noise, 4_096).unwrap();

    let refusal = match Sqlite::open(&home.file()) {
        Err(refusal) => refusal,
        Ok(store) => store.load().await.unwrap_err(),
    };
    assert!(refusal.0.contains("is damaged"), "{refusal}");
}

#[tokio::test]
async fn a_row_that_cannot_be_understood_is_said() {
    let home = Directory::fresh().await;
    let store = home.open().await;
    store.commit(vec![put(&session(1))]).await.unwrap();
    let other = rusqlite::Connection::open(home.file()).unwrap();
    other
        .execute("UPDATE sessions SET body = '{}'", [])
        .unwrap();
    let refusal = store.session(&ann(), session_id(1)).await.unwrap_err();
    assert!(
        refusal.0.starts_with(&home.file().display().to_string()),
        "{refusal}"
    );
    assert!(
        refusal.0.contains("has a row that cannot be read"),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_place_where_no_file_can_be_is_named() {
    let home = Directory::fresh().await;
    std::fs::write(home.file(), "").unwrap();
    for place in [
        home.0.path().join("nowhere/store.db"),
        home.file().join("store.db"),
        home.0.path().to_owned(),
    ] {
        let refusal = refusal(&place);
        let expected = format!("{} could not be opened", place.display());
        assert!(refusal.starts_with(&expected), "{refusal}");
        assert!(!refusal.contains('\n'), "{refusal}");
    }
}

fn refusal(file: &Path) -> String {
    match Sqlite::open(file) {
        Ok(_) => panic!("{} was opened", file.display()),
        Err(refusal) => refusal.0,
    }
}

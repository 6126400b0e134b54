//! Servers of two versions on one database: the newer has brought it to its schema.

use crate::group::{Group, can_create};
use crate::harness::{Server, app};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_the_version_before_go_on_and_none_of_them_begins() {
    let mut group = Group::start(2);
    let before = group.servers[1].api.create(app("streams.py")).await;
    group.servers[1].api.running(&before).await;
    // As the newer one does first of all; what it adds the older ones do not know.
    group.sql(
        "UPDATE dwell_schema SET version = version + 1;
         ALTER TABLE sessions ADD COLUMN of_the_newer TEXT;
         CREATE TABLE newer (id UUID)",
    );
    for server in &group.servers {
        let id = server.api.create(app("streams.py")).await;
        server.api.running(&id).await;
        server.api.stop(&id).await;
    }
    // The one that leads goes, as in a roll-out: another of the older ones may lead.
    group.servers[0].kill();
    group.leads_one_of(&[1]).await;
    let survivor = &group.servers[1].api;
    survivor.running(&before).await;
    let (id, _) = can_create(survivor).await;
    survivor.running(&id).await;
    // It does not come back as what it was.
    let first = &group.servers[0];
    let refused = Server::try_start_in(&first.dir, &first.config, &first.listen, &[], &[]);
    let refused = refused.err().unwrap();
    assert!(
        refused.contains("was written by a newer version of dwell (schema "),
        "{refused}"
    );
    survivor.stop(&id).await;
    survivor.stop(&before).await;
    group.nothing_is_left(&[before, id]).await;
}

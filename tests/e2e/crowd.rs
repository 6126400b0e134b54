//! Many at once.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::harness::{ROOMY, Server, app};

#[tokio::test]
async fn two_hundred_sessions_at_once_all_answer_all_end_and_leave_nothing() {
    let server = Server::start(ROOMY);
    let api = &server.api;
    let ids = join_all((0..200).map(|_| api.create(app("serve.py")))).await;
    let urls = join_all(ids.iter().map(async |id| {
        let session = api.running(id).await;
        session["url"].as_str().unwrap().to_owned()
    }))
    .await;
    assert_eq!(urls.iter().collect::<BTreeSet<_>>().len(), 200);
    let pages = join_all(urls.iter().map(|url| api.get(url))).await;
    assert!(
        pages
            .iter()
            .all(|page| page.status == 200 && page.text == "hello")
    );

    let open = api.get("/sessions").await.json();
    assert_eq!(open.as_array().unwrap().len(), 200);
    join_all(ids.iter().map(|id| api.stop(id))).await;
    assert_eq!(
        api.get("/sessions").await.json().as_array().unwrap().len(),
        0
    );
    let events = api.get("/platform/usage-details").await.json();
    let events = events.as_array().unwrap();
    assert_eq!(events.len(), 200);
    assert!(events.iter().all(|event| event["end_time"].is_string()));
    server.nothing_is_left(&ids).await;
}

//! Who may open channels.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::far::{Far, address};

/// What comes back for a call by these words, up to the end of its head.
async fn call(far: &Far, session: &str, secret: &str) -> String {
    let at = address(&far.api().url);
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!(
        "GET /agent/v1/sessions/{session}/channel HTTP/1.1\r\nhost: {at}\r\n\
         connection: upgrade\r\nupgrade: dwell-channel/1\r\nauthorization: Bearer {secret}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1_024];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

fn secret_of(far: &Far, session: &str) -> String {
    let file = far
        .server
        .dir
        .join("sessions")
        .join(session)
        .join("agent.json");
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    spec["secret"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_sessions_own_agent_opens_channels_to_it() {
    let far = Far::new().await;
    let ((one, url), (two, _)) = (far.session().await, far.session().await);
    let own = secret_of(&far, &one);
    let others = secret_of(&far, &two);
    let admin = far.api().key.clone();
    for secret in ["", "x", &others, &admin] {
        let answer = call(&far, &one, secret).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    for session in ["nobody", "00000000-0000-0000-0000-000000000000"] {
        let answer = call(&far, session, &own).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    let answer = call(&far, &one, &own).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    // That one is closed by now, and nobody is led to it.
    far.visit(&url).await;
    for id in [one, two] {
        far.api().stop(&id).await;
    }
}

//! Images that have to be fetched first: slowly, never, or to where there is no room.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::{BUSYBOX, Engine, Kind};
use crate::harness::{DWELL, Server};
use crate::image;
use crate::registry::{FAST, Registry, grow};
use crate::stories::{fails, web};

const PATIENCE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;
/// How large an image is, nearly.
const SIZE: usize = 12 << 20;

/// The name of a new image that the registry has, and the engine does not.
fn image_in(registry: &Registry<'_>, engine: &Engine) -> String {
    let name = format!("{}/app-{}:1", registry.address, fastrand::u32(..));
    let dir = tempfile::tempdir().unwrap();
    let tree = image::busybox(dir.path());
    grow(&tree, SIZE);
    engine.import(&tree, &name);
    engine.docker(&["push", &name]);
    engine.docker(&["rmi", &name]);
    name
}

fn session(image: &str) -> Value {
    json!({"command": web("true"), "image": image, "timeout": 5})
}

/// What has been said so far in a session that may be open.
fn said(server: &Server, session: &str) -> Vec<String> {
    let mut logs = Command::new(DWELL);
    logs.args(["logs", session, "--data-dir"]).arg(&server.dir);
    let logs = logs.env_remove("DWELL_URL").env_remove("DWELL_API_KEY");
    let logs = logs.output().unwrap();
    let lines = String::from_utf8(logs.stdout).unwrap();
    lines.lines().map(str::to_owned).collect()
}

/// Once it has said something like that.
async fn says(server: &Server, session: &str, is_so: impl Fn(&str) -> bool) {
    let began = Instant::now();
    loop {
        let said = said(server, session);
        if said.iter().any(|line| is_so(line)) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{said:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn has_begun(line: &str) -> bool {
    line.ends_with(" is not there; pulling it")
}

/// `Pulling IMAGE: 3 of 12 MiB in sight`, in its midst.
fn is_under_way(line: &str) -> bool {
    let mut words = line.split_whitespace().rev().skip(3);
    let (Some(all), Some("of"), Some(have)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let number = |word: &str| word.parse::<u64>().unwrap();
    line.starts_with("Pulling ") && (1..number(all)).contains(&number(have))
}

pub async fn a_pull_says_how_far_it_is(engine: &Engine) {
    let _guard = engine.shared().await;
    let registry = Registry::of(engine).await;
    let image = image_in(&registry, engine);
    registry.gives(2 * MIB);
    let server = Server::start(&engine.config());
    let id = server.api.create_with(session(&image)).await;
    says(&server, &id, is_under_way).await;
    let now = server.api.session(&id).await;
    assert_eq!(now["status"], "starting", "{now}");
    registry.gives(FAST);
    server.api.running(&id).await;
    let log = said(&server, &id);
    assert!(has_begun(&log[0]), "{log:?}");
    let ends = |line: &String| line.starts_with(&format!("Pulled {image} in "));
    assert_eq!(log.iter().filter(|line| ends(line)).count(), 1, "{log:?}");
    server.api.stop(&id).await;
    engine.docker(&["rmi", "--force", &image]);
}

pub async fn a_pull_that_stalls_ends_with_its_limit_and_one_that_nobody_wants_at_once(
    engine: &Engine,
) {
    let _guard = engine.shared().await;
    let registry = Registry::of(engine).await;
    let image = image_in(&registry, engine);
    registry.gives(0);
    let server = Server::start(&(engine.config() + "pull_minutes = 0.1\n"));
    let unwanted = server.api.create_with(session(&image)).await;
    says(&server, &unwanted, has_begun).await;
    let ended = server.api.stop(&unwanted).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    let error = fails(&server.api, session(&image)).await;
    assert_eq!(error, "What the app needs was not fetched within 6 s");
    // It is no worse for that.
    registry.gives(FAST);
    let id = server.api.create_with(session(&image)).await;
    server.api.running(&id).await;
    server.api.stop(&id).await;
    engine.docker(&["rmi", "--force", &image]);
}

pub async fn a_registry_that_goes_in_the_midst_ends_with_a_sentence(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut registry = Registry::of(engine).await;
    let image = image_in(&registry, engine);
    registry.gives(MIB);
    let server = Server::start(&engine.config());
    let id = server.api.create_with(session(&image)).await;
    says(&server, &id, is_under_way).await;
    registry.dies();
    let ended = server.api.ended(&id).await;
    let error = ended["error"].as_str().unwrap();
    let begins = format!("The image {image} could not be pulled: ");
    assert!(error.starts_with(&begins), "{error}");
    server.nothing_is_left(std::slice::from_ref(&id)).await;
}

pub async fn an_image_store_that_is_full_ends_with_a_sentence_until_there_is_room(engine: &Engine) {
    let _guard = engine.shared().await;
    let small = engine.on_btrfs().await;
    let registry = Registry::of(&small).await;
    let image = image_in(&registry, &small);
    let server = Server::start(&small.config());
    let full = small.disk().join("full");
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/zero", "bs=1M"])
        .arg(format!("of={}", full.display()));
    assert!(!fill.output().unwrap().status.success(), "it is not full");
    let error = fails(&server.api, session(&image)).await;
    let begins = format!("The image {image} could not be pulled: ");
    assert!(
        error.starts_with(&begins) && error.contains("no space left on device"),
        "{error}"
    );
    std::fs::remove_file(full).unwrap();
    let id = server.api.create_with(session(&image)).await;
    server.api.running(&id).await;
    server.api.stop(&id).await;
    small.has_nothing_of(&id).await;
}

/// As when its package is upgraded. Podman's containers have no daemon to go with.
pub async fn an_engine_that_ends_its_containers_as_it_goes_ends_their_sessions_with_a_sentence(
    engine: &Engine,
) {
    let _guard = engine.shared().await;
    // It keeps none alive.
    let other = engine.on_btrfs().await;
    let server = Server::start(&other.config());
    // The first process of a container is deaf to TERM, unless it says what to do then.
    let line = "trap exit TERM; httpd -p $PORT -h /workspace; while :; do sleep 0.1; done";
    let app = json!(["sh", "-c", line]);
    let in_busybox = || json!({"command": app, "image": BUSYBOX, "timeout": 5});
    let id = server.api.create_with(in_busybox()).await;
    server.api.running(&id).await;
    other.goes();
    if engine.kind == Kind::Docker {
        let ended = server.api.ended(&id).await;
        let sentence = "The app ended, and its container engine does not say how";
        assert_eq!(ended["error"], sentence);
        other.come_back();
    } else {
        other.come_back();
        assert_eq!(server.api.session(&id).await["status"], "running");
        server.api.stop(&id).await;
    }
    let next = server.api.create_with(in_busybox()).await;
    server.api.running(&next).await;
    server.api.stop(&next).await;
    for id in [&id, &next] {
        other.has_nothing_of(id).await;
    }
    server.nothing_is_left(&[id, next]).await;
}

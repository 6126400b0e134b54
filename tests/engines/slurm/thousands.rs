//! Thousands of sessions, with commands that answer as Slurm's do at that size.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::Server;

const SESSIONS: usize = 5_000;
const CLIENTS: usize = 16;
/// How long is looked at what it costs that they are there.
const SPAN: Duration = Duration::from_secs(20);

/// The command's own process is what the job is called: no other has that number.
const SBATCH: &str = r#"#!/bin/sh
cat >/dev/null
for word in "$@"; do
  case $word in --job-name=*) name=${word#*=} ;; esac
done
printf '%-20s|%-100s|%-20s|%-24s|%-20s|%-12s|%-300s\n' \
  $$ "$name" PENDING N/A 22:00 0 Priority >>DIR/jobs
echo $$
"#;

/// Whatever it is asked, as it ignores nothing that Dwell asks for.
const SQUEUE: &str = "#!/bin/sh\necho >>DIR/looks\nexec cat DIR/jobs\n";

fn put(dir: &Path, name: &str, script: &str) {
    let file = dir.join(name);
    std::fs::write(&file, script.replace("DIR", &dir.display().to_string())).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap().lines().count()
}

/// How long a process has computed.
fn computed(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|at| fields[*at].parse::<u64>().unwrap())
        .sum();
    // A hundred in a second, on every Linux.
    Duration::from_millis(ticks * 10)
}

#[tokio::test]
async fn thousands_of_sessions_that_wait_are_one_question_and_next_to_no_work() {
    let commands = tempfile::tempdir().unwrap();
    let bin = commands.path();
    std::fs::write(bin.join("jobs"), "").unwrap();
    std::fs::write(bin.join("looks"), "").unwrap();
    put(bin, "sbatch", SBATCH);
    put(bin, "squeue", SQUEUE);
    let config = "domain = \"http://dwell.test\"\n\
                  [limits]\nsessions_per_machine = 100000\nsessions_per_owner = 100000\n\
                  [[launcher]]\nkind = \"slurm\"\ngpus = { A10G = \"gpu:a10g\" }\n";
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let dir = tempfile::tempdir().unwrap();
    let server =
        Server::try_start_in(dir.path(), config, "127.0.0.1:0", &[], &[("PATH", path)]).unwrap();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let api = server.api.clone();
        clients.spawn(async move {
            for _ in 0..SESSIONS.div_ceil(CLIENTS) {
                api.create_with(json!({"command": ["true"], "gpu": "A10G"}))
                    .await;
            }
        });
    }
    clients.join_all().await;
    let began = Instant::now();
    let jobs = bin.join("jobs");
    while lines(&jobs) < SESSIONS {
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "{}",
            lines(&jobs)
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Until what was said of the last is on record.
    let list = server.api.get("/sessions?limit=1000").await.json();
    let last = list[0]["id"].as_str().unwrap().to_owned();
    let is_told =
        |session: &serde_json::Value| session["job"]["timeline"].to_string().contains("Priority");
    server.api.until(&last, is_told).await;
    tokio::time::sleep(Duration::from_secs(4)).await;

    let (before, looks) = (computed(server.pid()), lines(&bin.join("looks")));
    tokio::time::sleep(SPAN).await;
    let took = computed(server.pid()).saturating_sub(before);
    let looks = lines(&bin.join("looks")) - looks;
    let mut said = String::new();
    write!(said, "{took:?} of {SPAN:?}, {looks} looks").unwrap();
    eprintln!("{said}");
    // One each three seconds.
    assert!((5..=8).contains(&looks), "{said}");
    assert!(took < SPAN / 10, "{said}");
    assert_eq!(lines(&jobs), SESSIONS.div_ceil(CLIENTS) * CLIENTS);
}

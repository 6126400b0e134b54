//! Someone who sees when each session's processes are gone, whatever the server and
//! its agents say.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use super::harness::processes;

/// By session: when its processes were seen to be gone, in milliseconds since the host
/// booted; `None` while there are any.
type Sightings = Mutex<BTreeMap<String, Option<u64>>>;

/// One for all tests: it reads all of `/proc` each time.
static SIGHTINGS: LazyLock<&'static Sightings> = LazyLock::new(|| {
    let sightings: &'static Sightings = Box::leak(Box::default());
    std::thread::spawn(|| {
        loop {
            look(sightings);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    sightings
});

/// From now on.
pub fn watch() {
    LazyLock::force(&SIGHTINGS);
}

/// When a session's processes were gone; `None` if they came and went between two looks.
pub fn gone_at(session: &str) -> Option<u64> {
    SIGHTINGS.lock().unwrap().get(session).copied().flatten()
}

fn look(sightings: &Sightings) {
    let mut seen = Vec::new();
    processes(|_, environment| {
        let id = environment
            .split('\0')
            .find_map(|variable| variable.strip_prefix("DWELL_SESSION_ID="));
        seen.extend(id.map(str::to_owned));
        false
    });
    let mut sightings = sightings.lock().unwrap();
    for (id, gone) in sightings.iter_mut() {
        if !seen.contains(id) && gone.is_none() {
            // By the clock that agents use.
            *gone = Some(dwell::clock::monotonic().0);
        }
    }
    sightings.extend(seen.into_iter().map(|id| (id, None)));
}

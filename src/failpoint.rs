//! Points at which a test can have a process die, as if its host had killed it.
//!
//! `DWELL_FAILPOINT=POINT@FILE` in the environment of a server, and so in that of
//! its agents and their first processes: whoever crosses POINT while FILE is there
//! removes FILE and kills itself. So a test arms the point by making FILE, at any
//! moment; it is died at exactly once; and that FILE is gone says that it was
//! crossed. In release builds there are no such points.

macro_rules! points {
    ($($(#[doc = $what:literal])* $point:ident,)*) => {
        /// Where a process can be made to die: around each commit and each effect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $what])* $point,)*
        }

        impl Point {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$point),*];
        }
    };
}

points! {
    /// The server that has just begun has written the first key to its file.
    ServerAfterKeyFile,
    /// A server gives way: it decides nothing more, and has not said so.
    ServerBeforeYours,
    /// All is its successor's; it does not know whether that serves.
    ServerAfterYours,
    /// A successor has taken up everything, and not said so.
    SuccessorBeforeServing,
    /// The driver has decided; nothing is on record.
    DriverBeforeCommit,
    /// All is on record; nothing is done.
    DriverAfterCommit,
    /// Routes and states are shown; no agent is told or launched.
    DriverAfterPublish,
    /// All is done; nobody is answered.
    DriverAfterEffects,
    /// The store has written, and not committed.
    StoreInTransaction,
    /// The store has committed, and told nobody.
    StoreAfterCommit,
    /// A session's directory is there; its `agent.json` is not.
    LauncherBeforeSpec,
    /// `agent.json` is there; no agent runs.
    LauncherAfterSpec,
    /// An agent was spawned; the driver does not know.
    LauncherAfterSpawn,
    /// The server is about to say something to an agent.
    TunnelBeforeTell,
    /// A status was handed to the driver.
    TunnelAfterStatus,
    /// The agent holds its lock and has done nothing else.
    AgentAfterLock,
    /// The journal says that the GPU is held; no process was started.
    AgentAfterBegan,
    /// The first process was started; nothing was heard of it.
    AgentAfterStart,
    /// The engine is to be asked to start the container.
    AgentBeforeContainer,
    /// The engine has started the container; nobody was told.
    AgentAfterContainer,
    /// The journal says that the app answered; the server was not told.
    AgentAfterAnswered,
    /// The tree is to be told to end.
    AgentBeforeTerminate,
    /// The tree is to be killed.
    AgentBeforeKill,
    /// The tree is gone; the journal does not say so.
    AgentBeforeEnded,
    /// The journal says that the tree is gone.
    AgentAfterEnded,
    /// All is cleaned up; the server was not told.
    AgentBeforeReport,
    /// The server has the end on record.
    AgentAfterForget,
    /// The first process knows what to start, and has not.
    InitBeforeApp,
    /// The app was started; nobody was told.
    InitAfterApp,
}

/// Die here, if that is wanted.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn cross(_: Point) {}

/// Die here, if that is wanted.
#[cfg(debug_assertions)]
pub fn cross(point: Point) {
    use std::sync::LazyLock;

    static WANTED: LazyLock<Option<(String, String)>> = LazyLock::new(|| {
        let wanted = std::env::var("DWELL_FAILPOINT").ok()?;
        let (point, file) = wanted.split_once('@')?;
        Some((point.to_owned(), file.to_owned()))
    });
    if let Some((wanted, file)) = WANTED.as_ref()
        && *wanted == format!("{point:?}")
        && std::fs::remove_file(file).is_ok()
    {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        // Process 1 of a namespace cannot kill itself so.
        std::process::abort();
    }
}

//! Signals that tell a process to go: who is not to go by them, and that apps are.
//!
//! Who ends a job or a host tells every process. The agent has its app end in good time; those
//! that watch over it go when the agent says so.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

/// All that are heard of.
const ALL: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// As far as a terminal sends them: one that closes is not a reason to end somebody's session.
///
/// # Errors
/// When the kernel refuses.
pub fn ignore_terminals() -> nix::Result<()> {
    set([Signal::SIGINT, Signal::SIGHUP], SigHandler::SigIgn)
}

/// All of them.
///
/// # Errors
/// When the kernel refuses.
pub fn ignore_all() -> nix::Result<()> {
    set(ALL, SigHandler::SigIgn)
}

/// Have a program started with no signal ignored or blocked: what is so here, or where the
/// server was started in the background, it would inherit.
pub fn as_usual(command: &mut Command) -> &mut Command {
    let reset = || {
        let fixed = [Signal::SIGKILL, Signal::SIGSTOP];
        let changeable = Signal::iterator().filter(|it| !fixed.contains(it));
        set(changeable, SigHandler::SigDfl)?;
        SigSet::empty().thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec this makes system calls that allocate nothing and take no
    // lock.
    unsafe { command.pre_exec(reset) }
}

fn set(signals: impl IntoIterator<Item = Signal>, handler: SigHandler) -> nix::Result<()> {
    for of in signals {
        // SAFETY: no code of ours runs in a handler.
        unsafe { signal(of, handler) }?;
    }
    Ok(())
}

//! How much one owner may have at once.

use crate::limits::Limits;
use crate::refusal::Refusal;

/// May an owner with these many open sessions have one more?
///
/// # Errors
/// [`Refusal::TooManySessions`] when a limit is reached.
pub fn one_more_session(
    open_of_owner: usize,
    open_of_machine: Option<usize>,
    limits: &Limits,
) -> Result<(), Refusal> {
    let reached = |open: usize, limit: u32| open >= usize::try_from(limit).unwrap_or(usize::MAX);
    if reached(open_of_owner, limits.sessions_per_owner)
        || open_of_machine.is_some_and(|open| reached(open, limits.sessions_per_machine))
    {
        return Err(Refusal::TooManySessions);
    }
    Ok(())
}

/// May an owner with `have` of `what` have one more?
///
/// # Errors
/// [`Refusal::TooMany`] when the limit is reached.
pub fn one_more(what: &'static str, have: usize, limit: u32) -> Result<(), Refusal> {
    if have >= usize::try_from(limit).unwrap_or(usize::MAX) {
        return Err(Refusal::TooMany { what, limit });
    }
    Ok(())
}

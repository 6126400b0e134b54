//! Leave to begin. An engine may have started a session's job twice: after its controller
//! crashed, or because it was asked twice. So an agent in a job begins nothing before the
//! server has put on record that it is the one.

use std::time::Duration;

use dwell_core::protocol::{AgentPhase, AgentStatus, ServerMessage};
use dwell_core::time::{Millis, Monotonic};
use tokio::time::{Instant, sleep_until};

use super::at_work::{AtWork, every, signalled};
use super::control::Event;
use crate::clock;

/// How often, if there is no answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Ask until the server has decided, for `limit` at most. Says whether to begin.
pub(super) async fn is_given(at_work: &mut AtWork, began: Monotonic, limit: Millis) -> bool {
    let gives_up_at = Instant::now() + limit.into();
    let mut again = every(AGAIN_AFTER);
    loop {
        tokio::select! {
            event = at_work.events.recv() => match event {
                Some(Event::Connected) => again.reset_immediately(),
                Some(Event::Said(ServerMessage::Begin)) => return true,
                Some(Event::Said(ServerMessage::Servers { urls })) => at_work.servers = Some(urls),
                Some(Event::Said(ServerMessage::Lease { .. })) => {}
                Some(Event::Said(ServerMessage::Forget | ServerMessage::Stop { .. }))
                | Some(Event::Refused)
                | None => return false,
            },
            _ = again.tick() => at_work.status.send_modify(|status| {
                status.held_ms = clock::monotonic().since(began);
            }),
            () = signalled(&mut at_work.terminations) => return false,
            () = sleep_until(gives_up_at) => return false,
        }
    }
}

/// What an agent says that asks.
pub(super) fn asks(granted_ms: Millis) -> Result<AgentStatus, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(AgentStatus {
        held_ms: Millis::ZERO,
        granted_ms,
        phase: AgentPhase::Asks {
            agent: crate::keys::hex(&bytes),
        },
    })
}

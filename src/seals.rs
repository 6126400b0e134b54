//! What the server hands out and knows again without having kept it: a session's own
//! token, a pass that a browser keeps, a ticket that is good once.

use dwell_core::id::{KeyId, SessionId, ShareId};
use dwell_core::time::Timestamp;
use hmac::Mac;
use uuid::Uuid;

use crate::keys::{hex, keyed, random, unhex};

/// What a session's own token begins with.
pub(crate) const TOKEN: &str = "dwell_session_";
/// What a pass begins with.
pub(crate) const PASS: &str = "dwell_pass_";
/// What a ticket begins with.
pub(crate) const TICKET: &str = "dwell_ticket_";

const MAC_BYTES: usize = 32;
const GRANT_BYTES: usize = 17;
const NONCE_BYTES: usize = 16;

/// By what somebody passes a session's door. A pass or a ticket is as good as that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A key of the session's owner.
    Key(KeyId),
    /// A share link.
    Share(ShareId),
    /// The session's own token.
    Session,
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(id) => write!(f, "key {id}"),
            Self::Share(id) => write!(f, "share {id}"),
            Self::Session => f.write_str("token"),
        }
    }
}

impl Grant {
    fn bytes(self) -> [u8; GRANT_BYTES] {
        let (kind, id) = match self {
            Self::Key(id) => (1, id.0),
            Self::Share(id) => (2, id.0),
            Self::Session => (3, Uuid::nil()),
        };
        let mut bytes = [kind; GRANT_BYTES];
        if let Some(rest) = bytes.get_mut(1..) {
            rest.copy_from_slice(id.as_bytes());
        }
        bytes
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let (kind, id) = bytes.split_first()?;
        let id = Uuid::from_slice(id).ok()?;
        match kind {
            1 => Some(Self::Key(KeyId(id))),
            2 => Some(Self::Share(ShareId(id))),
            3 => Some(Self::Session),
            _ => None,
        }
    }
}

/// What tells one ticket from all others.
pub type Nonce = [u8; NONCE_BYTES];

/// A ticket that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) grant: Grant,
    pub(crate) nonce: Nonce,
    pub(crate) expires_at: Timestamp,
}

/// Makes them, and knows them again. Each is for one session and no other.
#[derive(Clone)]
pub(crate) struct Seals {
    server_secret: [u8; 32],
    /// Of this process alone where which tickets were used is not known to the next.
    ticket_secret: [u8; 32],
}

impl Seals {
    pub(crate) fn new(server_secret: [u8; 32]) -> Result<Self, getrandom::Error> {
        Ok(Self {
            server_secret,
            ticket_secret: random()?,
        })
    }

    /// The same, whose tickets other servers know too.
    pub(crate) const fn shared(self) -> Self {
        Self {
            ticket_secret: self.server_secret,
            ..self
        }
    }

    /// The session's own token.
    pub(crate) fn token(&self, session: SessionId) -> String {
        format!("{TOKEN}{}", seal(&self.server_secret, TOKEN, session, &[]))
    }

    pub(crate) fn is_token(&self, session: SessionId, presented: &str) -> bool {
        open(&self.server_secret, TOKEN, session, presented).is_some_and(|rest| rest.is_empty())
    }

    /// For a browser to keep.
    pub(crate) fn pass(&self, session: SessionId, grant: Grant) -> String {
        let sealed = seal(&self.server_secret, PASS, session, &grant.bytes());
        format!("{PASS}{sealed}")
    }

    pub(crate) fn open_pass(&self, session: SessionId, presented: &str) -> Option<Grant> {
        Grant::of(&open(&self.server_secret, PASS, session, presented)?)
    }

    /// Good until then, and once.
    pub(crate) fn ticket(
        &self,
        session: SessionId,
        grant: Grant,
        expires_at: Timestamp,
    ) -> Result<String, getrandom::Error> {
        let nonce: Nonce = random()?;
        let content = [&grant.bytes()[..], &nonce, &expires_at.0.to_be_bytes()].concat();
        let sealed = seal(&self.ticket_secret, TICKET, session, &content);
        Ok(format!("{TICKET}{sealed}"))
    }

    pub(crate) fn open_ticket(&self, session: SessionId, presented: &str) -> Option<Ticket> {
        let content = open(&self.ticket_secret, TICKET, session, presented)?;
        let (grant, rest) = content.split_at_checked(GRANT_BYTES)?;
        let (nonce, expires_at) = rest.split_at_checked(NONCE_BYTES)?;
        Some(Ticket {
            grant: Grant::of(grant)?,
            nonce: nonce.try_into().ok()?,
            expires_at: Timestamp(i64::from_be_bytes(expires_at.try_into().ok()?)),
        })
    }
}

fn seal(secret: &[u8; 32], kind: &str, session: SessionId, content: &[u8]) -> String {
    let mac = mac(secret, kind, session, content).finalize().into_bytes();
    hex(&[content, &mac[..]].concat())
}

/// What is in it; None if it was not sealed so.
fn open(secret: &[u8; 32], kind: &str, session: SessionId, presented: &str) -> Option<Vec<u8>> {
    let mut content = unhex(presented.strip_prefix(kind)?)?;
    let mac_begins = content.len().checked_sub(MAC_BYTES)?;
    let presented_mac = content.split_off(mac_begins);
    let mac = mac(secret, kind, session, &content);
    mac.verify_slice(&presented_mac).ok()?;
    Some(content)
}

fn mac(secret: &[u8; 32], kind: &str, session: SessionId, content: &[u8]) -> impl Mac {
    let mut mac = keyed(secret);
    mac.update(kind.as_bytes());
    mac.update(session.0.as_bytes());
    mac.update(content);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_known_again_for_its_own_session_and_kind_alone() {
        let seals = Seals::new([7; 32]).unwrap();
        let [one, two] = [1, 2].map(|number| SessionId(Uuid::from_u128(number)));
        let grant = Grant::Share(ShareId(Uuid::from_u128(9)));
        let (token, pass) = (seals.token(one), seals.pass(one, grant));
        let ticket = seals.ticket(one, grant, Timestamp(5)).unwrap();
        assert!(seals.is_token(one, &token));
        assert!(!seals.is_token(two, &token));
        assert_eq!(seals.open_pass(one, &pass), Some(grant));
        assert_eq!(seals.open_pass(two, &pass), None);
        let opened = seals.open_ticket(one, &ticket).unwrap();
        assert_eq!((opened.grant, opened.expires_at), (grant, Timestamp(5)));
        assert_eq!(seals.open_ticket(two, &ticket), None);
        let other_kind = pass.replacen(PASS, TOKEN, 1);
        assert!(!seals.is_token(one, &other_kind));
        for text in [
            "",
            "dwell_pass_",
            "dwell_pass_zz",
            "dwell_pass_é",
            &pass[..40],
        ] {
            assert_eq!(seals.open_pass(one, text), None, "{text}");
        }
        // Another server's, and the ticket of an earlier process of this one.
        assert_eq!(Seals::new([8; 32]).unwrap().open_pass(one, &pass), None);
        let again = Seals::new([7; 32]).unwrap();
        assert_eq!(again.open_pass(one, &pass), Some(grant));
        assert_eq!(again.open_ticket(one, &ticket), None);
    }

    #[test]
    fn no_byte_of_a_pass_can_be_changed() {
        let seals = Seals::new([7; 32]).unwrap();
        let session = SessionId(Uuid::from_u128(1));
        let pass = seals.pass(session, Grant::Session);
        for at in PASS.len()..pass.len() {
            let mut changed = pass.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(seals.open_pass(session, &changed), None);
        }
    }
}

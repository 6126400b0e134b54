//! Who may pass a private session's door.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dwell_core::id::{KeyId, SessionId, ShareId};
use dwell_core::owner::Owner;
use dwell_core::share::{Scope, Visit};
use dwell_core::time::{Millis, Timestamp};
use memchr::memmem;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::clock;
use crate::keys::{KEY_PREFIX, KeyError, KeyRing, hash, hex, random};
use crate::seals::{Grant, Nonce, PASS, Seals, TICKET, TOKEN};
use crate::shares::ShareRing;

/// For how long a ticket is good: a redirect is followed at once.
const TICKET_GOOD_FOR: Millis = Millis(60_000);
/// Visits that may wait to be put on record. Who comes is not held up by a slow store.
const VISITS_MAX: usize = 1_024;
/// What a share link's secret begins with.
const SHARE_PREFIX: &str = "dwell_share_";

/// Tickets that may wait to be redeemed.
const REDEMPTIONS_MAX: usize = 64;
/// A ticket whose redemption takes longer is refused.
const REDEEMED_WITHIN: Duration = Duration::from_secs(5);

/// A ticket that is to be good once among several servers: true is answered to the first.
pub type Redemption = (Nonce, oneshot::Sender<bool>);

/// A visit by a share link, for the record.
pub type ShareVisit = (SessionId, ShareId, Visit);

/// Who was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// By what.
    pub grant: Grant,
    /// To do what.
    pub scope: Scope,
}

/// The door's rules, and all that they are kept by. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Admission {
    /// Keys, as they are on record.
    pub keys: KeyRing,
    /// Share links of open sessions, as they are on record.
    pub shares: ShareRing,
    seals: Seals,
    /// Tickets that were used, until they would be good no more.
    used: Arc<Mutex<HashMap<Nonce, Timestamp>>>,
    visits: mpsc::Sender<ShareVisit>,
    /// Where several servers redeem tickets, if there are several: those in `used` may be
    /// used here then.
    redemptions: Option<mpsc::Sender<Redemption>>,
}

impl Admission {
    /// Rules that know again what was sealed with `server_secret`, and the visits that they
    /// see.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new(
        server_secret: [u8; 32],
    ) -> Result<(Self, mpsc::Receiver<ShareVisit>), getrandom::Error> {
        let (visits, seen) = mpsc::channel(VISITS_MAX);
        let admission = Self {
            keys: KeyRing::default(),
            shares: ShareRing::default(),
            seals: Seals::new(server_secret)?,
            used: Arc::default(),
            visits,
            redemptions: None,
        };
        Ok((admission, seen))
    }

    /// The same for several servers, and the tickets that are to be redeemed.
    #[must_use]
    pub fn shared(self) -> (Self, mpsc::Receiver<Redemption>) {
        let (redemptions, to_redeem) = mpsc::channel(REDEMPTIONS_MAX);
        let shared = Self {
            seals: self.seals.shared(),
            redemptions: Some(redemptions),
            ..self
        };
        (shared, to_redeem)
    }

    /// Redeem the ticket that the request with this head presents for `session`, if it does
    /// and several servers know it: [`Self::check`] is told so.
    pub async fn redeem(&self, session: SessionId, head: &[u8]) {
        let Some(redemptions) = &self.redemptions else {
            return;
        };
        let Some(ticket) = memmem::find(head, TICKET.as_bytes())
            .and_then(|at| {
                let text = head.get(at..)?;
                let ends = |byte: &u8| !byte.is_ascii_alphanumeric() && *byte != b'_';
                let length = text.iter().position(ends).unwrap_or(text.len());
                std::str::from_utf8(text.get(..length)?).ok()
            })
            .and_then(|text| self.seals.open_ticket(session, text))
            .filter(|ticket| clock::wall() < ticket.expires_at)
        else {
            return;
        };
        let (reply, is_first) = oneshot::channel();
        let redeemed = async {
            redemptions.send((ticket.nonce, reply)).await.ok()?;
            is_first.await.ok()
        };
        if timeout(REDEEMED_WITHIN, redeemed).await == Ok(Some(true)) {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.insert(ticket.nonce, ticket.expires_at);
        }
    }

    /// A new share link's secret.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new_share_secret() -> Result<String, getrandom::Error> {
        Ok(format!("{SHARE_PREFIX}{}", hex(&random::<32>()?)))
    }

    /// The session's own token, for programs. It is the same as long as the session is.
    #[must_use]
    pub fn token(&self, session: SessionId) -> String {
        self.seals.token(session)
    }

    /// What a browser keeps to pass again.
    #[must_use]
    pub fn pass(&self, session: SessionId, grant: Grant) -> String {
        self.seals.pass(session, grant)
    }

    /// A way in for who has `key`, good once and for a minute, and when it ends.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn ticket(
        &self,
        session: SessionId,
        key: KeyId,
    ) -> Result<(String, Timestamp), getrandom::Error> {
        let expires_at = clock::wall().plus(TICKET_GOOD_FOR);
        let ticket = self.seals.ticket(session, Grant::Key(key), expires_at)?;
        Ok((ticket, expires_at))
    }

    /// May who presents this secret, from this address, pass to `owner`'s `session`?
    ///
    /// # Errors
    /// When not.
    pub fn check(
        &self,
        secret: &str,
        session: SessionId,
        owner: &Owner,
        from: IpAddr,
    ) -> Result<Admitted, KeyError> {
        let now = clock::wall();
        let grant = self.grant(secret, session, now)?;
        let scope = match grant {
            Grant::Session => Scope::Use,
            Grant::Share(id) => self.shares.scope(id, session, now)?,
            Grant::Key(id) if self.keys.principal(id)?.owner() == *owner => Scope::Use,
            // That it is good elsewhere is nobody's business here.
            Grant::Key(_) => return Err(KeyError::Unknown),
        };
        if let Grant::Share(id) = grant {
            let visit = Visit { from, at: now };
            if self.shares.is_new_visit(id, visit) {
                tracing::info!(%session, share = %id, %from, "a visit by a share link");
                if self.visits.try_send((session, id, visit)).is_err() {
                    tracing::warn!(share = %id, "a visit was not put on record");
                }
            }
        }
        Ok(Admitted { grant, scope })
    }

    fn grant(&self, secret: &str, session: SessionId, now: Timestamp) -> Result<Grant, KeyError> {
        let grant = if secret.starts_with(PASS) {
            self.seals.open_pass(session, secret)
        } else if secret.starts_with(TICKET) {
            let ticket = self.seals.open_ticket(session, secret);
            let ticket = ticket.filter(|ticket| now < ticket.expires_at);
            ticket
                .filter(|ticket| self.is_first_use(ticket.nonce, ticket.expires_at, now))
                .map(|ticket| ticket.grant)
        } else if secret.starts_with(TOKEN) {
            let is_token = self.seals.is_token(session, secret);
            is_token.then_some(Grant::Session)
        } else if secret.starts_with(SHARE_PREFIX) {
            self.shares.find(hash(secret)).map(Grant::Share)
        } else {
            return Ok(Grant::Key(self.keys.check(secret)?.0));
        };
        grant.ok_or(KeyError::Unknown)
    }

    fn is_first_use(&self, nonce: Nonce, expires_at: Timestamp, now: Timestamp) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, expires_at| now < *expires_at);
        match self.redemptions {
            None => used.insert(nonce, expires_at).is_none(),
            Some(_) => used.remove(&nonce).is_some(),
        }
    }

    /// Is this a secret of ours, or does it look like one? It may have been one.
    #[must_use]
    pub fn is_ours(&self, secret: &[u8]) -> bool {
        let is_known = |key: &str| self.keys.check(key).err() != Some(KeyError::Unknown);
        secret.starts_with(KEY_PREFIX.as_bytes()) || std::str::from_utf8(secret).is_ok_and(is_known)
    }
}

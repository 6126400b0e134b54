//! What all connections to one session share, and how its door is found by name.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::patience::TimeLimits;
use super::places::{PER_SESSION, Places};
use super::route::Current;
use crate::admission::Admission;
use crate::session_urls::Address;

/// What all connections to one session share.
pub(super) struct Door {
    pub(super) address: Address,
    /// The host that requests for it name, where it has a name.
    host: Option<String>,
    pub(super) admission: Admission,
    /// The server's own origin.
    pub(super) home: Arc<str>,
    pub(super) current: Current,
    pub(super) gives_way: watch::Receiver<bool>,
    pub(super) limits: TimeLimits,
    pub(super) places: Arc<Places>,
}

impl Door {
    pub(super) fn new(
        address: Address,
        admission: Admission,
        home: Arc<str>,
        current: Current,
        gives_way: watch::Receiver<bool>,
        limits: TimeLimits,
    ) -> Self {
        Self {
            address,
            host: None,
            admission,
            home,
            current,
            gives_way,
            limits,
            places: Arc::new(Places::new(PER_SESSION)),
        }
    }

    /// Is a request for it that names `host`? Whatever comes to a port is.
    pub(super) fn is_for(&self, host: Option<&[u8]>) -> bool {
        let Some(own) = &self.host else {
            return true;
        };
        host.is_some_and(|host| name_of(host).eq_ignore_ascii_case(own.as_bytes()))
    }
}

/// A host without its port, nor the dot that may stand behind a whole name.
fn name_of(host: &[u8]) -> &[u8] {
    let port = host.iter().rposition(|byte| *byte == b':');
    let is_port = |at: &usize| host.iter().skip(at + 1).all(u8::is_ascii_digit);
    let name = host.get(..port.filter(is_port).unwrap_or(host.len()));
    let name = name.unwrap_or_default();
    name.strip_suffix(b".").unwrap_or(name)
}

/// The doors that have names, and the domain that these are under.
#[derive(Default)]
pub(super) struct Names {
    /// With the dot before it. None where doors have no names.
    suffix: Option<String>,
    doors: RwLock<HashMap<String, Arc<Door>>>,
}

/// Whom a host names.
pub(super) enum Named {
    /// The session behind this door.
    Door(Arc<Door>),
    /// A session that is not, or not any more, or never was.
    Nobody,
    /// No session.
    Other,
}

impl Names {
    pub(super) fn under(domain: Option<&str>) -> Self {
        Self {
            suffix: domain.map(|domain| format!(".{domain}")),
            doors: RwLock::default(),
        }
    }

    /// Whom `host` names. Each name of the domain is some session's, or nobody's.
    pub(super) fn whose(&self, host: Option<&[u8]>) -> Named {
        match self.label(host) {
            None => Named::Other,
            Some(label) => {
                let doors = self.doors.read().unwrap_or_else(PoisonError::into_inner);
                doors
                    .get(label.as_str())
                    .map_or(Named::Nobody, |door| Named::Door(Arc::clone(door)))
            }
        }
    }

    /// What stands before the domain in `host`, if anything does.
    pub(super) fn label(&self, host: Option<&[u8]>) -> Option<String> {
        let suffix = self.suffix.as_ref()?;
        let name = std::str::from_utf8(name_of(host?)).ok()?;
        let name = name.to_ascii_lowercase();
        name.strip_suffix(suffix.as_str()).map(str::to_owned)
    }

    pub(super) fn add(&self, name: &str, mut door: Door) {
        let suffix = self.suffix.as_deref().unwrap_or_default();
        door.host = Some(format!("{name}{suffix}"));
        let mut doors = self.doors.write().unwrap_or_else(PoisonError::into_inner);
        doors.insert(name.to_owned(), Arc::new(door));
    }

    pub(super) fn forget(&self, name: &str) {
        let mut doors = self.doors.write().unwrap_or_else(PoisonError::into_inner);
        doors.remove(name);
    }

    pub(super) fn forget_all(&self) {
        let mut doors = self.doors.write().unwrap_or_else(PoisonError::into_inner);
        doors.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_a_session_only_if_it_is_one_label_of_the_domain() {
        let names = Names::under(Some("gpu.test"));
        for (host, label) in [
            ("a1.gpu.test", Some("a1")),
            ("A1.GPU.Test:8443", Some("a1")),
            ("a1.gpu.test.", Some("a1")),
            ("a1.gpu.test.:80", Some("a1")),
            ("gpu.test", None),
            ("a1xgpu.test", None),
            ("127.0.0.1:80", None),
            ("[::1]:80", None),
            ("gpu.test.evil.test", None),
            // Nobody's, and not the API's either.
            (".gpu.test", Some("")),
            ("b.a1.gpu.test", Some("b.a1")),
        ] {
            let found = names.label(Some(host.as_bytes()));
            assert_eq!(found.as_deref(), label, "{host}");
        }
        assert_eq!(names.label(None), None);
        assert_eq!(Names::under(None).label(Some(b"a1.gpu.test")), None);
    }
}

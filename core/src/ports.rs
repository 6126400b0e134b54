//! Session ports: in port mode every session has one of its own.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// The range that session URLs take their ports from.
///
/// Handed out in a circle, so that a port is left alone for as long as can be
/// after its session ended and an old link meets a page that says so rather than
/// another session.
#[derive(Clone, Debug)]
pub struct PortPool {
    range: RangeInclusive<u16>,
    next: u16,
    taken: BTreeSet<u16>,
    unusable: BTreeSet<u16>,
}

impl PortPool {
    /// A pool over `range` whose circle starts at `first` (or at the range's start
    /// if that is outside).
    #[must_use]
    pub fn new(range: RangeInclusive<u16>, first: u16) -> Self {
        let next = if range.contains(&first) {
            first
        } else {
            *range.start()
        };
        Self {
            range,
            next,
            taken: BTreeSet::new(),
            unusable: BTreeSet::new(),
        }
    }

    /// The port that the next session gets, if one is free.
    #[must_use]
    pub fn peek(&self) -> Option<u16> {
        let (start, end) = (*self.range.start(), *self.range.end());
        (self.next..=end)
            .chain(start..self.next)
            .find(|port| !self.taken.contains(port) && !self.unusable.contains(port))
    }

    /// A session has this port now.
    pub fn take(&mut self, port: u16) {
        self.taken.insert(port);
        self.next = if port >= *self.range.end() || port < *self.range.start() {
            *self.range.start()
        } else {
            port + 1
        };
    }

    /// The session that had it has ended.
    pub fn give_back(&mut self, port: u16) {
        self.taken.remove(&port);
    }

    /// Another program listens on this port: never give it out.
    pub fn rule_out(&mut self, port: u16) {
        self.unusable.insert(port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_not_given_again_before_the_circle_closes() {
        let mut pool = PortPool::new(10..=12, 11);
        let mut given = Vec::new();
        for _ in 0..4 {
            let port = pool.peek().unwrap();
            pool.take(port);
            pool.give_back(port);
            given.push(port);
        }
        assert_eq!(given, [11, 12, 10, 11]);
    }

    #[test]
    fn a_full_pool_has_none_and_a_port_ruled_out_never_comes() {
        let mut pool = PortPool::new(10..=11, 10);
        pool.rule_out(10);
        pool.take(pool.peek().unwrap());
        assert_eq!(pool.peek(), None);
        pool.give_back(11);
        assert_eq!(pool.peek(), Some(11));
    }
}
